"""The documentation builds without a warning, fetches nothing, and leaves no public name out."""

import html
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
import yaml

import erk
import metrics
from erk.commands.main import SUBCOMMANDS, main
from erk.method.fields import fields

ROOT = Path(__file__).parents[2]
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
pytest.importorskip("mkdocs", reason="needs the extra [docs]")


TAG = re.compile(  # of HTML, MathML (m...) and SVG
    "a|article|b|body|br|button|clipboard-copy|code|dd|details|div|dl|dt|em|figcaption|figure|footer|"
    "form|h[1-6]|head|header|html|img|input|label|li|link|m[a-z]+|nav|ol|output|p|pre|script|section|"
    "small|span|strong|style|summary|sub|sup|table|tbody|td|th|thead|title|tr|ul|wbr|"
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


class Links(HTMLParser):
    """Collect the addresses of a page's links and the names that can be linked to."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.names = [], {"", "__top"}
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.names |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        self.addresses += [attrs["href"]] if tag == "a" and attrs.get("href") else []


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


def test_the_page_of_commands_has_every_option_with_its_default(site):  # N15
    text = re.sub("<[^>]*>", "", (site / "reference/commands.html").read_text("utf-8"))
    text = re.sub(r"\s+", " ", html.unescape(text))
    with click.Context(main, info_name="erk") as parent:
        for name in SUBCOMMANDS:
            command = main.get_command(parent, name)
            with command.context_class(command, info_name=name, parent=parent) as context:
                assert f"erk {name}" in text
                for option in command.params:
                    words, default = option.opts[0], option.get_default(context)
                    assert words in text or isinstance(option, click.Argument), (name, words)
                    is_number = isinstance(default, int | float) and not isinstance(default, bool)
                    if is_number and not isinstance(option.show_default, str):
                        assert f"Default: {default}" in text, (name, words)


def test_no_link_of_the_site_is_dead(site):
    pages = {page.resolve(): Links(page) for page in site.rglob("*.html")}
    dead = []
    for page, links in pages.items():
        for address in links.addresses:
            file, _, name = address.partition("#")
            target = (page.parent / file).resolve() if file else page
            if re.match("[a-z]+:", address) or (page.name == "404.html" and address[0] == "/"):
                continue
            known = pages[target].names if target in pages else {""}
            if not target.is_file() or (unquote(name) not in known and target in pages):
                dead.append((page.name, address))
    assert len(pages) > 25 and dead == []


def test_links_show_titles_not_file_names(site):
    others = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "checkpoints/README.md")
    for page in [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in others)]:
        texts = re.findall(r"\[([^\]]*)\]\([^)]*\)", page.read_text("utf-8"))
        assert [text for text in texts if re.search(r"\.(md|html)\b", text)] == [], page.name


def test_the_page_of_results_leads_back(site):
    text = (site / "results.html").read_text("utf-8")
    header = text.partition("<header")[2].partition("</header>")[0]
    assert '<a href="index.html">' in header and '<a href="glossary.html">' in header


def test_the_glossary_has_the_words_of_the_issue():
    text = (ROOT / "docs/glossary.md").read_text("utf-8")
    words = ("drift", "pair", "twin", "gate", "NFE", "w_con", "w_stiff", "stiffness", "card", "FD")
    assert [word for word in words if f"**{word}**" not in text.replace(", ", "**\n**")] == []


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_page_is_wider_than_the_screen(site, width):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=QUIET)
        screen = browser.new_page(viewport={"width": width, "height": 740})
        screen.set_default_timeout(300_000)
        wide, unsigned, broken = [], [], []
        for page in sorted(site.rglob("*.html")):
            screen.goto(page.as_uri(), wait_until="load")
            screen.evaluate(UNFOLD)
            needed = screen.evaluate("document.documentElement.scrollWidth")
            wide += [(page.name, needed)] if needed > width else []
            unsigned += [(page.name, text) for text in screen.evaluate(UNSIGNED)]
            broken += [(page.name, text) for text in screen.evaluate(BROKEN)]
        browser.close()
    assert wide == [] and unsigned == [] and broken == []


UNFOLD = """new Promise(done => {
    document.querySelectorAll("details").forEach(fold => fold.open = true);
    requestAnimationFrame(() => requestAnimationFrame(done));
})"""  # what is folded must fit as well


UNSIGNED = """[...document.querySelectorAll(
    ".md-typeset__scrollwrap, .md-typeset pre > code, .md-typeset p:has(> img), .formula, " +
    ".highlight-ipynb, .jp-RenderedImage, .jp-OutputArea-output pre")]
    .filter(box => box.scrollWidth > box.clientWidth && getComputedStyle(box).maskImage === "none")
    .map(box => box.textContent.slice(0, 60))"""  # what is cut and does not fade at its end
BROKEN = """[
    ...[...document.querySelectorAll(":is(p, li, dd, em) > code:not(.long, :has(*))")]
        .filter(code => code.getClientRects().length > 1),
    ...[...document.querySelectorAll(".headerlink")].filter(link => link.offsetParent)
        .filter(link => link.offsetLeft < link.parentElement.offsetLeft + 9)
        .map(link => link.parentElement),
    ...[...document.querySelectorAll(".md-typeset__scrollwrap")]
        .filter(box => innerWidth < 640 && box.scrollWidth > box.clientWidth + 1)
        .flatMap(box => [...box.querySelectorAll("td")])
        .filter(cell => {
            const text = document.createRange();
            text.selectNodeContents(cell);
            const {width, height} = text.getBoundingClientRect();
            return height > 100 && height > width;
        }),
].map(one => one.textContent.slice(0, 60))"""
"""Options split over two lines, headings above an empty line, cells that are columns of words."""


def test_no_page_fetches_anything_from_elsewhere(site):
    for page in site.rglob("*.html"):
        outside = [a for a in Loads(page).addresses if a and re.match("(https?:)?//", a)]
        assert outside == [], page


def test_a_standard_error_stays_with_its_sign(site):
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8").partition('<div class="md-content"')[2]
        assert " ± " not in re.sub(r"(?s)<(script|pre)\b.*?</\1>", "", text), page


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


def documented(page):
    """Yield (name, object) of every function, class and method of a page of the reference."""
    text = (ROOT / "docs/reference" / f"{page}.md").read_text("utf-8")
    for name in re.findall(r"^::: (\S+)", text, re.M):
        one = pkgutil.resolve_name(name)
        yield name, one
        for key, value in vars(one).items() if inspect.isclass(one) else ():
            if inspect.isfunction(value) and (key[0] != "_" or key == "__call__"):
                yield f"{name}.{key}", value


@pytest.mark.parametrize(
    "page", ["erk", "method", "metrics", pytest.param("integrations", marks=pytest.mark.slow)]
)
def test_the_reference_shows_types_and_defaults_of_parameters(page):
    """`name : description` shows the description as a type, `a, b` the default of a for both."""
    wrong, seen = [], 0
    for name, one in documented(page):
        section = (inspect.getdoc(one) or "").partition("Parameters\n----------\n")[2]
        section = re.split(r"\n\w+\n---+\n", section)[0]
        for entry in re.findall(r"^\S.*", section, re.M):
            names, _, kind = entry.partition(" : ")
            seen += 1
            known = inspect.signature(one).parameters
            shown = {(p.default, p.annotation) for n in names.split(", ")
                     for p in [known[n.strip("*")]]}  # fmt: skip
            if len(shown) > 1 or re.search(r"[.;]($| )|: | the | is |^of ", kind):
                wrong.append((name, entry))
    assert seen > 20 and wrong == []


def test_the_navigation_names_every_page():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    named = {p for part in config["nav"] for pages in part.values() if isinstance(pages, list)
             for page in pages for p in page.values()}  # fmt: skip
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    assert pages - {"index.md"} <= named
