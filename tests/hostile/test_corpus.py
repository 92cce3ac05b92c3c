"""Every hostile file of the corpus is refused in one sentence, in bounds, without side effects."""

import os
import pickle
import re
import shutil
import socket
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from command_runs import command
from hostile import guard, image_files, network_files
from hostile.builders import CANARY
from hostile.corpus import CASES, HARMLESS, cases
from hostile.formats import FORMATS, framed, network_pickle, zipped
from hostile.guard import read_all
from opcodes import call, const
from processes import forked

from erk.commands import evaluate, generate
from erk.models.edm import iddpm_levels

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the guard forks")


@pytest.fixture
def scratch(memory_path, monkeypatch):
    """An empty folder; the working directory is another one."""
    here = memory_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return memory_path


def warm(kind, scratch):
    """Read a sound file first, so that late imports have happened."""
    folder = scratch / "sound"
    for name, data in FORMATS[kind].sound().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    FORMATS[kind].read(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", FORMATS)
def test_sound_files_are_read(kind, scratch):
    warm(kind, scratch)
    (outcome,) = read_all([(FORMATS[kind].read, FORMATS[kind].sound())], scratch)
    assert outcome.error is None and outcome.faults == []


def as_expected(case, outcome):
    """Return whether a hostile file was refused with its message, or read if it is harmless."""
    if case.name in HARMLESS:
        return outcome.error is None
    return outcome.error is not None and re.search(case.message, outcome.text) is not None


@pytest.mark.parametrize("kind", CASES)
def test_hostile_files_are_refused_in_one_sentence(kind, scratch):
    warm(kind, scratch)
    corpus = cases(kind)
    outcomes = read_all([(FORMATS[kind].read, case.files) for case in corpus], scratch)
    wrong = [
        (case.name, outcome.faults, outcome.text)
        for case, outcome in zip(corpus, outcomes, strict=True)
        if outcome.faults or not as_expected(case, outcome)
    ]
    assert wrong == []
    assert not list(scratch.rglob(f"{CANARY}*")) and not Path(CANARY).exists()


def test_the_corpus_covers_all_formats():
    assert sum(len(cases(kind)) for kind in CASES) >= 200
    assert {kind for kind in FORMATS if kind not in CASES} == {
        "reference npz", "reference pickle", "packed images npz", "run zip", "run npz",
        "old weights", "classifier",
    }  # fmt: skip # other formats have the same readers; the fuzzer covers all


def test_the_number_of_noise_levels_is_bounded():
    with pytest.raises(ValueError, match="M must be between 1 and 10000"):
        iddpm_levels(0.001, 0.008, 1 << 40)


# --- the guard itself must catch each of these


def loads(folder):
    return pickle.loads((folder / "net.pkl").read_bytes())


def write_beside(folder):
    (folder.parent / "canary").write_text("")


def numpy_pickles(folder):
    return np.load(folder / "a.npy", allow_pickle=True)


def object_array():
    import io

    file = io.BytesIO()
    np.save(file, np.array([None, {}], object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("reader", "files", "fault"),
    [
        (loads, {"net.pkl": framed(call("os.system", const(f"touch {CANARY}")))}, "find_class"),
        (numpy_pickles, {"a.npy": object_array()}, "find_class"),
        (lambda _: os.system(f"touch {CANARY}"), {}, "calls os.system"),
        (lambda _: subprocess.run(["touch", CANARY]), {}, "calls subprocess.Popen"),
        (lambda _: eval(f"open('{CANARY}', 'w')"), {}, "runs code of"),
        (lambda _: __import__("antigravity"), {}, "imports antigravity"),
        (lambda _: socket.socket(), {}, "calls socket."),
        (write_beside, {}, "writes to"),
        (lambda folder: os.mkdir(folder / "other"), {}, "calls os.mkdir"),
        (lambda folder: (folder / "x").unlink(), {"x": b""}, "calls os.remove"),
        (lambda _: Path("/etc/passwd").read_text(), {}, "reads '/etc/passwd'"),
        (lambda _: {}["key"], {}, "raises KeyError"),
        (lambda _: float("one\ntwo"), {}, "names no file"),
        (lambda _: np.ones(40_000_000).sum(), {}, "it takes 3.. MiB"),
        (lambda _: np.zeros(4_000_000_000), {}, "MemoryError"),
        (lambda _: os._exit(3), {}, "the process died: exit 3"),
    ],
    ids=range(16),
)
def test_the_guard_catches(reader, files, fault, scratch):
    (outcome,) = read_all([(reader, files)], scratch)
    assert re.search(fault, " ".join(outcome.faults)), outcome
    assert not list(scratch.rglob(f"{CANARY}*"))


def test_the_guard_ends_an_endless_reader(scratch, monkeypatch):
    monkeypatch.setattr(guard, "SECONDS", 0.3)

    def endless(_):
        while True:
            pass

    stuck, after = read_all([(endless, {}), (lambda _: 5, {})], scratch)
    assert stuck.faults == ["it took too long"] and after == (None, "5", [])


# --- the commands


def ends_with(result, message):
    """Check for exit code 2 and one sentence, without a traceback."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    last = result.stderr.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("Error: ") and re.search(message, last), result.stderr


def into_a_log(arguments):
    code = 1
    with open("log", "w") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            command(arguments)
        except SystemExit as end:
            code = end.code
    os._exit(code)


def test_generate_with_a_hostile_network(scratch):
    """In a process: its exit code and everything that it prints."""
    Path("net.pkl").write_bytes(network_files.pickles()["posix.system in a network"][0])
    arguments = ["--net", "net.pkl", "--seeds", "0-1", "--device", "cpu"]
    assert os.waitstatus_to_exitcode(forked(into_a_log, arguments, cwd=Path.cwd())) == 2
    log = Path("log").read_text()
    assert log.count("\n") == 1 and "requests 'posix.system'" in log
    assert sorted(os.listdir()) == ["log", "net.pkl"]


def test_the_commands_with_hostile_files(scratch, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(scratch / "cache"))
    Path("net.pkl").write_bytes(network_pickle(num_blocks=10**6))
    Path("bomb.zip").write_bytes(image_files.zips()["bombs"][0])
    Path("bad.npz").write_bytes(image_files.arrays()["objects"][0].replace(b"arr_0", b"sigma"))
    Path("labels").write_bytes(b"0 \x1b[2J\n")
    Path("ref.npz").write_bytes(FORMATS["plain npz"].sound()["ref.npz"])
    for name, data in FORMATS["images folder"].sound().items():
        (Path("images") / name).parent.mkdir(exist_ok=True)
        (Path("images") / name).write_bytes(data)
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}

    def run(command, *arguments):
        return CliRunner().invoke(command.main, [*arguments, "--device", "cpu"])

    ends_with(run(generate, "--net", "net.pkl"), "net.pkl does not fit .* more tensors than")
    ends_with(run(generate, "--preset", "digits", "--labels", "labels"), r"not 'SEED CLASS' but")
    ends_with(run(evaluate, "--images", "bomb.zip", "--ref", "ref.npz"), "0.png is too large")
    ends_with(run(evaluate, "--images", "images", "--ref", "bad.npz"), "bad.npz .* Object arrays")
    after = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert after == before
    assert not list((scratch / "cache").rglob("*.safetensors"))


def test_file_names_are_printed_escaped(scratch):
    """Line breaks and terminal escapes in file names are printed escaped."""
    Path("a.zip").write_bytes(zipped([("a\n\x1b[2Jb.png", b"x"), ("c.png", b"x")]))
    Path("ref.npz").write_bytes(FORMATS["plain npz"].sound()["ref.npz"])
    arguments = ["--images", "a.zip", "--ref", "ref.npz", "--device", "cpu"]
    result = CliRunner().invoke(evaluate.main, arguments)
    ends_with(result, r"\\x1b\[2Jb.png is not a readable image")
    assert "\x1b" not in result.stderr
