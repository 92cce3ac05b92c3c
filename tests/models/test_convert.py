"""`erk convert`: from pickles to safetensors, bit for bit, or a refusal in one sentence."""

import json
import subprocess
import sys

import pytest
import torch
from golden_data import manifest, pickle_paths, ref, tensor
from stored_networks import convert, names

from erk import load_model
from erk.io.files import sha256_of
from erk.models.checkpoint import read, write_safetensors

pytestmark = pytest.mark.usefixtures("empty_cache")
NETS = sorted(manifest()["nets"])


@pytest.mark.parametrize("net", NETS)
def test_converted_networks_give_the_same_bits(net, tmp_path):
    data, out = ref(net), tmp_path / "sub" / f"{net}.safetensors"
    source = pickle_paths(net)[-1]
    code, text, errors = convert(source, out)
    assert (code, errors) == (0, "") and text.count("\n") == 1
    assert source.name in text and str(out) in text and "bit for bit" in text
    assert names(out.parent) == [f"{net}.json", f"{net}.safetensors"]
    first, second = load_model(source), load_model(out)
    x, sigma = tensor(data["D_vec_x"]), tensor(data["D_vec_sigma"])
    labels = tensor(data["D_labels"]) if "D_labels" in data else None
    assert torch.equal(first(x, sigma, labels), second(x, sigma, labels))
    assert first.sample_shape == second.sample_shape and first.label_dim == second.label_dim
    assert type(first.encoder) is type(second.encoder)
    stored = read(out)
    assert {str(t.dtype) for t in stored.tensors.values()} == {
        f"torch.{manifest()['nets'][net]['weights_dtype']}"
    }
    assert stored.architecture == read(source).architecture


def test_the_metadata_says_what_the_file_is(converted):
    metadata = json.loads(converted.with_suffix(".json").read_text())
    source = pickle_paths("edm2_cond")[0]
    assert metadata["architecture"]["class"] == "Precond"
    assert metadata["architecture"]["kwargs"] == manifest()["nets"]["edm2_cond"]["init_kwargs"]
    assert metadata["encoder"] == {"class": "StabilityVAEEncoder", "kwargs": {}}
    assert "CC BY-NC-SA 4.0" in metadata["licence"]
    facts = manifest()["nets"]["edm2_cond"]["pickles"][source.name]
    assert metadata["source"] == {"file": source.name, "sha256": facts["sha256"]}
    assert metadata["sha256"] == sha256_of(converted)
    assert load_model(converted).licence == metadata["licence"]
    assert load_model(converted).sha256 == metadata["sha256"]


def test_convert_refuses_in_one_sentence(converted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, out = pickle_paths("edm2_auto")[0], tmp_path / "out.safetensors"
    blocked = tmp_path / "file"
    blocked.write_text("")
    cut = tmp_path / "cut.pkl"
    cut.write_bytes(source.read_bytes()[:1000])
    url = "https://example.invalid/net.pkl"
    for arguments, reason in [
        ((source, tmp_path / "out.pkl"), "must end in .safetensors"),
        ((tmp_path / "none.pkl", out), "there is no file"),
        ((cut, out), "bytes are missing"),
        ((converted, out), "is safetensors already"),
        (("edm2-img512-x", out), "unknown preset 'edm2-img512-x'; did you mean edm2-img512-"),
        ((url, out, "--offline"), "is not in the cache"),
        (("edm2-img512-s", out, "--offline"), "is not in the cache"),
        ((source, blocked / "out.safetensors"), "file is not a folder"),
    ]:
        code, output, errors = convert(*arguments)
        assert (code, output, errors.count("\n")) == (2, "", 1), errors
        assert errors.startswith("Error: ") and reason in errors
        assert names(tmp_path) == ["cut.pkl", "file"]


def test_convert_keeps_an_existing_file(tmp_path):
    """It was replaced without a word, and so was a .json file of that name."""
    source, out = pickle_paths("edm2_auto")[0], tmp_path / "a.safetensors"
    for there in (out, out.with_suffix(".json")):
        there.write_text("mine")
        code, output, errors = convert(source, out)
        message = f"Error: {there} exists: choose another OUTPUT, or replace it with --overwrite\n"
        assert (code, output, errors) == (2, "", message)
        assert names(tmp_path) == [there.name] and there.read_text() == "mine"
        there.unlink()
    out.write_text("mine")
    assert convert(source, out, "--overwrite")[0] == 0 and read(out).tensors
    code, _, errors = convert("--all", "--dest", tmp_path, "--overwrite")
    assert code == 2 and "leave out --overwrite" in errors


def test_convert_detects_a_disk_that_changes_bytes(tmp_path, monkeypatch):
    real = torch.Tensor.contiguous

    def broken(path, checkpoint):
        tensors = {key: real(value).clone() for key, value in checkpoint.tensors.items()}
        tensors["unet.out_gain"] *= -1
        write_safetensors(path, checkpoint._replace(tensors=tensors))

    monkeypatch.setattr("erk.models.convert.write_safetensors", broken)
    code, output, errors = convert(pickle_paths("edm2_auto")[0], tmp_path / "a.safetensors")
    assert (code, output) == (2, "") and "does not hold what was written" in errors
    assert names(tmp_path) == []


def test_convert_runs_from_any_folder(tmp_path):
    """It refuses a wrong output name before it imports torch."""
    command = [sys.executable, "-X", "importtime", "-m", "erk", "convert"]
    for arguments, code in ((["--help"], 0), (["a.pkl", "b.pkl"], 2)):
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code and "click" in done.stderr and "torch" not in done.stderr
    assert "must end in .safetensors" in done.stderr


def test_a_network_and_its_metadata_are_both_written_or_neither(tmp_path):
    """The second file could not be written, so the first one stays as it was."""
    out = tmp_path / "a.safetensors"
    out.write_text("mine")
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match="cannot be written"):
        write_safetensors(out, read(pickle_paths("edm2_auto")[0]))
    assert out.read_text() == "mine" and names(tmp_path) == ["a.json", "a.safetensors"]
