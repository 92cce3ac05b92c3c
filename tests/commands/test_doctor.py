"""erk doctor on a sound installation, and with every fault that it knows put in."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from safetensors.torch import save_file

from erk.commands import doctor
from erk.commands.checks import golden, machine, stored
from erk.commands.checks.row import guarded
from metrics.extractors import Outputs

ROOT = Path(__file__).parents[2]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use an empty cache, and an environment without the variables that doctor reports."""
    for name in machine.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (folder := tmp_path / "cache").mkdir()
    monkeypatch.setenv("ERK_CACHE", str(folder))
    return folder


def result(check, *arguments):
    """{(state, name): text} of a check."""
    return {row[:2]: row.text for row in guarded("check", lambda: check(*arguments))}


def test_a_sound_installation():
    """No line of a fault, exit code 0."""
    done = CliRunner().invoke(doctor.main, [])
    assert done.exit_code == 0
    *lines, last = done.stdout.splitlines()
    notes = sum(line.startswith("note") for line in lines)
    assert last == ("sound" if not notes else f"sound, {notes} to read (note)")  # N19
    assert {line.split()[1] for line in lines} >= {
        "python", "torch", "cpu", "gpu", "disk", "cache", "checkpoints", "random", "networks",
        "images", "classifier", "extractors"}  # fmt: skip
    assert {line.split()[0] for line in lines} <= {"ok", "note"}


def test_bad_arguments():
    assert CliRunner().invoke(doctor.main, ["--slow"]).exit_code == 2


def test_a_package_that_cannot_be_imported(tmp_path):
    """All other checks run; the exit code is 1."""
    broken = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (tmp_path / "torchvision.py").write_text(broken)
    for heavy in ("timm", "diffusers", "torch_fidelity", "matplotlib"):
        (tmp_path / f"{heavy}.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "erk", "doctor", "--quick"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr == ""
    (line,) = [row for row in done.stdout.splitlines() if row.startswith("FAIL  torchvision")]
    assert "cannot be imported, RuntimeError operator torchvision::nms does not exist" in line
    assert "bash scripts/setup.sh" in line and "ok    networks" in done.stdout


# --- packages and traps ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "state"), [("3.10.9", "FAIL"), ("3.12.0rc1", "ok"), ("3.14.1", "note")]
)
def test_python(number, state, monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: number)
    assert [*result(machine.python)] == [(state, "python")]


def of_versions(changed):
    """A stand-in for importlib's: some have another version than the lock or are not there."""
    known = dict(machine.PIN.findall((ROOT / "requirements.txt").read_text())) | changed

    def report(name):
        if known[name] is None:
            raise machine.PackageNotFoundError(name)
        return known[name]

    return report


def test_packages_that_lack_are_old_or_not_the_locked_ones(monkeypatch):
    changed = {"click": "8.0.9", "tqdm": None, "numpy": "99.1"}
    monkeypatch.setattr(machine, "version", of_versions(changed))
    rows = result(machine.packages)
    assert "8.0.9 is older than 8.1" in rows["FAIL", "click"]
    assert "is not installed: bash scripts/setup.sh" in rows["FAIL", "tqdm"]
    assert "not as in requirements.txt: numpy 99.1, click 8.0.9" in rows["note", "packages"]
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("requirement", "torchs", "build", "text"),
    [
        ("torch (==2.14.0)", "2.15.0+cpu", "0.29+cpu", "built for torch==2.14.0, not 2.15.0+cpu:"),
        ("torch (>=2.14.0)", "2.13.1", "0.29", "built for torch>=2.14.0, not 2.13.1:"),
        ("torch==2.15.0", "2.15.0+cpu", "0.29+cu132", "0.29+cu132 is another build than torch"),
        ("torch==2.15.0", "2.15.0+cu132", "0.29+cu132", None),
        ("torch (>=2.14.0)", "2.15.0+cpu", "0.29+cpu", None),
    ],
)
def test_torchvision_of_another_torch(requirement, torchs, build, text, monkeypatch):
    monkeypatch.setattr(machine, "requires", lambda _: ["numpy", requirement])
    monkeypatch.setattr(torch, "__version__", torchs)
    monkeypatch.setattr(machine, "import_module", lambda _: SimpleNamespace(__version__=build))
    rows = result(machine.torch_build)
    if text is None:
        assert [*rows] == [("ok", "torch")]
    else:
        assert text in rows["FAIL", "torchvision"]


