"""Train EDM2 denoisers on a CPU: the published loss, averages of the weights, exact resume.

A run is a function of its recipe, its data and its seed. Its state (weights, averages, optimizer,
random generator) is written as one file from time to time, so that a run that was killed at any
moment goes on to the same weights.
"""

import copy
import hashlib
import io
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from erk.io.atomic import write_file
from erk.models.checkpoint import Checkpoint, Part, write_safetensors
from erk.models.edm2 import MPConv, Precond
from erk.models.ema import exponent_of

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
KEEP_EVERY = 8_192  # images between two writes of the state
CURVE_EVERY = 32_768  # images between two points of the loss curve
HELD_OUT_SIGMAS = 8  # noise levels per held-out image


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters that the networks of one data set share."""

    network: dict[str, Any]  # arguments of Precond, without label_dim
    batch: int = 128
    rate: float = 1e-2  # learning rate
    ramp_up: int = 50_000  # images of linear ramp-up
    decay_after: int = 256_000  # images, then inverse square root
    noise_mean: float = -0.8  # of ln sigma
    noise_std: float = 1.6
    ema_std: float = 0.10  # relative width of the weight average


@dataclass(frozen=True)
class Run:
    """One training run.

    Parameters
    ----------
    label_dim
        Classes, 0 for an unconditional network.
    seed
        Seed of weights, batches and noise.
    snapshots
        {images seen: name of the file written then}.
    """

    label_dim: int
    seed: int
    snapshots: dict[int, str]


class Data(NamedTuple):
    """Encoded images [N, C, H, W], classes [N], the encoder, and held-out images and classes."""

    encoder: Part
    images: Tensor
    classes: Tensor
    source: str
    held_out: Tensor | None = None
    held_out_classes: Tensor | None = None


@dataclass
class State:
    """Everything that the rest of a run depends on."""

    network: Precond
    average: Precond
    optimizer: torch.optim.Adam
    draw: torch.Generator
    seen: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


def train(
    recipe: Recipe, run: Run, data: Data, command: str, destination: Path = CHECKPOINTS,
    folder: Path | None = None,
) -> State:  # fmt: skip
    """Run to the last snapshot, writing each one to `destination`.

    Parameters
    ----------
    recipe, run, data
        What to train.
    command
        The command line that the metadata records.
    destination
        Folder of NAME.safetensors with NAME.json.
    folder
        Folder of the state, from which an interrupted run goes on; None keeps no state.

    Raises
    ------
    ValueError
        If the state is that of another recipe, run or data set.
    """
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    identity = _identity(recipe, run, data)
    path = None if folder is None else folder / f"seed{run.seed}-labels{run.label_dim}.pt"
    state = _initial(recipe, run)
    if path is not None and path.exists():
        _restore(state, path, identity)
    last, losses = max(run.snapshots), []
    spent = time.process_time()
    with tqdm(total=last, initial=state.seen, unit="img", desc=run.snapshots[last]) as bar:
        while state.seen < last:
            losses.append(step(state, recipe, data))
            bar.update(recipe.batch)
            if state.seen % CURVE_EVERY == 0 or state.seen == last:
                state.curve.append(_point(state, recipe, data, losses))
                losses.clear()
            if state.seen in run.snapshots:
                save_snapshot(state, recipe, run, data, command, destination)
            if path is not None and (state.seen % KEEP_EVERY == 0 or state.seen == last):
                _keep(state, path, identity)
    tqdm.write(f"{run.snapshots[last]}: {time.process_time() - spent:.0f} CPU seconds")
    return state


def _initial(recipe: Recipe, run: Run) -> State:
    torch.manual_seed(run.seed)
    network = Precond(label_dim=run.label_dim, **recipe.network).train()
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    draw = torch.Generator().manual_seed(run.seed)
    return State(network, copy.deepcopy(network).eval(), optimizer, draw)


def step(state: State, recipe: Recipe, data: Data) -> float:
    """Take one step of Adam and update the average; return the loss."""
    network = state.network
    pick = torch.randint(len(data.images), [recipe.batch], generator=state.draw)
    for module in network.modules():
        if isinstance(module, MPConv):
            module.force_unit_weight()
    state.optimizer.zero_grad(set_to_none=True)
    labels = _one_hot(data.classes[pick], network.label_dim)
    loss = edm2_loss(network, data.images[pick], labels, recipe, state.draw)
    loss.backward()
    for parameter in network.parameters():
        if parameter.grad is not None:
            torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
    state.seen += recipe.batch
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(recipe, state.seen)
    state.optimizer.step()
    update_average(state, recipe)
    return loss.item()


def edm2_loss(
    network: Precond, images: Tensor, labels: Tensor | None, recipe: Recipe, draw: torch.Generator
) -> Tensor:
    """Compute EDM2's loss with learned log-variance u(sigma) (Karras et al. 2024, Eq. 21)."""
    normal = torch.randn([len(images)], generator=draw)
    sigma = (normal * recipe.noise_std + recipe.noise_mean).exp()
    noise = torch.randn(images.shape, generator=draw) * sigma.reshape(-1, 1, 1, 1)
    denoised = network(images + noise, sigma, labels)
    weight = (sigma**2 + network.sigma_data**2) / (sigma * network.sigma_data) ** 2
    log_variance = network.log_variance(sigma)
    error = weight.reshape(-1, 1, 1, 1) * (denoised - images) ** 2
    return (error / log_variance.exp() + log_variance).mean()


