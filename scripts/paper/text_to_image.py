"""Figure 5: text to image with PixArt-alpha, DPM-Solver-2S with and without ERK-Guid.

Where packages or weights are missing it says which; nothing else is drawn in their place.
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
from scripts.paper.config import Config, Request, chosen_rows, page_name
from scripts.paper.figure_page import FigureContent, write_figure
from scripts.paper.render import Block, Page, heading, write_page

PACKAGES = ("transformers", "sentencepiece", "protobuf")  # pyproject's extra "diffusers"
MODULES = {"protobuf": "google.protobuf"}  # where the module has another name
INDEX = "model_index.json"  # what a pipeline is loaded by
WEIGHTS = (".safetensors", ".bin")
GIVEN = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds",
         "negative_prompt_attention_mask")  # fmt: skip
"""What the pipeline's encode_prompt returns, by the names under which it takes it back."""


def run(config: Config, request: Request) -> list[Path]:
    """Make the figure; with ``dry_run`` print the plan; at embedded scale, where no network takes
    prompts, write a page that says so. ValueError with the plan and all that is missing."""
    lacking = [f"missing: {one}" for one in missing(config)]
    told = "\n".join([plan(config), *lacking])
    if request.dry_run:
        click.echo(told)
        return []
    if request.scale == "paper":
        if lacking:
            raise ListingError(f"{config.name} cannot be made yet.", *told.splitlines())
        pipe = open_pipeline(config, request)
        return make(config, request, pipe, encode(pipe, config.options["prompts"]))
    notes = ["NOT MADE: no network of this repository takes prompts. At paper scale it needs:",
             *lacking, plan(config), f"The paper: {config.paper}", *config.notes]  # fmt: skip
    title = heading(config, request.scale)
    page = Page(page_name(config, request), title, config.kind, request.scale, [], [], notes)
    return write_page(request.results, page)


def plan(config: Config) -> str:
    """What the figure shows once everything is there."""
    options = config.options
    return "\n".join([
        f"{config.name}: {options['repo']}, {options['steps']} steps, guidance "
        f"{options['guidance']:g}, one picture per prompt, seed {config.seeds['paper']}",
        *(f"  row: {row.name}" for row in config.rows),
        *(f"  prompt: {prompt}" for prompt in options["prompts"]),
    ])  # fmt: skip


def missing(config: Config) -> list[str]:
    """What must be there first, each with what to do; weights are only looked for in the cache."""
    repo = config.options["repo"]
    gone = [name for name in PACKAGES if not _is_installed(MODULES.get(name, name))]
    found = [f"the Python packages {', '.join(gone)}; install them by: pip install "
             f"{' '.join(gone)}"] if gone else []  # fmt: skip
    get = f"fetch them by: hf download {repo}"
    index = try_to_load_from_cache(repo, INDEX)
    if not isinstance(index, str):
        return [*found, f"the weights https://huggingface.co/{repo} (size unknown); {get}"]
    parts = json.loads(Path(index).read_text("utf-8")).items()
    folders = [name for name, kind in parts if isinstance(kind, list) and kind[0]]
    gone = [name for name in folders if not _is_whole(Path(index).parent / name)]
    return [*found, *(f"the files https://huggingface.co/{repo}/tree/main/{name}; {get}"
                      for name in gone)]  # fmt: skip


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it belongs to
        return False


def _is_whole(folder: Path) -> bool:
    """Whether one part of a pipeline is there: a network with all its weights, or settings."""
    names = {path.name for path in folder.glob("*") if path.exists()}  # links may lead nowhere
    indices = [folder / name for name in names if name.endswith(".index.json")]
    shards = {one for index in indices
              for one in json.loads(index.read_text("utf-8"))["weight_map"].values()}  # fmt: skip
    is_network = "config.json" in names
    return bool(names) and shards <= names and (
        not is_network or any(name.endswith(WEIGHTS) for name in names)
    )  # fmt: skip


def fetch_weights(config: Config, offline: bool) -> None:
    """Download what ``missing`` looks for. Raises OSError, or ValueError when it may not."""
    if offline and missing(config):
        raise ListingError("downloads are off (--offline), but", *missing(config))
    click.echo(f"{config.name}: {snapshot_download(config.options['repo'])}")


def open_pipeline(config: Config, request: Request) -> Any:
    """The pipeline from the cache; float16 on CUDA, else float32."""
    from diffusers import PixArtAlphaPipeline

    device = pick_device(request.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    pipe = PixArtAlphaPipeline.from_pretrained(
        config.options["repo"], torch_dtype=dtype, local_files_only=True
    )
    return pipe.to(device)


def encode(pipe: Any, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """The text encoder's answers, so that it runs once for all rows."""
    return [dict(zip(GIVEN, pipe.encode_prompt(prompt), strict=True)) for prompt in prompts]


def make(
    config: Config, request: Request, pipe: Any, prompts: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Draw all prompts with the scheduler of every chosen row and write the page; the files."""
    from erk.integrations.diffusers import ERKDPMSolverSinglestepScheduler

    stock, data, pictures = pipe.scheduler.config, [], []
    for row in chosen_rows(config, request.rows):
        pipe.scheduler = ERKDPMSolverSinglestepScheduler.from_config(stock, **row.settings)
        pictures.append(draw(config, pipe, prompts))
        used = pipe.scheduler.config
        change = np.abs(pictures[-1].astype(float) - pictures[0]).mean()
        data.append({
            "row": row.name, "solver": f"{used.algorithm_type}, singlestep, order "
            f"{used.solver_order}", "w_stiff": used.w_stiff,
            "w_con": used.w_con if used.w_stiff else None,
            "mean change (grey levels)": float(change) if len(pictures) > 1 else None,
        })  # fmt: skip
    options = config.options
    notes = [f"Rows of pictures from top to bottom as in the table; prompts from left to right: "
             f"{'; '.join(options['prompts'])}.",
             f"{options['steps']} steps, guidance {options['guidance']:g}, seed "
             f"{config.seeds['paper']} for all; the change is against the first row."]  # fmt: skip
    page = sheet(np.concatenate(pictures), len(prompts), gap=4)
    block = Block("What was drawn.", list(data[0]), data)
    made_by = provenance(pipe.device)
    made_by["versions"] |= {name: version(name) for name in ("diffusers", "transformers")}
    content = FigureContent([block], data, notes, png_bytes(page))
    return write_figure(config, request, options["repo"], content, [made_by])


def draw(config: Config, pipe: Any, prompts: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """One picture per prompt, uint8 [P, 3, H, W]; the noise is drawn on the CPU, so that a seed
    starts equally on every device."""
    pictures = []
    for given in prompts:
        made = pipe(
            num_inference_steps=config.options["steps"], output_type="np", negative_prompt=None,
            guidance_scale=config.options["guidance"], use_resolution_binning=False,
            generator=torch.Generator().manual_seed(config.seeds["paper"]), **given,
        ).images[0]  # fmt: skip
        pictures.append((made * 255).round().astype(np.uint8).transpose(2, 0, 1))
    return np.stack(pictures)
