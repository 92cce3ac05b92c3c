"""Check noise, labels and guide before anything is computed."""

import warnings

from torch import Tensor

from erk.method.arguments import require, takes
from erk.method.churn import Noise
from erk.method.drift import GuidedDrift

LOUD = 5.0
"""Standard deviation of noise above which it is taken for noise times sigma."""


def check_inputs(drift: GuidedDrift, noise: Tensor, randn_like: Noise) -> None:
    """Raise ValueError, one sentence, for noise, labels or a guide that cannot be meant.

    Warn of labels that are left out, and of noise that a noise level seems to have multiplied.

    Parameters
    ----------
    drift
        The networks with their labels.
    noise
        To be [B, ...] of floating-point numbers, all finite, of the model's shape.
    randn_like
        To be a function.
    """
    is_noise = isinstance(noise, Tensor) and noise.ndim > 1 and noise.is_floating_point()
    require(is_noise, "noise", "a tensor [B, ...] of floating-point numbers", noise)
    require(takes(randn_like, 1), "randn_like", "a function of a tensor [B, ...]", randn_like)
    check_guide(drift)
    shape = getattr(drift.model, "sample_shape", None)
    if shape is not None and noise.shape[1:] != tuple(shape):
        raise ValueError(
            f"the model samples [B, {', '.join(map(str, shape))}], but the noise is "
            f"{[*noise.shape]}: draw it with erk.noise_and_labels(seeds, model)."
        )
    if len(noise) == 0:
        raise ValueError("the noise has no samples: give at least one.")
    named = (drift.model, "labels", drift.labels), (
        drift.guide_model, "guide_labels", drift.guide_labels
    )  # fmt: skip
    for model, name, labels in named:
        classes = getattr(model, "label_dim", 0)
        form = f"[B, {classes}], or [B] of class numbers for a network that takes them"
        if classes and not isinstance(labels, Tensor | None):
            raise ValueError(
                f"{name} must be a tensor, {form}, not {type(labels).__name__}: give "
                "torch.as_tensor(labels)."
            )
        if classes and isinstance(labels, Tensor) and labels.shape[1:] not in ((), (classes,)):
            raise ValueError(
                f"{name} must be {form}, not {[*labels.shape]}: draw them with "
                "erk.noise_and_labels(seeds, model)."
            )
        if isinstance(labels, Tensor) and labels.ndim and len(labels) not in (1, len(noise)):
            raise ValueError(
                f"{name} must have a row for each of the {len(noise)} samples of the noise, "
                f"not {len(labels)}."
            )
    bad = (~noise.flatten(1).isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(f"the noise of sample {bad[0].item()} has NaN or infinity: draw it again.")
    spread = noise.detach().float().std(correction=0).item()
    if spread > LOUD:
        warnings.warn(
            f"the noise has standard deviation {spread:.3g}, but 1 is meant: the first noise level "
            "multiplies it. Draw it with torch.randn or erk.noise_and_labels.",
            stacklevel=4,  # the caller of erk.sample
        )
    classes = getattr(drift.model, "label_dim", 0)
    if classes and drift.labels is None:
        warnings.warn(
            f"the network has {classes} classes but gets no labels, which only a network that was "
            "trained without them too can use: draw both with erk.noise_and_labels(seeds, model).",
            stacklevel=4,  # the caller of erk.sample
        )


def check_guide(drift: GuidedDrift) -> None:
    """Raise ValueError for a guide that is the network itself with the same labels."""
    is_same = drift.guide_model is drift.model and drift.guide_labels is drift.labels
    if is_same and drift.guidance != 1:
        raise ValueError(
            "the guide is the network itself with the same labels, so guidance has no effect: "
            "give guide_labels or another guide_model."
        )
