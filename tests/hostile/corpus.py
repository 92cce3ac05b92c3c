"""The corpus of hostile files: for each format, the attack and the error that it must give."""

from typing import NamedTuple

from hostile.formats import STORED, Files, card, images_folder
from hostile.image_files import arrays, folders, runs, zips
from hostile.network_files import described, pickles, safetensors, weights
from hostile.text_files import labels, stored_features, yamls


class Case(NamedTuple):
    """One hostile set of files."""

    name: str
    format: str
    files: Files
    message: str  # a regular expression that matches the error


CASES = {
    "network pickle": lambda: {
        name: ({"net.pkl": data}, message) for name, (data, message) in pickles().items()
    },
    "network safetensors": lambda: {
        name: (
            data if isinstance(data, dict) else described(card(data, sha256=None), data),
            message,
        )
        for name, (data, message) in safetensors().items()
    },
    "images npz": lambda: {
        name: ({"images.npz": data}, message) for name, (data, message) in arrays().items()
    },
    "plain npz": lambda: {
        name: ({"ref.npz": data.replace(b"arr_0", b"sigma")}, "ref.npz")
        for name, (data, _) in arrays().items()
    },
    "images zip": lambda: {
        name: ({"images.zip": data}, message) for name, (data, message) in zips().items()
    },
    "images folder": lambda: {
        name: (images_folder() | files, message) for name, (files, message) in folders().items()
    },
    "run folder": runs,
    "yaml": lambda: {
        name: ({"table.yaml": text if isinstance(text, bytes) else text.encode()}, message)
        for name, (text, message) in yamls().items()
    },
    "features": lambda: {
        name: ({STORED: data}, message) for name, (data, message) in stored_features().items()
    },
    "labels": lambda: {
        name: ({"labels.txt": data}, message) for name, (data, message) in labels().items()
    },
    "weights": lambda: {
        name: ({"w.pt": data}, message) for name, (data, message) in weights().items()
    },
}
"""Format -> {attack: (files, message)}."""


def cases(kind: str) -> list[Case]:
    """Return all hostile files of a format."""
    return [Case(name, kind, files, message) for name, (files, message) in CASES[kind]().items()]


HARMLESS = (  # they do no harm, as no reader trusts names or reads more than it needs
    "a name that climbs",
    "an absolute name",
    "an unbounded row",
    "pixels that never end",
)
