"""From files to models and back: pickles, safetensors, cards, addresses, labels, encoders."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import click.testing
import numpy as np
import pytest
import torch
from golden_data import GOLDEN, manifest, pickle_paths, ref, tensor

from erk import load_model
from erk.commands import convert as convert_command
from erk.io import download as fetching
from erk.io import pickles
from erk.io.budget import Budget
from erk.models.checkpoint import Checkpoint, Part, build, read, write_safetensors
from erk.models.encoders import DigitsEncoder, PixelEncoder, VAEEncoder
from erk.models.model import address_of, fetch_checkpoint

ROOT = Path(__file__).parents[2]
NETS = sorted(manifest()["nets"])


def convert(*arguments):
    """(exit code, output, errors) of erk convert."""
    result = click.testing.CliRunner().invoke(convert_command.main, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "net.safetensors"
    code, _, errors = convert(pickle_paths("edm2_cond")[0], path)
    assert code == 0, errors
    return path


@pytest.fixture
def copy(converted, tmp_path):
    """A converted network and its card, free to be damaged."""
    for file in converted, converted.with_suffix(".json"):
        shutil.copy(file, tmp_path)
    return tmp_path / converted.name


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("ERK_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("ERK_OFFLINE", raising=False)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def sentence(error):
    """The text of an error, checked to be one sentence."""
    text = str(error.value)
    assert "\n" not in text and ".." not in text and not text.startswith("[Errno")
    return text


def change_card(path, **changes):
    card = path.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))


# Round trip


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


def test_the_card_says_what_the_file_is(converted):
    card = json.loads(converted.with_suffix(".json").read_text())
    source = pickle_paths("edm2_cond")[0]
    assert card["architecture"]["class"] == "Precond"
    assert card["architecture"]["kwargs"] == manifest()["nets"]["edm2_cond"]["init_kwargs"]
    assert card["encoder"] == {"class": "StabilityVAEEncoder", "kwargs": {}}
    assert "CC BY-NC-SA 4.0" in card["licence"]
    facts = manifest()["nets"]["edm2_cond"]["pickles"][source.name]
    assert card["source"] == {"file": source.name, "sha256": facts["sha256"]}
    assert card["sha256"] == fetching.sha256_of(converted)
    assert load_model(converted).licence == card["licence"]
    assert load_model(converted).sha256 == card["sha256"]


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


def test_writing_again_renews_the_hash_in_the_card(copy):
    checkpoint = read(copy)
    checkpoint.tensors["unet.out_gain"] += 1
    write_safetensors(copy, checkpoint)
    again = read(copy)
    assert torch.equal(again.tensors["unet.out_gain"], checkpoint.tensors["unet.out_gain"])
    assert again.metadata["source"] == checkpoint.metadata["source"]


def test_nothing_is_left_behind_by_a_card_that_cannot_be_written(tmp_path):
    checkpoint = Checkpoint(Part("Precond", {"x": object()}), Part("", {}), {}, {})
    with pytest.raises(TypeError):
        write_safetensors(tmp_path / "a.safetensors", checkpoint)
    assert names(tmp_path) == []


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
        ((source, blocked / "out.safetensors"), "cannot be written"),
    ]:
        code, output, errors = convert(*arguments)
        assert (code, output, errors.count("\n")) == (2, "", 1), errors
        assert errors.startswith("Error: ") and reason in errors
        assert names(tmp_path) == ["cut.pkl", "file"]


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


# Broken safetensors and cards


def test_a_missing_card_is_named(copy):
    copy.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"has no metadata: net\.json must be beside it") as error:
        load_model(copy)
    sentence(error)


def test_a_wrong_hash_is_refused(copy):
    change_card(copy, sha256="0" * 64)
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
    change_card(copy, sha256=None)
    with pytest.raises(ValueError, match="is not a valid safetensors file") as error:
        load_model(copy)
    sentence(error)


def test_the_hash_is_that_of_the_bytes_that_were_read(copy, monkeypatch):  # M17, H10
    data, expected = copy.read_bytes(), fetching.sha256_of(copy)
    checkpoint = read(copy)
    before = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    with open(copy, "r+b") as file:  # the same file, changed while the network is in use
        file.seek(len(data) // 2)
        file.write(bytes(len(data) // 2))
    assert checkpoint.sha256 == expected != fetching.sha256_of(copy)
    assert all(torch.equal(before[name], t) for name, t in checkpoint.tensors.items())


def test_the_hash_of_a_pickle_is_that_of_all_its_bytes(tmp_path):  # M17
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle_paths("edm2_auto")[0].read_bytes() + b"more")
    assert read(path).sha256 == fetching.sha256_of(path)


@pytest.mark.parametrize(
    "card",
    ["", "{", "[]", '{"encoder": {}}', '"x"', '{"architecture": {"class": "Precond"}}', b"\xff\xfe",
     '{"architecture": {"class": "Precond", "kwargs": 5}, "encoder": {}}', "[" * 99999],
    ids=range(9),
)  # fmt: skip
def test_a_malformed_card_is_refused(copy, card):
    copy.with_suffix(".json").write_bytes(card if isinstance(card, bytes) else card.encode())
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
def test_cards_that_do_not_fit_are_refused(copy, changes, reason):
    change_card(copy, **changes)
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


# Addresses


def test_a_source_is_a_preset_a_path_or_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("net.pkl", "net.safetensors", "a/b", "./digits", "https://h/x", "hf://o/r/f"):
        assert address_of(text) == text
    assert address_of(Path("digits")) == "digits"  # a Path is never a preset
    assert address_of("digits").endswith("checkpoints/digits.safetensors")
    (tmp_path / "digits").write_text("")
    (tmp_path / "weights").write_text("")
    assert address_of("digits").endswith("checkpoints/digits.safetensors")
    assert address_of("weights") == "weights"
    (tmp_path / "digit").mkdir()
    with pytest.raises(ValueError, match="unknown preset 'digit'; did you mean digits"):
        load_model("digit")


def test_a_bare_file_name_is_a_file_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(pickle_paths("edm2_auto")[0], "x.pkl")
    shutil.copy("x.pkl", "x")
    shape = load_model("x.pkl").sample_shape
    assert shape == load_model("x").sample_shape == load_model(Path("x")).sample_shape
    with pytest.raises(FileNotFoundError, match=r"there is no file y\.pkl: check the path"):
        load_model("y.pkl")
    with pytest.raises(FileNotFoundError, match="there is no file y: check the path"):
        load_model(Path("y"))


def test_str_path_and_preset_give_the_same_model():
    path = ROOT / "checkpoints" / "digits.safetensors"
    models = [load_model(source) for source in ("digits", path, str(path))]
    assert {model.sha256 for model in models} == {fetching.sha256_of(path)}
    assert {model.name for model in models} == {path.name}
    assert {model.licence for model in models} == {"Apache-2.0"}
    assert models[0].sample_shape == (1, 8, 8) and models[0].label_dim == 10


@pytest.mark.parametrize("suffix", ["", ".pkl", ".safetensors"])
def test_a_folder_is_refused(tmp_path, suffix):
    folder = tmp_path / f"net{suffix}"
    folder.mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder; give a .pkl or") as error:
        load_model(folder)
    sentence(error)


@pytest.mark.parametrize("name", ["net.pkl", "net.safetensors"])
def test_a_file_without_the_right_to_read_is_named(copy, monkeypatch, name):
    path = copy.with_name(name)
    path.touch()

    def forbidden(file, *_, **__):  # tests may run as root, whom no rights stop
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("os.open", forbidden)
    with pytest.raises(PermissionError, match=f"{name} is not readable") as error:
        read(path)
    sentence(error)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="unknown precision 'fp8'; choose one of auto, fp32"):
        load_model("digits", precision="fp8")


def test_offline_without_a_cached_file_says_so():
    for source in ("edm2-img512-s", "https://example.invalid/a/net.safetensors"):
        with pytest.raises(FileNotFoundError, match="is not in the cache") as error:
            load_model(source, offline=True)
        sentence(error)


@pytest.fixture
def site(converted, monkeypatch):
    """The address of a server for the golden pickles' and the converted network's folders."""
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")

    class Handler(SimpleHTTPRequestHandler):
        asked = []

        def translate_path(self, path):
            Handler.asked.append(path)
            name = path.partition("?")[0].rpartition("/")[2]
            folder = GOLDEN / "nets" if name.endswith(".pkl") else converted.parent
            return str(folder / name)

        def log_message(self, *_): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", asked=Handler.asked)
        server.shutdown()


@pytest.mark.parametrize("query", ["", "?download=true&x=a.safetensors/b"])
def test_models_come_from_urls_once(site, converted, query):
    local, labels = load_model(converted), torch.tensor([1])
    x = torch.randn(1, *local.sample_shape, generator=torch.Generator().manual_seed(0))
    for name, files in (("edm2_cond.pkl", 1), ("net.safetensors", 2)):
        url = f"{site.url}/models/{name}{query}"
        model = load_model(url)
        assert torch.equal(model(x, 1.0, labels), local(x, 1.0, labels))
        assert model.name == url and len(site.asked) == files
        load_model(url, offline=True)
        assert len(site.asked) == files  # from the cache
        site.asked.clear()


def test_safetensors_without_a_card_on_the_server_are_refused(site, converted):
    shutil.copy(converted, converted.with_name("lone.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"lone\.json answered 404") as error:
        load_model(f"{site.url}/lone.safetensors")
    sentence(error)
    with pytest.raises(FileNotFoundError, match=r"none\.pkl answered 404"):
        load_model(f"{site.url}/none.pkl")


@pytest.mark.parametrize("revision", ["", "@main", "@refs/pr/1"])
def test_the_card_of_a_hub_file_has_the_same_revision(monkeypatch, revision):
    asked = []
    monkeypatch.setattr(
        "erk.models.model.fetch",
        lambda source, offline: asked.append(source) or Path("cached.safetensors"),
    )
    fetch_checkpoint(f"hf://owner/repo.safetensors/net.safetensors{revision}")
    assert asked == [
        f"hf://owner/repo.safetensors/net.{kind}{revision}" for kind in ("safetensors", "json")
    ]


# Calling a model


@pytest.fixture(scope="module")
def model():
    return load_model(pickle_paths("edm2_cond")[0])


@pytest.fixture(scope="module")
def x():
    return torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def test_labels_may_be_classes_one_hot_or_none(model, x):
    classes = torch.tensor([0, 9, 3])
    one_hot = torch.nn.functional.one_hot(classes, 10)
    expected = model(x, 1.5, one_hot.float())
    for labels in (classes, classes.int(), classes.to(torch.uint8), one_hot, one_hot.bool()):
        assert torch.equal(model(x, 1.5, labels), expected)
    torch.testing.assert_close(model(x, 1.5), model(x, 1.5, torch.zeros(3, 10)))
    assert not torch.equal(model(x, 1.5), expected)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (torch.zeros(3, 9), r"shape \[3, 9\].*10 classes"),
        (torch.zeros(3, 1, dtype=torch.int64), r"shape \[3, 1\].*10 classes"),
        (torch.tensor(3), r"shape \[\].*10 classes"),
        (torch.tensor([0, 10, 1]), r"are 0 to 9.*\[0, 10, 1\]"),
        (torch.tensor([0, -1, 1]), r"are 0 to 9"),
    ],
)
def test_wrong_labels_are_refused(model, x, labels, reason):
    with pytest.raises(ValueError, match=reason) as error:
        model(x, 1.0, labels)
    sentence(error)


def test_sigma_may_be_a_number_a_tensor_or_a_vector(model, x):
    expected = model(x, torch.tensor(2.0))
    for sigma in (2, 2.0, np.float64(2), torch.tensor(2.0, dtype=torch.float64), torch.tensor([2])):
        assert torch.equal(model(x, sigma), expected)
    sigmas = torch.tensor([0.5, 2.0, 2.0])
    mixed = model(x, sigmas)
    torch.testing.assert_close(mixed[1:], expected[1:], rtol=0, atol=1e-5)
    assert not torch.allclose(mixed[0], expected[0], atol=1e-3)
    assert mixed.dtype == torch.float32
    assert model(x.double(), 2.0).dtype == torch.float32


def test_an_unconditional_model_ignores_labels(x):
    model = load_model(pickle_paths("edm2_uncond")[0])
    assert model.label_dim == 0
    assert torch.equal(model(x, 1.0, torch.tensor([1, 2, 3])), model(x, 1.0))


# Encoders


def test_pixels_equal_the_originals():
    data = ref("images")
    runs = [key.removesuffix("_float") for key in data if key.endswith("_float")]
    assert len(runs) == 5
    for run in runs:
        pixels = PixelEncoder().decode(tensor(data[f"{run}_float"]))
        assert torch.equal(pixels, tensor(data[f"{run}_uint8"]))


def test_pixels_are_clipped_and_truncated():
    values = torch.tensor([-9, -1.0, 0.0, 0.9999, 1, 9])
    assert PixelEncoder().decode(values).tolist() == [0, 0, 128, 255, 255, 255]
    assert PixelEncoder().decode(torch.tensor([0.0078])).item() == 128  # 128.99


class StandInVAE:
    """The decoder that the golden file was made with; keeps what it is given."""

    def __init__(self):
        self.seen = []

    def to(self, device):
        return self

    def decode(self, x):
        self.seen.append(x)
        return SimpleNamespace(sample=x[:, :3] * 0.25 + 0.5)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_latents_are_scaled_as_by_the_originals(batch_size):
    data, encoder = ref("vae_io"), VAEEncoder(batch_size=batch_size)
    encoder.vae = StandInVAE()
    assert torch.equal(encoder.scale.flatten(), tensor(data["scale"]))
    assert torch.equal(encoder.bias.flatten(), tensor(data["bias"]))
    pixels = encoder.decode(tensor(data["latents"]))
    assert [len(part) for part in encoder.vae.seen] == {1: [1, 1, 1], 2: [2, 2], 8: [3]}[batch_size]
    assert torch.equal(torch.cat(encoder.vae.seen)[:3], tensor(data["vae_input"]))
    assert torch.equal(pixels, tensor(data["uint8"]))


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    """A small AutoencoderKL with random weights, as diffusers saves it."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(folder)
    return folder


