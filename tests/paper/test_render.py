"""The committed pages are those that this version renders from their rows."""

import shutil

from click.testing import CliRunner

from scripts.paper.config import ROOT
from scripts.paper.page import WRITERS, read_page
from scripts.paper.render import ends_of, main, rendered

RESULTS = ROOT / "results"


def test_committed_pages_are_those_of_this_version():
    pages = [(page, end) for page in rendered(RESULTS) for end in ends_of(RESULTS, page)]
    assert len(pages) > 100
    others = [
        f"{page.name}.{end}"
        for page, end in pages
        if (RESULTS / f"{page.name}.{end}").read_text("utf-8") != WRITERS[end](page)
    ]
    assert not others, "run python -m scripts.paper.render"


def test_render_restores_the_pages_of_a_folder(tmp_path):
    for end in WRITERS:
        shutil.copy(RESULTS / f"table2.{end}", tmp_path)
    (tmp_path / "table2.md").write_text("a page of an earlier version")
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    for end in WRITERS:
        written = (tmp_path / f"table2.{end}").read_bytes()
        assert written == (RESULTS / f"table2.{end}").read_bytes(), end
    assert "Table 2" in (tmp_path / "index.html").read_text("utf-8")


def test_render_refuses_rows_of_another_config(tmp_path):
    page = read_page(RESULTS / "table2.json")
    page.finished = {"Heun, 7 steps": {"key": "0"}}
    (tmp_path / "table2.json").write_text(page.model_dump_json())
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 2 and "reproduce table2 again" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["table2.json"]
