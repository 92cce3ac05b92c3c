"""The log of a run: appended once, read whatever a kill has left, small in memory."""

import json
import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erk.generation.manifest import (
    ImageLog,
    ImageRecord,
    log_files,
    parse_line,
    read_records,
    record_of,
    write_manifest,
)
from erk.generation.run_folder import RunFolder
from erk.generation.seeds import MAX_SEED, parse_seeds

KEY = "0123456789abcdef"


def record(seed, **others):
    values = {"batch": 4, "nfe": 15.0, "guide_nfe": 0.0} | others
    return ImageRecord(seed, f"{seed:06d}.png", f"{seed:064x}", KEY, **values)


def seeds_in(folder):
    return read_records(folder, KEY)["seed"].tolist()


evaluations = st.none() | st.floats(0, 1e6, allow_nan=False)


@given(st.integers(0, MAX_SEED), st.none() | st.integers(1, 10**6), evaluations, evaluations)
def test_a_record_as_a_line_and_back(seed, batch, nfe, guide_nfe):
    one = record(seed, batch=batch, nfe=nfe, guide_nfe=guide_nfe)
    line = one.to_line()
    assert parse_line(line) == one and line.endswith(b"}\n") and line.count(b"\n") == 1
    assert json.loads(line)["seed"] == seed


@given(st.integers(0, 300), st.binary(max_size=5))
def test_a_cut_or_overwritten_line_is_ignored(length, junk):
    line = record(3).to_line()
    cut = line[:length] + junk
    assert parse_line(cut) is None or json.loads(cut) == json.loads(line)


@pytest.mark.parametrize(
    "line",
    [b"\n", b"{}\n", b"3\n", b"[]\n", b'{"seed": -1}\n', b"\x00" * 200 + b"\n", b"[" * 10**5,
     *(record(1, **wrong).to_line() for wrong in
       ({"file_size": -1}, {"file_size": 1.5}, {"batch": "4"}, {"batch": 0},
        {"batch": True}, {"batch": 2**70}, {"nfe": "5"},
        {"nfe": float("nan")}, {"guide_nfe": float("inf")}, {"nfe": -1})),
     *(record(1)._replace(**wrong).to_line() for wrong in
       ({"seed": -1}, {"seed": MAX_SEED + 1}, {"seed": 1.0}, {"seed": True}, {"sha256": "xyz"},
        {"sha256": 5}, {"file": None}, {"settings": []})),
     record(1).to_line().replace(b'"seed"', b'"more": 1, "seed"')],
)  # fmt: skip
def test_foreign_lines_are_ignored(line):
    assert parse_line(line) is None


def test_each_process_has_its_own_files(tmp_path):
    for _ in range(3):
        ImageLog(tmp_path, "0-of-1.0").append([record(0)])
    assert sorted(os.listdir(tmp_path)) == [f"0-of-1.0.{number}.jsonl" for number in range(3)]


def test_records_are_read_in_the_order_of_seeds(tmp_path):
    (tmp_path / ".parts").mkdir()
    log = ImageLog(tmp_path / ".parts", "0-of-1.0")
    log.append([record(5), record(2, batch=None, nfe=None)])
    log.append([record(9), record(0)])
    rows = read_records(tmp_path, KEY)
    records = [record_of(row, f"{row['seed']:06d}.png", KEY) for row in rows]
    assert records == [record(0), record(2, batch=None, nfe=None), record(5), record(9)]


def test_a_cut_end_is_ignored(tmp_path):
    (tmp_path / ".parts").mkdir()
    log = ImageLog(tmp_path / ".parts", "0-of-1.0")
    log.append([record(0), record(1)])
    log.append([record(2)])
    content = log.path.read_bytes()
    for length in range(len(content)):
        log.path.write_bytes(content[:length])
        assert seeds_in(tmp_path) == [*range(content[:length].count(b"\n"))]


