"""Regular files only, and budgets (M23, H4, H8)."""

import os
import socket
import zipfile

import pytest

from erk.io.budget import MAX_STEPS, MIN_BYTES, Budget, BudgetError
from erk.io.files import IrregularFileError, check_regular, open_regular, read_regular
from erk.io.untrusted import (
    archive_budget,
    open_archive,
    parse_json,
    read_image_file,
    read_member,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")


@pytest.fixture(params=["fifo", "socket", "link to a device"])
def irregular(request, tmp_path):
    path = tmp_path / "net.pkl"
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("read", [open_regular, read_regular, check_regular, read_image_file,
                                  open_archive])  # fmt: skip
def test_irregular_files_are_refused_at_once(read, irregular):  # M23
    with pytest.raises(IrregularFileError, match="net.pkl is a FIFO, a device or a socket: give"):
        read(irregular)


def test_regular_files_and_links_to_them(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "link", limit=5) == b"12345"
    with pytest.raises(ValueError, match="link has more than 4 bytes"):
        read_regular(tmp_path / "link", limit=4)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "b")


def test_a_budget_is_spent_before_it_is_exceeded():
    budget = Budget(1000, ratio=2, min_bytes=10)
    budget.allocate(2010)
    with pytest.raises(BudgetError, match="unpacks to too many"):
        budget.allocate(1)
    for _ in range(MAX_STEPS):
        budget.step()
    with pytest.raises(BudgetError, match="250000 opcodes"):
        budget.step()


def test_members_of_a_zip_share_one_budget(tmp_path):  # H8
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "abc":
            archive.writestr(name, bytes(MIN_BYTES // 64))
    with open_archive(tmp_path / "a.zip") as archive:
        budget = archive_budget(archive)
        budget.bytes = MIN_BYTES // 32
        assert len(read_member(archive, "a", 2000, budget)) == MIN_BYTES // 64
        read_member(archive, "b", 2000, budget)
        with pytest.raises(BudgetError):
            read_member(archive, "c", 2000, budget)


def test_json_is_counted_before_it_is_parsed():  # H9
    with pytest.raises(BudgetError, match="too many values for its size"):
        parse_json(b"[" + b"[]," * 1_500_000 + b"1]")


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\uDFFF": 1}', '{"seed": 007}', "[1e999]"])
def test_json_that_cannot_be_written_again(text):  # low: "seed": 007, \\ud800
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_with_a_pair_of_surrogates_and_with_a_byte_order_mark():  # F10
    assert parse_json('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]
