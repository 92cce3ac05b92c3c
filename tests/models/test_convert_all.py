"""erk convert --all: the released files by name, from a server on the loopback."""

import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import click.testing
import pytest
from golden_data import models, pickle_paths, shapes

from erk import load_model
from erk.commands.convert import main
from erk.io import download as fetching
from erk.models.checkpoint import NETWORKS
from erk.models.released import SERVER, released_architecture, released_files, size_of
from erk.runtime.memory import without_weights

EDM = {url.rpartition("/")[2]: facts for url, facts in models()["edm_files"].items()}
FILES = models()["edm2_files"] | EDM
NETS = {  # released names, served with golden networks of the same format
    "edm2-img64-s-1073741-0.075.pkl": "edm2_pixel",
    "edm2-img512-xs-0134217-0.125.pkl": "edm2_cond",
    "edm-cifar10-32x32-cond-vp.pkl": "edm_ddpmpp",
}


def run(*arguments):
    """(exit code, output, errors) of erk convert."""
    result = click.testing.CliRunner().invoke(main, ["--all", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server with the released names above; (its address, its folder, what was asked)."""
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    folder, asked = tmp_path / "server", []
    folder.mkdir()
    for name, net in NETS.items():
        shutil.copy(pickle_paths(net)[0], folder / name)

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path):
            asked.append(path)
            return str(folder / path.rpartition("/")[2])

        def log_message(self, *_): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder, asked
        server.shutdown()


def test_all_released_files_are_known():
    ours = {file.name: file for file in released_files()}
    assert ours.keys() == FILES.keys() and len(ours) == 63
    addresses = {f"{models()['edm2_root']}/{name}" for name in models()["edm2_files"]}
    assert {file.url for file in ours.values()} == addresses | {*models()["edm_files"]}
    assert all(url.startswith(f"{SERVER}/") for url in addresses)
    for name, facts in FILES.items():
        report = facts.get("approx_MB_fp16", facts.get("approx_MB_fp32"))
        assert ours[name].size / 1e6 == pytest.approx(report, abs=0.06)


def test_a_name_tells_the_network():
    seen = {facts["arch"]: name for name, facts in FILES.items()}
    assert len(seen) > 20
    for architecture, name in seen.items():
        kind, kwargs = released_architecture(name)
        assert kind == models()["architectures"][architecture]["cls"]
        with without_weights():
            state = NETWORKS[kind](**kwargs).state_dict()
        assert {key: [*tensor.shape] for key, tensor in state.items()} == shapes(architecture)
    with pytest.raises(ValueError, match="not the name of a released file"):
        size_of("edm2-img256-s-1-0.1.pkl")


def test_a_dry_run_writes_nothing(tmp_path, mirror):
    code, out, errors = run("--dest", tmp_path / "nets", "--dry-run")
    assert (code, errors) == (0, "") and mirror[2] == [] and not (tmp_path / "nets").exists()
    assert all(name in out for name in FILES)
    assert "63 files, 56.5 GB; 56.5 GB are left" in out and "computed from the shapes" in out


def test_done_files_are_skipped_and_a_failure_stops_no_other(tmp_path, mirror):
    url, folder, asked = mirror
    dest = tmp_path / "nets"
    command = ["--dest", dest, "--mirror", url, *(f"--only={name}" for name in NETS)]
    broken = folder / "edm2-img512-xs-0134217-0.125.pkl"
    complete = broken.read_bytes()
    broken.write_bytes(complete[:2000])
    code, out, errors = run(*command)
    first, last = errors.splitlines()
    assert code == 2 and first.startswith(f"failed: {broken.name}: ")
    assert last.startswith(f"Error: 1 of 3 files were not converted ({broken.name})")
    assert out.count("bit for bit") == 2 and len(asked) == 3
    assert "removed from the cache" in errors
    hashes = json.loads((dest / "hashes.json").read_text())
    assert {n: report["pickle"] for n, report in hashes.items()} == {
        n: fetching.sha256_of(folder / n) for n in NETS if n != broken.name
    }
    broken.write_bytes(complete)  # the server mends it
    code, out, errors = run(*command)
    assert (code, errors) == (0, "") and "all 3 files are in" in out
    asked.clear()
    assert run(*command)[1].count(" is done\n") == 3 and asked == []
    assert "0.0 GB are left" in run(*command, "--dry-run")[1]
    for name, net in NETS.items():
        written = load_model(dest / f"{name.removesuffix('.pkl')}.safetensors")
        assert written.sample_shape == load_model(pickle_paths(net)[0]).sample_shape


def test_what_changed_afterwards_is_refused(tmp_path, mirror):
    url, folder, _ = mirror
    dest, name = tmp_path / "nets", "edm-cifar10-32x32-cond-vp.pkl"
    command = ["--dest", dest, "--mirror", url, "--only", name]
    assert run(*command)[0] == 0
    written = dest / "edm-cifar10-32x32-cond-vp.safetensors"
    written.write_bytes(written.read_bytes()[:-1] + b"x")
    code, _, errors = run(*command)
    assert code == 2 and f"{written} is not what hashes.json recorded: delete it" in errors
    written.unlink()
    (folder / name).write_bytes(b"another file")  # the first one is in the cache still
    assert run(*command)[0] == 0 and written.is_file()
    written.unlink()
    shutil.rmtree(tmp_path / "cache")  # now only the server has it
    code, _, errors = run(*command)
    assert code == 2 and "has sha256" in errors and "holds the hash of the first download" in errors
    assert not written.exists()
    (dest / "hashes.json").write_text("[]")
    code, _, errors = run(*command)
    assert code == 2 and "hashes.json is no record of hashes" in errors


def test_one_run_at_a_time(tmp_path, mirror):
    from filelock import FileLock

    with FileLock(tmp_path / ".hashes.json.lock"):
        code, _, errors = run("--dest", tmp_path, "--mirror", mirror[0])
    assert code == 2 and "another run converts into" in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--all"], "--all needs --dest DIR"),
        (["--all", "a.pkl", "--dest", "x"], "--all takes no SOURCE"),
        (["--all", "--dry-run", "--only", "sd3*"], "matches none of the 63 released files"),
        (["a.pkl", "b.safetensors", "--dry-run"], "--dry-run goes with --all"),
        (["a.pkl"], "give SOURCE and OUTPUT.safetensors"),
    ],
)
def test_refused_in_one_sentence(arguments, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = click.testing.CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and result.stdout == "" and reason in result.stderr
    assert result.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": 5}', "[1]", "nan"])
def test_records_that_are_none_are_refused(content, tmp_path):
    """A sibling of H2: deeply nested JSON ended in a RecursionError."""
    (tmp_path / "hashes.json").write_text(content)
    code, _, errors = run("--dry-run", "--dest", tmp_path)
    assert code == 2 and "is no record of hashes: restore or delete it" in errors


def test_a_record_of_another_type_is_no_hash(tmp_path, monkeypatch):
    """A number as a hash ended in an AttributeError."""
    name = "edm2-img64-s-1073741-0.075.pkl"
    (tmp_path / "hashes.json").write_text(json.dumps({name: {"pickle": 5}}))
    code, _, errors = run("--dest", tmp_path, "--only", name, "--offline")
    assert code == 2 and f"failed: {name}: " in errors and "Traceback" not in errors
