"""From the options of `erk generate` to a job; every mistake is found before weights are read."""

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import click
import torch

from erk.calibration.card import Card
from erk.calibration.problem import count_nfe
from erk.generation.job import VERSION, Job, Labels, check_labels
from erk.generation.metadata import read_metadata
from erk.generation.seeds import format_seeds, parse_seeds, same_noise
from erk.generation.with_card import apply_card, open_with_guidance
from erk.io.addresses import shown
from erk.io.files import MAX_TEXT, read_hashed, sha256_of
from erk.io.missing import name_missing
from erk.method.conflicts import check_given
from erk.method.corrections import Correction
from erk.method.settings import Settings
from erk.models.compiling import (
    check_policy,
    compilation_key,
    compiler_fault,
    describe_seconds,
    pays,
)
from erk.models.model import Model, files_of, load_model
from erk.models.presets import find_preset
from erk.runtime.distributed import pick_device
from erk.runtime.memory import keep_freed_memory, load_fitting
from erk.runtime.provenance import provenance

TEXT = ("schedule", "guidance", "guidance_interval", "pc_stochastic", "solver_options")
"""Settings whose option has another name or type than the field."""
NO_OPTION = ("twin", "dtype")
VAE_SUFFIXES = (".json", ".safetensors")
COMPILED = ", compiled"  # in the identity, after the precision
DIRECT = tuple(f.name for f in fields(Settings) if f.name not in (*TEXT, *NO_OPTION))
"""Settings whose option has the field's name, type and default."""
DEFAULTS: dict[str, Any] = {
    "preset": None, "net": None, "gnet": None, "labels": "random", "class_idx": None,
    "schedule": Settings.__dataclass_fields__["schedule"].default, "solver_option": (),
    "guidance": None, "guidance_interval": None, "pc_deterministic": False, "noise": "device",
    "precision": "auto", "compile": "auto", "vae": None, "vae_precision": "auto",
    "vae_batch": None, "trace": None, "kind": "png", "subdirs": False, "card": None,
    "given": None,
} | {name: Settings.__dataclass_fields__[name].default for name in DIRECT}  # fmt: skip
"""Options of `erk generate` that an image depends on, with their defaults.

`given`: names of the options that were given, which must not contradict a card; None: those whose
value is not the default.
"""


@dataclass(frozen=True)
class JobPlan:
    """A job whose networks are not loaded yet; the fields are those of `Job`."""

    net: str  # address of the denoiser
    gnet: str | None  # address of the guide
    settings: Settings
    seeds: list[int]
    labels: Labels
    batch: int
    device: torch.device
    noise_device: str | None
    identity: dict[str, Any]
    options: dict[str, Any]
    compiled: bool = False
    card: Card | None = None
    metadata: None = None  # known once the networks are loaded

    def load(self) -> Job:
        """Load the networks.

        Raises ValueError or OSError for networks that do not fit the options, MemoryError if they
        do not fit into memory.
        """
        return self.with_networks(
            *load_fitting(
                load_networks, self.options, self.net, self.gnet, self.device, self.compiled
            )
        )

    def with_networks(self, model: Model, guide: Model | None) -> Job:
        """Return the job with networks that are loaded: those of `net` and `gnet`.

        Raises ValueError if they do not fit the options.
        """
        model.check_decodable()
        check_labels(self.labels, model.label_dim, self.seeds)
        if self.card is not None:
            self.card.check(model, guide)
        metadata = {
            "seeds": format_seeds(self.seeds),
            "images": len(self.seeds),
            "batch": self.batch,
            "network": _describe(model),
            "guide": guide and _describe(guide),
            "sampling_version": VERSION,
            **provenance(self.device),
        }
        sigmas = self.settings.sigmas(model)  # some networks lack levels for some schedules
        correction = self.settings.correction(sigmas, model)
        if isinstance(correction, Correction):
            metadata["correction"] = asdict(correction)
            if self.settings.erk == "auto" and not correction.acts:
                _notify(f"--erk auto has no effect for {self.settings.solver} at these noise "
                        "levels: images are those without it")  # fmt: skip
        if self.compiled:
            seconds = describe_seconds(compilation_key(model.sha256, self.batch, self.device))
            _notify(f"compiles the networks once ({seconds}; {len(self.seeds)} images)")
        if (pair := same_noise(self.seeds)) is not None:
            _notify("the seeds {} and {} draw the same noise: seeds count modulo 2^32, as in "
                    "EDM".format(*pair))  # fmt: skip
        return Job(
            model, self.settings, guide, self.seeds, self.labels, self.batch, self.noise_device,
            self.identity, metadata,
        )  # fmt: skip


