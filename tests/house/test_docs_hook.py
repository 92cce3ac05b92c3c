"""What the site and the HTML of results do to text: powers, indices, words in one piece."""

import pytest

pytest.importorskip("mkdocs", reason="needs the extra [docs]")

from scripts.docs_hook import (
    BESIDE,
    CELL,
    LONG,
    PARTS,
    _beside,
    _cell,
    _escaped,
    _linked,
    _linked_text,
    _long,
    _text,
    _with_origin,
)
from scripts.paper.html import unbroken
from scripts.typeset import typeset


def word(text):
    return f'<span class="unbroken">{text}</span>'


POWERS = {
    "z^2/6 for small z": "z<sup>2</sup>/6 for small z",
    "j^-2 and 10^-3": "j<sup>-2</sup> and 10<sup>-3</sup>",
    "2^32, 10^18 bytes.": "2<sup>32</sup>, 10<sup>18</sup> bytes.",
    "tr (C)^(1/2)": "tr (C)<sup>1/2</sup>",
    "|f|^2 + sigma^(1/rho)": "|f|<sup>2</sup> + sigma<sup>1/rho</sup>",
    "8/3 D^3 operations": "8/3 D<sup>3</sup> operations",
    "(h rho)^2 of x^2.": "(h rho)<sup>2</sup> of x<sup>2</sup>.",
    "e^z, r^(i-1), t^2.5, 3^2nd, ^2": "e^z, r^(i-1), t^2.5, 3^2nd, ^2",
}
NAMES = {
    "ERK-Guid with --w_stiff=1": f"{word('ERK-Guid')} with {word('--w_stiff')}=1",
    "DPM-Solver++, FD-DINOv2": f"{word('DPM-Solver')}++, {word('FD-DINOv2')}",
    "at most 1.5e-7, -1.301e-05": f"at most {word('1.5e-7')}, {word('-1.301e-05')}",
    "non-ERK-Guid, a--b, 1e4": "non-ERK-Guid, a--b, 1e4",
}


@pytest.mark.parametrize("text", [*POWERS, *NAMES])
def test_powers_are_raised_and_names_are_unbroken(text):
    expected = (POWERS | NAMES)[text]
    assert typeset(text) == expected and unbroken(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("x_i, x_i^Euler", "x<sub>i</sub>, x<sub>i</sub><sup>Euler</sup>"),
    ("σ_i − σ_{i+1}", "σ<sub>i</sub> − σ<sub>i+1</sub>"),
    ("x_i^2", "x<sub>i</sub><sup>2</sup>"),
    ("σ_max, x_hat, np.x_y, x_i_j, max_x_i", "σ_max, x_hat, np.x_y, x_i_j, max_x_i"),
    ("<b> & x_0", "&lt;b&gt; &amp; x<sub>0</sub>"),
])  # fmt: skip
def test_indices_of_results(text, expected):
    assert unbroken(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("50 000 images of 8 x 8", "50&nbsp;000 images of 8&nbsp;x&nbsp;8"),
    ("2 % in 32 steps", "2&nbsp;% in 32&nbsp;steps"),
    ("Table 2, seed 0, tau 1, Eq. 15", "Table&nbsp;2, seed&nbsp;0, tau&nbsp;1, Eq.&nbsp;15"),
    ("a Table of 2", "a Table of 2"),
    ("0.65 ± 0.01", "0.65&nbsp;±&nbsp;0.01"),
    ("sigma = 0, w > -1, a = b", "sigma =&nbsp;0, w >&nbsp;-1, a = b"),
    ("x [B, 3 or 1, ...] of [a, b]", "x [B,&nbsp;3&nbsp;or&nbsp;1,&nbsp;...] of [a, b]"),
    ("seeds 0-63, 2026-02-16", f"seeds {word('0-63')}, 2026-02-16"),
    ('<p title="z^2">z^2</p>', '<p title="z^2">z<sup>2</sup></p>'),
    ("<code>2 % of z^2</code>", "<code>2 % of z^2</code>"),
    ("<h2>ERK-Guid</h2>", "<h2>ERK-Guid</h2>"),
    ("<h2>50 000 images</h2>", "<h2>50&nbsp;000 images</h2>"),
    ("noise levels [N + 1] of a + 1", "noise levels [N&nbsp;+&nbsp;1] of a + 1"),
])  # fmt: skip
def test_text_of_a_page_stays_together(text, expected):
    assert PARTS.sub(_text, text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("<td>0.65&nbsp;±&nbsp;0.01</td>", '<td>0.65 <span class="error">±&nbsp;0.01</span></td>'),
    ("<td>dpmpp 2</td>", f"<td>{word('dpmpp 2')}</td>"),
    ("<td>dpm-fast and heun</td>", f"<td>{word('dpm-fast')} and heun</td>"),
    ("<td><code>a --b -c</code></td>", "<td><code>a <wbr>--b <wbr>-c</code></td>"),
    (f'<td>{"word " * 13}, <code class="long">b</code></td>',
     f'<td class="sentence">{"word " * 13},<br><code class="long">b</code></td>'),
    ('<td>a, <code class="long">b</code></td>', '<td>a, <code class="long">b</code></td>'),
    (f"<td>{'word ' * 5}</td>", f'<td class="phrase">{"word " * 5}</td>'),
    (f"<td>{'word ' * 13}</td>", f'<td class="sentence">{"word " * 13}</td>'),
    (f'<td style="text-align: right;">{"1" * 30}</td>',
     f'<td style="text-align: right;">{"1" * 30}</td>'),
])  # fmt: skip
def test_cells(text, expected):
    assert CELL.sub(_cell, text) == expected


