"""Lists of seeds as text: '0-9,12'."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

MAX_SEEDS = 10_000_000  # in one run, so that a typing error does not fill the memory
MAX_SEED = 10**18 - 1  # 18 digits: seeds are kept as 64-bit integers
NOISES = 2**32  # EDM and EDM2 draw by the seed modulo this number
MAX_LENGTH = 60  # characters of a list in a message


def parse_seeds(text: str) -> list[int]:
    """Read '0-9,12' as [0, ..., 9, 12].

    Raises ValueError if the list is empty or malformed, or names a seed twice.
    """
    seeds: list[int] = []
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"'{text}' is not a list of seeds; write it as 0-49999 or 1,2,5-10.")
        if max(len(first), len(last)) > MAX_LENGTH:  # Python refuses to read very long ones
            raise ValueError(f"a seed is too large; the largest seed is {MAX_SEED}.")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise ValueError(f"the seed range {part.strip()} runs backwards; write {high}-{low}.")
        if high > MAX_SEED:
            raise ValueError(f"the seed {high} is too large; the largest seed is {MAX_SEED}.")
        if len(seeds) + high - low >= MAX_SEEDS:
            raise ValueError(f"'{text}' names more than {MAX_SEEDS:,} seeds; split the job.")
        seeds.extend(range(low, high + 1))
        ranges.append((low, high))
    if any(after[0] <= before[1] for before, after in pairwise(sorted(ranges))):
        raise ValueError(f"'{text}' names a seed twice; each image has one seed.")
    return seeds


def format_seeds(seeds: Sequence[int] | np.ndarray) -> str:
    """Write [0, 1, 2, 7] as '0-2,7'."""
    ordered = np.sort(np.asarray(seeds, np.int64))
    gaps = np.flatnonzero(np.diff(ordered) != 1) + 1
    ranges = [(part[0], part[-1]) for part in np.split(ordered, gaps) if len(part)]
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in ranges)


def same_noise(seeds: Sequence[int]) -> tuple[int, int] | None:
    """Return two seeds that are equal modulo 2^32, so that their noise is the same; else None."""
    if max(seeds) < NOISES:
        return None
    array = np.asarray(seeds, np.int64)
    order = np.argsort(array % NOISES, kind="stable")
    equal = np.flatnonzero(np.diff(array[order] % NOISES) == 0)
    return (int(array[order[equal[0]]]), int(array[order[equal[0] + 1]])) if len(equal) else None


def format_seeds_short(seeds: Sequence[int] | np.ndarray) -> str:
    """Format seeds for a message, truncated to 60 characters."""
    text = format_seeds(seeds)
    if len(text) <= MAX_LENGTH:
        return text
    return f"{text[:MAX_LENGTH].rpartition(',')[0]},... ({len(seeds)} in all)"
