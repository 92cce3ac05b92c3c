"""Read the code blocks of the documents; run their Python and their commands in this process."""

import math
import re
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from click.testing import CliRunner

from erk.commands.main import main as erk

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.S)
LAUNCHER = re.compile(
    r"^(?:[A-Z_]+=\S+ )*(?:.*--wrap \"|srun [-=\w ]+? )?"
    r"(?:python |torchrun --nproc-per-node \S+ )?(?:-m )?(erk|generate\.py|evaluate\.py) ?(.*)$"
)


def blocks(page):
    """Return (language, text) of every code block of a page."""
    return BLOCK.findall((ROOT / page).read_text("utf-8"))


def python_blocks(page):
    return [text for language, text in blocks(page) if language == "python"]


def commands(page):
    """Return the arguments of `erk` for every command of this project in the page's bash blocks."""
    text = "".join(text for language, text in blocks(page) if language == "bash")
    computed = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split("#")[0].split("&&"):
            match = LAUNCHER.match(part.strip())
            if match:
                script, arguments = match.groups()
                words = shlex.split(arguments.replace('"', ""))
                computed.append(words if script == "erk" else [script.removesuffix(".py"), *words])
    return computed


def run_commands(page):
    """Run the page's commands in the current folder; return the output of each."""
    outputs = []
    for words in commands(page):
        result = CliRunner().invoke(erk, words)
        assert result.exit_code == 0, (words, result.output)
        outputs.append(result.output)
    return outputs


def execute(text, page, space):
    """Execute one block in a namespace and return what it prints."""
    out = StringIO()
    with redirect_stdout(out):
        exec(compile(text, str(page), "exec"), space)
    return out.getvalue()


def run_page(page, space=None):
    """Run the page's Python blocks; compare their output with the text block that follows each."""
    space, printed = {} if space is None else space, ""
    for language, text in blocks(page):
        if language == "python":
            assert not printed, f"{page} does not show the output of its code: {printed}"
            printed = execute(text, page, space)
        elif language == "text":
            assert same(printed, text), f"{page} shows\n{text}but its code prints\n{printed}"
            printed = ""
    assert not printed, f"{page} does not show the output of its code: {printed}"
    return space


def same(printed, shown):
    """Return whether two texts have the same words and, within rounding, the same numbers."""
    pairs = list(zip(printed.split(), shown.split(), strict=False))
    return len(printed.split()) == len(shown.split()) and all(
        a == b or (_is_number(a) and _is_number(b) and _close(a, b)) for a, b in pairs
    )


def _is_number(word):
    return re.fullmatch(r"-?\d+(\.\d+)?,?", word) is not None


def _close(a, b):
    a, b = (float(word.rstrip(",")) for word in (a, b))
    return math.isclose(a, b, rel_tol=0.02, abs_tol=0.02)
