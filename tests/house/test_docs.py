"""The tables and names in the documents are those of the code."""

import inspect
import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from documents import PAGES, ROOT

from erk.commands.main import SUBCOMMANDS
from erk.method.solvers import SOLVERS
from metrics.protocols import known_protocols

PATH = re.compile(r"`((?:docs|erk|metrics|scripts|tests|configs|checkpoints)/[\w./-]+)`")
LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)")
QUARTILES = ("Q0-25", "Q25-50", "Q50-75", "Q75-100")
MODULE = re.compile(r"python -m ((?:erk|metrics|scripts)[\w.]*)")


def read(name):
    return (ROOT / name).read_text("utf-8")


def rows(text):
    """Return {first cell: row} of the tables of a page; the last row of a name counts."""
    return {m[1]: m[0] for m in re.finditer(r"^\| `([\w-]+)` \|.*$", text, re.M)}


def test_every_path_and_module_in_the_documents_exists():
    missing = []
    for page in [*PAGES, ROOT / "SECURITY.md"]:
        text = page.read_text("utf-8")
        paths = PATH.findall(text) + [module.replace(".", "/") for module in MODULE.findall(text)]
        missing += [
            (page.name, path)
            for path in paths
            if not (ROOT / path).exists() and not (ROOT / f"{path}.py").exists()
        ]
    assert [m for m in missing if "NAME" not in m[1]] == []


