"""The command `tune`: the case of `calibrate` that searches w_stiff and w_con."""

from typing import Any

from erk.commands.calibrate import search_options
from erk.commands.cli import command


@command(
    "erk tune --preset digits --solver heun --schedule edm --nfe 15",
    "erk generate --preset digits --card digits-15.card.json --seeds 0-99",
)
@search_options()
def main(**options: Any) -> None:
    """Search for w_stiff and w_con for a network and a number of evaluations; write a card.

    The same as `erk calibrate --correction weights`: the weights whose samples are nearest to the
    converged solution from the same noise, without FID and real images.
    """
    from erk.commands.calibrating import run_calibration

    run_calibration(options | {"corrections": ("weights",), "directions": ()})


if __name__ == "__main__":
    main()
