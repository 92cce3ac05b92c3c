"""One list of packages: pyproject.toml, the two locks and environment.yml must agree."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.txt", "requirements-dev.txt")
PIN = re.compile(r"([A-Za-z0-9][\w.-]*)==([^\s;]+)(?: ; (.*))?")
BOUND = re.compile(r"([A-Za-z0-9][\w.-]*)(?:>=([\d.]+))?")


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock):
    """{(package, marker): (version, hashes)} of a lock file."""
    result = {}
    text = (ROOT / lock).read_text("utf-8").replace("\\\n", " ")
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        requirement, *hashes = re.split(r"\s+--hash=", line)
        name, version, marker = PIN.fullmatch(requirement.strip()).groups()
        result[normal(name), marker] = version, hashes
    return result


def declared(extra=None):
    """{package: lower bound or None} of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {normal(name): bound for name, bound in (BOUND.fullmatch(n).groups() for n in lines)}


def number(version):
    return [int(part) for part in re.match(r"[\d.]*\d", version)[0].split(".")]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_its_hashes(lock):
    for package, (_, hashes) in pins(lock).items():
        assert hashes, package
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes), package


def test_the_dev_lock_holds_all_of_the_base_lock():
    base, dev = map(pins, LOCKS)  # a package that the dev tools need everywhere has no marker there
    held = {(name, marker): dev.get((name, None), dev.get((name, marker))) for name, marker in base}
    assert held == base


@pytest.mark.parametrize(
    ("lock", "extra"), [(LOCKS[0], None), (LOCKS[1], "dev"), (LOCKS[1], "docs")]
)
def test_the_locks_hold_what_is_declared(lock, extra):
    versions = {}
    for (name, _), (version, _) in pins(lock).items():
        versions.setdefault(name, []).append(version)
    for name, bound in declared(extra).items():
        assert name in versions, f"renew {lock} (see the end of pyproject.toml)"
        assert all(number(v) >= number(bound or "0") for v in versions[name]), name


def test_the_conda_environment_is_in_step():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    *conda, inner = environment["dependencies"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"python{project['requires-python']}" in conda
    direct = declared()
    expected = {(n, m): v for (n, m), (v, _) in pins("requirements.txt").items() if n in direct}
    result = (PIN.fullmatch(line).groups() for line in inner["pip"])
    assert {(normal(name), marker): version for name, version, marker in result} == expected


def tracked():
    """The files of the repository as git lists them, those not added yet too."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name for name in listed.decode().split("\0") if name]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an unpacked archive has no git listing")
def test_no_file_names_a_package_registry():
    # Where packages come from is the choice of whoever installs them: a mirror, a local folder.
    hosts = rb"pyp[i]\.(org|python)|pythonhoste[d]\.|download\.pytorc[h]\.|anacond[a]\.(org|com)"
    options = rb"--(extra-)?inde[x]-url|--find-link[s]|--default-inde[x]\b|\[\[tool\.uv\.inde[x]"
    pattern = re.compile(hosts + b"|" + options)
    naming = [p.name for p in tracked() if p.is_file() and pattern.search(p.read_bytes())]
    assert naming == []


@pytest.mark.parametrize("lock", LOCKS)
def test_the_locks_hold_no_option_and_no_address(lock):
    text = (ROOT / lock).read_text("utf-8")
    assert "://" not in text and not re.search("^-", text, re.MULTILINE)
