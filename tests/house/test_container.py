"""The Dockerfile: its files exist and reach Docker, and its commands run, here without Docker."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from fnmatch import fnmatch
from pathlib import Path

import pytest
from test_packaging import FILES, SOURCES

ROOT = Path(__file__).parents[2]
OF_THE_IMAGE = {"command", "/opt/erk/bin/pip", "apt-get", "useradd"}  # a builtin, ours, Debian's


def instructions():
    """Return (name, arguments) of every instruction of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, words.strip()) for name, _, words in (line.partition(" ") for line in joined)]


def of(name):
    return [words for other, words in instructions() if other == name]


def copied():
    """Return {path in the repository: folder or file in the image}."""
    pairs = {}
    for words in of("COPY"):
        *sources, target = words.split()
        pairs |= {one: target + one * target.endswith("/") for one in sources}
    return pairs


def sent_to_docker(name):
    """Whether .dockerignore keeps a path: the last line that matches it decides."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    matching = [one for one in patterns if fnmatch(name, one.lstrip("!").removeprefix("**/"))]
    return not matching or matching[-1].startswith("!")


def test_the_instructions_are_known_and_in_order():
    names = [name for name, _ in instructions()]
    assert {*names} == {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "CMD"}
    assert names[:2] == ["ARG", "FROM"] and of("FROM") == ["${BASE}"]
    assert of("ARG") == ["BASE=python:3.12-slim"]
    assert of("USER") == ["erk"] and "useradd --create-home erk" in of("RUN")[-1]
    assert names.index("USER") > len(names) - 1 - names[::-1].index("RUN")  # root installs


def test_the_files_exist_and_suffice_for_the_package():
    for source in copied():
        assert (ROOT / source).exists() and sent_to_docker(source), source
    needed = {*SOURCES, *FILES, "requirements.txt"} - {"generate.py", "MANIFEST.in"}
    assert {*copied()} == needed
    assert not any(map(sent_to_docker, (".git", ".venv", "results", "tests", "__pycache__")))


def test_the_commands_exist_and_parse():
    for words in of("RUN"):
        assert subprocess.run(["sh", "-n", "-c", words]).returncode == 0, words
        for part in re.split(r"&&|\|\||;", words):
            name, *_ = shlex.split(part.strip(" {}")) or [":"]
            assert name in OF_THE_IMAGE or shutil.which(name) or name == ":", part


@pytest.mark.slow
def test_the_steps_give_the_command(tmp_path):
    """The steps in a folder, with the packages of this environment: pip finds them installed."""
    (tmp_path / "opt").mkdir()
    for source, target in copied().items():
        path = tmp_path / target.lstrip("/")
        path.parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, path)
    here = re.compile(r"(?<![\w/])/(?=(opt|src|cache|work)\b)")
    steps = "\n".join(here.sub(f"{tmp_path}/", words) for words in of("RUN"))
    site = f"{tmp_path}/opt/erk/lib/python{sysconfig.get_python_version()}/site-packages"
    see_others = f"echo {sysconfig.get_path('purelib')} >{site}/others.pth"
    script = f"""set -e
        useradd() {{ :; }}
        python3() {{ {shlex.quote(sys.executable)} "$@" && {see_others}; }}
        {steps}"""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Successfully installed erk-guid" in done.stdout
    fetched = set(re.findall(r"Downloading ([a-z]+)", done.stdout))
    assert fetched <= {"pip", "setuptools"}  # a new environment has its own, of older versions
    assert (tmp_path / "work").stat().st_mode & 0o777 == 0o777
    env = os.environ | {"PATH": f"{tmp_path}/opt/erk/bin:{os.environ['PATH']}"}
    shown = subprocess.run(
        ["erk", "presets"], cwd=tmp_path / "work", env=env, capture_output=True, text=True
    )
    assert shown.returncode == 0 and "mnist-autog" in shown.stdout
