"""The formats that we read: a small sound file of each, and what reads it."""

import functools
import hashlib
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import yaml
from opcodes import call, const, raw
from PIL import Image

from erk.generation.job import check_labels
from erk.generation.merge import merge_runs
from erk.generation.options import labels_of
from erk.generation.run_folder import RunFolder
from erk.generation.sampling import ImageBatch
from erk.models.edm2 import Precond
from erk.models.model import load_model
from metrics import images, selection, store
from metrics.chunks import Reading, source_chunks
from metrics.extractors import classifier
from metrics.extractors.weights import load_weights
from metrics.reference_files import read_reference, write_reference
from metrics.statistics import Statistics
from scripts.paper.config import load_config

Files = dict[str, bytes]


class Format(NamedTuple):
    """A format: a sound set of files, and the reader of a folder that holds such files."""

    sound: Callable[[], Files]
    read: Callable[[Path], Any]


# --- networks as pickles: each function gives the opcodes that push one object


def mapping(content):
    return b"}(" + b"".join(const(key) + value for key, value in content.items()) + b"u"


def framed(body):
    return b"\x80\x04" + body + b"."


def storage(values):
    """What torch nests for float32 values."""
    typed = torch.storage.TypedStorage(list(values), dtype=torch.float32, _internal=True)
    file = io.BytesIO()
    torch.save(typed, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def tensor(value):
    flat = call("torch.storage._load_from_bytes", raw(storage(value.flatten().tolist())))
    shape, stride = const(tuple(value.shape)), const(tuple(value.stride()))
    return call("torch._utils._rebuild_tensor_v2", flat, const(0), shape, stride, const(False),
                const({}))  # fmt: skip


def module(class_name, state):
    meta = {"type": const("class"), "class_name": const(class_name), "state": mapping(state)}
    return call("torch_utils.persistence._reconstruct_persistent_obj", mapping(meta))


# --- sound files

KWARGS = {"img_resolution": 4, "img_channels": 1, "label_dim": 3, "model_channels": 2,
          "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [], "logvar_channels": 2,
          "channels_per_head": 2}  # fmt: skip


@functools.cache
def network():
    torch.manual_seed(0)
    return Precond(**KWARGS)


def _modules(net):
    """A module as its pickle; names of classes below the top do not matter."""
    return {
        "_parameters": mapping({k: tensor(v.detach()) for k, v in net._parameters.items()}),
        "_buffers": mapping({k: tensor(v) for k, v in net._buffers.items()}),
        "_modules": mapping({k: module("Part", _modules(v)) for k, v in net._modules.items() if v}),
    }


@functools.cache
def _network_modules():
    return _modules(network())


def network_pickle(**changes):
    state = _network_modules() | {"_init_kwargs": const(KWARGS | changes)}
    return framed(mapping({"ema": module("Precond", state)}))


@functools.cache
def network_safetensors():
    return safetensors.torch.save(network().state_dict())


def card(data, **changes):
    facts = {"architecture": {"class": "Precond", "kwargs": KWARGS},
             "encoder": {"class": "StandardRGBEncoder", "kwargs": {}},
             "sha256": hashlib.sha256(data).hexdigest(), "licence": "none"}  # fmt: skip
    return json.dumps(facts | changes).encode()


def png(value, size=(3, 4), mode="L", **options):
    file = io.BytesIO()
    Image.new(mode, size, value).save(file, options.pop("format", "png"), **options)
    return file.getvalue()


def zipped(members, packing=zipfile.ZIP_STORED):
    """A zip of (name, data) pairs, in that order."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicate names
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, packing)
    return file.getvalue()


def npz(packed=False, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, **arrays)
    return file.getvalue()


RUN = {"seeds": "0-2", "images": 3, "complete": True, "batch": 4,
       "network": {"name": "a", "sha256": "0" * 64}, "guide": None,
       "settings": {"labels": "balanced", "class": None, "steps": 3}}  # fmt: skip
IMAGES = {f"{seed:06d}.png": png(40 * seed) for seed in range(3)}


def dataset():
    return json.dumps({"labels": [[name, i] for i, name in enumerate(IMAGES)]}).encode()


def images_folder():
    return IMAGES | {"run.json": json.dumps(RUN).encode(), "dataset.json": dataset()}


def images_zip():
    return {"images.zip": zipped([*images_folder().items()], zipfile.ZIP_DEFLATED)}


def images_npz():
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 4, 3, 1)
    return {"images.npz": npz(arr_0=pixels, seeds=np.arange(3), labels=np.arange(3))}


def packed_images_npz():
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 4, 3, 1)
    return {"images.npz": npz(True, images=pixels)}


@functools.cache
def run_folder(kind):
    """A finished run of three images."""
    import tempfile

    settings = RUN["settings"] | {"format": kind, "subdirs": False}
    with tempfile.TemporaryDirectory() as folder:
        metadata = {key: RUN[key] for key in ("seeds", "images", "batch", "network", "guide")}
        run = RunFolder(Path(folder) / "run", settings, range(3), metadata, batch=4)
        run.look()
        with run:
            pixels = torch.arange(36, dtype=torch.uint8).reshape(3, 1, 4, 3)
            run.write(ImageBatch([0, 1, 2], pixels, None, 5.0, 0.0, 4))
        return {f"run/{path.name}": path.read_bytes() for path in (Path(folder) / "run").iterdir()}


def reference_npz():
    from tempfile import TemporaryDirectory

    mean, cov = torch.zeros(64, dtype=torch.float64), torch.eye(64, dtype=torch.float64)
    with TemporaryDirectory() as folder:
        statistics = Statistics(mean, cov, 9, torch.ones(9, 64))
        path = write_reference(Path(folder) / "ref.npz", {"digits": statistics}, protocol="digits",
                               labels=torch.arange(9), image_size=8)  # fmt: skip
        return {"ref.npz": path.read_bytes()}


def plain_npz():
    return {"ref.npz": npz(mu=np.zeros(64), sigma=np.eye(64), num_images=9)}


def reference_pickle():
    content = {"num_images": 9, "fid": {"mu": np.zeros(6), "sigma": np.eye(6)}}
    return {"ref.pkl": pickle.dumps(content, 4)}


TABLE = {
    "title": "A table", "kind": "sampled", "paper": "It shows something.", "columns": ["fid"],
    "best": {"fid": "low"}, "num": 100, "seeds": 0,
    "ref": "digits",
    "settings": {"preset": "edm2-img512-s", "steps": 8}, "notes": ["one", "two"],
    "rows": [{"name": "a", "settings": {"w_stiff": 0.5}, "published": {"fid": 2.5}},
             {"name": "b", "against": "a", "as_printed": {"rho": 7.0}}],
}  # fmt: skip


def features():
    return safetensors.torch.save({"kept": torch.arange(3), "features": torch.ones(3, 4)})


SHAPES = {"weight": (2, 3), "bias": (2,)}


def state_dict(**options):
    file = io.BytesIO()
    torch.save({key: torch.ones(shape) for key, shape in SHAPES.items()}, file, **options)
    return file.getvalue()


def digits_files():
    path = classifier.known_classifiers()["digits"].path
    return {"digits.safetensors": path.read_bytes(),
            "digits.json": path.with_suffix(".json").read_bytes()}  # fmt: skip


# --- readers


def read_network(folder):
    path = next(folder.glob("net.*t*s")) if (folder / "net.json").exists() else folder / "net.pkl"
    model = load_model(path)
    return model.sample_shape, model.label_dim, model.sigma_min


def read_images(folder):
    """What evaluate.py does up to the networks."""
    path = next((p for p in folder.glob("images.*")), folder)
    source = images.open_images(path)
    shape = images.first_shape(source)
    total = [len(chunk.read().positions) for chunk in source_chunks(source, Reading())(0, 1)]
    labels = selection.labels_of(source, 10)
    if labels is not None:
        labels = selection.checked_labels(labels, len(source.names), 10, str(path)).tolist()
    ignored = [note for note in source.notes if "name 1.png" not in note]  # an added image
    if ignored:  # a side file that is not needed
        raise ValueError(f"{path}: {ignored[0]}")
    return shape, total, selection.seeds_of(source), None if labels is None else labels[:3]


def read_run(folder):
    """What a run that goes on, and what merging, make of a folder."""
    settings = json.loads(run_folder("png")["run/run.json"])["settings"]
    run = RunFolder(folder / "run", settings, range(3), {"network": RUN["network"]})
    with_errors = None
    try:
        run.look()
    except ValueError as error:
        if str(folder) not in str(error):
            raise
        with_errors = str(error)[:50]
    try:
        return with_errors, merge_runs([folder / "run"], folder / "dest").images
    except ValueError as error:
        if not str(error).startswith("no folder holds the images"):  # of several folders
            raise
        raise ValueError(f"{folder}: {error}") from error


class StoredExtractor(NamedTuple):
    name: str = "a"
    sha256: str = "0" * 64
    precision: str = "fp32"


KEY = "ab" * 32
STORED = f"a-{store.VERSION}-{'0' * 32}/ab/{KEY}.safetensors"


def read_features(folder):
    known = store.holds(folder, StoredExtractor(), KEY, ["features"], 3)
    stored = store.load(folder, StoredExtractor(), KEY)
    store.add_file(folder / STORED, folder / "dest" / STORED)
    return known, {name: tuple(one.shape) for name, one in stored.items()}


def read_labels(folder):
    labels, _ = labels_of(str(folder / "labels.txt"), None)
    try:
        check_labels(labels, 10, range(3))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return labels


def read_weights(folder):
    path = next(folder.glob("w.*"))
    return {k: tuple(v.shape) for k, v in load_weights(str(path), "", SHAPES).state.items()}


def network_files():
    data = network_safetensors()
    return {"net.safetensors": data, "net.json": card(data, sha256=None)}


FORMATS = {
    "network pickle": Format(lambda: {"net.pkl": network_pickle()}, read_network),
    "network safetensors": Format(network_files, read_network),
    "reference npz": Format(reference_npz, lambda f: read_reference(f / "ref.npz").name),
    "plain npz": Format(plain_npz, lambda f: read_reference(f / "ref.npz").name),
    "reference pickle": Format(reference_pickle, lambda f: read_reference(f / "ref.pkl").name),
    "images folder": Format(images_folder, read_images),
    "images zip": Format(images_zip, read_images),
    "images npz": Format(images_npz, read_images),
    "packed images npz": Format(packed_images_npz, read_images),
    "run folder": Format(lambda: run_folder("png"), read_run),
    "run zip": Format(lambda: run_folder("zip"), read_run),
    "run npz": Format(lambda: run_folder("npz"), read_run),
    "yaml": Format(lambda: {"table.yaml": yaml.safe_dump(TABLE).encode()},
                   lambda f: load_config(f / "table.yaml").title),
    "features": Format(lambda: {STORED: features()}, read_features),
    "labels": Format(lambda: {"labels.txt": b"0 1\n1,2 # two\n2 3\n"}, read_labels),
    "weights": Format(lambda: {"w.pt": state_dict()}, read_weights),
    "old weights": Format(
        lambda: {"w.pt": state_dict(_use_new_zipfile_serialization=False)}, read_weights),
    "classifier": Format(digits_files, 
        lambda f: classifier.load("digits", weights=f / "digits.safetensors").name),
}  # fmt: skip
