"""The command `compare`: show two runs of the same seeds side by side."""

import heapq
from pathlib import Path

import click
import cloup

from erk.commands.cli import command, require_different, require_suffix


@command(
    "erk compare off on --out differences.png",
    "erk compare off on --num 32 --out differences.png --csv differences.csv",
)
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@cloup.option("--out", required=True, metavar="FILE.png", help="The sheet to write.")
@cloup.option("--num", type=click.IntRange(1, 200), default=16, help="Pairs on the sheet.")
@cloup.option("--csv", "table", metavar="FILE.csv", help="Also write the difference of each seed.")
def main(first: Path, second: Path, out: str, num: int, table: str | None) -> None:
    """Compare the runs FIRST and SECOND image by image, the largest differences first.

    Runs are folders, .zip or .npz files that erk generate wrote; images are paired by seed. The
    difference of two images is the root mean square over pixels and colours, in grey levels (0 to
    255).
    """
    require_suffix("--out", out, ".png")
    import numpy as np

    from erk.io.atomic import check_target, save_file
    from metrics.images import open_images

    require_different("--out", out, "--csv", table)
    for path in (out, *([table] if table else [])):
        check_target(path, first, second)
    runs = open_images(first, least=1), open_images(second, least=1)

    # only now: torch takes seconds to load
    from erk.commands.run_pairs import changed_settings, differences, sheet
    from erk.generation.images import png_bytes
    from metrics.report import to_csv

    pairs = list(differences(*runs))
    values = np.array([pair.difference for pair in pairs])
    largest = heapq.nlargest(num, pairs)
    names = [path.resolve().name for path in (first, second)]
    written = [save_file(out, png_bytes(sheet(*runs, names, largest)))]
    if table is not None:
        rows = [{"seed": pair.seed, "difference": pair.difference} for pair in pairs]
        written.append(save_file(table, to_csv(rows)))
    click.echo(changed_settings(*runs, names))
    click.echo(
        f"{len(pairs)} seeds: difference {np.median(values):.2f} in the median, "
        f"{values.max():.2f} at most (seed {largest[0].seed}), {(values == 0).sum()} equal"
    )
    click.echo(f"wrote {' and '.join(map(str, written))}")


if __name__ == "__main__":
    main()
