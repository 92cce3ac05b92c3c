"""A progress bar in images that also moves within a batch, whose networks may take minutes."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

FORMAT = "{l_bar}{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


def duration(seconds: float) -> str:
    """Return a time with at most two units: "2 min", "3 h 20 min", "1 d 5 h"."""
    minutes = max(1, round(seconds / 60))
    hours, days = minutes // 60, minutes // 1440
    if days:
        return f"{days} d {hours % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


class ImageBar:
    """A progress bar: `finish` counts images, `within_batch` moves on towards the next count."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self.finished = 0
        self._ends = [time.monotonic()]  # of the first batches, after the start

    def finish(self, images: int) -> None:
        """Count images that are done; the second batch forecasts a run of more than a minute."""
        self.finished += images
        self.reach(0.0)
        if len(self._ends) < 3:
            self._ends.append(time.monotonic())
            if len(self._ends) == 3:
                self._forecast(images)

    def _forecast(self, images: int) -> None:
        """Print the time of all images at the speed of the last batch; the first one warms up."""
        start, before, now = self._ends
        left = (self._bar.total - self.finished) * (now - before) / images
        if not self._bar.disable and left > 60:
            seconds = now - start + left
            text = f"{self._bar.total} images take about {duration(seconds)}, by the second batch"
            self._bar.write(text, file=sys.stderr)

    def reach(self, images: float) -> None:
        """Move to a number of images, e.g. 3.5, beyond the finished ones; never back."""
        self._bar.update(max(0.0, self.finished + images - self._bar.n))


_shown: list[ImageBar] = []  # the last one is that of the running work


@contextmanager
def image_bar(total: int, description: str, is_shown: bool = True) -> Iterator[ImageBar]:
    """Show a progress bar on stderr while the block runs.

    Parameters
    ----------
    total : int
        Number of images.
    description : str
        The text before the bar.
    is_shown : bool
        False in all processes but the first.
    """
    interval = 0.5 if sys.stderr.isatty() else 30  # seconds between lines; a log needs few
    with tqdm(
        total=total, desc=description, unit="img", mininterval=interval, miniters=0,
        disable=not is_shown, bar_format=FORMAT,
    ) as bar:  # fmt: skip
        _shown.append(ImageBar(bar))
        try:
            yield _shown[-1]
        finally:
            _shown.pop()


def within_batch(images: float) -> None:
    """Report work on a batch that is not done: so many images' worth. Without a bar, nothing."""
    if _shown:
        _shown[-1].reach(images)
