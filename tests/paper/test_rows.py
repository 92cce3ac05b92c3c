"""scripts.paper.rows: the cache key of a measured row."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image

from erk.generation.job import image_identity
from erk.generation.options import plan_job
from erk.io.cache import digest
from metrics.evaluator import load_evaluator
from metrics.images import open_images
from scripts.paper import plan
from scripts.paper import rows as paper_rows
from scripts.paper.config import Experiment, Request, load_config
from scripts.paper.scales import at_scale


def test_the_key_of_a_row_holds_all_that_its_numbers_depend_on(tmp_path, monkeypatch):
    """Every ingredient alone gives another key; the same ones give the same."""
    request = Request(num=20, results=tmp_path)
    config = at_scale(load_config("table2"), request)
    options = plan.options_of_row(config, config.rows[11], request)
    one = paper_rows.Planned(config.rows[11], options, "digits")
    evaluator = load_evaluator("digits")
    images = tmp_path / "real"
    images.mkdir()
    for i in range(2):
        Image.new("L", (8, 8), i).save(images / f"{i}.png")

    def key(row=one, **changes):
        return digest(paper_rows.key_of(row, replace(evaluator, **changes)), paper_rows.VERSION)

    extractor = evaluator.plan.extractors["digits"]._replace(sha256="0" * 64)
    others = [
        digest(paper_rows.key_of(one, evaluator), paper_rows.VERSION + 1),
        key(one._replace(ref="other")),
        key(one._replace(has_distance=False)),
        *(key(one._replace(options=options | {name: value}))
          for name, value in (("w_stiff", 0.6), ("seeds", "0-19"), ("batch", 10))),
        key(one._replace(options=options | {"preset": "digits-autog"})),
        key(options=replace(evaluator.options, groups=5)),
        key(protocol=replace(evaluator.protocol, measures=evaluator.protocol.measures[1:])),
        key(reference=evaluator.reference._replace(sha256="0" * 64)),
        key(plan=replace(evaluator.plan, extractors={"digits": extractor})),
        key(real=open_images(images)),
    ]  # fmt: skip
    Image.new("L", (8, 8), 7).save(images / "2.png")
    others.append(key(real=open_images(images)))
    monkeypatch.setattr(paper_rows, "_network_sha256", lambda address: "0" * 64)
    others.append(key())
    monkeypatch.undo()
    monkeypatch.setattr(paper_rows, "computation", lambda: ["another version of sampling"])
    others.append(key())
    monkeypatch.undo()
    assert len({key(), *others}) == 1 + len(others) and key() == key()


def test_rows_that_share_networks_have_their_own_labels(tmp_path, monkeypatch):
    """A row must not get the labels of the row before it, nor store features under its name."""
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "own.yaml"
    rows = [{"name": str(labels), "settings": {"labels": labels}}
            for labels in ("random", "balanced")]  # fmt: skip
    content = {"title": "t", "kind": "sampled", "paper": "p", "columns": ["fid"], "rows": rows,
               "num": 20, "seeds": 0, "ref": "digits", "best": {"fid": "low"},
               "settings": {"preset": "digits", "steps": 4}}  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    config = load_config(path)

    def measured(rows, **where):
        one = config.model_copy(update={"rows": rows})
        table = paper_rows.Rows([Experiment(one, Request(**where))])
        assert table.measure()
        return table.finished(0)

    random, balanced = measured(config.rows, results=tmp_path)
    assert random["fd"] != balanced["fd"]
    (alone,) = measured(config.rows[1:], results=tmp_path / "alone", cache=str(tmp_path / "other"))
    assert alone["fd"] == balanced["fd"]


@pytest.mark.parametrize("name", ["seeds", "num", "ref"])
def test_a_config_without_the_scale_is_refused(name):
    config = load_config("table2")
    with pytest.raises(ValueError, match=f"table2: {name}: missing for the "):
        paper_rows.planned_rows(config.model_copy(update={name: None}), Request())


@pytest.mark.parametrize(("device", "longest", "expected"), [
    ("cuda", 18, "always"), ("cuda", 40, "never"), ("cpu", 18, "auto"),
])  # fmt: skip
def test_rows_of_a_table_are_compiled_alike(device, longest, expected, monkeypatch):
    """One row for which compilation pays decides for all, and the row's settings say so."""

    def fake_plan(options):
        if options["steps"] == 4:
            raise FileNotFoundError("a card")
        return SimpleNamespace(compiled=options["steps"] >= longest)

    monkeypatch.setattr(paper_rows, "plan_job", fake_plan)
    monkeypatch.setattr(paper_rows, "pick_device", torch.device)
    rows = [{"steps": n, "compile": "auto", "device": device} for n in (4, 6, 18)]
    fixed = {"steps": 18, "compile": "never", "device": device}
    *alike, kept = paper_rows.compiled_alike([*rows, fixed])
    assert [row["compile"] for row in alike] == [expected] * 3 and kept == fixed
    assert [row["steps"] for row in alike] == [4, 6, 18]


def test_a_table_never_mixes_compiled_rows_with_others(monkeypatch):
    """One choice whichever rows pay; rows measured under the other one have other keys."""
    monkeypatch.setattr(paper_rows, "pick_device", torch.device)
    for paying in itertools.product([True, False], repeat=3):
        monkeypatch.setattr(
            paper_rows, "plan_job", lambda row, p=paying: SimpleNamespace(compiled=p[row["n"]])
        )
        rows = [{"n": n, "compile": "auto", "device": "cuda"} for n in range(3)]
        (choice,) = {row["compile"] for row in paper_rows.compiled_alike(rows)}
        assert choice == ("always" if any(paying) else "never")
    config = at_scale(load_config("table2"), Request(num=20))
    for row in config.rows[:2]:
        options = plan.options_of_row(config, row, Request(num=20))
        compiled, eager = (plan_job(options | {"compile": c}).identity for c in ("always", "never"))
        assert compiled["precision"].endswith(", compiled")
        assert image_identity(compiled) != image_identity(eager)
