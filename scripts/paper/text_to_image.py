"""Figure 5: text to image with PixArt-alpha, DPM-Solver-2S with and without ERK-Guid.

Where packages or weights are missing it lists them and draws nothing.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache

from erk.commands.cli import ListingError
from erk.generation.images import png_bytes, sheet
from erk.runtime.distributed import pick_device
from erk.runtime.provenance import provenance
from scripts.paper.config import Request, TextToImage, chosen_rows
from scripts.paper.page import table_of
from scripts.paper.tables import Content, write_content

PACKAGES = ("transformers", "sentencepiece", "protobuf")  # pyproject's extra "text-to-image"
MODULES = {"protobuf": "google.protobuf"}  # where the module has another name
INDEX = "model_index.json"  # of a pipeline
WEIGHTS = (".safetensors", ".bin")
GIVEN = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds",
         "negative_prompt_attention_mask")  # fmt: skip
"""What the pipeline's encode_prompt returns, as its call names them."""


def run(config: TextToImage, request: Request) -> list[Path]:
    """Draw Figure 5, write it and return the paths.

    At small scales, where no network takes prompts, the page says so. At paper scale missing
    packages or weights raise ListingError with the plan and all that is missing.
    """
    lacks = [f"missing: {one}" for one in missing(config)]
    description = "\n".join([plan(config), *lacks])
    if request.dry_run:
        click.echo(description)
        return []
    if not request.is_small:
        if lacks:
            raise ListingError(f"{config.name} needs more files.", *description.splitlines())
        pipe = open_pipeline(config, request)
        return write(config, request, pipe, encode(pipe, config.options.prompts))
    notes = ["NOT COMPUTED: no network of this repository takes prompts. At paper scale it needs:",
             *lacks, plan(config)]  # fmt: skip
    click.echo(f"{config.name} is not computed: no network of this repository takes prompts; its "
               "page lists what --scale paper needs", err=True)  # fmt: skip
    return write_content(config, request, "", Content([], [], notes), None)


def plan(config: TextToImage) -> str:
    """Describe the figure."""
    options = config.options
    return "\n".join([
        f"{config.name}: {options.repo}, {options.steps} steps, guidance "
        f"{options.guidance:g}, one image per prompt, seed {config.seeds}",
        *(f"  row: {row.name}" for row in config.rows),
        *(f"  prompt: {prompt}" for prompt in options.prompts),
    ])  # fmt: skip


def missing(config: TextToImage) -> list[str]:
    """Return the missing packages and files with a remedy each; downloads nothing."""
    repo = config.options.repo
    absent = [name for name in PACKAGES if not _is_installed(MODULES.get(name, name))]
    lacks = [f"the Python packages {', '.join(absent)}; install them: pip install "
             f"{' '.join(absent)}"] if absent else []  # fmt: skip
    remedy = f"download them: hf download {repo}"
    index = try_to_load_from_cache(repo, INDEX)
    if not isinstance(index, str):
        return [*lacks, f"the weights https://huggingface.co/{repo} (size unknown); {remedy}"]
    parts = json.loads(Path(index).read_text("utf-8")).items()
    folders = [name for name, kind in parts if isinstance(kind, list) and kind[0]]
    absent = [name for name in folders if not _is_complete(Path(index).parent / name)]
    return [*lacks, *(f"the files https://huggingface.co/{repo}/tree/main/{name}; {remedy}"
                      for name in absent)]  # fmt: skip


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it belongs to
        return False


def _is_complete(folder: Path) -> bool:
    """Return whether a part of a pipeline has all files: a network its weights, or settings."""
    names = {path.name for path in folder.glob("*") if path.exists()}  # links may lead nowhere
    indices = [folder / name for name in names if name.endswith(".index.json")]
    shards = {one for index in indices
              for one in json.loads(index.read_text("utf-8"))["weight_map"].values()}  # fmt: skip
    is_network = "config.json" in names
    return bool(names) and shards <= names and (
        not is_network or any(name.endswith(WEIGHTS) for name in names)
    )  # fmt: skip


def fetch_weights(config: TextToImage, offline: bool) -> None:
    """Download the weights. Raises OSError, or ListingError if downloads are off."""
    if offline and missing(config):
        raise ListingError("downloads are off (--offline), but", *missing(config))
    click.echo(f"{config.name}: {snapshot_download(config.options.repo)}")


def open_pipeline(config: TextToImage, request: Request) -> Any:
    """Load the pipeline from the cache, in float16 on CUDA, else in float32."""
    from diffusers import PixArtAlphaPipeline

    device = pick_device(request.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    pipe = PixArtAlphaPipeline.from_pretrained(
        config.options.repo, torch_dtype=dtype, local_files_only=True
    )
    return pipe.to(device)


def encode(pipe: Any, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Encode the prompts once for all rows."""
    return [dict(zip(GIVEN, pipe.encode_prompt(prompt), strict=True)) for prompt in prompts]


def write(
    config: TextToImage, request: Request, pipe: Any, prompts: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Draw all prompts with the scheduler of every chosen row and write the page."""
    from erk.integrations.diffusers import ERKDPMSolverSinglestepScheduler

    stock, data, images = pipe.scheduler.config, [], []
    for row in chosen_rows(config, request.rows):
        pipe.scheduler = ERKDPMSolverSinglestepScheduler.from_config(stock, **row.settings)
        images.append(draw(config, pipe, prompts))
        used = pipe.scheduler.config
        change = np.abs(images[-1].astype(float) - images[0]).mean()
        data.append({
            "row": row.name, "solver": f"{used.algorithm_type}, singlestep, order "
            f"{used.solver_order}", "w_stiff": used.w_stiff,
            "w_con": used.w_con if used.w_stiff else None,
            "mean change (grey levels)": float(change) if len(images) > 1 else None,
        })  # fmt: skip
    options = config.options
    notes = [f"Rows of images from top to bottom as in the table; prompts from left to right: "
             f"{'; '.join(options.prompts)}.",
             f"{options.steps} steps, guidance {options.guidance:g}, seed "
             f"{config.seeds} for all; the change is against the first row."]  # fmt: skip
    page = png_bytes(sheet(np.concatenate(images), len(prompts), gap=4))
    made_by = provenance(pipe.device)
    made_by["versions"] |= {name: version(name) for name in ("diffusers", "transformers")}
    content = Content([table_of("Settings of each row.", data)], data, notes, {"": page})
    return write_content(config, request, options.repo, content, made_by)


def draw(config: TextToImage, pipe: Any, prompts: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Draw one image per prompt, uint8 [P, 3, H, W].

    The noise is drawn on the CPU, so that a seed starts equally on every device.
    """
    images = []
    for prompt in prompts:
        output = pipe(
            num_inference_steps=config.options.steps, output_type="np", negative_prompt=None,
            guidance_scale=config.options.guidance, use_resolution_binning=False,
            generator=torch.Generator().manual_seed(config.seeds or 0), **prompt,
        ).images[0]  # fmt: skip
        images.append((output * 255).round().astype(np.uint8).transpose(2, 0, 1))
    return np.stack(images)
