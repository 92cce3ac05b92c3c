"""Where weights come from: the published file and its hash, other files, random numbers."""

import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from metrics.extractors import extractor_names, load_extractor
from metrics.extractors.classifier import known_classifiers
from metrics.extractors.weights import load_weights, random_state

SHAPES = {"conv.weight": (4, 3, 2, 2), "conv.bias": (4,)}
STATE = random_state(SHAPES, 0)


def bytes_of(state, **options):
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def load(path):
    return load_weights(str(path), "", SHAPES)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Puts bytes where the cache would keep a download; returns its URL and its path."""
    monkeypatch.setenv("ERK_CACHE", str(tmp_path))

    def put(data, name="network.pth"):
        path = tmp_path / "host" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return f"https://host/{name}", path

    return put


def test_files_of_both_kinds(tmp_path):
    paths = [tmp_path / name for name in ("a.pth", "old.pth", "a.safetensors")]
    paths[0].write_bytes(bytes_of(STATE))
    paths[1].write_bytes(bytes_of(STATE, _use_new_zipfile_serialization=False))
    save_file(STATE, paths[2])
    for path in paths:
        state, digest = load(path)
        assert all(torch.equal(state[key], STATE[key]) for key in SHAPES)
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_half_precision_is_widened_and_training_state_is_left_out(tmp_path):
    half = {key: value.half() for key, value in STATE.items()}
    extra = {"bn.num_batches_tracked": torch.tensor(3), "mask_token": torch.ones(1)}
    torch.save(half | extra, tmp_path / "a.pth")
    state, _ = load(tmp_path / "a.pth")
    assert list(state) == list(SHAPES)
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize(
    "state, message",
    [
        ({"conv.bias": STATE["conv.bias"]}, "a.pth has no tensor conv.weight: give the"),
        (STATE | {"fc.bias": torch.ones(1)}, "a.pth holds fc.bias, which this network"),
        (STATE | {"conv.bias": torch.ones(5)}, r"a.pth holds conv.bias of shape \[5\], not \[4\]"),
        ({"state_dict": STATE}, "a.pth is not a state dict"),
        ({1: torch.ones(1)}, "a.pth is not a state dict"),
        ([1, 2], "a.pth is not a state dict"),
        (torch.nn.Conv2d(3, 4, 2), "a.pth cannot be read .*: it is truncated or not a state dict"),
    ],
)
def test_files_that_do_not_fit(tmp_path, state, message):
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "old.pth", "a.safetensors"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_cut_files(tmp_path, name, share):
    path = tmp_path / name
    if name == "a.safetensors":
        save_file(STATE, path)
    else:
        path.write_bytes(bytes_of(STATE, _use_new_zipfile_serialization=name == "a.pth"))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="cannot be read .*: it is truncated or not a state dict"):
        load(path)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*none.pth: check the path"):
        load(tmp_path / "none.pth")
    with pytest.raises(IsADirectoryError, match="cannot be read .*: give a file of weights"):
        load(tmp_path)


def test_published_file_is_remembered_by_its_hash(published):
    url, path = published(bytes_of(STATE))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_weights(None, url, SHAPES, offline=True).sha256 == digest
    record = path.with_name("network.pth.sha256")
    assert record.read_text() == digest + "\n"
    assert {file.name for file in path.parent.iterdir()} == {"network.pth", "network.pth.sha256"}
    load_weights(None, url, SHAPES, offline=True)  # and it fits ever after
    published(bytes_of(random_state(SHAPES, 1)))
    with pytest.raises(ValueError, match=f"expected {digest}: delete it and, if it exists"):
        load_weights(None, url, SHAPES, offline=True)
    record.write_text("")
    with pytest.raises(ValueError, match="network.pth has sha256 .*, expected"):
        load_weights(None, url, SHAPES, offline=True)


def test_published_file_has_the_hash_in_its_name(published):
    data = bytes_of(STATE)
    name = f"network-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    load_weights(None, published(data, name)[0], SHAPES, offline=True)
    url, path = published(data, "network-12345678.pth")
    with pytest.raises(ValueError, match="network-12345678.pth has sha256 .*, expected 12345678:"):
        load_weights(None, url, SHAPES, offline=True)
    assert not path.with_name(path.name + ".sha256").exists()


def test_a_page_in_place_of_the_published_file_is_not_remembered(published):
    url, path = published(b"<html>please log in</html>")
    with pytest.raises(ValueError, match="network.pth cannot be read"):
        load_weights(None, url, SHAPES, offline=True)
    published(bytes_of(STATE))
    load_weights(None, url, SHAPES, offline=True)


@pytest.mark.parametrize("name", sorted({*extractor_names()} - {*known_classifiers()}))
def test_offline_without_the_published_file(name, published):
    with pytest.raises(FileNotFoundError, match="is not in the cache"):
        load_extractor(name, offline=True)


def test_random_weights():
    state, digest = load_weights("random:5", "", SHAPES)
    assert digest == "random:5"
    again, other = load_weights("random:5", "", SHAPES), load_weights("random:6", "", SHAPES)
    for key in SHAPES:
        assert torch.equal(again.state[key], state[key])
        assert not torch.equal(other.state[key], state[key])
    wide = random_state({"fc.weight": (300, 200), "norm.weight": (9999,), "norm.bias": (9999,)}, 0)
    assert wide["fc.weight"].std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert wide["norm.weight"].mean().item() == pytest.approx(1, abs=0.01)
    assert wide["norm.bias"].mean().item() == pytest.approx(0, abs=0.01)


def test_random_weights_leave_the_callers_generators_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load_weights("random:5", "", SHAPES)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("source", ["random:", "random:x", "random:-1", "random:1.5"])
def test_random_weights_need_a_seed(source):
    with pytest.raises(ValueError, match="has no seed: give random:SEED"):
        load_weights(source, "", SHAPES)


def test_importing_the_extractors_is_light():
    code = "import sys, metrics.extractors.{}; print(*sys.modules)"
    names = "inception, metrics.extractors.vgg16, metrics.extractors.dinov2"
    run = [sys.executable, "-c", code.format(names)]
    loaded = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert not {"timm", "torchvision", "torch_fidelity", "safetensors.torch"} & set(loaded)