def test_a_saved_vae_decodes_in_mini_batches(vae_folder):
    from diffusers import AutoencoderKL

    latents = torch.randn(7, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    encoder = VAEEncoder(vae_name=str(vae_folder), batch_size=7, offline=True)
    whole = encoder.decode(latents)
    assert whole.dtype == torch.uint8 and whole.shape == (7, 3, 16, 16)
    assert whole.float().std() > 5  # not a picture of one grey
    for batch_size in (1, 3):
        encoder.batch_size = batch_size
        change = (encoder.decode(latents).int() - whole.int()).abs()
        assert change.max() <= 1 and (change > 0).float().mean() <= 1e-3
    vae = AutoencoderKL.from_pretrained(vae_folder, low_cpu_mem_usage=False).eval()
    with torch.no_grad():
        raw = (latents - encoder.bias) / encoder.scale
        expected = (vae.decode(raw).sample.clamp(0, 1) * 255).to(torch.uint8)
    assert torch.equal(whole, expected)


def test_a_model_takes_the_folder_of_its_vae(vae_folder):
    model = load_model(pickle_paths("edm2_cond")[0], vae=str(vae_folder), offline=True)
    assert model.decode(torch.zeros(2, *model.sample_shape)).shape == (2, 3, 32, 32)


def test_a_vae_that_is_not_there_is_named(vae_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "broken"
    shutil.copytree(vae_folder, broken)
    weights = broken / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for name in (str(tmp_path / "none"), "owner/not-cached", str(tmp_path), str(broken)):
        encoder = VAEEncoder(vae_name=name, offline=True)
        with pytest.raises(OSError, match=f"the VAE '{name}' could not be loaded") as error:
            encoder.decode(torch.zeros(1, 4, 2, 2))
        assert "--vae" in sentence(error)


def test_diffusers_is_not_imported_before_decode():
    code = (
        "import sys, torch, erk; m = erk.load_model(sys.argv[1]);"
        "m(torch.zeros(1, *m.sample_shape), 1.0); print(type(m.encoder).__name__,"
        "[name for name in ('diffusers', 'transformers', 'huggingface_hub', 'requests')"
        " if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(pickle_paths("edm2_cond")[0])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "VAEEncoder []", done.stderr


def test_digits_survive_encode_and_decode():
    encoder = DigitsEncoder(mean=-0.3895, std=0.7521)
    levels = torch.arange(17.0).reshape(1, 1, 1, 17)
    encoded = encoder.encode(levels)
    assert encoded.dtype == torch.float32
    pixels = encoder.decode(encoded)
    assert pixels.dtype == torch.uint8
    assert torch.equal((pixels.float() * 16 / 255).round(), levels)  # what the extractor reads
    assert ((pixels.float() - levels * 255 / 16).abs() <= 1).all()
    assert pixels.flatten()[0] == 0 and pixels.flatten()[16] >= 254
    assert encoder.decode(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_digits_are_standardised():
    from sklearn.datasets import load_digits

    encoder = load_model("digits").encoder
    encoded = encoder.encode(torch.tensor(load_digits().images))
    assert encoded.mean().item() == pytest.approx(0, abs=1e-3)
    assert encoded.std().item() == pytest.approx(0.5, abs=1e-3)