def test_names_of_documents_become_links_with_titles():
    link = '<a href="../glossary.html">Glossary</a>'
    assert _linked("(docs/glossary.md)", "../") == f"({link})"
    parts = "see docs/glossary.md and <code>docs/glossary.md</code>"
    linked = PARTS.sub(lambda part: _linked_text(part[0], "../"), parts)
    assert linked == f"see {link} and <code>docs/glossary.md</code>"


@pytest.mark.parametrize(("text", "expected"), [
    ("<code>erk generate</code>", "<code>erk generate</code>"),
    (f"<code>generate.py --out-dir=1 {'a' * 9}_b</code>",
     f'<code class="long">generate.py {word("--out-dir")}=1 {"a" * 9}_<wbr>b</code>'),
    (f"<code>python -m {'a' * 9}(b).{'c' * 9}</code>",
     f'<code class="long">python {word("-m")} {"a" * 9}(b).<wbr>{"c" * 9}</code>'),
    (f"<code>{'1' * 91}</code>", f'<code class="long endless">{"1" * 91}</code>'),
])  # fmt: skip
def test_long_code(text, expected):
    assert LONG.sub(_long, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(<math>z</math>).", word("(<math>z</math>).")),
        ("as <math>z</math> is", "as <math>z</math> is"),
    ],
)
def test_a_formula_keeps_its_brackets(text, expected):
    assert BESIDE.sub(_beside, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w_con of --w-con <1> *", "w\\_con of `--w-con` &lt;1&gt; \\*"),
        ("`a_b` is", "`a_b` is"),
        ("see erk evaluate --ref, erk", "see `erk evaluate` `--ref`, erk"),
    ],
)
def test_text_of_a_command_is_no_markdown(text, expected):
    assert _escaped(text) == expected


@pytest.mark.parametrize(("record", "expected"), [
    ("rules", " It is explained in [Guide your own model](../howto/guidance.md)."),
    ("quality", " It is explained in [What ERK-Guid does](../what-erk-guid-does.md)."),
    ("auto", " It is explained in [Beyond the paper: measurements](../beyond.md)."),
    ("none", ""),
])  # fmt: skip
def test_a_record_names_the_pages_that_link_to_it(record, expected):
    said = f"\nA record as its command wrote it.{expected}\n\n"
    path = f"results/{record}.md"
    assert _with_origin("# Title\n\ntext", path) == f"# Title\n{said}\ntext"
    assert _with_origin("| a |\n| --- |\n", path) == f"{said}| a |\n| --- |\n"
