"""Networks in files: what is stored, and what is refused in a sentence."""


import pytest
import torch
from golden_data import manifest, pickle_paths
from stored_networks import change_metadata, names, sentence

from erk import load_model
from erk.io import pickles
from erk.io.budget import Budget
from erk.io.files import sha256_of
from erk.models.checkpoint import Checkpoint, Part, build, read, write_safetensors
from erk.models.encoders import PixelEncoder

pytestmark = pytest.mark.usefixtures("empty_cache")


def test_arguments_of_the_vae_are_kept(tmp_path):
    source = read(pickle_paths("edm2_cond")[0])
    kwargs = {"vae_name": "some/folder", "raw_std": [1.0, 2.0, 3.0, 4.0], "final_std": 0.25}
    path = tmp_path / "a.safetensors"
    write_safetensors(path, source._replace(encoder=Part("StabilityVAEEncoder", kwargs)))
    assert read(path).encoder.kwargs == kwargs
    encoder = load_model(path).encoder
    assert encoder.vae_name == "some/folder"
    assert encoder.scale.flatten().tolist() == pytest.approx([0.25, 0.125, 0.25 / 3, 0.0625])
    assert load_model(path, vae="another").encoder.vae_name == "another"


def test_a_missing_encoder_means_pixels():
    assert "encoder" not in pickles.load(pickle_paths("edm2_auto")[0])
    assert isinstance(load_model(pickle_paths("edm2_auto")[0]).encoder, PixelEncoder)


def test_writing_again_renews_the_hash_in_the_metadata(copy):
    checkpoint = read(copy)
    checkpoint.tensors["unet.out_gain"] += 1
    write_safetensors(copy, checkpoint)
    again = read(copy)
    assert torch.equal(again.tensors["unet.out_gain"], checkpoint.tensors["unet.out_gain"])
    assert again.metadata["source"] == checkpoint.metadata["source"]


def test_nothing_is_left_behind_by_metadata_that_cannot_be_written(tmp_path):
    checkpoint = Checkpoint(Part("Precond", {"x": object()}), Part("", {}), {}, {})
    with pytest.raises(TypeError):
        write_safetensors(tmp_path / "a.safetensors", checkpoint)
    assert names(tmp_path) == []


# Broken safetensors and metadata


def test_missing_metadata_is_named(copy):
    copy.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"has no metadata: net\.json must be beside it") as error:
        load_model(copy)
    sentence(error)


def test_a_wrong_hash_is_refused(copy):
    change_metadata(copy, sha256="0" * 64)
    with pytest.raises(ValueError, match="is not the file that") as error:
        load_model(copy)
    sentence(error)


def test_a_changed_byte_is_refused(copy):
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    with pytest.raises(ValueError, match="is not the file that"):
        load_model(copy)


def test_a_cut_file_tells_how_much_is_missing(copy):
    data = copy.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for cut in (20, header // 2, header - 1, header, header + 1, len(data) // 2, len(data) - 1):
        copy.write_bytes(data[:cut])
        least = (len(data) if cut >= header else header) - cut
        with pytest.raises(ValueError, match=f"at least {least} bytes are missing") as error:
            load_model(copy)
        sentence(error)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234",
        b"plain text is not a network",
        (10**6).to_bytes(8, "little") + b"x" * 50,
        (2**60).to_bytes(8, "little") + b"{" * 50,
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": 12}',
        (27).to_bytes(8, "little") + b'{"a": {"data_offsets": [0]}}'[:27],
        (27).to_bytes(8, "little") + b'{"a":{"data_offsets": [0]}}',
        (29).to_bytes(8, "little") + b'{"a":{"data_offsets":["",""]}',
        (6000).to_bytes(8, "little") + b"[" * 6000,
    ],
    ids=range(11),
)
def test_a_garbage_header_is_refused(copy, data):
    copy.write_bytes(data)
    with pytest.raises(ValueError, match="is not a safetensors file") as error:
        load_model(copy)
    sentence(error)


def test_offsets_that_overlap_are_refused(copy):
    header = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'
    copy.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    change_metadata(copy, sha256=None)
    with pytest.raises(ValueError, match="is not a valid safetensors file") as error:
        load_model(copy)
    sentence(error)


