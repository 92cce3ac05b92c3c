"""Hostile text files and stored features: tables in YAML, label files."""

import json

import numpy as np
from hostile.builders import DEEP, HUGE
from hostile.formats import TABLE, features
from safetensors.numpy import save

TEXT = json.dumps(TABLE)  # JSON is YAML


def yamls():
    return {
        "an object of Python": (
            TEXT.replace('"A table"', "!!python/object/apply:os.system [touch canary]"),
            "not readable",
        ),
        "a name of Python": (
            TEXT.replace('"A table"', "!!python/name:os.system ''"),
            "not readable",
        ),
        "a module of Python": (TEXT.replace('"low"', "!!python/module:os ''"), "not readable"),
        "a billion laughs": (
            "a: &a [x, x]\n"
            + "".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n"
                for a, b in zip("abcdefghi", "bcdefghij", strict=True)
            ),
            "unknown kind",
        ),
        "a billion laughs in a field": (
            f"x: &a {json.dumps(['x'] * 9)}\n"
            + TEXT[1:-1].replace('["one", "two"]', "[*a, *a, *a]"),
            "unknown key|not readable",
        ),
        "itself": ("title: &a [*a]\nkind: sampled\npaper: *a\n", "a valid string"),
        "deep": (DEEP[:20_000], "nested too deeply"),
        "deep maps": ("{a: " * 10_000, "nested too deeply"),
        "a megabyte": (TEXT + " " * (1 << 20), "at most 1048576"),
        "an unbounded number": (TEXT.replace("100", HUGE), "a number of 5000"),
        "an unbounded number in base 60": (TEXT.replace("100", "1" + ":59" * 5000), "a number of"),
        "a hexadecimal number without digits": (TEXT.replace("100", "0x_"), "not readable"),
        "infinity": (TEXT.replace("2.5", ".inf"), "not inf"),
        "a number beyond floats": (TEXT.replace("2.5", "1" * 400), "a number of 400"),
        "a key that is a list": ("[a, b]: c\n", "unhashable key"),
        "a duplicate key": ("title: a\ntitle: b\n", "two values"),
        "half a surrogate pair": (TEXT.replace("A table", "\\ud800"), "surrogates not allowed"),
        "no text": (b"\xff\xfe\x00", "not UTF-8"),
        "control characters": ("title: \x00\x07\n", "not readable YAML"),
        "nothing": ("", "a mapping"),
    }


def stored_features():
    contents = {
        "without its images": ({"features": np.ones((3, 4), np.float32)}, "are missing"),
        "rows of others": ({"kept": np.arange(3), "features": np.ones((2, 4))}, "are missing"),
        "images that are numbers": ({"kept": np.ones(3)}, "are missing"),
        "images that are one": ({"kept": np.array(3)}, "are missing"),
    }
    written = {name: (save(content), message) for name, (content, message) in contents.items()}
    return written | {"cut off": (features()[:-9], "are missing")}


def labels():
    return {
        "an unbounded seed": (f"{HUGE} 1\n".encode(), "is not 'SEED CLASS'"),
        "an unbounded class": (f"1 {HUGE}\n".encode(), "is not 'SEED CLASS'"),
        "no numbers": (b"one two\n", "is not 'SEED CLASS'"),
        "below zero": (b"-1 -2\n", "is not 'SEED CLASS'"),
        "no text": (b"\xff\xfe\x00\x01", "is not 'SEED CLASS'"),
        "one long line": (b"1 " * 100_000, "is not 'SEED CLASS'"),
        "a byte order mark of another encoding": (b"\xfe\xff0 1\n", "is not 'SEED CLASS'"),
        "classes out of range": (b"0 999999999999999999\n1 1\n2 2\n", "class"),
    }
