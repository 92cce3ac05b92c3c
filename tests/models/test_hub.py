"""hf://owner/repo: a repository with its card, from a stand-in of the hub on the loopback."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from erk.io.download import hub_files
from erk.models.model import _file_on_hub, fetch_checkpoint, load_model

ROOT = Path(__file__).parents[2]
COMMIT = "c0ffee" + 34 * "0"


@pytest.fixture
def hub(tmp_path):
    """A folder of repositories owner/repo/file, served as the hub does; its address."""
    served = tmp_path / "hub"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            words = self.path.partition("?")[0].strip("/").split("/")
            if words[:2] == ["api", "models"]:
                root = served / "/".join(words[2:4])
                files = sorted(p for p in root.rglob("*") if p.is_file())
                report = [{"rfilename": p.relative_to(root).as_posix()} for p in files]
                body = {"id": "/".join(words[2:4]), "sha": COMMIT, "siblings": report}
                self._send(200, json.dumps(body).encode())
                return
            location = served / words[0] / words[1] / "/".join(words[4:])
            if location.is_file():
                self._send(200, location.read_bytes())
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET  # noqa: N815

        def _send(self, code, body, headers=None):
            self.send_response(code)
            report = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT,
                    "Content-Length": len(body), "Content-Type": "application/json"}  # fmt: skip
            for name, value in (report | (headers or {})).items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield served, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def repository(served, name, files):
    for file, source in files.items():
        location = served / name / file
        location.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, location)


def test_a_repository_is_sampled_and_again_without_network(hub, tmp_path, monkeypatch):
    served, url = hub
    net = ROOT / "checkpoints" / "digits"
    repository(served, "me/digits", {
        "model.safetensors": net.with_suffix(".safetensors"),
        "config.json": net.with_suffix(".json"),
        "README.md": ROOT / "README.md",
    })  # fmt: skip
    cache = str(tmp_path / "cache")
    env = os.environ | {"HF_ENDPOINT": url, "NO_PROXY": "*", "ERK_CACHE": cache}
    command = [sys.executable, "generate.py", "--net", "hf://me/digits", "--seeds", "0-2",
               "--steps", "4", "--outdir", str(tmp_path / "out")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "run.json").read_text())["network"]
    assert report["name"] == "hf://me/digits" and report["licence"] == "Apache-2.0"
    weights = net.with_suffix(".safetensors").read_bytes()
    assert report["sha256"] == hashlib.sha256(weights).hexdigest()
    shutil.rmtree(served)
    monkeypatch.setenv("ERK_CACHE", cache)
    assert load_model("hf://me/digits", offline=True).sha256 == report["sha256"]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert hub_files("hf://me/digits") == ["config.json", "model.safetensors"]  # those cached


@pytest.fixture
def listed(monkeypatch):
    def put(*files):
        monkeypatch.setattr("erk.models.model.hub_files", lambda address, offline: sorted(files))

    return put


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["a.safetensors", "a.json"], "a.safetensors"),
        (["net.pkl", "README.md"], "net.pkl"),
        (["b.safetensors", "model.safetensors", "c.pkl"], "model.safetensors"),
        (["network/diffusion_pytorch_model.safetensors",
          "guide/diffusion_pytorch_model.safetensors"],
         "network/diffusion_pytorch_model.safetensors"),
    ],
)  # fmt: skip
def test_the_network_of_a_repository(listed, files, chosen):
    listed(*files)
    assert _file_on_hub("hf://me/repo", False) == f"hf://me/repo/{chosen}"
    assert _file_on_hub("hf://me/repo@v1", False) == f"hf://me/repo/{chosen}@v1"
    assert _file_on_hub("hf://me/repo/x.safetensors@v1", False) == "hf://me/repo/x.safetensors@v1"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["a.safetensors", "b.safetensors"], r"several networks \(a.safetensors, b.safetensors\)"),
        (["README.md"], "holds no network: give the file, hf://me/repo/FILE"),
    ],
)
def test_a_repository_without_one_network_is_refused(listed, files, reason):
    listed(*files)
    with pytest.raises(ValueError, match=reason) as error:
        load_model("hf://me/repo")
    assert "\n" not in str(error.value)


def test_the_card_is_the_files_own_or_the_folders(monkeypatch, tmp_path):
    """The hub's download replaced: NAME.json is asked for first, then config.json."""
    there, asked = {"w/net.safetensors", "w/config.json"}, []

    def download(repo, file, revision, cache_dir, local_files_only):
        from huggingface_hub.errors import EntryNotFoundError

        asked.append((repo, file, revision))
        if file not in there:
            raise EntryNotFoundError("404")
        location = tmp_path / file
        location.parent.mkdir(exist_ok=True)
        location.write_text("{}")
        return location

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    path = fetch_checkpoint("hf://me/repo/w/net.safetensors@v2")
    assert path == tmp_path / "w/net.safetensors"
    assert asked == [("me/repo", f"w/{n}", "v2") for n in
                     ("net.safetensors", "net.json", "config.json")]  # fmt: skip
    there.remove("w/config.json")
    with pytest.raises(FileNotFoundError, match=r"w/net\.json@v2 cannot be downloaded"):
        fetch_checkpoint("hf://me/repo/w/net.safetensors@v2")


@pytest.mark.parametrize("offline", [False, True])
def test_an_unreachable_hub_is_one_sentence(tmp_path, monkeypatch, offline):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("ERK_CACHE", str(tmp_path))
    reason = "is not in the cache" if offline else "cannot be downloaded"
    with pytest.raises(OSError, match=f"hf://me/repo {reason}") as error:
        load_model("hf://me/repo", offline=offline)
    assert "\n" not in str(error.value)
