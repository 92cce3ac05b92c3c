"""Files appear complete or not at all, and signals wait for the end of a write."""

import errno
import os
import signal
import sys
import threading
import time
import weakref
from unittest.mock import Mock

import pytest

from erk.io.atomic import (
    Stopped,
    attach_path,
    draft_for,
    draft_target,
    fsync_folder,
    remove_drafts,
    replacing,
    stoppable,
    uninterrupted,
    write_file,
    write_new_file,
)


def test_a_file_is_replaced_and_no_draft_remains(tmp_path):
    write_file(tmp_path / "a.txt", b"one")
    write_file(tmp_path / "a.txt", b"two")
    assert (tmp_path / "a.txt").read_bytes() == b"two" and os.listdir(tmp_path) == ["a.txt"]


def test_the_old_file_stays_if_the_process_ends_before_the_rename(tmp_path, monkeypatch):
    write_file(tmp_path / "a.txt", b"old")
    monkeypatch.setattr(os, "replace", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"old" and os.listdir(tmp_path) == ["a.txt"]


def test_an_exception_inside_the_block_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_bytes_are_synced_before_the_rename(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, o=original, n=name: order.append(n) or o(*a))
    write_file(tmp_path / "a", b"content")
    assert order == ["fsync", "replace"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_fsync(code, tmp_path, monkeypatch):
    """Low list of hostile.md: some network file systems refuse it; the file is written."""
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(code, "Invalid argument")))
    write_file(tmp_path / "a", b"data")
    assert (tmp_path / "a").read_bytes() == b"data"


@pytest.mark.parametrize("write", [write_file, write_new_file])
def test_a_full_disk_is_reported_with_a_path(tmp_path, monkeypatch, write):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match="No space left") as caught:
        write(tmp_path / "a", b"content")
    assert caught.value.filename.startswith(str(tmp_path)) and os.listdir(tmp_path) == []


def test_a_path_is_attached_only_where_the_system_gave_none(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, attach_path(tmp_path / "other"):
        (tmp_path / "missing").read_bytes()
    assert caught.value.filename == str(tmp_path / "missing")
    with pytest.raises(OSError, match="^a sentence$"), attach_path(tmp_path):
        raise OSError("a sentence")


def test_of_two_writers_of_a_new_file_one_wins(tmp_path):
    assert write_new_file(tmp_path / "a", b"first")
    assert not write_new_file(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first" and os.listdir(tmp_path) == ["a"]


def test_without_hard_links_the_last_writer_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError(errno.EPERM, "no links here")))
    assert write_new_file(tmp_path / "a", b"first") and write_new_file(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"second" and os.listdir(tmp_path) == ["a"]


def test_drafts_of_killed_processes_are_recognized(tmp_path):
    draft = draft_for(tmp_path / "a[1].zip")
    assert draft_target(draft) == "a[1].zip" and draft_target(tmp_path / "a[1].zip") is None
    for path in (draft, draft_for(tmp_path / "b.zip"), tmp_path / ".a[1].zip.notes.tmp"):
        path.touch()
    remove_drafts(tmp_path / "a[1].zip")
    assert not draft.exists() and len(os.listdir(tmp_path)) == 2


def test_syncing_a_folder_is_a_no_op_where_unsupported(tmp_path):
    fsync_folder(tmp_path)
    fsync_folder(tmp_path / "missing")


def test_signals_wait_for_the_end_of_nested_blocks():
    before = signal.getsignal(signal.SIGTERM)
    done = []
    with pytest.raises(Stopped) as caught, stoppable(), uninterrupted():
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"] and caught.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


class Thing:
    """What a weak reference can be made of."""


def test_a_signal_that_python_ignores_comes_again():
    """What a callback of a weak reference raises is ignored; a run must end all the same."""
    hook = sys.unraisablehook
    with pytest.raises(Stopped) as caught, stoppable():
        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
        del thing
        assert reference() is None
        for _ in range(1000):
            time.sleep(0.01)
    assert caught.value.signum == signal.SIGTERM and sys.unraisablehook is hook


def test_outside_such_a_block_a_signal_stops_at_once():
    with pytest.raises(Stopped) as caught, stoppable():
        signal.raise_signal(signal.SIGINT)
    assert caught.value.signum == signal.SIGINT


def test_other_threads_receive_no_signals():
    done = []

    def work():
        with stoppable(), uninterrupted():
            done.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [before]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_block_alone_defers_signals_too_and_leaves_them_to_the_program(number):
    """Finding 15: without `stoppable` nothing was deferred."""
    received = []
    before = signal.signal(number, lambda signum, _: received.append(signum))
    try:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(number)
            assert received == []
        assert received == [number]  # the program's handler, after the block
        signal.raise_signal(number)
        assert received == [number] * 2
    finally:
        signal.signal(number, before)


@pytest.fixture
def interruptible():
    """Python's own handler, which a shell's background job starts without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_python_raises_its_interrupt_after_the_block(tmp_path, interruptible):
    with pytest.raises(KeyboardInterrupt) as caught, uninterrupted():
        signal.raise_signal(signal.SIGINT)
        write_file(tmp_path / "a", b"complete")
    assert type(caught.value) is KeyboardInterrupt
    assert (tmp_path / "a").read_bytes() == b"complete"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