def _notify(text: str) -> None:
    """Print a sentence on stderr, in the first process of a run only."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(text, err=True)


def plan_job(options: dict[str, Any], folder: Path | None = None) -> JobPlan:
    """Read the options of `erk generate` without loading or writing anything.

    A run that exists in `folder` decides whether networks are compiled, unless the options do.
    Raises ValueError or OSError with one sentence.
    """
    card, options = open_with_guidance(options)
    net, gnet, guidance = networks_of(options)
    settings = settings_of(options, guidance)
    check_given(options.get("given") or (), settings)
    if card is not None:
        settings = apply_card(card, settings, options, DEFAULTS)
    seeds = parse_seeds(options["seeds"])
    labels, identity_of_labels = labels_of(options["labels"], options["class_idx"])
    device = pick_device(options["device"])
    compiled = is_compiled(options["compile"], settings, len(seeds), device, folder)
    identity = identity_of(options, settings, (net, gnet), identity_of_labels, device, compiled)
    noise_device = "cpu" if options["noise"] == "cpu" else None
    return JobPlan(
        net, gnet, settings, seeds, labels, options["batch"], device, noise_device, identity,
        options, compiled, card,
    )  # fmt: skip


def is_compiled(
    policy: str, settings: Settings, images: int, device: torch.device, folder: Path | None = None
) -> bool:
    """Decide whether a run of so many images in all, in all its processes, compiles its networks.

    "auto": as the run in `folder` says; else on CUDA if the run is long enough to pay for it.
    Raises ValueError for another policy than "auto", "always" and "never".
    """
    check_policy(policy)
    if policy != "auto":
        return policy == "always"
    metadata = None if folder is None or not folder.is_dir() else read_metadata(folder)
    if metadata is not None:
        return COMPILED in metadata["settings"].get("precision", "")
    return pays(images, _evaluations(settings), device) and _can_compile(device)


def _evaluations(settings: Settings) -> float:
    """Count evaluations of network and guide per image.

    A discrete schedule, whose levels only the network knows, counts as EDM's of as many steps, of
    which EDM's has 2 at least.
    Corrections, which only their networks may use, take no evaluations.
    """
    settings = replace(settings, erk=None)
    if settings.schedule == "discrete":
        settings = replace(settings, schedule="edm", steps=max(2, settings.steps))
    return sum(count_nfe(settings))


@functools.cache
def _can_compile(device: torch.device) -> bool:
    """Return whether the compiler works; if not, print why, once."""
    fault = compiler_fault(device)
    if fault is not None:
        _notify(f"compiled networks would shorten this run, but the compiler fails ({fault})")
    return fault is None


def open_job(options: dict[str, Any]) -> Job:
    """Read the options of `erk generate` and load the networks; write nothing.

    Raises ValueError, OSError or MemoryError with one sentence.
    """
    return plan_job(options).load()


def networks_of(options: dict[str, Any]) -> tuple[str, str | None, float]:
    """Return the addresses of network and guide and the guidance weight; no guide at weight 1."""
    net, gnet, guidance = options["net"], options["gnet"], options["guidance"]
    if options["preset"] is not None:
        preset = find_preset(options["preset"])
        net, gnet = net or preset.net, gnet or preset.gnet
        guidance = preset.guidance if guidance is None else guidance
    if net is None:
        raise ValueError(
            "no network: give --preset NAME or --net FILE (a first try: --preset digits; "
            "all names: erk presets)."
        )
    guidance = 1.0 if guidance is None else guidance
    if options["gnet"] is not None and guidance == 1 and options["guidance"] is None:
        raise ValueError("--gnet has no effect without --guidance: give both, or neither.")
    if guidance != 1 and gnet is None:
        raise ValueError(f"--guidance {guidance:g} needs a guiding network: give --gnet FILE.")
    return net, None if guidance == 1 else gnet, guidance


def settings_of(options: dict[str, Any], guidance: float) -> Settings:
    """Build the sampling settings that the options ask for, without a card."""
    schedule = options["schedule"]
    if options["trace"] is not None and Path(options["trace"]).suffix != ".npz":
        raise ValueError(f"--trace writes a .npz file; call it so, not '{options['trace']}'.")
    if schedule and schedule[0] in "0123456789.":
        schedule = tuple(_numbers("--schedule", schedule))
    return Settings(
        schedule=schedule,
        guidance=None if options["guidance"] is None and guidance == 1 else guidance,  # type: ignore[arg-type]
        guidance_interval=_interval(options["guidance_interval"]),
        pc_stochastic=not options["pc_deterministic"],
        solver_options=_solver_options(options["solver_option"]),
        **{name: options[name] for name in DIRECT},
    )


def labels_of(policy: str, class_idx: int | None) -> tuple[Labels, str]:
    """Read the label policy; a file has one line 'SEED CLASS' per seed.

    Returns the policy and its identity: for a file, the sha256 of the bytes that were read.
    """
    if class_idx is not None and policy != "random":
        raise ValueError("--class and --labels exclude each other; give one of them.")
    if class_idx is not None:
        return class_idx, policy
    if policy in ("random", "balanced"):
        return policy, policy
    if not Path(policy).exists():
        raise FileNotFoundError(
            f"--labels must be random, balanced or a file; '{policy}' does not exist."
        )
    rows: dict[int, int] = {}
    data, sha256 = read_hashed(policy, MAX_TEXT)
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        if len(words) != 2 or not all(re.fullmatch("[0-9]{1,18}", word) for word in words):
            raise ValueError(f"{policy}:{number} is not 'SEED CLASS' but '{line[:40]}'.")
        seed, chosen = int(words[0]), int(words[1])
        if rows.setdefault(seed, chosen) != chosen:
            raise ValueError(
                f"{policy}:{number} gives seed {seed} the class {chosen}, but a line before it "
                f"{rows[seed]}: keep one of the lines."
            )
    return rows, f"file {sha256}"


def identity_of(
    options: dict[str, Any], settings: Settings, networks: tuple[str, str | None], labels: str,
    device: torch.device, compiled: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Collect everything that an image depends on, except its seed and the batch size."""
    net, gnet = networks
    return {
        "net": shown(net).rpartition("/")[2],
        "gnet": gnet and shown(gnet).rpartition("/")[2],
        **settings.identity(),
        "labels": labels,
        "class": options["class_idx"],
        "noise": "cpu" if options["noise"] == "cpu" else device.type,
        "precision": _precision(options, device, compiled),
        "vae": options["vae"] and _vae(options["vae"]),
        "format": options["kind"],
        "subdirs": options["subdirs"],
    }