def test_a_torch_that_knows_another_numpy(monkeypatch):
    def failing(_):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch, "from_numpy", failing)
    assert "do not work together" in result(machine.torch_build)["FAIL", "numpy"]


@pytest.mark.parametrize(("missing_names", "state"), [("zlib", "FAIL"), ("jpg", "note")])
def test_pillow_without_a_format(missing_names, state, monkeypatch):
    assert result(machine.pillow) == {}
    from PIL import features

    monkeypatch.setattr(features, "check", lambda name: name != missing_names)
    assert "was built without" in result(machine.pillow)[state, "pillow"]


@pytest.mark.parametrize("name", machine.VARIABLES)
def test_variables_that_change_results(name, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert result(machine.variables) == {}
    monkeypatch.setenv(name, "8")
    assert result(machine.variables)["note", name].startswith("is 8: ")


def test_a_gpu_that_pytorch_does_not_see(monkeypatch, tmp_path):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("PyTorch sees a GPU here")
    monkeypatch.setattr(machine, "NVIDIA", tmp_path)
    for build, text in ((None, "build is CPU-only"), ("13.2", "must support CUDA 13.2")):
        monkeypatch.setattr(torch.version, "cuda", build)
        assert text in result(machine.devices)["note", "gpu"]


USED = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
    RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
]


@pytest.mark.parametrize("error", USED)
def test_a_gpu_that_others_use_is_no_fault(error, monkeypatch):
    def fail(*_, **__):
        raise error

    cuda = SimpleNamespace(mem_get_info=fail)
    assert machine.gpu(SimpleNamespace(cuda=cuda), 0)[:2] == ("note", "gpu")
    monkeypatch.setattr(golden, "load_extractor", lambda *_, **__: fail)
    monkeypatch.setattr(golden, "fetch", lambda *_, **__: golden.weights("digits"))
    monkeypatch.setattr(golden, "one_step", fail)
    rows = result(golden.extractors, "cpu") | result(golden.released, "cpu") | result(fail)
    assert {state for state, _ in rows} == {"note"}
    assert {"inception", "vgg16", "network", "check"} <= {name for _, name in rows}
    assert all(text.startswith("no memory free (") for text in rows.values())


def test_a_gpu_that_cannot_compute_is_one():
    def fail(_):
        raise RuntimeError("CUDA error: no kernel image is available")

    row = machine.gpu(SimpleNamespace(cuda=SimpleNamespace(mem_get_info=fail)), 1)
    assert row.state == "FAIL" and "no kernel image is available: bash scripts/setup" in row.text


@pytest.mark.gpu
def test_a_gpu_is_named_and_tried():
    rows = result(machine.devices)
    assert torch.cuda.get_device_name(0) in rows["ok", "gpu"]


# --- disk and cache -------------------------------------------------------------------------


@pytest.mark.parametrize(("gib", "state"), [(0.5, "FAIL"), (5, "note"), (50, "ok")])
def test_little_space(gib, state, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, int(gib * 2**30)))
    rows = result(stored.space)
    assert [*rows] == [(state, "disk")] and f"{gib:.1f} GiB free for" in rows[state, "disk"]


def test_a_cache_that_is_not_there_read_only_or_a_file(cache, monkeypatch):
    assert "writable, locks work" in result(stored.cache)["ok", "cache"]
    assert list(cache.iterdir()) == []
    monkeypatch.setenv("ERK_CACHE", str(cache / "deeper" / "down"))
    assert "does not exist yet" in result(stored.cache)["ok", "cache"]
    (cache / "deeper").write_text("a file")
    assert "is below a file: set ERK_CACHE" in result(stored.cache)["note", "cache"]
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    monkeypatch.setenv("ERK_CACHE", str(cache))
    assert "cannot be written to: set ERK_CACHE" in result(stored.cache)["note", "cache"]


