"""Figure 5 on a PixArtAlphaPipeline of a few thousand random weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from erk.integrations.diffusers import (
    ERKDPMSolverMultistepScheduler,
    ERKDPMSolverSinglestepScheduler,
    ERKHeunScheduler,
)
from scripts.paper import reproduce, text_to_image
from scripts.paper.config import Request, load_config

ROOT = Path(__file__).parents[2]
SIDE = 16  # pixels of an image


@pytest.fixture(scope="module")
def parts():
    """Transformer and VAE of PixArt's kind; the transformer also predicts a variance, as theirs."""
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3,
        caption_channels=32, in_channels=4, cross_attention_dim=24, out_channels=8,
    )  # fmt: skip
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.3)  # a visible prediction
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return transformer.eval(), vae.eval()


@pytest.fixture
def pipe(parts):
    """With the levels and the solver of PixArt-alpha's own scheduler."""
    pipeline = diffusers.PixArtAlphaPipeline(
        tokenizer=None, text_encoder=None, transformer=parts[0], vae=parts[1],
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompts(count=3):
    """What the text encoder would answer."""
    draw = torch.Generator().manual_seed(1)
    return [
        {name: torch.ones(1, 8) if "mask" in name else torch.randn(1, 8, 32, generator=draw)
         for name in text_to_image.GIVEN}
        for _ in range(count)
    ]  # fmt: skip


def config(**options):
    config = load_config("figure5")
    return config.model_copy(update={"options": config.options.model_copy(update=options)})


def cells(sheet, rows, columns=3, gap=4):
    page = np.asarray(sheet)
    at = [gap + i * (SIDE + gap) for i in range(max(rows, columns))]
    return np.array([
        [page[y : y + SIDE, x : x + SIDE] for x in at[:columns]] for y in at[:rows]
    ])  # fmt: skip


def test_figure_5_shows_both_schedulers(pipe, tmp_path):
    request = Request(scale="paper", results=tmp_path)
    written = text_to_image.write(config(), request, pipe, prompts())
    ends = {"csv", "md", "tex", "html", "json", "png"}
    assert {path.name for path in written} == {f"figure5-paper.{end}" for end in ends}
    content = json.loads((tmp_path / "figure5-paper.json").read_text("utf-8"))
    plain, guided = content["rows"]
    assert (plain["w_stiff"], plain["w_con"], guided["w_stiff"], guided["w_con"]) == (
        0,
        None,
        1,
        0.5,
    )
    assert plain["solver"] == guided["solver"] == "dpmsolver++, singlestep, order 2"
    with Image.open(tmp_path / "figure5-paper.png") as page:
        shown = cells(page, rows=2).astype(float)
    change = np.abs(shown[1] - shown[0]).mean()
    assert guided["mean change (grey levels)"] == pytest.approx(change) and change > 0
    assert "mean change (grey levels)" in plain and not np.array_equal(shown[0, 0], shown[0, 1])
    assert content["made_by"][0]["versions"]["diffusers"] == diffusers.__version__
    text = (tmp_path / "figure5-paper.md").read_text("utf-8")
    assert "a fox asleep" in text and "15 steps, guidance 4.5, seed 0" in text


def test_the_plain_row_is_diffusers_own_scheduler(pipe, tmp_path):
    """The row without ERK-Guid, byte by byte; and 15 steps are 15 evaluations of the network."""
    text_to_image.write(config(), Request(scale="paper", results=tmp_path), pipe, prompts())
    with Image.open(tmp_path / "figure5-paper.png") as page:
        shown = cells(page, rows=2)
    stock = diffusers.DPMSolverMultistepScheduler().config
    pipe.scheduler = diffusers.DPMSolverSinglestepScheduler.from_config(stock)
    calls = []
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    again = text_to_image.draw(config(), pipe, prompts())
    handle.remove()
    assert np.array_equal(shown[0], again.transpose(0, 2, 3, 1)) and len(calls) == 3 * 15


@pytest.mark.parametrize(
    "kind", [ERKDPMSolverSinglestepScheduler, ERKDPMSolverMultistepScheduler, ERKHeunScheduler]
)
def test_every_scheduler_drops_into_the_pipeline(kind, pipe, tmp_path):
    """From the stock config, with and without weights, and from disk: guidance acts and stays."""
    stock = pipe.scheduler.config

    def draw():
        given = prompts(1)[0]
        built = pipe(
            num_inference_steps=10, negative_prompt=None, use_resolution_binning=False,
            generator=torch.Generator().manual_seed(0), output_type="latent", **given,
        )  # fmt: skip
        return built.images

    answers = []
    for weights in ({}, {"w_stiff": 0.5, "w_con": 0.0}):
        pipe.scheduler = kind.from_config(stock, **weights)
        answers.append(draw())
    assert not torch.equal(*answers) and answers[1].isfinite().all()
    pipe.scheduler.save_pretrained(tmp_path)
    pipe.scheduler = kind.from_pretrained(tmp_path)
    assert pipe.scheduler.config.w_stiff == 0.5 and torch.equal(draw(), answers[1])


def command(tmp_path, *more):
    results = ["--results", str(tmp_path / "r"), *more]
    return CliRunner().invoke(reproduce.main, ["figure5", "--scale", "paper", *results])


def test_the_command_makes_the_figure_once_all_is_there(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(text_to_image, "missing", lambda config: [])
    monkeypatch.setattr(text_to_image, "open_pipeline", lambda config, request: pipe)
    monkeypatch.setattr(text_to_image, "encode", lambda pipe, texts: prompts(len(texts)))
    done = command(tmp_path)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "r/figure5-paper.png").is_file() and "NOT COMPUTED" not in done.output


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for the cached repository; None as long as it has no index."""
    folder = tmp_path / "hub"

    def look(repo, name):
        return str(folder / name) if (folder / name).is_file() else None

    monkeypatch.setattr(text_to_image, "try_to_load_from_cache", look)
    return folder


def put(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(json.dumps(content))


def missing_files(tmp_path):
    done = command(tmp_path)
    assert done.exit_code == 2 and "Traceback" not in done.output, done.output
    assert "15 steps" in done.output and not (tmp_path / "r").exists()
    return [line.removeprefix("missing: ") for line in done.output.splitlines()
            if line.startswith("missing: ")]  # fmt: skip


def test_it_lists_exactly_what_is_missing(tmp_path, hub, monkeypatch):
    (all_of_it,) = missing_files(tmp_path)
    assert "hf download PixArt-alpha/PixArt-XL-2-1024-MS" in all_of_it
    index = {name: ["diffusers", "Any"] for name in ("vae", "transformer", "scheduler")}
    put(hub, model_index__json=index | {"_class_name": "P", "safety_checker": [None, None]})
    assert [line.partition(";")[0].rpartition("/")[2] for line in missing_files(tmp_path)] == [
        "vae", "transformer", "scheduler"
    ]  # fmt: skip
    put(hub / "scheduler", scheduler_config__json={})
    put(hub / "vae", config__json={})
    sharded = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    put(hub / "transformer", config__json={}, model__safetensors__index__json=sharded)
    put(hub / "transformer", **{"1__safetensors": {}})
    assert [line.partition(";")[0].rpartition("/")[2] for line in missing_files(tmp_path)] == [
        "vae", "transformer"
    ]  # fmt: skip
    put(hub / "vae", weights__safetensors={})
    (hub / "transformer/2.safetensors").symlink_to(hub / "nowhere")  # a download that was cut off
    (one,) = missing_files(tmp_path)
    assert "/tree/main/transformer; download them: hf download" in one
    (hub / "transformer/2.safetensors").unlink()
    put(hub / "transformer", **{"2__safetensors": {}})
    monkeypatch.setattr(text_to_image, "find_spec", lambda name: None)
    (packages,) = missing_files(tmp_path)
    assert "pip install transformers sentencepiece protobuf" in packages


def test_fetching_is_the_hubs(tmp_path, hub, monkeypatch):
    asked = []
    monkeypatch.setattr(text_to_image, "snapshot_download", lambda repo: asked.append(repo))
    assert command(tmp_path, "--fetch").exit_code == 0
    assert asked == ["PixArt-alpha/PixArt-XL-2-1024-MS"]
    done = command(tmp_path, "--fetch", "--offline")
    assert done.exit_code == 2 and "downloads are off" in done.output and len(asked) == 1


def test_prompts_are_encoded_once_by_the_names_of_the_pipeline():
    encoder = SimpleNamespace(encode_prompt=lambda prompt: (prompt, 1, 2, 3))
    (given,) = text_to_image.encode(encoder, ["a fox"])
    assert given == {
        "prompt_embeds": "a fox", "prompt_attention_mask": 1, "negative_prompt_embeds": 2,
        "negative_prompt_attention_mask": 3,
    }  # fmt: skip


def cached(folder, pipe):
    """A whole repository in the hub's cache: this pipeline with a tiny T5 and a tokenizer."""
    import sentencepiece
    import transformers

    target = folder / "models--PixArt-alpha--PixArt-XL-2-1024-MS"
    snapshot = target / "snapshots/0"
    (snapshot / "tokenizer").mkdir(parents=True)
    (target / "refs").mkdir()
    (target / "refs/main").write_text("0")
    words = iter((ROOT / "LICENSE").read_text("utf-8").split("\n"))  # a text that stays
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=words, model_prefix=str(snapshot / "tokenizer/spiece"), vocab_size=300,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    put(snapshot / "tokenizer", tokenizer_config__json={"tokenizer_class": "T5Tokenizer"})
    shape = transformers.T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=32, num_layers=1,
                                  num_heads=2)  # fmt: skip
    torch.manual_seed(0)
    transformers.T5EncoderModel(shape).save_pretrained(snapshot / "text_encoder")
    pipe.save_pretrained(snapshot)
    index = json.loads((snapshot / "model_index.json").read_text("utf-8"))
    index |= {"tokenizer": ["transformers", "T5Tokenizer"],
              "text_encoder": ["transformers", "T5EncoderModel"]}  # fmt: skip
    (snapshot / "model_index.json").write_text(json.dumps(index))


@pytest.mark.slow
def test_figure_5_runs_from_a_cached_repository(pipe, tmp_path):
    """The whole command in a process of its own, with text encoder and tokenizer."""
    cached(tmp_path / "hub", pipe)
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-m", "scripts.paper.reproduce", "figure5", "--scale", "paper",
            "--device", "cpu", "--results", str(tmp_path / "r")]  # fmt: skip
    done = subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with Image.open(tmp_path / "r/figure5-paper.png") as page:
        shown = cells(page, rows=2)
    assert not np.array_equal(shown[0, 0], shown[0, 1]) and not np.array_equal(shown[0], shown[1])
