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
FILES = ("setup.py", "pyproject.toml", "generate.py", "README.md", "LICENSE", "MANIFEST.in")


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
    for scratch in ("scratch.py", "notes/draft.py", "erkling/__init__.py"):
        (tree / scratch).parent.mkdir(exist_ok=True)
        (tree / scratch).write_text("raise SystemExit('not a part of the package')\n")
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """The wheel, built from the source archive."""
    written = tmp_path_factory.mktemp("made")
    uv("build", "--no-build-isolation", "--python", sys.executable, "--out-dir", written, tree)
    assert len([*written.glob("erk_guid-*.tar.gz")]) == 1
    (wheel,) = written.glob("erk_guid-*-py3-none-any.whl")
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


def test_the_wheel_holds_the_data_and_the_types(wheel):
    names = {*zipfile.ZipFile(wheel).namelist()}
    expected = {
        path.relative_to(ROOT).as_posix()
        for folder in ("erk", "metrics")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".typed", ".json", ".mplstyle")
    }
    expected |= {
        f"erk/{path.relative_to(ROOT).as_posix()}"
        for folder in ("configs", "checkpoints")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    assert {"erk/py.typed", "metrics/py.typed"} < expected
    assert expected == {name for name in names if ".dist-info/" not in name}


def test_types_see_the_public_names():
    for package in (erk, metrics):
        source = Path(package.__file__).read_text("utf-8")
        for name in package.__all__:
            assert f"import {name} as {name}\n" in source, name
            assert getattr(package, name) is not None


def test_installed_commands_sample_and_measure(commands, tmp_path):
    for name in ("metrics", "torch", "click", "configs"):  # the user's files are not ours
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the user')\n")
    job = ["--preset", "digits", "--seeds", "0-3", "--steps", "4", "--outdir", "images"]
    run(tmp_path, commands / "erk", "generate", *job)
    assert len([*(tmp_path / "images").glob("*.png")]) == 4
    for command in ([commands / "erk"], [commands / "python", "-m", "erk"]):
        output = run(tmp_path, *command, "evaluate", "--images", "images", "--ref", "digits")
        row = json.loads((tmp_path / "results" / "images-digits.json").read_text("utf-8"))
        assert "recall" in output and row["n"] == 4
        assert row["command"].startswith("erk evaluate --images images")
        assert row["commit"] is None and row["versions"]["erk-guid"] == erk.__version__


def test_every_command_is_installed_and_helps_without_torch(commands, tmp_path):
    assert erk.__version__ in run(tmp_path, commands / "erk", "--version")
    help_all = (
        "import sys\nfrom click.testing import CliRunner\n"
        "from erk.commands.main import SUBCOMMANDS, main\n"
        "for name in SUBCOMMANDS:\n"
        "    assert CliRunner().invoke(main, [name, '-h']).exit_code == 0, name\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'yaml'} & {*sys.modules}))\n"
    )
    assert run(tmp_path, commands / "python", "-c", help_all) == "[]\n"


def test_a_missing_package_is_one_sentence(commands, tmp_path):
    (tmp_path / "yaml.py").write_text('raise ModuleNotFoundError("No module", name="yaml")\n')
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([commands / "erk", "presets"], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "the package yaml is not installed" in done.stderr


def test_an_editable_install_finds_the_data(tree, tmp_path):
    bin = install(tmp_path / "venv", "-e", tree)
    look = "from erk.io.resources import data; print(data('configs'))"
    assert run(tmp_path, bin / "python", "-c", look) == f"{tree / 'configs'}\n"
    assert "digits-cfg" in run(tmp_path, bin / "erk", "presets")


@pytest.mark.slow
def test_torchrun_starts_installed_commands(commands, tmp_path):
    torchrun = [commands / "python", "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    job = ["--preset", "digits", "--seeds", "0-7", "--batch", "4", "--steps", "4", "--outdir"]
    run(tmp_path, *torchrun, "--no-python", commands / "erk", "generate", *job, "a")
    run(tmp_path, *torchrun, "-m", "erk", "generate", *job, "b")
    manifests = [(tmp_path / name / "manifest.jsonl").read_bytes() for name in ("a", "b")]
    assert manifests[0] == manifests[1] and manifests[0].count(b"\n") == 8
