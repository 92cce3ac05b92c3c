"""Before anything is loaded: what a table runs, which files it needs and what it will cost."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from erk.calibration.problem import count_nfe
from erk.commands.cli import ListingError
from erk.generation.options import networks_of, settings_of
from erk.io.download import cache_dir, fetch, is_offline
from erk.models.encoders import VAEEncoder
from metrics.extractors import output_sizes, weights_url
from metrics.measures import Measure
from metrics.protocols import find_protocol
from metrics.references import known_references
from metrics.report import to_text
from scripts.paper.cards import card_options
from scripts.paper.config import (
    AnyConfig,
    Measured,
    Request,
    Row,
    Sampled,
    Sweep,
    chosen_rows,
    images_of,
)
from scripts.paper.scales import options_of

BATCH = (125, 250)  # images at a time at paper scale, and at small ones
VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
MEGABYTES = {
    "edm2-img512-xs": 249, "edm2-img64-xs": 249, "edm2-img512-s": 560, "edm2-img64-s": 560,
    "edm2-img512-m": 996, "edm2-img64-m": 996, "edm2-img512-l": 1555, "edm2-img64-l": 1555,
    "edm2-img512-xl": 2239, "edm2-img64-xl": 2239, "edm2-img512-xxl": 3046,
    "edm-cifar10": 223, "edm-ffhq": 247, "edm-afhqv2": 247, "edm-imagenet-64x64-cond-adm": 1184,
    "dinov2_vitl14": 1217, "vgg16": 553, "weights-inception": 96, "diffusion_pytorch_model": 335,
    "img512.pkl": 42, "img64.pkl": 42,
}  # fmt: skip
"""Start of a file's name -> its size from its content: parameters, 2 bytes each in EDM2's files,
else 4; of a reference the moments of 2048 and 1024 features, 8 bytes each."""

BOTH_WAYS = 1.7  # adaptive steps compute more than they keep: 105 evaluations for 90 on digits
SECONDS = {
    "edm2-img512-s-": (2.777 / 63, "an RTX 3090 at batch 1, the paper's Table 6"),
    "digits": (0.00011, "one CPU thread"),
    "mnist": (0.0009, "one CPU thread"),
}
"""File name of a network -> seconds per image and evaluation, and on what."""


class File(NamedTuple):
    """A file that is not part of this repository."""

    what: str
    source: str  # as ``erk.io.download.fetch`` takes it


def options_of_row(config: AnyConfig, row: Row, request: Request) -> dict[str, Any]:
    """Return a row as all options of ``erk generate``.

    At small scales the device is the CPU unless another one is chosen, so that numbers do not
    depend on the machine. Raises ValueError where the config gives no seeds or images.
    """
    if config.seeds is None:
        raise ValueError(f"{config.name}: seeds: missing for the scale {request.scale}")
    num = images_of(config, row, request)
    is_free = request.is_small and request.device == "auto"
    return options_of(row.settings) | {
        "seeds": f"{config.seeds}-{config.seeds + num - 1}",
        "batch": min(request.batch or BATCH[request.is_small], num),
        "device": "cpu" if is_free else request.device,
        "offline": request.offline,
        **card_options(row, request),
    }


def ref_of(config: Measured, row: Row) -> str:
    """Return the reference of a row: the config's, or that of the row's preset."""
    ref = config.ref or config.options.refs.get(row.settings.get("preset", ""))
    if ref is None:
        raise ValueError(f"{config.name}: ref: missing for the row '{row.name}'")
    return ref


def usable_measures(ref: str, has_real: bool) -> list[Measure]:
    """Return what can be measured against a reference; some measures need real images."""
    known = known_references()
    protocol = find_protocol(known[ref].protocol if ref in known else ref)
    has_features = has_real or (ref in known and known[ref].has_features)
    return [m for m in protocol.measures if has_features or not m.rule.needs_real_features]


def files_of(config: AnyConfig, request: Request) -> list[File]:
    """Return the files outside this repository that the chosen rows need, each once."""
    files = []
    for row in chosen_rows(config, request.rows):
        net, gnet, _ = networks_of(options_of(row.settings))
        files += _of_network("network", net)
        files += _of_network("guide", gnet) if gnet else []
        if isinstance(config, Sampled | Sweep):
            files += _of_reference(ref_of(config, row), request.real is not None)
    return list({file.source: file for file in reversed(files)}.values())[::-1]


def missing_files(files: Iterable[File]) -> list[File]:
    """Return those that are not in the cache."""
    return [file for file in files if not _is_here(file.source)]


def fetch_files(files: Sequence[File], offline: bool, command: str) -> None:
    """Download missing files; load nothing.

    Raises ListingError with all files that are still missing and the command that fetches them.
    """
    for file in missing_files(files):
        if is_offline(offline):
            raise _missing(files, command, "downloads are off (--offline)")
        click.echo(f"fetching {file.what}: {file.source}", err=True)
        try:
            fetch(file.source)
        except OSError as error:
            raise _missing(files, command, str(error)) from None


class Cost(NamedTuple):
    """What sampling a row takes."""

    nfe: float  # evaluations of the network per image
    guide_nfe: float  # and of the guide
    is_free: bool  # whether the network's answers decide the number
    seconds: float | None  # of one process; None: unknown

    @property
    def text(self) -> str:
        """The evaluations as text."""
        return ("about " if self.is_free else "") + nfe_text(self.nfe, self.guide_nfe)


def cost_of(options: Mapping[str, Any]) -> Cost:
    """Count the evaluations of a row, given as options of ``erk generate``, without networks."""
    net, _, guidance = networks_of(dict(options))
    settings = settings_of(dict(options), guidance)
    nfe, guide = count_nfe(settings)
    is_free = settings.adaptive_tau is not None
    first, _, last = options["seeds"].partition("-")
    images = int(last) - int(first) + 1
    seconds = _seconds(net, images * (nfe + guide) * (BOTH_WAYS if is_free else 1))
    return Cost(nfe, guide, is_free, seconds)


def describe(config: AnyConfig, request: Request) -> str:
    """Describe what is sampled: rows, evaluations, images, time, disk and files."""
    total, lines = 0.0, []
    for row in chosen_rows(config, request.rows):
        options = options_of_row(config, row, request)
        net, num, cost = networks_of(options)[0], images_of(config, row, request), cost_of(options)
        total += cost.seconds or 0
        line = {
            "row": config.rows.index(row),
            "name": row.name,
            "network": options["preset"] or Path(net).stem,
            "NFE": cost.text,
            "images": num,
            "time": "unknown" if cost.seconds is None else span(cost.seconds),
        }
        if isinstance(config, Sampled | Sweep):
            size = _bytes(usable_measures(ref_of(config, row), request.real is not None)) * num
            line["features"] = f"{size / 2**20:.1f} MiB"
        lines.append(line)
    files = files_of(config, request)
    missing = missing_files(files)
    notes = [
        "NFE: evaluations of the network + those of the guide, counted without loading them.",
        f"Time: sampling alone, of one process, {span(total)} in all where it is known; "
        f"{speeds()}. Finished rows take none.",
        f"{len(missing)} of {len(files)} files to download are not in {cache_dir()}",
        *(f"  {_line(file)}" for file in missing),
    ]
    return f"{to_text(lines)}\n" + "\n".join(notes)


def speeds() -> str:
    """Return the speeds that times are estimated with."""
    return "; ".join(f"{name}*: {1e3 * s:.3g} ms per image and evaluation on {on}"
                     for name, (s, on) in SECONDS.items())  # fmt: skip


def nfe_text(nfe: float, guide: float) -> str:
    """Return ``63``, or ``63 + 63`` with the evaluations of the guide."""
    return f"{nfe:g} + {guide:g}" if guide else f"{nfe:g}"


def _of_network(what: str, net: str) -> list[File]:
    if "://" not in net:
        return []
    files = [File(what, net)]
    if "img512" in net:  # latents
        vae = inspect.signature(VAEEncoder).parameters["vae_name"].default
        files += [File("VAE", f"hf://{vae}/{name}") for name in VAE_FILES]
    return files


def _of_reference(ref: str, has_real: bool) -> list[File]:
    row = known_references().get(ref)
    if row is None or row.statistics is None or not row.is_remote:
        return []
    names = {one.extractor for one in usable_measures(ref, has_real)}
    addresses = {name: weights_url(name) for name in sorted(names)}
    weights = [File(f"weights of {name}", url) for name, url in addresses.items() if url]
    return [File(f"reference {ref}", row.statistics), *weights]


def _is_here(source: str) -> bool:
    try:
        fetch(source, offline=True)
    except FileNotFoundError:
        return False
    return True


def _missing(files: Sequence[File], command: str, reason: str) -> ListingError:
    missing = missing_files(files)
    return ListingError(
        f"{len(missing)} of {len(files)} files are not in {cache_dir()}:",
        *map(_line, missing),
        reason,
        f"On a machine with internet access, this downloads them: {command}",
    )


def _line(file: File) -> str:
    name = file.source.rpartition("/")[2]
    known = [start for start in MEGABYTES if name.startswith(start)]
    size = f"about {MEGABYTES[max(known, key=len)]} MB" if known else "size unknown"
    return f"{file.what}: {file.source} ({size})"


def _seconds(net: str, evaluations: float) -> float | None:
    name = net.rpartition("/")[2]
    known = next((s for start, (s, _) in SECONDS.items() if name.startswith(start)), None)
    return None if known is None else known * evaluations


def _bytes(measures: Iterable[Measure]) -> int:
    pairs = {(one.extractor, one.output) for one in measures}
    return 4 * sum(output_sizes(name)[output] for name, output in pairs)  # float32


def span(seconds: float) -> str:
    """Return a time in a unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
