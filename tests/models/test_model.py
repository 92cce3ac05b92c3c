"""From a source (preset, path, address) to a model, and calls of a model."""

import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_data import GOLDEN, pickle_paths
from stored_networks import sentence

import metrics
from erk import load_model
from erk.io.files import sha256_of
from erk.models.checkpoint import read
from erk.models.model import address_of, fetch_checkpoint

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("empty_cache")


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
    assert {model.sha256 for model in models} == {sha256_of(path)}
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
def test_a_file_without_permission_to_read_is_named(copy, monkeypatch, name):
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
@pytest.mark.parametrize("load", [load_model, metrics.load_extractor])
def test_a_device_that_the_machine_lacks_is_refused(load):
    """b14: with the sentence of the command line."""
    with pytest.raises(ValueError, match="device 'cuda' is not available on this machine"):
        load("digits", device="cuda")


def test_offline_without_a_cached_file_says_so():
    for source in ("edm2-img512-s", "https://example.invalid/a/net.safetensors"):
        with pytest.raises(FileNotFoundError, match="is not in the cache") as error:
            load_model(source, offline=True)
        sentence(error)


@pytest.fixture
def site(converted, monkeypatch):
    """The address of a server for the golden pickles' and the converted network's folders."""
    monkeypatch.setattr("erk.io.download.PAUSE", 0.0)
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
        assert model.name == url.partition("?")[0] and len(site.asked) == files
        load_model(url, offline=True)
        assert len(site.asked) == files  # from the cache
        site.asked.clear()


def test_safetensors_without_metadata_on_the_server_are_refused(site, converted):
    shutil.copy(converted, converted.with_name("lone.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"lone\.json answered 404") as error:
        load_model(f"{site.url}/lone.safetensors")
    sentence(error)
    with pytest.raises(FileNotFoundError, match=r"none\.pkl answered 404"):
        load_model(f"{site.url}/none.pkl")


@pytest.mark.parametrize("revision", ["", "@main", "@refs/pr/1"])
def test_the_metadata_of_a_hub_file_has_the_same_revision(monkeypatch, revision):
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
        (torch.ones(3, dtype=torch.bool), r"labels \[3\] of true and false are no classes"),  # J
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


def test_a_batch_that_the_host_has_no_memory_for_is_not_tried(monkeypatch):
    """J6: the system would end the process.

    Levels of 16 x 16 x 16 and 8 x 8 x 32 float32 values with two blocks: three skips of each and
    six times the larger one.
    """
    image = 4 * (3 * (16 * 16 * 16 + 8 * 8 * 32) + 6 * 16 * 16 * 16)
    model = load_model(GOLDEN / "nets/edm2_pixel.pkl")
    monkeypatch.setattr("erk.models.model.free_memory", lambda: 4 * image)
    assert model(torch.zeros(4, 3, 16, 16), 1.0).shape == (4, 3, 16, 16)
    with pytest.raises(MemoryError, match="a batch of 5 take 0.00086 GB or more, but 0.000688 GB"):
        model(torch.zeros(5, 3, 16, 16), 1.0)
    model.network.compute_dtype = torch.bfloat16  # takes half
    assert model(torch.zeros(5, 3, 16, 16), 1.0).shape == (5, 3, 16, 16)
