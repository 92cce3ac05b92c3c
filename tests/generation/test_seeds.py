"""Lists of seeds as text."""

import json

import pytest
from golden_data import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from erk.generation.seeds import MAX_SEED, format_seeds, format_seeds_short, parse_seeds


@given(st.lists(st.integers(0, 60), min_size=1, unique=True))
def test_seeds_as_text_and_back(seeds):
    text = format_seeds(seeds)
    assert parse_seeds(text) == sorted(seeds)
    assert format_seeds(parse_seeds(text)) == text
    parts = len(text.split(","))
    assert parts == sum(seed - 1 not in seeds for seed in seeds)


def test_lists_are_read_as_in_the_original_code():
    cases = json.loads((GOLDEN / "ref" / "rng.json").read_text())["parse_int_list"]
    assert {text: parse_seeds(text) for text in cases} == cases
    assert parse_seeds(" 3 , 5-6") == [3, 5, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is not a list of seeds"), (",", "is not a list"), ("1,,2", "is not a list"),
     ("a", "'a' is not a list"), ("1-", "is not a list"), ("-1", "is not a list"),
     ("1.5", "is not a list"), ("1-2-3", "is not a list"), ("0x10", "is not a list"),
     ("5-3", "runs backwards; write 3-5"), ("1,1", "names a seed twice"),
     ("0-9,9", "names a seed twice"), (f"{MAX_SEED + 1}", "is too large; the largest seed is 9"),
     ("1" * 5000, "a seed is too large; the largest seed is 9"), ("0-" + "9" * 5000, "too large")],
)  # fmt: skip
def test_malformed_lists(text, message):
    with pytest.raises(ValueError, match=message):
        parse_seeds(text)


def test_messages_show_the_first_seeds():
    assert format_seeds_short([1, 2, 3]) == "1-3"
    text = format_seeds_short(range(0, 200, 2))
    assert text.startswith("0,2,4,") and text.endswith(",... (100 in all)") and len(text) < 80
