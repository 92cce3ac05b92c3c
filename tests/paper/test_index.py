"""results/index.html: built from the pages alone, in one file, and tested in a browser."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from scripts.paper import reproduce
from scripts.paper.config import ROOT, config_names
from scripts.paper.index import curves_of, index_of, write_index
from scripts.paper.page import Page, write_page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with a table of two rows, two grids and their index, written by the command."""
    folder = tmp_path_factory.mktemp("results")
    cache = str(tmp_path_factory.mktemp("cache"))
    for arguments in (
        ["table2", "--num", "20", "--rows", "10-11", "--cache", cache],
        ["table5"],
        ["figure8", "--num", "3"],
        ["figure9", "--num", "3"],
    ):
        done = CliRunner().invoke(reproduce.main, [*arguments, "--results", str(folder)])
        assert done.exit_code == 0, done.output
    assert f"wrote {folder / 'index.html'}" in done.output
    return folder


class Reader(HTMLParser):
    """Open elements, addresses and the text of an HTML page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.ids, self.links = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in ("meta", "link", "img", "input", "br", "path", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "circle"):
            assert self.open.pop() == tag


def test_it_is_whole_and_asks_for_nothing(results):
    text = (results / "index.html").read_text("ascii")
    page = Reader(text.removeprefix("<!doctype html>"))
    assert page.open == [] and page.ids == ["story", "table2", "table5", "figure8", "figure9"]
    outside = [one for one in page.addresses if not one.startswith(("data:", "#"))]
    assert outside == [] and "url(" not in text and "@import" not in text
    assert [one for one in page.addresses if one.startswith("#")] == [f"#{i}" for i in page.ids]
    held = {base64.b64decode(one) for one in re.findall(r"data:image/png;base64,([\w+/=]+)", text)}
    files = [
        results / "figure8.png",
        *results.glob("figure8/*.png"),
        *results.glob("figure9/*.png"),
    ]
    assert len(files) == 1 + 8 + 14 and {file.read_bytes() for file in files} <= held


def test_it_says_what_is_not_there_and_who_made_the_rest(results):
    text = (results / "index.html").read_text("ascii")
    missing = [
        name for name in config_names() if name not in ("table2", "table5", "figure8", "figure9")
    ]
    assert f"Not computed yet: {', '.join(missing)}." in text
    cards = text[text.index("Run cards") :].split("<details><summary>")[1:]
    assert [card.partition("<")[0] for card in cards[:2]] == ["8 steps", "8 steps, w_stiff 0.5"]
    for value in ("w_stiff=0.5", "100000-100019", "<dt>commit</dt>", "torch="):
        assert value in cards[1]
    assert "NOT MEASURED YET: 16 of 18 rows" in text


def test_names_are_text_and_not_html(tmp_path):
    """A page's names are escaped, also within the script's JSON."""
    row = {"row": "</script><b>", "w_stiff": 0.0, "w_con": None, "steps": 6, "NFE": 11,
           "sheet": "a.png", "traces": {"sigma": [], "stiffness": []}}  # fmt: skip
    page = Page(
        name="figure8", title="Figure 8 <i>", kind="grid", scale=None, tables=[], rows=[row]
    )
    (tmp_path / "a.png").write_bytes(b"x")
    write_page(tmp_path, page)
    text = index_of(tmp_path)
    assert "<b>" not in text and "<i>" not in text and text.count("</script>") == 2


def test_curves_are_drawn_at_their_values():
    """Two steps a decade of sigma apart, stiffness 1 to 10 to 100: equal distances."""
    row = {"row": "a", "w_con": 10.0,
           "traces": {"sigma": [10.0, 1.0, 0.1], "stiffness": [[1.0, 1.0, 1.0], [9.0, 10.0, 11.0],
                                                               [100.0, 100.0, 100.0]]}}  # fmt: skip
    (curve,) = curves_of([row])["groups"]
    points = [tuple(map(float, p.split())) for p in curve["median"].removeprefix("M").split("L")]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 == 56 and x1 - x0 == pytest.approx(x2 - x1, abs=0.1) and x2 == 886
    assert y0 > y1 > y2 == 26 and y0 - y1 == pytest.approx(y1 - y2, abs=0.1)
    assert curve["gate"] == pytest.approx(y1, abs=0.05)  # the threshold 10 is the middle value
    assert curves_of([row | {"traces": {"sigma": [], "stiffness": []}}]) is None


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Open a page as someone; what went wrong and what was asked for is looked at afterwards."""
    seen, asked, contexts = [], [], []

    def go(folder, **how):
        contexts.append(browser.new_context(**how))
        page = contexts[-1].new_page()
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
        page.goto((folder / "index.html").as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert seen == [] and set(asked) <= {"file", "data"}


def test_sliders_exchange_images_and_curves(results, visit):
    page = visit(results)
    viewer = page.locator("#figure8 .viewer")
    first = viewer.locator("img").get_attribute("src")
    assert viewer.locator("output").inner_text() == "0"
    assert viewer.locator(".trace.on").get_attribute("data-row") == "0"
    viewer.locator("input").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert viewer.locator("output").inner_text() == "0.5"
    assert viewer.locator("figcaption").inner_text() == "w_stiff 0.5: 6 steps, NFE 11, w_con 0.3"
    assert viewer.locator(".trace.on").get_attribute("data-row") == "2"
    shown = viewer.locator("img").get_attribute("src").partition(",")[2]
    assert base64.b64decode(shown) == (results / "figure8" / "0.5.png").read_bytes()
    assert shown != first.partition(",")[2]
    assert viewer.locator("img").evaluate("image => image.naturalWidth") > 100


def test_two_sliders_choose_one_sheet(results, visit):
    page = visit(results)
    weight, threshold = page.locator("#figure9 .viewer input").all()

    def shown():
        text = page.locator("#figure9 .viewer img").get_attribute("src").partition(",")[2]
        return base64.b64decode(text)

    threshold.focus()
    page.keyboard.press("ArrowRight")  # 0.1 -> 0.3: without ERK-Guid the same sheet
    assert shown() == (results / "figure9" / "0.png").read_bytes()
    weight.focus()
    page.keyboard.press("End")
    assert shown() == (results / "figure9" / "auto.png").read_bytes()
    page.keyboard.press("ArrowLeft")
    assert shown() == (results / "figure9" / "2-0.3.png").read_bytes()
    assert page.locator("#figure9 output").all_inner_texts() == ["2", "0.3"]


def test_a_switch_shows_one_network_at_a_time(results, visit, tmp_path):
    folder = shutil.copytree(results, tmp_path / "results")
    content = json.loads((folder / "table2.json").read_text("utf-8"))
    content |= {"name": "table2-mnist", "scale": "mnist", "title": "Table 2 on MNIST: it"}
    (folder / "table2-mnist.json").write_text(json.dumps(content))
    write_index(folder)
    page = visit(folder)

    def shown():
        return [one.get_attribute("id") for one in page.locator("section.result").all()
                if one.is_visible()]  # fmt: skip

    assert page.locator(".networks button").all_inner_texts() == [
        "digits", "MNIST", "none: toy problem and settings"]  # fmt: skip
    assert shown() == ["table2", "figure8", "figure9"]
    page.get_by_role("button", name="MNIST").click()
    assert shown() == ["table2-mnist"]
    assert page.locator("nav a:visible").all_inner_texts() == [
        "What was measured", "Table 2: it", "Table 5: w_stiff of Table 4"]  # fmt: skip
    page.get_by_text("Table 5: w_stiff").first.click()  # of no network
    page.wait_for_function("document.querySelector('#table5').checkVisibility()")
    assert shown() == ["table5"]
    page.evaluate("location.hash = 'figure8'")  # a link to a page of the other network
    page.wait_for_function("document.querySelector('#figure8').checkVisibility()")
    assert shown() == ["table2", "figure8", "figure9"]


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_no_width_scrolls_sideways(results, visit, width):
    page = visit(results, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    table = page.locator("#table2 .scroll").first
    assert table.bounding_box()["width"] <= width
    (shown, inside), *_ = page.locator("#table2 .scroll").evaluate_all(WIDTHS)
    assert (inside > shown + 1) == ("wide" in table.get_attribute("class")) == (width < 1600)
    page.get_by_text("Run cards").click()
    page.get_by_text("8 steps, w_stiff 0.5", exact=True).last.click()
    assert page.locator("#table2 dl >> visible=true").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width


WIDTHS = "boxes => boxes.map(box => [box.clientWidth, box.scrollWidth])"


def test_figures_stay_legible_on_a_phone(results, visit):
    """Wide images and curves keep their width and scroll in their own boxes, with a sign."""
    page = visit(results, viewport={"width": 360, "height": 800})
    page.locator("#figure8 summary").all()[0].click()  # the curves
    page.locator("#figure8 summary").all()[1].click()  # notes, with the figure
    image = page.locator("#figure8 details .scroll img")
    natural = image.evaluate("image => image.naturalWidth")
    assert image.bounding_box()["width"] == pytest.approx(min(natural, 34 * 16), abs=0.1)
    assert natural > 360
    curves = page.locator("#figure8 .viewer svg")
    assert curves.bounding_box()["width"] == 48 * 16
    (shown, strip), (_, inside) = page.locator("#figure8 .viewer .scroll").evaluate_all(WIDTHS)
    assert shown < 360 and strip == 30 * 16 and inside == 48 * 16
    page.wait_for_function("document.querySelector('#figure8 .viewer .scroll.wide')")
    letter = curves.evaluate(
        "svg => 12 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width"
    )
    assert letter > 10  # pixels
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_page_alone_has_a_title_and_a_sign_beside_a_cut_image(results, browser):
    """The sign also where the image has its width only after the script ran."""
    context = browser.new_context(viewport={"width": 360, "height": 800})
    page = context.new_page()
    page.goto((results / "figure8.html").as_uri())
    assert page.locator("main h1").inner_text().startswith("Figure 8")
    image = page.locator(".scroll img")
    assert image.get_attribute("alt").startswith("Figure 8")
    image.evaluate("image => { image.src = ''; return sign(); }")
    image.evaluate("image => { image.src = 'figure8.png'; return image.decode(); }")
    page.wait_for_function("document.querySelector('.scroll.wide > img')")
    page.goto((results / "table5.html").as_uri())
    assert page.locator("table >> visible=true").count() > 0  # a page of settings shows them
    context.close()


@pytest.mark.parametrize("width", [360, 1600])
def test_a_tall_sheet_fits_the_window(results, visit, width):
    page = visit(results, viewport={"width": width, "height": 500})
    tall = """image => {
        const paper = document.createElement("canvas");
        [paper.width, paper.height] = [30, 300];
        image.src = paper.toDataURL();
        return image.decode();
    }"""
    sheet = page.locator("#figure9 .viewer img")
    sheet.evaluate(tall)
    assert sheet.bounding_box()["height"] == pytest.approx(320)
    assert sheet.evaluate("image => getComputedStyle(image).objectFit") == "contain"


def test_a_combination_that_was_not_made_shows_no_image(results, visit, tmp_path):
    folder = shutil.copytree(results, tmp_path / "results")
    content = json.loads((folder / "figure9.json").read_text("utf-8"))
    content["rows"] = [
        row for row in content["rows"] if (row["w_stiff"], row["w_con"]) != (2.0, 0.1)
    ]
    (folder / "figure9.json").write_text(json.dumps(content))
    write_index(folder)
    page = visit(folder)
    viewer = page.locator("#figure9 .viewer")
    weight, threshold = viewer.locator("input").all()
    weight.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")  # before auto
    assert viewer.locator("figcaption").inner_text() == "w_stiff 2, w_con 0.1: not computed"
    assert not viewer.locator("img").is_visible() and viewer.locator(".trace.on").count() == 0
    threshold.focus()
    page.keyboard.press("ArrowRight")
    assert "w_stiff 2, w_con 0.3: 6 steps" in viewer.locator("figcaption").inner_text()
    assert viewer.locator("img").is_visible() and viewer.locator(".trace.on").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_have_contrast(results, visit, scheme):
    """WCAG AA: a ratio of 4.5 between text and what is behind it."""
    page = visit(results, color_scheme=scheme)

    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def colour(selector, name):
        return page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{name}")

    back = luminance(colour("#table2", "backgroundColor"))
    assert (back < 0.1) == (scheme == "dark")
    for selector in ("#table2 td", "#table2 figcaption", "#table2 .made-by", "nav a"):
        text = luminance(colour(selector, "color"))
        assert (max(text, back) + 0.05) / (min(text, back) + 0.05) > 4.5, selector


def test_the_committed_page_fits_a_desktop(visit):
    """Without a fold-out opened, 8000 pixels hold every view, and no table is cut."""
    page = visit(ROOT / "results", viewport={"width": 1280, "height": 900})
    buttons = page.locator(".networks button").all()
    assert len(buttons) > 3
    for button in buttons:
        button.click()
        height = page.evaluate("document.documentElement.scrollHeight")
        assert 1000 < height <= 8000, button.inner_text()
        assert page.locator(".scroll.wide >> visible=true").count() == 0, button.inner_text()
    assert page.locator(".findings li").count() == 5 and page.locator(".panel").count() == 2


def test_the_committed_page_is_that_of_the_committed_results(tmp_path):
    empty = write_index(tmp_path).read_text("ascii")
    assert f"Not computed yet: {', '.join(config_names())}." in empty
    assert (ROOT / "results" / "index.html").read_text("ascii") == index_of(ROOT / "results")