def test_a_download_that_goes_on(cache):
    with FileLock(cache / "a.pkl.lock"):
        assert "another process is downloading a.pkl" in result(stored.cache)["note", "cache"]


def test_a_cache_without_locks(cache, monkeypatch):
    def failing(self, *_, **__):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(FileLock, "acquire", failing)
    assert "has no locks" in result(stored.cache)["note", "cache"]


def fill(cache):
    """A cache with a file of each kind; {name: path}."""
    data, hub = b"weights " * 99, cache / "huggingface" / "models--a" / "blobs"
    digest = hashlib.sha256(data).hexdigest()
    hub.mkdir(parents=True)
    kept = {
        "recorded": cache / "a.host" / "net.pkl",
        "named": cache / "a.host" / f"vgg-{digest[:8]}.pth",
        "large": hub / digest,
        "small": hub / hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
    }
    kept["recorded"].parent.mkdir()
    for path in kept.values():
        path.write_bytes(data)
    kept["recorded"].with_name("net.pkl.sha256").write_text(digest + "\n")
    kept["features"] = cache / "features" / "digits" / "ab" / f"{'ab' * 32}.safetensors"
    kept["features"].parent.mkdir(parents=True)
    save_file({"kept": torch.zeros(9)}, kept["features"])
    kept["summed"] = cache / "a.host" / "reference.npz"
    torch.save({"a": torch.zeros(99)}, kept["summed"])
    return kept


def test_a_cache_that_is_as_recorded(cache):
    fill(cache)
    (cache / "a.host" / "other.pkl.part").write_bytes(b"half")
    (cache / "a.host" / "foreign.bin").write_bytes(b"whose?")
    rows = list(guarded("check", stored.downloads))
    assert [row.state for row in rows] == ["note", "note", "ok"]
    assert "resumes it: other.pkl.part" in rows[0].text
    assert "not checked: foreign.bin" in rows[1].text
    assert rows[2].text == "6 files as recorded"


@pytest.mark.parametrize(
    ("name", "cut"),
    [("recorded", 0), ("named", 0), ("large", 0), ("small", 0), ("features", 9), ("summed", 0)],
)
def test_a_damaged_file_of_the_cache(name, cut, cache):
    """A byte is another one, or the end lacks."""
    path = fill(cache)[name]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[: len(data) - cut])
    rows = result(stored.downloads)
    assert rows["FAIL", "cache"].startswith(f"{path} ") and "delete it" in rows["FAIL", "cache"]
    assert rows["ok", "cache"] == "5 files as recorded"


def test_a_file_of_the_cache_that_cannot_be_read(cache, monkeypatch):
    def failing(path):
        raise OSError(5, "Input/output error", str(path))

    fill(cache)
    monkeypatch.setattr(stored, "sha256_of", failing)
    rows = [row for row in guarded("check", stored.downloads) if row.state == "FAIL"]
    assert len(rows) == 3 and all("cannot be read (OSError [Errno 5]" in row.text for row in rows)


# --- weights and golden vectors -------------------------------------------------------------


@pytest.mark.parametrize("fault", ["byte", "card", "no card", "no weights", "empty"])
def test_weights_that_are_not_their_cards(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "CHECKPOINTS", tmp_path / "checkpoints")
    shutil.copytree(ROOT / "checkpoints", tmp_path / "checkpoints")
    count = len(list((ROOT / "checkpoints").glob("*.safetensors")))
    assert result(stored.checkpoints)["ok", "checkpoints"].startswith(f"{count} networks match")
    weights = tmp_path / "checkpoints" / "digits.safetensors"
    if fault == "byte":
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    elif fault == "card":
        weights.with_suffix(".json").write_text("[]")
    elif fault == "no card":
        weights.with_suffix(".json").unlink()
    elif fault == "no weights":
        weights.unlink()
    else:
        shutil.rmtree(tmp_path / "checkpoints")
    report = result(stored.checkpoints)["FAIL", "checkpoints"]
    assert report.endswith("git restore checkpoints, or install erk-guid again")
    assert fault == "empty" or report.startswith("digits.safetensors ")


