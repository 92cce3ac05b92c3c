"""Golden vectors of random numbers, networks, sampler and classifier for any machine.

    python -m erk.commands.checks.golden   # writes golden.json beside this file, with provenance

`erk doctor` compares with them. The inputs follow a rule; no generator draws them. Released
networks and extractors in the cache have no golden vectors: they must give finite numbers, the same
ones twice.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erk.analysis.toy_networks import load_network
from erk.commands.checks.row import Row, describe, failed, few
from erk.generation.job import Job
from erk.generation.sampling import generate
from erk.io.atomic import save_file
from erk.io.download import fetch
from erk.method.settings import Settings
from erk.models.model import Model, load_model
from erk.models.noise import SeededNoise
from erk.models.presets import presets
from erk.runtime.provenance import provenance
from metrics.extractors import extractor_names, load_extractor, weights_url

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-4  # absolute, of networks and features in float32 on any device
ALLOWED = {"random": 1e-6, "images": 1.0}  # of others; images in grey levels
SIGMAS = (0.02, 0.5, 20.0)
SETTINGS = Settings(steps=8, w_stiff=0.5, w_con=0.3)
DIGITS, TOYS = ("digits", "digits-uncond", "digits-weak"), ("toy-main", "toy-uncond", "toy-weak")
Golden = dict[str, list[float]]


def wave(*shape: int) -> Tensor:
    """Return a sine wave of standard deviation 1, float32."""
    count = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return ((1.7 * count).sin() * math.sqrt(2)).float().reshape(shape)


def patterns(n: int, channels: int, size: int) -> Tensor:
    """Return images of a fixed pattern, uint8 [n, channels, size, size]."""
    count = torch.arange(n * channels * size * size)
    return (count * 37 % 256).to(torch.uint8).reshape(n, channels, size, size)


def denoised(model: Any, shape: tuple[int, ...], device: str, classes: int) -> list[float]:
    """Return every fifth number of D(x; sigma) at three noise levels."""
    outputs = []
    for sigma in SIGMAS:
        x = (math.hypot(sigma, 0.5) * wave(*shape)).to(device)
        rows = torch.arange(shape[0]) % max(classes, 1)
        labels = torch.nn.functional.one_hot(rows, classes).float().to(device) if classes else None
        outputs.append(model(x, torch.tensor(sigma), labels).cpu().flatten()[::5])
    return torch.cat(outputs).tolist()


@torch.inference_mode()
def computed(device: str = "cpu") -> dict[str, Golden]:
    """Return {part: {name: numbers}} computed on a device in float32."""
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
    outputs = load_extractor("digits", device)(patterns(4, 1, 8))
    assert outputs.logits is not None
    noise = SeededNoise([0, 2**32 - 1], "cpu").randn((4,))
    return {
        "random": {"numbers": noise.flatten().tolist()},
        "networks": networks,
        "images": {"digits": batch.wait()[:, 0, ::2, ::2].flatten().tolist()},
        "classifier": {
            "features": outputs.features.cpu().flatten()[::5].tolist(),
            "logits": outputs.logits.cpu().flatten().tolist(),
        },
    }


def weights(name: str) -> Path:
    """Return the file of an embedded network."""
    return Path(presets()["digits"].net).with_name(f"{name}.safetensors")


def compared(device: str) -> Iterator[Row]:
    """Compare a device's numbers with the recorded ones."""
    known, numbers = json.loads(GOLDEN.read_text("utf-8"))["golden"], computed(device)
    for part, rows in numbers.items():
        errors = {name: error(known[part].get(name), row) for name, row in rows.items()}
        limit = ALLOWED.get(part, TOLERANCE)
        bad = [name for name, size in errors.items() if not size <= limit]
        text = f"{few(bad or rows)} on {device}: largest difference {max(errors.values()):.2g}, "
        text += f"{limit:g} allowed"
        if bad:
            text += "; if versions and checkpoints above are ok, the device computes wrongly"
        yield Row("FAIL" if bad else "ok", part, text)


def error(known: list[float] | None, numbers: list[float]) -> float:
    """Return the largest difference; infinite if they are not comparable."""
    if known is None or len(known) != len(numbers):
        return math.inf
    sizes = [abs(a - b) for a, b in zip(known, numbers, strict=True)]
    return max(sizes) if all(map(math.isfinite, sizes)) else math.inf


@torch.inference_mode()
def extractors(device: str) -> Iterator[Row]:
    """Check extractors whose weights are in the cache: finite features, the same ones twice."""
    missing = []
    for name in (name for name in extractor_names() if weights_url(name)):
        try:
            extractor = load_extractor(name, device, offline=True)
            yield repeated(name, partial(_features, extractor), device)
        except FileNotFoundError:
            missing.append(name)
        except Exception as exception:  # a damaged file, a device error
            yield failed(name, exception, describe(exception))
    if missing:
        yield Row("ok", "extractors", f"not in the cache: {few(missing)}")


@torch.inference_mode()
def released(device: str) -> Iterator[Row]:
    """Check presets' networks in the cache: finite numbers, the same ones twice."""
    addresses = {p for row in presets().values() for p in (row.net, row.gnet) if p and "://" in p}
    for address in sorted(addresses):
        try:
            path = fetch(address, offline=True)
        except FileNotFoundError:
            continue
        try:
            model = load_model(path, device)
            yield repeated(path.name, partial(one_step, model), device)
        except Exception as exception:  # a damaged file, a device error
            yield failed("network", exception, describe(exception))


def _features(extractor: Any) -> Tensor:
    features: Tensor = extractor(patterns(2, 3, 64)).features
    return features


def one_step(model: Model) -> Tensor:
    """Return D(x; 1) of one image."""
    classes = torch.zeros(1, model.label_dim, device=model.device) if model.label_dim else None
    return model(wave(1, *model.sample_shape).to(model.device), 1.0, classes)


def repeated(name: str, work: Callable[[], Tensor], device: str) -> Row:
    """Compare two runs of the same work, which has no golden numbers."""
    first, again = work(), work()
    if not first.isfinite().all():
        return Row("FAIL", name, f"gives NaN or infinity on {device}: delete its file in the cache")
    if not torch.equal(first, again):
        return Row("note", name, f"gives different numbers when repeated on {device}")
    return Row("ok", name, f"finite and repeatable on {device}; it has no golden numbers")


def main() -> None:
    """Write golden.json with the numbers of this machine's CPU."""
    torch.set_num_threads(1)
    rounded = {
        part: {name: [float(f"{v:.9g}") for v in row] for name, row in numbers.items()}
        for part, numbers in computed().items()
    }
    print(save_file(GOLDEN, json.dumps(provenance() | {"golden": rounded}) + "\n"))


if __name__ == "__main__":
    main()
