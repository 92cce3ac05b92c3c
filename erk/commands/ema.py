"""The command `ema`: post-hoc EMA, a network averaged over any length of its training."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import cloup

from erk.commands.cli import command, require_suffix
from erk.commands.options import overwrite_option, refuse_existing_network

if TYPE_CHECKING:
    from erk.models.ema import Combination

POOR = 0.05  # relative misfit that is warned about; 32 snapshots at 0.05, 0.10 give .0023 for .15


@command(
    "erk ema --in 'snapshots/*.pkl' --std 0.15 --out ema-0.150.safetensors",
    "erk ema --in snapshots --std 0.05 --std 0.10 --out 'ema-{std}.safetensors'",
)
@cloup.option_group(
    "Snapshots",
    cloup.option("--in", "sources", multiple=True, required=True, metavar="FILES|DIR",
                 help="Snapshots: a pattern, a file or a folder; may be repeated."),
)  # fmt: skip
@cloup.option_group(
    "Averages",
    cloup.option("--std", "stds", type=float, multiple=True, required=True, metavar="STD",
                 help="Width of the average, relative to the time of training; may be repeated."),
    cloup.option("--kimg", type=float, help="End of the average: the time of a snapshot, in "
                 "thousands of images; later snapshots are not used.  "
                 "[default: the last snapshot]"),
    cloup.option("--out", required=True, metavar="FILE.safetensors",
                 help="File to write; with several --std its name contains {std}."),
    cloup.option("--dtype", type=click.Choice(["float16", "float32"]),
                 help="Stored type of the weights.  [default: that of the snapshots]"),
    overwrite_option,
)  # fmt: skip
def main(sources: Sequence[str], stds: Sequence[float], out: str, kimg: float | None,
         dtype: str | None, overwrite: bool) -> None:  # fmt: skip
    """Reconstruct averages (EMA) of lengths that training did not store.

    An average is a weighted sum of the snapshots, with weights by least squares (post-hoc EMA). Its
    file is a network like any other.
    """
    from erk.io.atomic import check_target
    from erk.models.ema import Profile, combine
    from erk.models.snapshots import find_snapshots, sums, until, write_sum

    outputs = _outputs(out, stds)
    for path in outputs.values():
        refuse_existing_network(path, overwrite, "--out")
    stored = find_snapshots(sources)
    for path in outputs.values():
        check_target(path, *(snapshot.path for snapshot in stored))
    snapshots = until(stored, kimg)
    time = max(snapshot.profile.time for snapshot in snapshots)
    profiles = [snapshot.profile for snapshot in snapshots]
    plans = [combine(profiles, Profile(std, time)) for std in stds]
    for std, plan in zip(stds, plans, strict=True):
        _describe(std, plan, len(snapshots))
    for std, plan, total in zip(stds, plans, sums(snapshots, plans, dtype), strict=True):
        write_sum(outputs[std], total, snapshots, plan, Profile(std, time))
        click.echo(f"wrote {outputs[std]} and its metadata")


def _outputs(out: str, stds: Sequence[float]) -> dict[float, Path]:
    require_suffix("--out", out, ".safetensors")
    paths = {std: Path(out.replace("{std}", f"{std:.3f}")) for std in stds}
    if len({*paths.values()}) < len(stds):
        raise ValueError("several --std need several files: write {std} in --out, each width once")
    return paths


def _describe(std: float, plan: "Combination", n: int) -> None:
    spread = float((plan.coefficients**2).sum() ** 0.5)
    click.echo(
        f"std {std:.3f} from {n} snapshots: {plan.misfit:.2%} of the profile is not met, rounding "
        f"errors of the stored weights enter {spread:.2g} times"
    )
    if plan.misfit > POOR:
        click.echo(f"warning: {std:g} lies too far from the stored widths", err=True)


if __name__ == "__main__":
    main()
