"""Lists of seeds as text: '0-9,12'."""

from collections.abc import Sequence
from itertools import pairwise

MOST_SEEDS = 10_000_000  # in one run; a slip of the keyboard must not fill the memory


def parse_seeds(text: str) -> list[int]:
    """'0-9,12' -> [0, ..., 9, 12]; ValueError if it is empty, malformed or names a seed twice."""
    seeds: list[int] = []
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"'{text}' is not a list of seeds; write it as 0-49999 or 1,2,5-10.")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise ValueError(f"the seed range {part.strip()} runs backwards; write {high}-{low}.")
        if len(seeds) + high - low >= MOST_SEEDS:
            raise ValueError(f"'{text}' names more than {MOST_SEEDS:,} seeds; split the job.")
        seeds.extend(range(low, high + 1))
        ranges.append((low, high))
    if any(after[0] <= before[1] for before, after in pairwise(sorted(ranges))):
        raise ValueError(f"'{text}' names a seed twice; each image has one seed.")
    return seeds


def format_seeds(seeds: Sequence[int]) -> str:
    """[0, 1, 2, 7] -> '0-2,7'."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in ranges)


def few(seeds: Sequence[int]) -> str:
    """Seeds for a sentence."""
    text = format_seeds(seeds)
    return text if len(text) <= 60 else f"{text[:60].rpartition(',')[0]},... ({len(seeds)} in all)"
