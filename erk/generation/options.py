"""From the options of generate.py to what the job needs; every mistake is found here."""

import contextlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from erk.calibration.card import Card, opened
from erk.generation.sampling import Labels
from erk.io.download import sha256_of
from erk.method.settings import Settings
from erk.models.presets import find_preset

SAMPLING = ("solver", "steps", "sigma_min", "sigma_max", "rho", "w_stiff", "w_con", "erk",
            "erk_scale", "erk_proj", "S_churn", "S_min", "S_max", "S_noise", "afs",
            "denoise_to_zero", "adaptive_tau", "pc_snr")  # fmt: skip
DEFAULTS: dict[str, Any] = {
    "preset": None, "net": None, "gnet": None, "labels": "random", "class_idx": None,
    "schedule": "edm", "solver_option": (), "guidance": None, "guidance_interval": None,
    "pc_deterministic": False, "noise": "device", "precision": "auto", "compiled": False,
    "vae": None, "vae_precision": "auto", "vae_batch": None, "trace": None,
    "kind": "png", "subdirs": False,
} | {name: Settings.__dataclass_fields__[name].default for name in SAMPLING}  # fmt: skip
"""generate.py's options that decide a picture, where nothing else is asked for."""


def networks_of(options: dict[str, Any]) -> tuple[str, str | None, float]:
    """Addresses of network and guide, and the guidance weight; no guide at guidance 1."""
    net, gnet, guidance = options["net"], options["gnet"], options["guidance"]
    if options["preset"] is not None:
        preset = find_preset(options["preset"])
        net, gnet = net or preset.net, gnet or preset.gnet
        guidance = preset.guidance if guidance is None else guidance
    if net is None:
        raise ValueError(
            "no network: give --preset NAME or --net FILE (a first try: --preset digits "
            "--seeds 0-63; all names: --list-presets)."
        )
    guidance = 1.0 if guidance is None else guidance
    if guidance != 1 and gnet is None:
        raise ValueError(f"--guidance {guidance:g} needs a guiding network: give --gnet FILE.")
    return net, None if guidance == 1 else gnet, guidance


def settings_of(options: dict[str, Any], guidance: float) -> Settings:
    """The sampling settings that the options ask for."""
    schedule = options["schedule"]
    if options["trace"] is not None and Path(options["trace"]).suffix != ".npz":
        raise ValueError(f"--trace writes a .npz file; call it so, not '{options['trace']}'.")
    if schedule and schedule[0].isdigit():
        schedule = tuple(_numbers("--schedule", schedule))
    settings = Settings(
        schedule=schedule,
        guidance=guidance,
        guidance_interval=_interval(options["guidance_interval"]),
        pc_stochastic=not options["pc_deterministic"],
        solver_options=dict(_solver_option(text) for text in options["solver_option"]),
        **{name: options[name] for name in SAMPLING} | {"erk": opened(options["erk"])},
    )
    if settings.guidance_interval is not None and guidance == 1:
        raise ValueError("--guidance-interval needs model guidance: give --guidance and --gnet.")
    return settings


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} wants numbers with commas between, not '{text}'.") from None


def _solver_option(text: str) -> tuple[str, Any]:
    """'order=3' -> ('order', 3); true, false and numbers become what they say."""
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


def labels_of(policy: str, class_idx: int | None) -> Labels:
    """The label policy; a file has one line 'SEED CLASS' per seed."""
    if class_idx is not None and policy != "random":
        raise ValueError("--class and --labels exclude each other; give one of them.")
    if class_idx is not None:
        return class_idx
    if policy in ("random", "balanced"):
        return policy
    if not Path(policy).is_file():
        raise FileNotFoundError(f"--labels wants random, balanced or a file; '{policy}' is none.")
    rows: dict[int, int] = {}
    text = Path(policy).read_text("utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        if len(words) != 2 or not all(re.fullmatch("[0-9]{1,18}", word) for word in words):
            raise ValueError(f"{policy}:{number} is not 'SEED CLASS' but '{line[:40]}'.")
        rows[int(words[0])] = int(words[1])
    return rows


def _precision(options: dict[str, Any], device: torch.device) -> str:
    """What decides how numbers round, in words; what is as released goes without saying."""
    told = f"{options['precision']} on {device.type}"
    if options["compiled"]:
        told += ", compiled"
    if options["vae_precision"] not in (("auto",) if device.type == "cuda" else ("auto", "fp32")):
        told += f", VAE in {options['vae_precision']}"
    if options["vae_batch"] is not None:
        told += f", VAE batch {options['vae_batch']}"
    return told


def identity_of(
    options: dict[str, Any], settings: Settings, net: str, gnet: str | None, device: torch.device
) -> dict[str, Any]:
    """All that a picture depends on, beside its seed and the rounding of batch sizes."""
    drawn = "cpu" if options["noise"] == "cpu" else device.type
    card = settings.erk.key if isinstance(settings.erk, Card) else None
    labels = options["labels"]
    if labels not in ("random", "balanced"):
        labels = f"file {sha256_of(Path(labels))}"
    return {
        "net": net.rpartition("/")[2],
        "gnet": gnet and gnet.rpartition("/")[2],
        **asdict(settings),
        "erk": f"card {card}" if card else settings.erk,
        "labels": labels,
        "class": options["class_idx"],
        "noise": drawn,
        "precision": _precision(options, device),
        "vae": options["vae"],
        "format": options["kind"],
        "subdirs": options["subdirs"],
    }
