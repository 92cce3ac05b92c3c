"""The house: who may import whom, no cycles, no file too long. Read from the files, not run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

POINT = {"erk.point"}
LEAVES = {
    "erk.fetch", "erk.world", "erk.pickles", "erk.files", "erk.memory", "erk.data",
    "erk.untrusted", "erk.tf32",
}
METHOD = POINT | {
    "erk.schedule", "erk.solvers", "erk.stiffness", "erk.guides", "erk.drift", "erk.rivals",
    "erk.corrections", "erk.cards"
}  # fmt: skip

# A module, or a folder with all that is in it, -> what of ours it may import (modules, folders).
# Third-party packages are free. A module without a line here is an error: give it a room.
ARROWS = {
    "erk.fetch": set(),
    "erk.world": {"erk.__init__"},  # the version
    "erk.pickles": {"erk.pickled_arrays"},
    "erk.pickled_arrays": set(),
    "erk.files": set(),
    "erk.memory": set(),
    "erk.data": set(),
    "erk.untrusted": set(),
    "erk.tf32": set(),
    "erk.point": set(),
    "erk.vp": set(),
    "erk.weights": set(),
    "erk.schedule": POINT | {"erk.vp"},
    "erk.solvers": POINT | {"erk.vp", "erk.weights"},
    "erk.drift": POINT | {"erk.stiffness"},  # ERK-Proj
    "erk.stiffness": POINT,
    "erk.guides": POINT | {"erk.stiffness"},
    "erk.rivals": POINT | {"erk.stiffness", "erk.solvers", "erk.drift"},
    "erk.corrections": POINT | {"erk.drift", "erk.guides"},
    "erk.cards": {"erk.corrections", "erk.schedule", "erk.solvers"},
    "erk.sampler": METHOD,
    "erk.adapters": POINT,
    "erk.models": {
        "erk.models", "erk.pickles", "erk.fetch", "erk.memory", "erk.data", "erk.untrusted",
        "erk.tf32", "erk.point",
    },
    "erk.jobs": {"erk.jobs", "erk.models", "erk.sampler", "erk.cards"} | LEAVES,
    "erk.study": {"erk.study", "erk.sampler", "erk.data"} | METHOD,
    "erk.study.tune_command": {"erk.study", "erk.jobs"},
    "erk.study.calibrate_command": {"erk.study", "erk.jobs"},
    "erk.study.calibrate_job": {
        "erk.study", "erk.jobs", "erk.sampler", "erk.cards", "erk.corrections", "erk.models",
        "erk.point",
    } | LEAVES,
    "erk.study.tune_job": {"erk.study", "erk.jobs", "erk.sampler"} | LEAVES,
    "erk.integrations": {"erk.integrations", "erk.models", "erk.adapters", "erk.sampler"} | METHOD,
    "erk.__init__": {"erk"},  # the public names; it imports them on first use only
    "metrics": {"metrics"} | LEAVES,
    "generate": {"erk.__init__", "erk.jobs", "erk.models", "erk.study", "metrics"} | LEAVES,
    "evaluate": {"erk.__init__", "erk.jobs", "erk.models", "erk.study", "metrics"} | LEAVES,
    "scripts": {"erk", "metrics", "scripts"},
    "scripts.bench.sampling": {"erk", "scripts", "generate"},  # it times the command itself
    "scripts.bench.evaluation": {"erk", "metrics", "scripts", "evaluate"},
}
OURS = {"erk", "metrics", "scripts", "generate", "evaluate", "tests", "shared"}
NETWORKS = "erk/models/edm*.py"  # may be longer than other files


def within(module, places):
    """Whether a module is one of the places or lies in one of them."""
    return any(module == place or module.startswith(place + ".") for place in places)


def module_of(path):
    """a/b.py -> a.b; a/__init__.py -> a.__init__."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def product():
    """{module: its file} of all that is shipped."""
    folders = (ROOT / name for name in ("erk", "metrics", "scripts"))
    inside = (path for folder in folders for path in folder.rglob("*.py"))
    return {module_of(path): path for path in [*inside, *ROOT.glob("*.py")]}


