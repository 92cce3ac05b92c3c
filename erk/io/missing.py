"""What a run has to download, said before the first download."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from erk.io.addresses import cache_name, shown
from erk.io.download import cache_dir, is_offline


def missing_files(sources: Iterable[str | None]) -> dict[Path, str]:
    """Return path in the cache -> address of the files that are not there.

    Paths, addresses on the hub and None are ignored.
    """
    root = cache_dir()
    web = [one for one in sources if one is not None and one.startswith(("http://", "https://"))]
    urls = {root / cache_name(one): one for one in web}
    return {path: url for path, url in urls.items() if not path.is_file()}


def name_missing(sources: Iterable[str | None], offline: bool = False) -> None:
    """Print the addresses of a run that are not in the cache, and where their files belong.

    Nothing is printed of a single one, which `fetch` names if it cannot be downloaded, nor of
    paths and addresses on the hub.

    Parameters
    ----------
    sources
        Addresses or paths; None is ignored.
    offline
        Whether downloads are disabled, as for `fetch`.

    Raises
    ------
    FileNotFoundError
        With all files, if two or more are missing and downloads are disabled.
    """
    missing = {path: shown(url) for path, url in missing_files(sources).items()}
    if len(missing) < 2:
        return
    if is_offline(offline):
        listed = ", ".join(f"{url} ({path})" for path, url in missing.items())
        raise FileNotFoundError(
            f"{len(missing)} files are not in the cache, {listed}: download them once without "
            "--offline and ERK_OFFLINE, or copy them to the paths in brackets"
        )
    if os.environ.get("RANK", "0") == "0":
        lines = "".join(f"\n  {url}\n    to {path}" for path, url in missing.items())
        print(f"downloading {len(missing)} missing files:{lines}", file=sys.stderr)
