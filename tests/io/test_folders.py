"""One listing of folders for all commands: links are followed once, and counted."""

import os
import subprocess
from pathlib import Path

from erk.io.folders import list_files


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_linked_folders_are_listed_and_counted(tmp_path):
    """F5"""
    write(tmp_path, "set/a/1.png", "elsewhere/2.png", "elsewhere/deep/3.png")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    listing = list_files(tmp_path / "set")
    assert listing.files == ["a/1.png", "b/2.png", "b/deep/3.png"]
    assert listing.notes(listing.files) == ["2 images of 3 in 1 linked folder"]


def test_links_are_followed_once(tmp_path):
    """F5: no loops, no image twice."""
    write(tmp_path, "a/1.png", ".hidden/2.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "a")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    listing = list_files(tmp_path)
    assert [name for name in listing.files if name.endswith(".png")] == ["a/1.png"]
    assert listing.repeated == ["a/loop", "again"] and not listing.followed
    assert listing.notes(listing.files) == [
        "2 links to folders that are listed already left out: a/loop, again"
    ]


def test_a_thousand_nested_folders(tmp_path, monkeypatch):
    """Deeper than Python's recursion; shutil.rmtree cannot remove it either."""
    monkeypatch.chdir(tmp_path)
    try:
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Path("x.png").write_bytes(b"")
        assert list_files(tmp_path).files == ["d/" * 1200 + "x.png"]
    finally:
        os.chdir(tmp_path)
        subprocess.run(["rm", "-rf", "d"], check=True)