def learning_rate(recipe: Recipe, seen: int) -> float:
    """Return an inverse square root decay after a linear ramp-up (Karras et al. 2024, Eq. 67)."""
    decay = math.sqrt(max(seen / recipe.decay_after, 1))
    return recipe.rate * min(seen / recipe.ramp_up, 1) / decay


@torch.no_grad()
def update_average(state: State, recipe: Recipe) -> None:
    """Move the power-function average towards the network."""
    beta = (1 - recipe.batch / state.seen) ** (exponent_of(recipe.ema_std) + 1)
    average: list[Tensor] = list(state.average.parameters())
    network: list[Tensor] = list(state.network.parameters())
    torch._foreach_lerp_(average, network, 1 - beta)


def _one_hot(classes: Tensor, label_dim: int) -> Tensor | None:
    if label_dim == 0:
        return None
    return torch.nn.functional.one_hot(classes, label_dim).to(torch.float32)


def _point(state: State, recipe: Recipe, data: Data, losses: Sequence[float]) -> dict[str, float]:
    """Return a point of the loss curve: images seen, mean training loss, held-out loss."""
    point = {"images": state.seen, "loss": round(math.fsum(losses) / max(len(losses), 1), 5)}
    if data.held_out is not None:
        point["held_out"] = round(held_out_loss(state.average, recipe, data), 5)
    return point


@torch.no_grad()
def held_out_loss(network: Precond, recipe: Recipe, data: Data) -> float:
    """Compute the weighted denoising error of held-out images, with the same noise every time."""
    assert data.held_out is not None and data.held_out_classes is not None
    draw, total, n = torch.Generator().manual_seed(0), 0.0, 0
    pairs = zip(data.held_out.split(256), data.held_out_classes.split(256), strict=True)
    for images, classes in pairs:
        labels = _one_hot(classes, network.label_dim)
        for quantile in (torch.arange(HELD_OUT_SIGMAS) + 0.5) / HELD_OUT_SIGMAS:
            normal = math.sqrt(2) * torch.erfinv(2 * quantile - 1)
            sigma = (normal * recipe.noise_std + recipe.noise_mean).exp()
            noise = torch.randn(images.shape, generator=draw) * sigma
            error = (network(images + noise, sigma, labels) - images).square().mean()
            weight = (sigma**2 + network.sigma_data**2) / (sigma * network.sigma_data) ** 2
            total += float(weight * error) * len(images)
            n += len(images)
    return total / n


def save_snapshot(
    state: State, recipe: Recipe, run: Run, data: Data, command: str, destination: Path
) -> None:
    """Write the averaged network as float16 safetensors with its metadata, as released nets are."""
    name = run.snapshots[state.seen]
    training = {
        "command": command,
        "seed": run.seed,
        "images": state.seen,
        "batch": recipe.batch,
        "ema_std": recipe.ema_std,
        "torch": torch.__version__,
        "machine": platform.machine(),
    } | ({"curve": list(state.curve)} if data.held_out is not None else {})
    metadata = {
        "name": name, "licence": "Apache-2.0", "source": data.source, "training": training,
    }  # fmt: skip
    weights = {key: value.to(torch.float16) for key, value in state.average.state_dict().items()}
    network = Part("Precond", {"label_dim": run.label_dim, **recipe.network})
    destination.mkdir(parents=True, exist_ok=True)
    path = destination / f"{name}.safetensors"
    write_safetensors(path, Checkpoint(network, data.encoder, weights, metadata))
    tqdm.write(f"wrote {path.name}")


def _identity(recipe: Recipe, run: Run, data: Data) -> str:
    """Hash what a state belongs to; the snapshots may change, so that a run can be made longer."""
    content = [asdict(recipe), run.label_dim, run.seed, data.encoder, list(data.images.shape)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    digest.update(data.images.numpy().tobytes())
    return digest.hexdigest()


def _keep(state: State, path: Path, identity: str) -> None:
    content = {
        "identity": identity,
        "seen": state.seen,
        "curve": state.curve,
        "network": state.network.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "draw": state.draw.get_state(),
    }
    stream = io.BytesIO()
    torch.save(content, stream)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, stream.getvalue())


def _restore(state: State, path: Path, identity: str) -> None:
    try:
        content = torch.load(path, weights_only=True)
        fits = content["identity"] == identity
    except Exception as error:  # a damaged file raises many types
        raise ValueError(f"{path} is damaged ({type(error).__name__}); delete it") from error
    if not fits:
        raise ValueError(
            f"{path} is the state of another recipe, seed or data set; delete it or give another "
            "--state"
        )
    state.network.load_state_dict(content["network"])
    state.average.load_state_dict(content["average"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.draw.set_state(content["draw"])
    state.seen, state.curve = content["seen"], content["curve"]
