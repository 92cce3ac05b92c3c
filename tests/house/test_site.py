"""The documentation builds without a warning, fetches nothing, and leaves no public name out."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import erk
import metrics
from erk.commands.main import SUBCOMMANDS
from erk.method.fields import fields

ROOT = Path(__file__).parents[2]
pytest.importorskip("mkdocs", reason="needs the extra [docs]")


TAG = re.compile(  # of HTML, MathML (m...) and SVG
    "a|article|body|button|clipboard-copy|code|dd|details|div|dl|dt|em|figcaption|figure|footer|"
    "form|h[1-6]|head|header|html|img|input|label|li|link|m[a-z]+|nav|ol|output|p|pre|script|section|"
    "small|span|strong|style|summary|sup|table|tbody|td|th|thead|title|tr|ul|"
    "svg|g|path|rect|circle|line|text|defs|use|polyline"
)


class Tags(HTMLParser):
    """Collect the names of a page's tags."""

    def __init__(self, page):
        super().__init__()
        self.names = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)


class Loads(HTMLParser):
    """Collect the addresses that a browser fetches with a page."""

    def __init__(self, page):
        super().__init__()
        self.addresses = []
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(attrs.get("src"))
        if tag == "link" and attrs.get("rel") in ("stylesheet", "preconnect", "icon", "preload"):
            self.addresses.append(attrs.get("href"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


def test_the_site_has_every_page(site):
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    assert {page.with_suffix(".html") for page in pages} <= built
    generated = {"tour.html", "results.html", "changelog.html", "contributing.html"}
    assert generated <= {path.as_posix() for path in built}
    commands = (site / "reference/commands.html").read_text("utf-8")
    assert all(f"erk {name}" in commands for name in SUBCOMMANDS) and "--w-stiff" in commands


def test_no_page_fetches_anything_from_elsewhere(site):
    for page in site.rglob("*.html"):
        outside = [a for a in Loads(page).addresses if a and re.match("(https?:)?//", a)]
        assert outside == [], page


def test_no_text_is_taken_for_a_tag(site):  # N2: `<f, v>` in prose was lost
    for page in site.rglob("*.html"):
        assert [name for name in Tags(page).names if not TAG.fullmatch(name)] == [], page


def test_formulas_are_mathml(site):
    theory = (site / "theory.html").read_text("utf-8")
    assert theory.count("<math") > 60 and "arithmatex" not in theory
    assert not re.search(r"\\(frac|langle|sigma|lambda)\b", theory)  # no LaTeX is left


def test_the_page_of_settings_has_every_field(site):
    text = (site / "reference/settings.html").read_text("utf-8")
    for field in fields():
        assert f"<code>{field.name}</code>" in text, field.name
        assert f"<code>{field.option}</code>" in text or not field.option, field.name


def test_the_reference_shows_signature_and_text_of_every_public_name(site):
    for package, page in ((erk, "reference/erk.html"), (metrics, "reference/metrics.html")):
        text = (site / page).read_text("utf-8")
        source = (ROOT / "docs" / page).with_suffix(".md").read_text("utf-8")
        for name in package.__all__:
            assert f"::: {package.__name__}.{name}\n" in source, name
            assert f'id="{package.__name__}.{name}"' in text, name
            first = getattr(package, name).__doc__.split()[:3]
            plain = re.sub("<[^>]*>", "", text)
            assert " ".join(first).replace("`", "") in plain, name


def test_the_navigation_names_every_page():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    named = {p for part in config["nav"] for pages in part.values() if isinstance(pages, list)
             for page in pages for p in page.values()}  # fmt: skip
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    assert pages - {"index.md"} <= named
