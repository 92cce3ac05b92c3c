"""Golden vectors: what random numbers, networks, sampler and judge must give on any machine.

    python -m erk.commands.checks.golden   # writes golden.json beside this file, with provenance

erk doctor compares. Inputs are given by a rule, not by a generator. Released networks and
extractors, where the cache holds them, have no golden vectors here: they must give finite numbers,
twice the same.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erk.analysis.toy_networks import load_network
from erk.commands.checks.row import Row, failed, few, told
from erk.generation.job import Job
from erk.generation.sampling import generate
from erk.io.download import fetch
from erk.method.settings import Settings
from erk.models.model import Model, load_model
from erk.models.noise import SeededNoise
from erk.models.presets import presets
from erk.runtime.provenance import provenance
from metrics.extractors import NAMES, load_extractor
from metrics.table import write

PLACE = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-4  # of networks and features in float32 on any device
ALLOWED = {"random": 1e-6, "images": 1.0}  # of others; images in grey levels
SIGMAS = (0.02, 0.5, 20.0)
SETTINGS = Settings(steps=8, w_stiff=0.5, w_con=0.3)
DIGITS, TOYS = ("digits", "digits-uncond", "digits-weak"), ("toy-main", "toy-uncond", "toy-weak")
Golden = dict[str, list[float]]


def wave(*shape: int) -> Tensor:
    """Numbers of deviation 1 that no generator draws, float32."""
    count = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return ((1.7 * count).sin() * math.sqrt(2)).float().reshape(shape)


def pages(n: int, channels: int, size: int) -> Tensor:
    """Images uint8 [n, channels, size, size]."""
    count = torch.arange(n * channels * size * size)
    return (count * 37 % 256).to(torch.uint8).reshape(n, channels, size, size)


def denoised(model: Any, shape: tuple[int, ...], device: str, classes: int) -> list[float]:
    """Every fifth number of D(x; sigma) at three noise levels."""
    found = []
    for sigma in SIGMAS:
        x = (math.hypot(sigma, 0.5) * wave(*shape)).to(device)
        rows = torch.arange(shape[0]) % max(classes, 1)
        labels = torch.nn.functional.one_hot(rows, classes).float().to(device) if classes else None
        found.append(model(x, torch.tensor(sigma), labels).cpu().flatten()[::5])
    return torch.cat(found).tolist()


@torch.inference_mode()
def computed(device: str = "cpu") -> dict[str, Golden]:
    """{part: {name: numbers}} on a device, in float32."""
    digits = {name: load_model(weights(name), device, precision="fp32") for name in DIGITS}
    networks = {
        name: denoised(model, (2, *model.sample_shape), device, model.label_dim)
        for name, model in digits.items()
    }
    for name in TOYS:
        toy = load_network(name).to(device)
        networks[name] = denoised(toy, (8, 2), device, toy.label_dim)
    job = Job(digits["digits"], SETTINGS, seeds=range(4), batch=4, noise_device="cpu")
    (batch,) = generate(job)
    judged = load_extractor("digits", device)(pages(4, 1, 8))
    assert judged.logits is not None
    noise = SeededNoise([0, 2**32 - 1], "cpu").randn((4,))
    return {
        "random": {"numbers": noise.flatten().tolist()},
        "networks": networks,
        "images": {"digits": batch.wait()[:, 0, ::2, ::2].flatten().tolist()},
        "judge": {
            "features": judged.features.cpu().flatten()[::5].tolist(),
            "logits": judged.logits.cpu().flatten().tolist(),
        },
    }


def weights(name: str) -> Path:
    """The file of an embedded network."""
    return Path(presets()["digits"].net).with_name(f"{name}.safetensors")


def compared(device: str) -> Iterator[Row]:
    """This device's numbers against the recorded ones."""
    known, found = json.loads(PLACE.read_text("utf-8"))["golden"], computed(device)
    for part, numbers in found.items():
        most = {name: apart(known[part].get(name), row) for name, row in numbers.items()}
        limit = ALLOWED.get(part, TOLERANCE)
        bad = [name for name, far in most.items() if not far <= limit]
        text = f"{few(bad or numbers)} on {device}: at most {max(most.values()):.2g} apart, "
        text += f"{limit:g} allowed"
        if bad:
            text += "; do the versions and the checkpoints above tell why? Else the device errs"
        yield Row("FAIL" if bad else "ok", part, text)


def apart(known: list[float] | None, found: list[float]) -> float:
    """The largest difference; infinite if they are not comparable."""
    if known is None or len(known) != len(found):
        return math.inf
    far = [abs(a - b) for a, b in zip(known, found, strict=True)]
    return max(far) if all(map(math.isfinite, far)) else math.inf


@torch.inference_mode()
def extractors(device: str) -> Iterator[Row]:
    """Those whose weights are in the cache: finite features, twice the same."""
    lacking = []
    for name in (name for name in NAMES if name != "digits"):
        try:
            extractor = load_extractor(name, device, offline=True)
            images = pages(2, 3, 64)
            yield repeated(name, lambda x=extractor, y=images: x(y).features, device)
        except FileNotFoundError:
            lacking.append(name)
        except Exception as error:  # of a damaged file, of a device
            yield failed(name, error, told(error))
    if lacking:
        yield Row("ok", "extractors", f"not in the cache: {few(lacking)}")


@torch.inference_mode()
def released(device: str) -> Iterator[Row]:
    """Networks of presets that are in the cache: finite numbers, twice the same."""
    addresses = {p for row in presets().values() for p in (row.net, row.gnet) if p and "://" in p}
    for address in sorted(addresses):
        try:
            path = fetch(address, offline=True)
        except FileNotFoundError:
            continue
        try:
            model = load_model(path, device)
            yield repeated(path.name, lambda m=model: one_step(m), device)
        except Exception as error:  # of a damaged file, of a device
            yield failed("network", error, told(error))


def one_step(model: Model) -> Tensor:
    """D(x; 1) of one image."""
    classes = torch.zeros(1, model.label_dim, device=model.device) if model.label_dim else None
    return model(wave(1, *model.sample_shape).to(model.device), 1.0, classes)


def repeated(name: str, work: Callable[[], Tensor], device: str) -> Row:
    """Two runs of the same work, whose right numbers nobody has recorded."""
    first, again = work(), work()
    if not first.isfinite().all():
        return Row("FAIL", name, f"gives NaN or infinity on {device}: delete its file in the cache")
    if not torch.equal(first, again):
        return Row("note", name, f"gives other numbers when repeated on {device}")
    return Row("ok", name, f"finite and repeatable on {device}; no golden numbers are known")


def main() -> None:
    """Write golden.json from what this machine's CPU gives."""
    torch.set_num_threads(1)
    found = {
        part: {name: [float(f"{v:.9g}") for v in row] for name, row in numbers.items()}
        for part, numbers in computed().items()
    }
    print(write(PLACE, json.dumps(provenance() | {"golden": found}) + "\n"))


if __name__ == "__main__":
    main()
