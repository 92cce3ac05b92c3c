"""generate.py --evaluate: from the sampler to the numbers, without a image on the disk."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from PIL import Image

from erk.commands import evaluate, generate, measured_sampling
from erk.generation import stream
from erk.models.encoders import VAEEncoder

ROOT = Path(__file__).parents[2]
JOB = ("--preset", "digits", "--seeds", "0-59", "--steps", "4", "--batch", "16",
       "--labels", "balanced", "--w-stiff", "0.5", "--device", "cpu")  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))

    def command(main, *arguments):
        result = CliRunner().invoke(main, [*map(str, arguments)])
        return result

    return command


def row(path):
    return json.loads(Path(path).read_text())


def test_numbers_equal_those_of_the_images(run):
    streamed = run(generate.main, *JOB, "--evaluate", "digits", "--json", "streamed.json")
    assert streamed.exit_code == 0, streamed.output
    assert not Path("out").exists()
    assert run(generate.main, *JOB).exit_code == 0
    assert run(evaluate.main, "--ref", "digits", "--json", "stored.json").exit_code == 0
    a, b = row("streamed.json"), row("stored.json")
    for name in ("fd", "precision", "recall", "is", "accuracy"):
        assert a[name] == pytest.approx(b[name], rel=1e-6), name
        assert a[f"{name}_se"] == pytest.approx(b[f"{name}_se"], rel=1e-5), name
    assert a["seeds"] == b["seeds"] == "0-59" and a["nfe"] == 7 and a["guide_nfe"] == 0
    assert a["run"]["settings"]["w_stiff"] == 0.5 and a["run"]["network"]["sha256"]


def test_real_images_of_several_sizes_are_refused_before_a_network_loads(run, monkeypatch):
    Path("real").mkdir()
    for number, size in enumerate((8, 8, 9)):
        Image.new("L", (size, 8)).save(f"real/{number}.png")
    monkeypatch.setattr(measured_sampling, "load_evaluator", lambda *_, **__: pytest.fail("loaded"))
    done = run(generate.main, *JOB, "--evaluate", "digits", "--real", "real")
    assert done.exit_code == 2 and "real/2.png is 9x8 grey but the first image" in done.stderr


def test_a_stopped_run_makes_only_what_is_missing(run, monkeypatch):
    written = []
    original = stream._read

    def reading(job, seeds):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(seeds)
        return original(job, seeds)

    monkeypatch.setattr(stream, "_read", reading)
    measure = (*JOB, "--evaluate", "digits", "--json", "row.json")
    assert run(generate.main, *measure).exit_code == 130
    assert not Path("row.json").exists()
    written.append("stopped")
    assert run(generate.main, *measure).exit_code == 0
    assert [seeds[0] for seeds in written if seeds != "stopped"] == [0, 16, 32, 48]
    first = row("row.json")
    assert run(generate.main, *measure).exit_code == 0 and len(written) == 5  # all is there
    again = row("row.json")
    assert again["fd"] == first["fd"] and again["nfe"] == 7
    other = list(measure)
    other[other.index("0.5")] = "0.6"  # other settings, other images
    assert run(generate.main, *other).exit_code == 0 and len(written) == 9
    assert row("row.json")["fd"] != first["fd"]


def test_two_processes(run, tmp_path):
    assert run(generate.main, *JOB, "--evaluate", "digits", "--json", "one.json").exit_code == 0
    env = os.environ | {"OMP_NUM_THREADS": "1", "ERK_CACHE": str(tmp_path / "other")}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, ROOT / "generate.py", *JOB, "--evaluate", "digits", "--json", "two.json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = row("one.json"), row("two.json")
    assert one["replicates"] == two["replicates"] and one["fd"] == two["fd"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--evaluate", "nothing.npz"], "nothing.npz"),
        (["--evaluate", "digits", "--grid"], "--grid needs images on the disk"),
        (["--evaluate", "digits", "--protocol", "edm"], "needs inception"),
        (["--real", "somewhere"], "--real needs --evaluate: add it"),
    ],
)
def test_bad_input(run, arguments, message):
    result = run(generate.main, *JOB, *arguments)
    assert result.exit_code == 2 and message in result.output
    assert not Path("out").exists() and not Path("results").exists()


@pytest.mark.parametrize("preset", ["digits", "mnist"])
def test_a_reference_of_another_size_is_not_downloaded(run, monkeypatch, preset):
    """The size of a reference by name is known before its file is."""
    monkeypatch.setattr("metrics.references.fetch", lambda *_, **__: pytest.fail("downloaded"))
    size = {"digits": "8x8", "mnist": "28x28"}[preset]  # mnist: of latents
    job = ("--preset", preset, "--seeds", "0-1", "--device", "cpu")
    result = run(generate.main, *job, "--evaluate", "imagenet512")
    assert result.exit_code == 2
    assert f"images of {size} pixels but the reference imagenet512 of 512x512" in result.stderr


@pytest.mark.parametrize(("vae", "size"), [(None, (512, 512)), ("mine", None)])
def test_the_size_of_a_vae_s_images_is_known_without_it(vae, size):
    model = SimpleNamespace(encoder=VAEEncoder(), sample_shape=(4, 64, 64))
    assert measured_sampling._image_size(SimpleNamespace(model=model), vae) == size


def test_rows_of_other_real_images_have_other_names(run):
    """Measured against the reference's images or others; a row that is replaced is reported."""
    few = [*JOB, "--seeds", "0-9", "--evaluate", "digits"]
    assert run(generate.main, *JOB, "--seeds", "100-119", "--outdir", "real").exit_code == 0
    outputs = [run(generate.main, *few, *more).output for more in ([], ["--real", "real"], [])]
    assert len(list(Path("results").glob("digits-digits-*.json"))) == 2
    assert ["replaces an earlier one" in output for output in outputs] == [False, False, True]