def _vae(name: str) -> str:
    """Identify a VAE: a folder by the content of its files, a repository by its name."""
    if not Path(name).is_dir():
        return name
    files = sorted(path for path in Path(name).iterdir() if path.suffix in VAE_SUFFIXES)
    hashes = "".join(sha256_of(path) for path in files)
    return f"files {hashlib.sha256(hashes.encode()).hexdigest()}"


def load_networks(
    options: dict[str, Any], net: str, gnet: str | None, device: torch.device,
    compiled: bool = False,
) -> tuple[Model, Model | None]:  # fmt: skip
    """Load the network and its guide, if any, with kernels that round the same in every run."""
    if device.type == "cpu":
        keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # as torchrun does: CPU rounding depends on the thread count
    torch.backends.cudnn.deterministic = True
    common = {name: options[name] for name in ("precision", "offline")} | {"compiled": compiled}
    vae = {name: options[name] for name in ("vae", "vae_precision", "vae_batch")}
    name_missing(files_of(net, gnet), options["offline"])
    model = load_model(net, device, **vae, **common)
    if gnet is None:
        return model, None
    guide = model if gnet == net else load_model(gnet, device, **common)
    _check_guide(model, guide)
    return model, guide


def _check_guide(model: Any, guide: Any) -> None:
    if guide.sha256 == model.sha256 != "":
        raise ValueError(
            "--gnet is the network itself, with the same classes, so --guidance has no effect: "
            "give another guide, such as an unconditional network or a smaller one."
        )
    if guide.sample_shape != model.sample_shape:
        raise ValueError(
            f"the guide makes samples of shape {guide.sample_shape}, the network "
            f"{model.sample_shape}; give a guide for the same data."
        )
    if guide.label_dim not in (0, model.label_dim):
        raise ValueError(
            f"the guide has {guide.label_dim} classes, the network {model.label_dim}; give a "
            "guide with the same classes or with none."
        )


def _describe(model: Any) -> dict[str, Any]:
    return {
        "name": model.name, "sha256": model.sha256, "licence": model.licence,
        "classes": model.label_dim,
    }  # fmt: skip


def _precision(options: dict[str, Any], device: torch.device, compiled: bool) -> str:
    """Describe precision and device; defaults are omitted."""
    text = f"{options['precision']} on {device.type}{COMPILED if compiled else ''}"
    if options["vae_precision"] not in (("auto",) if device.type == "cuda" else ("auto", "fp32")):
        text += f", VAE in {options['vae_precision']}"
    if options["vae_batch"] is not None:
        text += f", VAE batch {options['vae_batch']}"
    return text


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} wants numbers with commas between, not '{text}'.") from None


def _solver_options(texts: Sequence[str]) -> dict[str, Any]:
    """Read all --solver-option. Raises ValueError for one that is given twice."""
    chosen: dict[str, Any] = {}
    for text in texts:
        name, value = _solver_option(text)
        if name in chosen:
            raise ValueError(f"--solver-option gives {name} twice: leave out one of them.")
        chosen[name] = value
    return chosen


def _solver_option(text: str) -> tuple[str, Any]:
    """Read 'order=3' as ('order', 3); true, false and numbers become values."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--solver-option wants NAME=VALUE, such as order=3, not '{text}'.")
    known = {"true": True, "false": False}
    if value.lower() in known:
        return name, known[value.lower()]
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return name, number(value)
    return name, value


def _interval(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    bounds = _numbers("--guidance-interval", text)
    if len(bounds) != 2:
        raise ValueError(f"--guidance-interval wants LO,HI in sigma, not '{text}'.")
    return bounds[0], bounds[1]