def imports(module, source, known=()):
    """Our modules that a source imports, at the top or late. `known`: modules, to tell a module
    from a name in `from package import x`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join(above + ([node.module] if node.module else []))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if {inner, f"{inner}.__init__"} & set(known) else base)
    return {name for name in found if within(name, OURS)}


def forbidden(module, imported):
    """The imports that go against the arrows. Raises LookupError for a module without a room."""
    rooms = [room for room in ARROWS if within(module, [room])]
    if not rooms:
        raise LookupError(f"{module} has no line in ARROWS of tests/test_house.py: give it one")
    allowed = ARROWS[max(rooms, key=len)]
    return sorted(name for name in imported if not within(name, allowed))


def cycle(graph):
    """One cycle of a {module: imported modules}, [] if there is none."""
    done = set()

    def visit(module, way):
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        found = next(filter(None, (visit(n, [*way, module]) for n in graph.get(module, ()))), [])
        done.add(module)
        return found

    return next(filter(None, (visit(module, []) for module in graph)), [])


def house():
    """{module: our modules that it imports}, packages by the name of their __init__."""
    files = product()
    graph = {}
    for module, path in files.items():
        found = imports(module, path.read_text("utf-8"), files)
        graph[module] = {f"{n}.__init__" if f"{n}.__init__" in files else n for n in found}
    return graph


@pytest.mark.parametrize("module", sorted(product()))
def test_arrows(module):
    assert forbidden(module, house()[module]) == []


def test_no_cycles():
    graph = house()
    graph.pop("erk.__init__", None)  # lazy: its names are imported when they are first used
    assert cycle(graph) == []


def test_nothing_shipped_reaches_outside_the_repository():
    reaching = [name for name, path in product().items() if "../shared" in path.read_text("utf-8")]
    assert reaching == []


def test_no_file_is_too_long():
    files = [path for name in ("erk", "metrics") for path in (ROOT / name).rglob("*.py")]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in files}
    networks = {str(path.relative_to(ROOT)) for path in ROOT.glob(NETWORKS)}
    assert {name: n for name, n in lengths.items() if n > 400 and name not in networks} == {}


KNOWN = ["erk.guides", "erk.jobs.run", "erk.models.edm2", "erk.pickles", "metrics.table"]


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("erk.solvers", "from .guides import erk_guid", ["erk.guides"]),
        ("erk.solvers", "from . import guides", ["erk.guides"]),
        ("erk.solvers", "from erk import guides, load_model", ["erk", "erk.guides"]),
        ("erk.solvers", "def f():\n    import erk.models.edm2", ["erk.models.edm2"]),
        ("erk.guides", "from .jobs.run import run", ["erk.jobs.run"]),
        ("erk.models.files", "from ..sampler import sample", ["erk.sampler"]),
        ("erk.jobs.run", "from metrics.table import write", ["metrics.table"]),
        ("erk.fetch", "from .point import norm", ["erk.point"]),
        ("metrics.table", "import erk.sampler as s", ["erk.sampler"]),
        ("scripts.a", "from tests.test_house import house", ["tests.test_house"]),
        ("erk.models.files", "from .. import pickles\nfrom . import edm2\nimport torch", []),
        ("metrics.extractors.digits", "from erk.fetch import fetch\nfrom . import x", []),
        ("erk.point", "import ershared, erkle", []),
    ],
)
def test_forbidden_imports_are_caught(module, source, expected):
    assert forbidden(module, imports(module, source, KNOWN)) == expected


def test_cycles_and_new_rooms_are_caught():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []
    with pytest.raises(LookupError, match="erk.attic"):
        forbidden("erk.attic", set())