def test_every_link_of_the_documents_leads_to_a_file():
    """a9: in the repository as in the site."""
    pages = [*PAGES, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
    links = [(page, link) for page in pages for link in LINK.findall(page.read_text("utf-8"))]
    broken = [(page.name, link) for page, link in links if not (page.parent / link).exists()]
    assert len(links) > 50 and broken == []
    if (ROOT / ".git").exists():  # to what a clone has, not to a file that git ignores
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True,
            text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        files = {ROOT / name for name in listed}
        known = files | {folder for file in files for folder in file.parents}
        ignored = [link for page, link in links if (page.parent / link).resolve() not in known]
        assert ignored == []


def test_every_subcommand_in_the_documents_exists():
    names = {
        name
        for page in PAGES
        for name in re.findall(r"`erk ([a-z][a-z-]+)", page.read_text("utf-8"))
    }
    assert names and names <= {*SUBCOMMANDS}


def test_every_integration_and_adapter_is_in_the_document():
    from erk.integrations import diffusers
    from erk.integrations.kdiffusion import SAMPLERS
    from erk.models.adapters import __dict__ as adapters

    text = read("docs/integrations.md")
    names = [name for name in adapters if name.startswith("from_")]
    names += [*diffusers.__all__, *SAMPLERS, *(f"sample_{name}" for name in SAMPLERS)]
    assert [name for name in names if name not in text and name != "EDM2Network"] == []


def test_every_solver_and_option_is_in_the_table():
    table = rows(read("docs/solvers.md"))
    for name, solver in SOLVERS.items():
        for option in inspect.signature(solver).parameters.values():
            if option.kind is option.KEYWORD_ONLY and option.name not in ("sigmas", "ends"):
                assert f"`{option.name}`" in table[name] or "those of `dpmpp`" in table[name]


def test_every_protocol_and_column_is_in_the_document():
    table = rows(read("docs/evaluation.md"))
    for protocol in known_protocols().values():
        for column in protocol.columns:
            names = {column, column.removesuffix("_std")}
            assert column in ("precision", "recall") or any(
                name in table[protocol.name] for name in names
            ), (protocol.name, column)


def test_the_table_of_local_errors_is_what_the_script_prints():
    printed = subprocess.run(
        [sys.executable, "-m", "scripts.studies", "local-errors"], cwd=ROOT, capture_output=True,
        text=True, check=True,
    ).stdout  # fmt: skip
    assert printed in read("docs/theory.md")


def test_the_readme_is_short_and_shows_rows_of_the_demo():  # N, item 1
    text, record = read("README.md"), read("results/demo.md")
    shown = [line for line in text.splitlines() if line.startswith("|")]
    assert len(text) <= 7000
    assert len(shown) == 5 and [line for line in shown if line not in record.splitlines()] == []
    assert f"have {re.search('FD floor ([^:]*):', record)[1]}" in text


def test_the_losses_in_the_readme_are_those_of_the_records():
    section = read("README.md").partition("## When it does not help")[2].partition("\n## ")[0]
    numbers = re.findall(r"\d+\.\d+ ± \d+\.\d+", section)
    names = ("demo", "table2-mnist", "table3-mnist", "table3-digits-early")
    records = [read(f"results/{name}.md") for name in names]
    assert len(numbers) == 12 and [one for one in numbers if one not in "".join(records)] == []


def test_the_page_of_the_paper_shows_the_results_in_its_regime():
    """Every cell of its table of three networks stands in the committed results."""
    section = read("docs/paper.md").partition("## Table 2 in the paper's regime")[2]
    shown = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    tables = [
        read(f"results/table2-digits-early{which}.md")
        .partition("| row | minus | fd, % |")[2].partition("\n\n")[0].splitlines()[2:]
        for which in ("", "-1", "-2")
    ]  # fmt: skip
    assert len(shown[2:]) == 15
    for line, *rows in zip(shown[2:], *tables, strict=True):
        (name, _, fd, distance, published, *_), *others = (row.split(" | ") for row in rows)
        changes = [fd, *(row[2] for row in others)]
        assert line == " | ".join([name, *changes, distance, published]) + " |"


@pytest.mark.parametrize(
    ("heading", "file", "least"),
    [("Tables 3, 8, 10 and 11 in the paper's regime", "table{}-digits-early.md", 20),
     ("Table 2 on MNIST", "table2-mnist.md", 15),
     ("Tables 3, 8, 10 and 11 on MNIST", "table{}-mnist.md", 20)],
)  # fmt: skip
def test_the_page_of_the_paper_shows_other_results(heading, file, least):
    section = read("docs/paper.md").partition(f"## {heading}")[2].partition("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert len(shown) >= least
    for line in shown:
        cells = line.strip("| ").split(" | ")
        number = cells.pop(0) if "{}" in file else ""
        assert f"| {' | '.join(cells)} |" in read(f"results/{file.format(number)}")


def test_the_page_of_the_paper_counts_the_bins_of_figure_3():
    """|cos| of the drift difference against that of the solution difference, at both scales."""
    nearer = []
    for name in ("figure3", "figure3-digits-early"):
        table = read(f"results/{name}.md").partition("| states |")[2].partition("\n\n")[0]
        bins = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
        nearer.append([float(drift) > float(solution) for _, _, _, drift, solution, _ in bins])
    assert nearer == [[True] * 8, [False] * 3 + [True] * 5]
    (line,) = [one for one in read("docs/paper.md").splitlines() if one.startswith("| Fig. 3b")]
    assert "on digits in 8 of 8 bins" in line and "in the 5 stiffest" in line


def test_the_lines_of_code_fit_the_column_of_the_site():
    """At 1280 pixels 103 characters of docs/site.css's code are not cut."""
    pages = [page for page in PAGES if page.parent != ROOT or page.name == "CONTRIBUTING.md"]
    fence = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.S | re.M)
    blocks = [(page.name, one) for page in pages for one in fence.findall(page.read_text("utf-8"))]
    long = [(name, line) for name, one in blocks for line in one.splitlines() if len(line) > 103]
    assert len(blocks) > 70 and long == []


def test_every_test_that_the_documents_name_exists():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    names = set(re.findall(r"`(test_\w+)`", text))
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(names) > 25 and {n for n in names if f"def {n}(" not in sources} == set()


def test_no_two_pages_have_one_title():  # N14
    titles = [page.read_text("utf-8").partition("\n")[0].lower() for page in PAGES[2:]]
    assert all(title.startswith("# ") for title in titles) and len({*titles}) == len(titles)


def test_every_extra_that_the_documents_install_exists():  # N18
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    named = {
        name
        for page in PAGES
        for text in re.findall(r"pip install [^\n]*\[([\w,-]+)\]", page.read_text("utf-8"))
        for name in text.split(",")
    }
    assert named and named <= {*extras}


def test_the_swap_of_precision_and_recall_has_its_commit():  # S2
    for page in ("docs/paper.md", "docs/evaluation.md", "docs/faq.md"):
        assert re.search(r"commit\s+5e3be6a\s+(of |\()2026-02-16", read(page)), page


def test_the_page_of_the_paper_shows_figure_2c():  # S4
    """Median |cos| with the dominant eigenvector, and that ours is not the nearest everywhere."""
    rows = {
        row["quantity"]: [round(row[quartile], 2) for quartile in QUARTILES]
        for row in json.loads(read("results/figure2.json"))["rows"]
        if row["median"] == "|cos|"
    }
    section = read("docs/paper.md").partition("**Fig. 2c: ")[2].partition("\n\n**")[0]
    assert 'alignment … across all stiffness quantiles" does not hold on our toy' in section
    shown = re.findall(r"^\| (\w[^|]*) \|" + r" (\d\.\d\d) \|" * 4, section, re.M)
    shown = {name: [*map(float, values)] for name, *values in shown}
    assert shown == {
        "ERK-Guid (drift difference)": rows["ERK drift difference"],
        "CFG": rows["CFG"], "Autoguidance": rows["Autoguidance"],
    }  # fmt: skip
    lowest, highest = (max(shown, key=lambda name: shown[name][i]) for i in (0, 3))
    assert lowest == "CFG" and highest.startswith("ERK-Guid")


def test_the_rivals_that_table_4_leaves_out_are_shown():  # S6
    """They beat every row of FFHQ-64 at 8 and 10 evaluations; the best rows are the paper's."""
    config = yaml.safe_load(read("configs/table4.yaml"))
    section = read("docs/paper.md").partition("## Table 4's missing rivals")[2]
    lines = [one for one in section.splitlines() if one.startswith("| ")][2:8]
    cells = [[float(x.strip("* ")) for x in line.split("|")[3:6]] for line in lines]
    best = {
        preset: [
            min(row["published"]["fid"] for row in config["rows"]
                if row["settings"]["preset"] == preset and row["published"]["nfe"] == nfe)
            for nfe in (6, 8, 10)
        ]
        for preset in ("edm-ffhq-64x64-uncond-vp", "edm-imagenet-64x64-cond-adm")
    }  # fmt: skip
    assert [cells[0], cells[3]] == list(best.values())
    assert cells[1:3] == [[10.03, 5.52, 3.98], [12.85, 5.5, 3.84]]
    assert cells[4:6] == [[12.92, 7.2, 5.11], [14.3, 7.52, 5.53]]
    assert all(max(cells[1][i], cells[2][i]) < cells[0][i] for i in (1, 2))
    for row in (cells[1], cells[2], cells[4], cells[5]):
        assert all(f"{value:.2f}" in config["notes"][0] for value in row)


def test_every_citation_has_year_and_number():  # S7
    card = yaml.safe_load(read("CITATION.cff"))["preferred-citation"]
    assert card["year"] == 2026 and card["identifiers"][0]["value"] == "arXiv:2603.03692"
    for page in ("README.md", "docs/paper.md"):
        text = read(page)
        assert "2603.03692" in text and "ICLR 2026" in text and card["title"] in text


def test_the_page_of_the_paper_says_what_table_4_on_mnist_shows():
    page = read("results/table4-mnist.md")
    changes = page.partition("| row | minus | fd, % |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.*?), ERK-Guid \| [^|]* \| (-?[\d.]+)", changes, re.M)
    percent = {s: [float(v) for name, v in rows if name.endswith(s)]
               for s in ("DPM-Solver-2", "Heun", "DEIS")}  # fmt: skip
    text = read("docs/paper.md").partition("**Table 4 reproduces")[2].partition("\n- ")[0]
    text = " ".join(text.split())
    low, *_, high = sorted(-one for one in percent["DPM-Solver-2"])
    assert len(rows) == 18 and f"in all six cells, by {low:.1f} to {high:.1f} %" in text
    assert f"up to {round(1 + max(percent['Heun']) / 100)} times" in text
    assert f"With DEIS it changes by {round(max(map(abs, percent['DEIS'])))} % at most" in text
    first = [re.search(rf"\| conditional, NFE 6, {name} \| 6 \| \**([\d.]+)", page)[1]
             for name in ("Heun", "Heun, auto", "DPM-Solver-2", "DPM-Solver-2, auto")]  # fmt: skip
    assert "from {} to {} and from {} to {}".format(*first) in text
