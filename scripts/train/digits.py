"""Train the embedded networks: EDM2 denoisers of scikit-learn's digits, and their classifier.

    python -m scripts.train.digits            # everything, about 10 CPU minutes
    python -m scripts.train.digits --only main

Writes to checkpoints/: digits (class-conditional), digits-weak (the same run, early: the guide of
Autoguidance), digits-uncond (no labels: the guide of CFG), and digits-classifier (extractor).
digits-early is the same recipe stopped at 49 152 images, where its stiffness along a trajectory is
that of EDM2-S; -1 and -2 are two more training seeds, digits-early-weak and -uncond the guides.
One thread and fixed seeds: a rerun on the same machine gives the same weights. It stops early on
purpose, while Autoguidance still has something to correct (results/demo.md: FD with and without).
"""

from typing import Any

import click
import torch

from erk.commands.cli import CONTEXT, clean_exit
from erk.models.checkpoint import Part
from erk.models.encoders import DigitsEncoder
from scripts.train.denoiser import CHECKPOINTS, Data, Recipe, Run, train

NETWORK: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 1,
    "use_fp16": False,
    "sigma_data": 0.5,
    "logvar_channels": 32,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "channels_per_head": 16,  # the default of 64 would leave so small a net without attention
}
RECIPE = Recipe(NETWORK)
EARLY_WEAK, WEAK, EARLY, LAST = 16_384, 32_768, 49_152, 262_144  # images seen
RUNS = {
    "main": Run(
        10,
        0,
        {
            EARLY_WEAK: "digits-early-weak",
            WEAK: "digits-weak",
            EARLY: "digits-early",
            LAST: "digits",
        },
    ),
    "uncond": Run(0, 1, {EARLY: "digits-early-uncond", LAST: "digits-uncond"}),
    "early-1": Run(10, 2, {EARLY: "digits-early-1"}),
    "early-2": Run(10, 3, {EARLY: "digits-early-2"}),
}
SOURCE = "trained by scripts/train/digits.py on scikit-learn's bundled digits"


def encoded() -> Data:
    """Encode all 1797 digits [N, 1, 8, 8]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    values = torch.tensor(digits.images, dtype=torch.float32)[:, None]
    scaled = values / 8 - 1
    encoder = DigitsEncoder(round(scaled.mean().item(), 4), round(scaled.std().item(), 4))
    classes = torch.tensor(digits.target)
    kind = Part("DigitsEncoder", {"mean": encoder.mean, "std": encoder.std})
    return Data(kind, encoder.encode(values), classes, SOURCE)


@click.command(context_settings=CONTEXT)
@click.option("--only", type=click.Choice([*RUNS, "classifier"]), help="Train only this network.")
@clean_exit
def main(only: str | None) -> None:
    """Train the embedded networks and write them to checkpoints/."""
    for name in RUNS if only is None else [only]:
        if name in RUNS:
            train(RECIPE, RUNS[name], encoded(), "python -m scripts.train.digits")
    if only in (None, "classifier"):
        from scripts.train.classifier import digits_split, train_classifier

        train_classifier("digits", digits_split(0), CHECKPOINTS / "digits-classifier.safetensors")


if __name__ == "__main__":
    main()
