"""What pyproject.toml cannot say by a rule: which packages a wheel holds.

Everything below erk/ and metrics/ is packaged. configs/ and checkpoints/ stay at the top of the
repository; a wheel carries them inside erk (erk/io/resources.py finds either).
"""

from setuptools import find_packages, setup

DATA = {"erk.configs": "configs", "erk.checkpoints": "checkpoints"}

setup(
    packages=[*find_packages(include=["erk", "erk.*", "metrics", "metrics.*"]), *DATA],
    package_dir=DATA,
)
