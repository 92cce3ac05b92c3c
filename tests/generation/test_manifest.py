"""Lines of manifests: written once, read whatever a kill has left, sorted and flat in memory."""

import json
import os
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erk.generation.manifest import (
    Entry,
    Marks,
    Writer,
    entries,
    in_order,
    manifests,
    parse,
    pictures_of,
    scan,
    to_line,
)
from erk.generation.run_folder import RunFolder
from erk.generation.seeds import parse_seeds

KEY = "0123456789abcdef"


def entry(seed, **others):
    told = {"batch": 4, "nfe": 15.0, "guide_nfe": 0.0} | others
    return Entry(seed, f"{seed:06d}.png", f"{seed % 2**256:064x}", KEY, **told)


seeds_st = st.integers(0, 2**70)
evaluations = st.none() | st.floats(0, 1e6, allow_nan=False)


@given(seeds_st, st.none() | st.integers(1, 10**6), evaluations, evaluations, st.booleans())
def test_an_entry_as_a_line_and_back(seed, batch, nfe, guide_nfe, packed):
    one = entry(seed, batch=batch, nfe=nfe, guide_nfe=guide_nfe)
    one = one._replace(at=7, bytes=9) if packed else one
    line = to_line(one)
    assert parse(line) == one and line.endswith(b"}\n") and line.count(b"\n") == 1
    assert json.loads(line)["seed"] == seed


@given(st.integers(0, 300), st.binary(max_size=5))
def test_a_line_that_was_cut_or_overwritten_tells_nothing(length, junk):
    line = to_line(entry(3))
    cut = line[:length] + junk
    assert parse(cut) is None or cut == line


@pytest.mark.parametrize(
    "line",
    [b"\n", b"{}\n", b'{"seed": -1}\n', b"\x00" * 200 + b"\n",
     to_line(entry(1)).replace(b'"batch": 4', b'"batch": "4"'),
     to_line(entry(1)).replace(b"000001.png", b'0"1.png'),
     to_line(entry(1)).rstrip() + b" \n"],
)  # fmt: skip
def test_foreign_lines_tell_nothing(line):
    assert parse(line) is None


def written(folder, *groups, packed=False):
    """A manifest with these groups of seeds, each appended by itself."""
    writer = Writer(folder, "0-of-1.0", packed)
    for group in groups:
        data = [bytes([seed % 256]) * (seed % 7 + 1) for seed in group]
        writer.add([entry(seed) for seed in group], data)
    return writer.path


def test_each_writer_has_its_own_files(tmp_path):
    places = [written(tmp_path, [0], packed=True) for _ in range(3)]
    assert len({*places}) == 3
    assert sorted(path.name for path in tmp_path.iterdir())[:2] == [
        "0-of-1.0.0.jsonl", "0-of-1.0.0.pictures"
    ]  # fmt: skip


def test_pictures_are_found_by_their_lines(tmp_path):
    (tmp_path / ".parts").mkdir()
    path = written(tmp_path / ".parts", [5, 2], [9, 0], packed=True)
    lines = in_order([path], True, Marks.of([0, 2, 5, 9]))
    found = {}
    for one, place in entries(lines):
        data = pictures_of(place).read_bytes()[one.at : one.at + one.bytes]
        found[one.seed] = data
    assert [*found] == [0, 2, 5, 9]
    assert found == {seed: bytes([seed]) * (seed % 7 + 1) for seed in found}


def test_a_torn_end_is_not_read(tmp_path):
    path = written(tmp_path, [0, 1], [2])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert [seed for _, seed, _, _ in scan(path)] == [*range(whole[:length].count(b"\n"))]


def test_a_picture_that_its_file_does_not_hold_is_not_made(tmp_path):
    """The file of pictures lost its end, or is gone; what is before is good."""
    path = written(tmp_path, [0, 1, 2], packed=True)
    pictures = pictures_of(path)
    size = pictures.stat().st_size
    for length, expected in ((size, [0, 1, 2]), (size - 1, [0, 1]), (1, [0]), (0, [])):
        pictures.write_bytes(b"x" * length)
        assert [seed for _, seed, _, _ in scan(path)] == expected
    pictures.unlink()
    assert [*scan(path)] == []


def test_of_two_lines_the_later_counts(tmp_path):
    (tmp_path / ".parts").mkdir()
    parts = tmp_path / ".parts"
    first, second = (Writer(parts, f"0-of-1.{i}", False) for i in range(2))
    first.add([entry(1), entry(2), entry(3)])
    second.add([entry(2, batch=8), entry(3)])
    first.add([entry(1, batch=16), entry(3, batch=16)])
    os.utime(second.path, ns=(0, first.path.stat().st_mtime_ns - 1))
    lines = in_order(manifests(tmp_path), False, Marks.of([1, 2, 3]))
    assert lines.seeds == [1, 2, 3]
    assert [one.batch for one, _ in entries(lines)][::2] == [16, 16]


@given(st.sets(st.integers(0, 60), min_size=1), st.lists(st.integers(-5, 70)), st.booleans())
def test_marks_are_a_set_of_some_of_the_seeds(universe, marked, far):
    universe = [seed + 2**64 * far for seed in universe]
    marked = [seed + 2**64 * far for seed in marked]
    marks = Marks.of(marked, among=random.sample(universe, len(universe)))
    expected = {*universe} & {*marked}
    assert [*marks] == sorted(expected) and len(marks) == len(expected)
    assert all((seed in marks) == (seed in expected) for seed in [*universe, *marked])
    half = Marks.of([seed for seed in universe if seed % 2], among=universe)
    assert [*(marks & half)] == sorted(seed for seed in expected if seed % 2)


def peak(n, folder):
    """Bytes at the most while a run finds n of 2 n seeds made, beside the list of seeds itself."""
    (folder / ".parts").mkdir(parents=True)
    line = to_line(entry(0)._replace(at=0, bytes=1)).replace(b'"seed": 0', b'"seed": %d')
    path = folder / ".parts" / "0-of-1.0.0.jsonl"
    path.write_bytes(b"".join(line % seed for seed in range(n)))
    pictures_of(path).write_bytes(b"x")
    run = RunFolder(folder, "zip", False, {"format": "zip"})
    key = b'"settings": "' + KEY.encode()
    seeds = parse_seeds(f"0-{2 * n - 1}")
    facts = {"seeds": f"0-{2 * n - 1}", "network": None, "guide": None}
    run.check_networks(facts)
    path.write_bytes(path.read_bytes().replace(key, f'"settings": "{run._key}'.encode()))
    record = facts | {"complete": False, "settings": {"format": "zip"}}
    (folder / "run.json").write_text(json.dumps(record))
    tracemalloc.start()
    try:
        assert len(run.check(seeds)) == n
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_per_seed_is_small(tmp_path):
    """Of a line of 220 bytes no more stays than a mark and the numbers of the seeds."""
    small, large = (peak(n, tmp_path / str(n)) for n in (2_000, 20_000))
    assert (large - small) / (2 * 18_000) < 60
