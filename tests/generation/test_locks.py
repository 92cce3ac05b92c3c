"""Locks of a run's folder (M16): who may work in it at the same time."""

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import filelock
import pytest

from erk.generation.locks import FolderLocks


def claimed(folder, shard=None):
    locks = FolderLocks(folder, shard)
    with locks.brief():
        locks.claim()
    return locks


@pytest.mark.parametrize(
    ("held", "wanted", "message"),
    [
        (None, None, "in use, another process is sampling into it: wait until it has ended"),
        ((0, 2), (0, 2), "in use, shard 0 of 2 is sampling"),
        ((0, 2), None, "in use, shard 0 of 2 is sampling"),
        ((0, 2), (0, 3), "in use, shard 0 of 2 is sampling"),
        (None, (1, 2), "in use, another process is sampling"),
    ],
)
def test_a_process_that_would_write_the_same_images_is_refused(held, wanted, message, tmp_path):
    locks = claimed(tmp_path, held)
    with pytest.raises(ValueError, match=message):
        claimed(tmp_path, wanted)
    locks.release()
    claimed(tmp_path, wanted).remove()
    assert os.listdir(tmp_path) == []


def test_shards_of_one_number_work_together(tmp_path):
    first, second = claimed(tmp_path, (0, 2)), claimed(tmp_path, (1, 2))
    with first.brief():
        assert not first.is_alone()
    first.release()
    with second.brief():
        assert second.is_alone()
        second.remove()
    assert os.listdir(tmp_path) == []


def test_a_dead_process_holds_nothing(tmp_path):
    """Its files are left behind; the system has released the locks."""
    for name in (".lock", ".0-of-1.lock", ".0-of-3.lock"):
        (tmp_path / name).touch()
    locks = claimed(tmp_path, (0, 2))
    assert sorted(os.listdir(tmp_path)) == [".0-of-2.lock", ".lock"]
    locks.remove()


def test_a_deleted_folder_is_not_created_again(tmp_path):
    with pytest.raises(FileNotFoundError), FolderLocks(tmp_path / "out", None).brief():
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [".lock", ".0-of-1.lock"])
def test_a_link_in_the_place_of_a_lock_is_refused(name, tmp_path):
    """M13: nothing is created where it points."""
    (out := tmp_path / "out").mkdir()
    (out / name).symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="is a link"):
        claimed(out)
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Nothing protects two processes from each other there, as the documents say."""
    failing = Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))
    monkeypatch.setattr(filelock.FileLock, "acquire", failing)
    first, second = claimed(tmp_path), claimed(tmp_path)
    assert first.is_held and second.is_held
    first.remove()


def test_another_error_of_the_system_is_raised(tmp_path, monkeypatch):
    failing = Mock(side_effect=OSError(errno.EACCES, "Permission denied"))
    monkeypatch.setattr(filelock.FileLock, "acquire", failing)
    with pytest.raises(OSError, match="Permission denied"):
        claimed(tmp_path)


def test_a_marker_left_on_a_file_system_without_locks(tmp_path, monkeypatch):
    """J8: there filelock's file is the lock. It outlives kill -9; on the machine of its process it
    is removed, of another machine's only a person knows."""
    monkeypatch.setattr(filelock, "FileLock", filelock.SoftFileLock)
    path = tmp_path / ".0-of-1.lock"
    locks = claimed(tmp_path)
    pid, host, *_ = path.read_text().splitlines()
    with pytest.raises(ValueError, match=f"if process {pid} of {host} has died with its mach"):
        claimed(tmp_path)
    locks.remove()
    gone = next(pid for pid in range(2**22 - 1, 1, -1) if not Path(f"/proc/{pid}").exists())
    path.write_text(f"{gone}\n{host}\n")
    claimed(tmp_path).remove()
    path.write_text(f"{gone}\nnode-7\n")
    with pytest.raises(ValueError, match=f"process {gone} of node-7 has died .*, delete {path}"):
        claimed(tmp_path)
    path.unlink()
    claimed(tmp_path).remove()
    assert os.listdir(tmp_path) == []


def test_a_lock_of_the_system_needs_no_advice(tmp_path):
    locks = claimed(tmp_path)
    with pytest.raises(ValueError, match="or choose another --outdir.$"):
        claimed(tmp_path)
    locks.remove()


def test_a_block_that_a_signal_ended_is_not_waited_for(tmp_path):
    """J: the exception keeps the block from giving the lock back, and is handled under the lock."""
    locks = FolderLocks(tmp_path, None)
    block = locks.brief()
    block.__enter__()
    with locks.brief():
        locks.claim()
    with FolderLocks(tmp_path, (0, 1)).brief():  # it was given back
        assert locks.is_held
    block.__exit__(None, None, None)
