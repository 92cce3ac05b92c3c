"""scripts.paper.rows: the cache key of a measured row."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from erk.io.cache import digest
from metrics.evaluator import load_evaluator
from metrics.images import open_images
from scripts.paper import plan
from scripts.paper import rows as paper_rows
from scripts.paper.config import Request, load_config

ROOT = Path(__file__).parents[2]
FAST = ("table2", "--rows", "8-9", "--num", "24", "--batch", "8")  # 8 steps, 3 batches
ENDS = ("csv", "md", "tex", "html", "json")


def test_the_key_of_a_row_holds_all_that_its_numbers_depend_on(tmp_path, monkeypatch):
    """Every ingredient alone gives another key; the same ones give the same."""
    config = load_config("table2")
    options = plan.options_of_row(config, config.rows[9], Request(num=20, results=tmp_path))
    one = paper_rows.Planned(config.rows[9], options, "digits")
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
        *(key(one._replace(options=options | {name: value}))
          for name, value in (("w_stiff", 0.6), ("seeds", "0-19"), ("batch", 10))),
        key(one._replace(options=options | {"preset": "digits-autog"})),
        key(options=replace(evaluator.options, groups=5)),
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
