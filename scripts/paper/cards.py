"""Rows whose sampler is a card: `erk calibrate` writes it before the row is sampled.

Cards are kept in cards/ beside the folder of finished rows, and are committed with the results.
"""

from pathlib import Path
from typing import Any

from erk.commands import calibrate
from scripts.paper.config import NETWORKS, Request, Row


def card_options(row: Row, request: Request) -> dict[str, Any]:
    """Return the options of `erk generate` for a row with a card, {} for another row.

    Solver and steps are those of as many evaluations, for what counts them without the card, which
    replaces them.
    """
    if row.card is None:
        return {}
    path = request.rows_folder.parent / "cards" / f"{_name(row)}.card.json"
    return {"card": str(path), "given": (), "solver": "euler", "steps": row.card.nfe}


def make_card(row: Row, options: dict[str, Any]) -> None:
    """Write the card of a row if it is missing. Raises ValueError or OSError."""
    if row.card is None or Path(options["card"]).exists():
        return
    search = {"nfe": row.card.nfe, "solver": row.card.solver, "schedule": row.card.schedule,
              "out": options["card"]}  # fmt: skip
    search |= {name: options[name] for name in (*NETWORKS, "device", "batch")}
    words = [f"--{name}={value}" for name, value in search.items() if value is not None]
    words += [f"--correction={name}" for name in row.card.corrections]
    more = ["--offline"] if options["offline"] else []
    calibrate.main.main([*words, *more], standalone_mode=False)


def _name(row: Row) -> str:
    assert row.card is not None
    network = row.settings.get("preset") or Path(row.settings["net"]).stem
    fixed = (row.card.solver, row.card.schedule, *row.card.corrections)
    return "-".join([network, str(row.card.nfe), *filter(None, fixed)])
