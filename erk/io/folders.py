"""The files of a folder and its sub-folders, in one listing for all commands."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Listing(NamedTuple):
    """Files below a folder, and the links to folders there."""

    files: list[str]  # relative paths with "/", sorted; links to files included
    followed: list[str]  # links to folders whose files are listed, under the path of the link
    repeated: list[str]  # links to folders that are listed already; their files are not repeated

    def notes(self, images: Sequence[str]) -> list[str]:
        """Describe what the links add to the images among the files, in sentences."""
        notes = []
        if self.followed:
            prefixes = tuple(f"{link}/" for link in self.followed)
            count = sum(name.startswith(prefixes) for name in images)
            folders = _counted(len(self.followed), "linked folder")
            notes.append(f"{_counted(count, 'image')} of {len(images)} in {folders}")
        if self.repeated:
            some = ", ".join(self.repeated[:3]) + (", ..." if len(self.repeated) > 3 else "")
            links = _counted(len(self.repeated), "link")
            notes.append(f"{links} to folders that are listed already left out: {some}")
        return notes


def list_files(root: Path) -> Listing:
    """List all files below a folder; hidden files and folders are left out.

    Links to folders are followed, and every folder is listed once: under its real path if that is
    below the root, else under its first link in sorted order. So there are no loops and no image is
    counted twice.

    Raises
    ------
    OSError
        A folder that cannot be read: no part of a set of images is left out silently.
    """
    seen: set[tuple[int, int]] = set()
    files: list[str] = []
    followed: list[str] = []
    repeated: list[str] = []
    links = [""]
    while links:
        name = links.pop(0)
        status = os.stat(root / name)
        if (status.st_dev, status.st_ino) in seen:
            repeated.append(name)
            continue
        followed += [name] if name else []
        more: list[str] = []
        for is_folder, path in _walk(root, name, seen):
            (more if is_folder else files).append(path)
        links = sorted(links + more)
    return Listing(sorted(files), followed, repeated)


def _walk(root: Path, start: str, seen: set[tuple[int, int]]) -> Iterator[tuple[bool, str]]:
    """Yield (is a link to a folder, relative path) of all but real folders, which are entered."""
    folders = [start]
    while folders:
        folder = folders.pop()
        status = os.stat(root / folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                else:
                    yield _leads_to_folder(entry), path


def _leads_to_folder(link: os.DirEntry[str]) -> bool:
    """Return whether a link leads to a folder; a broken link leads nowhere."""
    try:
        return link.is_dir()
    except OSError:  # a link to itself
        return False


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