def test_of_two_lines_the_later_counts_whatever_the_clock(tmp_path):
    """M14: the order follows from the numbers of the logs; the manifest is the oldest."""
    (tmp_path / ".parts").mkdir()
    logs = [ImageLog(tmp_path / ".parts", name) for name in ("1-of-2.0", "0-of-2.0", "1-of-2.0")]
    for number, log in enumerate(logs, 1):
        log.append([record(seed, batch=number) for seed in range(number, 4)])
    write_manifest(tmp_path, [record(seed, batch=9) for seed in range(4)])
    for clock in (1, -1):  # as after cp -r, or written by a machine whose clock is wrong
        for number, log in enumerate(logs, 1):
            os.utime(log.path, ns=(0, 10**18 + clock * number))
        assert log_files(tmp_path)[1:] == [log.path for log in logs]
        rows = read_records(tmp_path, KEY)
        assert rows["seed"].tolist() == [0, 1, 2, 3] and rows["batch"].tolist() == [9, 1, 2, 3]


def test_of_lines_that_disagree_the_one_of_the_file_counts(tmp_path):
    """M14: of images sampled again at another batch size, which rounds differently."""
    old, new = (record(5)._replace(sha256=letter * 64) for letter in "ab")
    write_manifest(tmp_path, [record(4), old, new, record(6)])
    asked = []
    for file, expected in (("a" * 64, b"a"), ("b" * 64, b"b"), ("", b"b")):
        rows = read_records(tmp_path, KEY, lambda seed, file=file: asked.append(seed) or file)
        assert rows["seed"].tolist() == [4, 5, 6] and rows["sha256"][1][:1] == expected
    assert asked == [5, 5, 5]  # files are not read where lines agree


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_pieces_of_a_log(newline, tmp_path, monkeypatch):
    """Lines across pieces, foreign and endless ones, lines of earlier versions without a size."""
    lines = [record(seed).to_line() for seed in range(50)]
    lines[7] = lines[7].replace(b', "file_size": null', b"")
    lines[20] = b"x" * 70_000 + lines[20]
    lines[30] = lines[30][:40] + newline
    lines[31:31] = [lines[3], b"\xff\x00" + newline]
    (tmp_path / "manifest.jsonl").write_bytes(b"".join(lines))
    expected = [seed for seed in range(50) if seed not in (20, 30)]
    for size in (64, 1000, 1 << 19):
        monkeypatch.setattr("erk.generation.manifest.PIECE", size)
        assert seeds_in(tmp_path) == expected


def test_a_folder_without_logs_has_no_records(tmp_path):
    assert seeds_in(tmp_path) == []


def test_records_of_other_settings_are_refused(tmp_path):
    (tmp_path / ".parts").mkdir()
    ImageLog(tmp_path / ".parts", "0-of-1.0").append([record(0)])
    with pytest.raises(ValueError, match="lists images of other settings"):
        read_records(tmp_path, "another")


def peak(n, folder):
    """Peak bytes while a run finds its n records among 2 n seeds, without the list of seeds."""
    (folder / ".parts").mkdir(parents=True)
    seeds, settings = f"0-{2 * n - 1}", {"format": "png", "subdirs": False}
    metadata = {"seeds": seeds, "complete": False, "settings": settings}
    (folder / "run.json").write_text(json.dumps(metadata))
    run = RunFolder(folder, settings, parse_seeds(seeds))
    run.look()
    line = record(0)._replace(settings=run.settings_key()).to_line()
    with open(folder / ".parts" / "0-of-1.0.0.jsonl", "wb") as log:
        for seed in range(n):
            log.write(line.replace(b'"seed": 0', b'"seed": %d' % seed))
    tracemalloc.start()
    try:
        run.look()
        assert len(run.pending) == 2 * n  # there is no file of an image
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_per_seed_is_small(tmp_path):
    """Less than a record's line of 200 bytes, though two seeds are asked for per record."""
    small, large = (peak(n, tmp_path / str(n)) for n in (2_000, 20_000))
    assert (large - small) / (2 * 18_000) < 150