def test_the_hash_is_that_of_the_bytes_that_were_read(copy):  # M17, H10
    data, expected = copy.read_bytes(), sha256_of(copy)
    checkpoint = read(copy)
    before = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    with open(copy, "r+b") as file:  # the same file, changed while the network is in use
        file.seek(len(data) // 2)
        file.write(bytes(len(data) // 2))
    assert checkpoint.sha256 == expected != sha256_of(copy)
    assert all(torch.equal(before[name], t) for name, t in checkpoint.tensors.items())


def test_the_hash_of_a_pickle_is_that_of_all_its_bytes(tmp_path):  # M17
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle_paths("edm2_auto")[0].read_bytes() + b"more")
    assert read(path).sha256 == sha256_of(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"encoder": {}}', '"x"', '{"architecture": {"class": "Precond"}}', b"\xff\xfe",
     '{"architecture": {"class": "Precond", "kwargs": 5}, "encoder": {}}', "[" * 99999],
    ids=range(9),
)  # fmt: skip
def test_malformed_metadata_is_refused(copy, text):
    copy.with_suffix(".json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="must name 'architecture' and 'encoder'") as error:
        load_model(copy)
    sentence(error)


def architecture(**changes):
    kwargs = manifest()["nets"]["edm2_cond"]["init_kwargs"]
    return {"class": changes.pop("class_", "Precond"), "kwargs": kwargs | changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": architecture(class_="VitPrecond")}, "holds a 'VitPrecond'; supported"),
        ({"architecture": architecture(class_=["x"])}, "supported networks: Precond"),
        ({"architecture": architecture(wings=2)}, "wings"),
        ({"architecture": architecture(model_channels=24)}, "size mismatch"),
        ({"architecture": architecture(model_channels="16")}, "does not fit"),
        ({"architecture": architecture(channel_mult=[])}, "does not fit"),
        ({"architecture": architecture(num_blocks=None)}, "does not fit"),
        ({"architecture": architecture(label_dim=-4)}, "does not fit"),
        ({"architecture": architecture(class_="EDMPrecond")}, "does not fit the network"),
        ({"encoder": {"class": "JPEGEncoder", "kwargs": {}}}, "unknown encoder 'JPEGEncoder'"),
        ({"encoder": {"class": "DigitsEncoder", "kwargs": {}}}, "mean"),
        ({"encoder": {"class": "StabilityVAEEncoder", "kwargs": {"raw_std": "x"}}}, "not fit"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(copy, changes, reason):
    change_metadata(copy, **changes)
    with pytest.raises(ValueError) as error:
        load_model(copy)
    assert reason in sentence(error) and str(copy) in sentence(error)


def test_missing_and_surplus_tensors_are_named(tmp_path):
    for change, reason in [
        (lambda t: t.pop("unet.out_gain"), 'Missing key(s) in state_dict: "unet.out_gain"'),
        (lambda t: t.update(wing=torch.ones(1)), 'Unexpected key(s) in state_dict: "wing"'),
        (lambda t: t.update({"unet.out_gain": torch.ones(3)}), "size mismatch for unet.out_gain"),
        (lambda t: t.update({"unet.out_gain": torch.tensor(1)}), "floating point"),
        (lambda t: t.update({"unet.out_gain": 5}), "unet.out_gain"),
    ]:
        checkpoint = read(pickle_paths("edm2_cond")[0])
        change(checkpoint.tensors)
        with pytest.raises(ValueError, match="does not fit the network 'Precond'") as error:
            build(checkpoint, "net.pkl")
        assert reason in sentence(error)


# Pickles that hold something else


def record(state, class_name="Precond"):
    return pickles.Record(class_name, state)


CYCLE = record({})
CYCLE.state["_modules"] = {"self": CYCLE}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "no network under the key 'ema'"),
        ({"fid": {}}, "no network under the key 'ema'"),
        ({"ema": torch.ones(2)}, "no network under the key 'ema'"),
        ({"ema": record({"_init_kwargs": 3})}, "in an unknown format"),
        ({"ema": record({"_init_args": (1, 2)})}, "positional arguments"),
        ({"ema": record({"_parameters": [1]})}, "in an unknown format"),
        ({"ema": record({"_modules": {"a": 5}})}, "in an unknown format"),
        ({"ema": CYCLE}, "in an unknown format"),
        ({"ema": record({}), "encoder": 5}, "in an unknown format"),
        ({"ema": record({}, "Discriminator")}, "holds a 'Discriminator'"),
    ],
)
def test_pickles_without_a_known_network_are_refused(monkeypatch, tmp_path, content, reason):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"x")
    monkeypatch.setattr(
        pickles, "read", lambda _: pickles.Pickle(content, "0" * 64, Budget(1 << 20))
    )
    with pytest.raises(ValueError, match=r"a\.pkl") as error:
        load_model(path)
    assert reason in sentence(error)
