"""Every benchmark of networks and sampling runs, at a tiny size; the peer is a stand-in."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from erk.models.edm2 import Precond
from scripts.bench import guidance, network, networks, sampling, scaling

STAND_IN = {
    "training/__init__.py": "",
    "torch_utils/__init__.py": "",
    "torch_utils/distributed.py": "def init():\n    pass\n",
    "training/encoders.py": (
        "class StandardRGBEncoder:\n"
        "    def decode(self, x):\n"
        "        return (x * 127.5 + 128).clip(0, 255).byte()\n"
    ),
    "training/networks_edm2.py": (
        "from erk.models.edm2 import Precond as Ours\n"
        "class Precond(Ours):\n"
        "    def forward(self, x, sigma, class_labels=None, force_fp32=False):\n"
        "        return super().forward(x, sigma, class_labels)\n"
    ),
    "generate_images.py": (
        "import torch\n"
        "from pathlib import Path\n"
        "from PIL import Image\n"
        "def generate_images(net, encoder, outdir, seeds, max_batch_size, verbose, device,\n"
        "                    num_steps):\n"
        "    for seed in seeds:\n"
        "        x = torch.randn(1, net.img_channels, net.img_resolution, net.img_resolution)\n"
        "        image = encoder.decode(net(x, torch.tensor(1.0)))[0].permute(1, 2, 0)\n"
        "        Image.fromarray(image.numpy()).save(Path(outdir) / f'{seed:06d}.png')\n"
        "        yield seed\n"
    ),
}


@pytest.fixture
def peer(tmp_path, monkeypatch):
    """A folder laid out as the peer's checkout, with code of our own."""
    for name, text in STAND_IN.items():
        path = tmp_path / "peer" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path / "peer"
    theirs = {name.partition("/")[0].removesuffix(".py") for name in STAND_IN}
    for name in [name for name in sys.modules if name.partition(".")[0] in theirs]:
        del sys.modules[name]


def run(module, tmp_path, *options):
    """The rows that a benchmark writes."""
    out = tmp_path / "bench"
    before = dict(os.environ)
    try:
        done = CliRunner().invoke(module.main, ["--out", str(out), *map(str, options)])
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert done.exit_code == 0, (done.output, done.exception)
    name = module.__name__.rpartition(".")[2]
    told = json.loads((out / f"{name}.json").read_text())
    assert told["command"] and told["versions"] and (out / f"{name}.md").stat().st_size
    return told["rows"]


def test_network_and_its_peer(tmp_path, peer):
    rows = run(network, tmp_path, "--size", "tiny", "--batch", 1, "--rounds", 2, "--peer", peer)
    assert [row["code"] for row in rows] == ["ours", "ours, bf16", "peer"]
    ours, low, theirs = rows
    assert ours["GFLOP"] == low["GFLOP"] == theirs["GFLOP"] > 0
    assert low["GB moved"] < ours["GB moved"]
    assert ours["difference"] == 0 and theirs["difference"] < 1e-5 < low["difference"] < 0.05


def test_without_a_peer_that_is_said(tmp_path):
    rows = run(network, tmp_path, "--size", "tiny", "--batch", 1, "--rounds", 1)
    assert rows[-1]["code"] == "peer not run" and "seconds" not in rows[-1]


@pytest.mark.skipif(not (networks.ROOT / ".git").exists(), reason="no repository")
def test_an_earlier_commit_is_timed_too(tmp_path):
    options = ("--size", "tiny", "--batch", 1, "--rounds", 1, "--precision", "fp32")
    rows = run(network, tmp_path, *options, "--against", "HEAD")
    assert [row["code"] for row in rows[1:3]] == ["ours at HEAD, fp32",
                                                  "ours at HEAD, not folded, fp32"]  # fmt: skip
    assert all(row["difference"] < 1e-5 for row in rows[1:3])


def test_a_folder_that_is_no_checkout_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    options = ["--size", "tiny", "--peer", str(tmp_path / "empty"), "--out", str(tmp_path)]
    done = CliRunner().invoke(network.main, options)
    assert done.exit_code == 2 and "is no checkout of NVlabs/edm2" in done.output


def test_sampling_and_its_peer(tmp_path, peer):
    options = ("--size", "tiny", "--batch", 1, "--steps", 2, "--rounds", 1)
    ours, theirs = run(sampling, tmp_path, *options, "--peer", peer)
    assert (ours["code"], theirs["code"]) == ("ours", "peer") and len(ours["all seconds"]) == 1