@pytest.fixture(scope="module")
def computed():
    return golden.computed("cpu")


@pytest.mark.parametrize("part", ["random", "networks", "images", "classifier"])
def test_numbers_that_are_not_the_golden_ones(part, computed, monkeypatch, tmp_path):
    monkeypatch.setattr(golden, "computed", lambda _: computed)
    assert {state for state, _ in result(golden.compared, "cpu")} == {"ok"}
    recorded = json.loads(golden.GOLDEN.read_text())
    name, numbers = next(iter(recorded["golden"][part].items()))
    numbers[-1] += 1.1 * golden.ALLOWED.get(part, golden.TOLERANCE)
    (tmp_path / "golden.json").write_text(json.dumps(recorded))
    monkeypatch.setattr(golden, "GOLDEN", tmp_path / "golden.json")
    rows = result(golden.compared, "cpu")
    assert rows["FAIL", part].startswith(f"{name} on cpu: largest difference ")
    assert [key for key in rows if key[0] == "FAIL"] == [("FAIL", part)]
    del recorded["golden"][part][name]
    (tmp_path / "golden.json").write_text(json.dumps(recorded))
    assert "difference inf" in result(golden.compared, "cpu")["FAIL", part]


@pytest.mark.gpu
def test_golden_numbers_on_a_gpu():
    assert {state for state, _ in result(golden.compared, "cuda")} == {"ok"}


def test_golden_vectors_come_from_a_committed_command():
    recorded = json.loads(golden.GOLDEN.read_text())
    assert recorded["command"].endswith("checks/golden.py")
    assert len(recorded["commit"]) == 40  # and no "-dirty"


NAN = torch.full((2, 3), float("nan"))


@pytest.mark.parametrize(
    ("answers", "state"),
    [([torch.ones(2, 3)] * 2, "ok"), ([NAN, NAN], "FAIL"),
     ([torch.ones(2, 3), torch.zeros(2, 3)], "note")],
)  # fmt: skip
def test_an_extractor_of_the_cache(answers, state, monkeypatch):
    """Its right numbers are not known here; what can be checked is whether it makes sense."""

    def load(name, *_, **__):
        if name != "vgg16":
            raise FileNotFoundError(name)
        rest = iter(answers)
        return lambda images: Outputs(next(rest))

    monkeypatch.setattr(golden, "load_extractor", load)
    rows = result(golden.extractors, "cpu")
    assert (state, "vgg16") in rows
    assert "inception, dinov2, dinov2-pil" in rows["ok", "extractors"]


def test_an_extractor_with_wrong_weights(monkeypatch):
    def load(*_, **__):
        raise ValueError("a.pth has sha256 12, expected 34: delete it")

    monkeypatch.setattr(golden, "load_extractor", load)
    assert "expected 34: delete it" in result(golden.extractors, "cpu")["FAIL", "inception"]


def test_a_released_network_of_the_cache(monkeypatch):
    """Stands in the cache for one of the presets; another one is damaged."""
    digits = golden.weights("digits")
    owners = {"edm2-img64-s-1073741-0.075.pkl": digits, "edm2-img64-m-2147483-0.060.pkl": ROOT}

    def cached(address, offline):
        assert offline
        if address.rpartition("/")[2] not in owners:
            raise FileNotFoundError(address)
        return owners[address.rpartition("/")[2]]

    monkeypatch.setattr(golden, "fetch", cached)
    rows = result(golden.released, "cpu")
    assert "finite and repeatable on cpu; it has no golden" in rows["ok", "digits.safetensors"]
    assert "is a folder" in rows["FAIL", "network"] and len(rows) == 2
