"""What `pip install` gives: a wheel with the data in it, and commands that run anywhere."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from uv import find_uv_bin

import erk
import metrics

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SOURCES = ("erk", "metrics", "configs", "checkpoints")
FILES = ("generate.py", "evaluate.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


def uv(*words):
    subprocess.run([find_uv_bin(), "--quiet", "--offline", *map(str, words)], check=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what a package is built from: building leaves files behind."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """The wheel, built from the source archive."""
    made = tmp_path_factory.mktemp("made")
    uv("build", "--no-build-isolation", "--python", sys.executable, "--out-dir", made, tree)
    assert len([*made.glob("erk_guid-*.tar.gz")]) == 1
    (wheel,) = made.glob("erk_guid-*-py3-none-any.whl")
    return wheel


def install(folder, *what):
    """A new environment with our package; all others it sees in the environment of the tests."""
    uv("venv", "--python", sys.executable, folder)
    (site,) = folder.glob("lib/*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    uv("pip", "install", "--python", folder, "--no-deps", "--no-build-isolation", *what)
    return folder / "bin"


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory):
    return install(tmp_path_factory.mktemp("installed") / "venv", wheel)


def run(cwd, *words):
    """Standard output of a command that does not know this repository."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RANK", "WORLD_SIZE")}
    env |= {"ERK_CACHE": str(cwd / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_package_is_declared():
    folders = {path.parent for name in ("erk", "metrics") for path in (ROOT / name).rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    setuptools = PROJECT["tool"]["setuptools"]
    assert {*setuptools["packages"]} == packages | {*setuptools["package-dir"]}


def test_the_wheel_holds_the_data_and_the_types(wheel):
    names = {*zipfile.ZipFile(wheel).namelist()}
    expected = {
        path.relative_to(ROOT).as_posix()
        for folder in ("erk", "metrics")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".typed")
    }
    expected |= {
        f"erk/{path.relative_to(ROOT).as_posix()}"
        for folder in ("configs", "checkpoints")
        for path in (ROOT / folder).iterdir()
    }
    expected |= {"erk_commands/generate.py", "erk_commands/evaluate.py"}
    assert {"erk/py.typed", "metrics/py.typed"} < expected
    assert expected == {name for name in names if ".dist-info/" not in name}


def test_types_see_the_public_names():
    for package in (erk, metrics):
        source = Path(package.__file__).read_text("utf-8")
        for name in package.__all__:
            assert f"import {name} as {name}\n" in source, name
            assert getattr(package, name) is not None


def test_installed_commands_sample_and_measure(commands, tmp_path):
    job = ["--preset", "digits", "--seeds", "0-3", "--steps", "4", "--outdir", "pictures"]
    run(tmp_path, commands / "erk generate", *job)
    assert len([*(tmp_path / "pictures").glob("*.png")]) == 4
    told = run(tmp_path, commands / "erk evaluate", "--images", "pictures", "--ref", "digits")
    row = json.loads((tmp_path / "results" / "pictures-digits.json").read_text("utf-8"))
    assert "recall" in told and row["n"] == 4
    assert row["command"].startswith("erk evaluate --images pictures")
    assert row["commit"] is None and row["versions"]["erk-guid"] == erk.__version__


@pytest.mark.parametrize("name", PROJECT["project"]["scripts"])
def test_every_command_answers_without_torch(commands, tmp_path, name):
    module, _, function = PROJECT["project"]["scripts"][name].partition(":")
    assert f"Usage: {name} [OPTIONS]" in run(tmp_path, commands / name, "--help")
    if module.startswith("erk_commands"):
        assert erk.__version__ in run(tmp_path, commands / name, "--version")
    look = f"import sys; from {module} import {function}; print('torch' in sys.modules)"
    assert run(tmp_path, commands / "python", "-c", look) == "False\n"


def test_an_editable_install_finds_the_data(tree, tmp_path):
    bin = install(tmp_path / "venv", "-e", tree)
    look = "from erk.data import data; print(data('configs'))"
    assert run(tmp_path, bin / "python", "-c", look) == f"{tree / 'configs'}\n"
    assert "digits-cfg" in run(tmp_path, bin / "erk generate", "--list-presets")


@pytest.mark.slow
def test_torchrun_starts_installed_commands(commands, tmp_path):
    torchrun = [commands / "python", "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    job = ["--preset", "digits", "--seeds", "0-7", "--batch", "4", "--steps", "4", "--outdir"]
    run(tmp_path, *torchrun, "--no-python", commands / "erk generate", *job, "a")
    run(tmp_path, *torchrun, "-m", "erk_commands.generate", *job, "b")
    made = [(tmp_path / name / "manifest.jsonl").read_bytes() for name in ("a", "b")]
    assert made[0] == made[1] and made[0].count(b"\n") == 8
