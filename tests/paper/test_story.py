"""The findings of results/index.html: numbers from the pages, and words that they support."""

import json

import pytest

from scripts.paper.config import ROOT
from scripts.paper.story import Finding, Value, findings_of, plot_of, read_story, values_of, wrong

RESULTS = ROOT / "results"


@pytest.mark.parametrize("finding", read_story().findings, ids=lambda finding: finding.title)
def test_findings_hold(finding):
    """configs/story.yaml states no direction that the committed numbers do not show."""
    assert finding.holds and wrong(finding, RESULTS) == []


def test_numbers_are_read(tmp_path):
    rows = [{"name": "a", "ours": {"fd": 8.0}}, {"name": "b", "ratio": [6.0, 0.1]}]
    (tmp_path / "p.json").write_text(json.dumps({"rows": rows}))
    finding = Finding(
        title="t", text="{{ number(a) }} {{ percent(b, a) }} {{ times(a, b) }}",
        values={"a": Value(page="p", row={"name": "a"}, key="ours.fd"),
                "b": Value(page="p", row={"name": "b"}, key="ratio")},
        holds=["b < a", "a < b"],
    )  # fmt: skip
    assert values_of(finding, tmp_path) == {"a": 8.0, "b": [6.0, 0.1]}
    assert wrong(finding, tmp_path) == ["a < b"]
    with pytest.raises(LookupError, match="p.json has no row"):
        missing = Value(page="p", row={"name": "c"}, key="x")
        values_of(finding.model_copy(update={"values": {"c": missing}}), tmp_path)
    assert findings_of(tmp_path) == [] and plot_of(tmp_path) is None  # other pages are missing


def test_the_committed_findings_have_numbers():
    found = findings_of(RESULTS)
    assert len(found) == 5
    for one in found:
        assert "{" not in one.text and "nan" not in one.text


def test_curves_have_a_point_per_number_of_evaluations():
    plot = plot_of(RESULTS)
    error, quality = plot["panels"]
    for curve in error["curves"]:
        xs = [x for x, _ in curve["points"]]
        assert xs == sorted(set(xs)) and len(xs) == 9
    plain, _, auto, deis, card = (curve["points"] for curve in error["curves"])
    for points in zip(plain, auto, deis, card, strict=True):
        heights = [y for _, y in points]
        assert heights == sorted(set(heights))  # y grows downwards: each has a smaller error
    assert quality["title"] == "FD"
