"""The rival noise levels of the study, against those of their authors' code."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from scripts.studies.levels import BUDGETS, bound, weights_of, xue

ROOT = Path(__file__).parents[2]

ENDS = -5.024978406659204, 4.557714932729866  # ln(alpha / sigma), linear VP process, t 1 to .001


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (np.linspace(*ENDS, 7)[1:-1], 171.03053084317247),
        (np.array([-3.0, -2.0, -1.5, 0.0, 2.0]), 73.6086596531843),
    ],
)
def test_the_bound_is_that_of_the_released_code(inner, expected):
    """Values of github.com/scxue/DM-NonUniform at 5d00ad6, sel_lambdas_lof_obj."""
    assert bound(inner, ENDS) == pytest.approx(expected, rel=1e-9)


def test_the_levels_are_those_of_the_released_code():
    """Values of the same code, get_ts_lambdas(6, 1e-3, "unif"), to three decimals."""
    levels = xue(6, float(np.exp(-ENDS[1])), float(np.exp(-ENDS[0])))
    expected = [ENDS[0], -2.545, -1.423, -0.811, 0.1, 1.257, ENDS[1]]
    assert -np.log(levels) == pytest.approx(expected, abs=1e-3)


def test_the_page_shows_the_ranges_of_the_record():
    """docs/beyond.md, Other ways to noise levels: the table and the three sentences below it."""
    rows = json.loads((ROOT / "results" / "levels.json").read_text("utf-8"))["rows"]
    page = (ROOT / "docs" / "beyond.md").read_text("utf-8")
    names = {"ipndm": "ipndm", "deis": "deis", "dpmpp": "dpmpp 3", "unipc": "unipc 3"}
    gains = {"GITS": set(), "Xue et al.": set(), "final state": set()}
    for preset, (solver, name) in product(("digits-early", "mnist"), names.items()):
        some = [row for row in rows if (row["preset"], row["solver"]) == (preset, solver)]
        assert [row["NFE"] for row in some] == [*BUDGETS]
        cells = []
        for kind in gains:
            ratios = [row[f"{kind}, ratio"] for row in some]
            cells.append(f"{min(ratios)[0]:.2f} to {max(ratios)[0]:.2f}")
            lower = {row["NFE"] for row in some if sum(row[f"{kind}, ratio"]) < 1}
            gains[kind] |= {f"{preset} {solver} {nfe}" for nfe in lower}
        assert f"| {preset} | {name} | {' | '.join(cells)} |" in page
    early = {f"digits-early unipc {nfe}" for nfe in (8, 10)}
    assert len(gains["final state"]) == len(rows) == 40
    assert gains["GITS"] == early | {
        f"mnist {one}" for one in ("ipndm 5", "ipndm 6", "ipndm 8", "unipc 5")
    }
    assert gains["Xue et al."] == early | {f"digits-early dpmpp {nfe}" for nfe in (8, 10)} | {
        f"mnist {one}" for one in ("ipndm 5", "ipndm 6", "deis 5", "deis 8", "dpmpp 8", "unipc 5")
    }


def test_the_weights_of_a_step_add_up():
    """A constant denoised image is integrated exactly: e^(lambda_n+1) - e^(lambda_n)."""
    lambdas = np.array([-4.0, -2.0, -1.5, 0.0, 1.0, 4.0])
    sums = [row.sum() for row in weights_of(lambdas)]
    assert sums == pytest.approx(np.diff(np.exp(lambdas)))