def test_sampling_of_latents(tmp_path):
    options = ("--size", "tiny", "--batch", 1, "--steps", 2, "--rounds", 1, "--latent")
    ours, _ = run(sampling, tmp_path, *options, "--with", "--vae-precision=bf16")
    assert ours["data"] == "latents"


def test_what_ends_a_timed_command_is_told(tmp_path):
    options = ["--size", "tiny", "--batch", "1", "--with", "--solver=none", "--out", str(tmp_path)]
    done = CliRunner().invoke(sampling.main, options)
    assert done.exit_code == 2 and "what is timed ended" in done.output
    assert "none" in done.output and not list(tmp_path.iterdir())


def test_guidance_costs_no_memory_beyond_a_pair(tmp_path):
    heun, guided, again = run(guidance, tmp_path, "--size", "tiny", "--batch", 1, "--rounds", 1)
    assert heun["beyond Heun"] == 0 <= guided["beyond Heun"] <= guided["state pair"]
    assert heun["peak bytes"] > guided["state pair"] and guided["share in guide"] > 0
    assert again["code"] == "Heun again" and again["beyond Heun"] == 0


@pytest.mark.slow
def test_scaling(tmp_path):
    options = ("--size", "tiny", "--batch", 1, "--batch", 2, "--ranks", 2, "--rounds", 1)
    rows = run(scaling, tmp_path, *options, "--steps", 2, "--further", 1)
    assert [(row["batch"], row["processes"]) for row in rows] == [
        (1, "this one"), (2, "this one"), (1, 2)
    ]  # fmt: skip


def test_scaling_over_batch_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "together", lambda options, ranks, n: None)
    options = ("--size", "tiny", "--batch", 1, "--ranks", 1, "--rounds", 1, "--steps", 2,
               "--further", 2)  # fmt: skip
    assert len(run(scaling, tmp_path, *options)) == 2


def test_without_a_gpu_that_is_said_at_once(tmp_path):
    done = CliRunner().invoke(network.main, ["--device", "cuda", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "offers no device 'cuda'; use --device cpu" in done.output
    every = subprocess.run(["bash", "scripts/bench/gpu.sh"], cwd=networks.ROOT, text=True,
                           capture_output=True, env=os.environ | {"PYTHON": "false"})  # fmt: skip
    assert every.returncode == 2 and "offers no GPU to false" in every.stderr and not every.stdout


def test_more_processes_than_gpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    options = ["--device", "cuda", "--ranks", "2", "--out", str(tmp_path)]
    done = CliRunner().invoke(scaling.main, options)
    assert done.exit_code == 2 and "--ranks 2 needs as many GPUs, and there are 1" in done.output


def test_the_commands_for_a_gpu_are_understood(monkeypatch):
    """Every benchmark that gpu.sh runs, shown in place of run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    shown = subprocess.run(["bash", "scripts/bench/gpu.sh"], cwd=networks.ROOT, text=True,
                           capture_output=True, env=os.environ | {"PYTHON": "echo"})  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    benches = [line.split() for line in shown.stdout.splitlines() if "scripts/bench/" in line]
    assert len(benches) == 12
    for script, *options in benches:
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        module.main.make_context(script, options)  # UsageError if one is not known


def test_a_step_that_is_none_is_named():
    command = ["bash", "scripts/bench/gpu.sh", "nothing"]
    shown = subprocess.run(command, cwd=networks.ROOT, text=True, capture_output=True,
                           env=os.environ | {"PYTHON": "true"})  # fmt: skip
    assert shown.returncode == 1 and "FAILED: nothing" in shown.stdout


def test_work_is_counted_and_peaks_are_seen():
    one, two = (networks.work_of("tiny", "fp32", n) for n in (1, 2))
    conv = 2 * 3 * 9 * 64 * 8 * 8  # what the first convolution would have if x had 3 channels
    assert one.flops > conv and 1.9 < two.flops / one.flops <= 2 and two.bytes < 2 * one.bytes
    with guidance.Peak() as peak:
        a = torch.zeros(1000)
        b = a + 1
        del a
        b = b * 2
    assert peak.most == 8000 and peak.now == 4000 and b.nbytes == 4000


def test_random_weights_have_the_released_types():
    network = networks.our_network("tiny", "bf16", "cpu")
    assert {p.dtype for p in network.parameters()} == {torch.float16}
    assert isinstance(network, Precond) and network.unet.out_conv.folded.dtype == torch.bfloat16
