"""One pass, the store, chunks, shards: features do not depend on how they were come plan."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from erk.io.untrusted import ShapeError, decode_image
from erk.runtime.distributed import World
from metrics import chunks as chunks_module
from metrics import evaluate, store
from metrics.chunks import Chunk
from metrics.extractors import Outputs
from metrics.features import (
    ExtractionPlan,
    collect,
    extract,
    image_chunks,
    load_features,
    store_features,
)
from metrics.images import open_images
from metrics.selection import subset

ALONE = World(0, 1, torch.device("cpu"))


class Counted:
    """An extractor that counts the images it sees: features are the first two pixels."""

    feature_dim = 2

    def __init__(self, name="counted", sha256="ab" * 32, precision="fp32"):
        self.name, self.sha256, self.precision, self.seen = name, sha256, precision, 0

    def __call__(self, images):
        self.seen += len(images)
        rows = images.flatten(1)[:, :2].float()
        return Outputs(rows, rows * 2, rows + 1)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks_module, "CHUNK", 4)


@pytest.fixture
def source(save_pngs):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (11, 1, 8, 8), np.uint8))
    return open_images(save_pngs(images))


def plan_of(folder, *extractors, fields=("features",), **options):
    named = {one.name: one for one in extractors or (Counted(),)}
    outputs = dict.fromkeys(named, fields)
    return ExtractionPlan(named, outputs, folder / "store", batch=3, **options)


def extracted(source, plan, world=ALONE):
    return collect(plan, image_chunks(source, plan), world, len(source.names))


def expected(source):
    pixels = [np.asarray(Image.open(source.path / name)) for name in source.names]
    return torch.from_numpy(np.stack(pixels)).flatten(1)[:, :2].float()


def test_features_without_a_hash_of_the_weights_are_not_stored(tmp_path):
    """J3: those of other weights would be taken for them."""
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="features of counted cannot be stored, its sha256 is em"):
        extract(images, {"counted": Counted(sha256="")}, tmp_path)
    assert extract(images, {"counted": Counted(sha256="")}).n == 2


def test_every_extractor_sees_every_image_once(source, tmp_path):
    plan = plan_of(tmp_path, Counted("a"), Counted("b"), fields=("features", "logits"))
    result = extracted(source, plan)
    assert torch.equal(result.outputs["a"].features, expected(source))
    assert torch.equal(result.outputs["b"].logits, 2 * expected(source))
    assert result.outputs["a"].spatial is None
    assert result.n == 11 and result.index.tolist() == list(range(11))
    assert [one.seen for one in plan.extractors.values()] == [11, 11]


def test_large_images_come_in_smaller_chunks(source, tmp_path, monkeypatch):
    """Memory has a bound, whatever the size of the images; the features stay the same."""
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", 3 * 8 * 8 + 1)
    plan = plan_of(tmp_path)
    chunks = list(image_chunks(source, plan)(0, 1))
    assert [chunk.size for chunk in chunks] == [3, 3, 3, 2]
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", 1)
    assert len(list(image_chunks(source, plan)(0, 1))) == 11
    assert torch.equal(extracted(source, plan).outputs["counted"].features, expected(source))


def test_an_image_of_another_size_is_not_decoded(source, tmp_path, monkeypatch):
    big = Image.new("L", (4000, 4000))
    big.save(source.path / source.names[7])
    with pytest.raises(ValueError, match="4000x4000 grey but the first image is 8x8 grey"):
        extracted(source, plan_of(tmp_path))
    monkeypatch.setattr(np, "asarray", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ShapeError):
        decode_image((source.path / source.names[7]).read_bytes(), (8, 8, 1))


def test_an_image_is_decoded_once_for_all_extractors(source, tmp_path, monkeypatch):
    decoded = Counter()
    original = chunks_module.read_image
    monkeypatch.setattr(
        chunks_module, "read_image",
        lambda source, index, *more: decoded.update([index]) or original(source, index, *more),
    )  # fmt: skip
    extracted(source, plan_of(tmp_path, Counted("a"), Counted("b")))
    assert decoded == {i: 1 for i in range(11)}


def test_measuring_again_extracts_nothing(source, tmp_path):
    first, again = plan_of(tmp_path), plan_of(tmp_path)
    a, b = extracted(source, first), extracted(source, again)
    assert torch.equal(a.outputs["counted"].features, b.outputs["counted"].features)
    assert again.extractors["counted"].seen == 0
    other = plan_of(tmp_path, Counted(sha256="cd" * 32))  # other weights, other features
    extracted(source, other)
    assert other.extractors["counted"].seen == 11
    lower = plan_of(tmp_path, Counted(precision="bf16"))  # another precision, other features
    extracted(source, lower)
    assert lower.extractors["counted"].seen == 11
    more = plan_of(tmp_path, fields=("features", "spatial"))  # an output that is not kept yet
    assert extracted(source, more).outputs["counted"].spatial is not None
    assert more.extractors["counted"].seen == 11


def test_a_changed_image_is_extracted_anew(source, tmp_path):
    extracted(source, plan_of(tmp_path))
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(source.path / source.names[9])
    again = plan_of(tmp_path)
    result = extracted(source, again)
    assert again.extractors["counted"].seen == 3  # its chunk of 4 holds the last 3
    assert torch.equal(result.outputs["counted"].features, expected(source))


def test_same_images_elsewhere_are_known(source, tmp_path):
    extracted(source, plan_of(tmp_path))
    source.path.rename(tmp_path / "moved")
    again = plan_of(tmp_path)
    extracted(open_images(tmp_path / "moved"), again)
    assert again.extractors["counted"].seen == 0


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_cover_everything_once(source, tmp_path, size):
    plan = plan_of(tmp_path)
    chunks = image_chunks(source, plan)
    shares = []
    for rank in range(size):
        stored = store_features(plan, chunks(rank, size), ALONE, 11)
        shares += [(chunk.start, chunk.size) for chunk in stored]
    assert sorted(shares) == [(0, 4), (4, 4), (8, 3)]
    assert plan.extractors["counted"].seen == 11
    assert torch.equal(extracted(source, plan).outputs["counted"].features, expected(source))
    assert plan.extractors["counted"].seen == 11  # all of it from the store


def test_a_killed_pass_goes_on(source, tmp_path):
    plan = plan_of(tmp_path)
    pieces = store_features(plan, image_chunks(source, plan)(0, 1), ALONE, 11)
    next(pieces)
    pieces.close()  # killed after the first chunk
    again = plan_of(tmp_path)
    assert torch.equal(extracted(source, again).outputs["counted"].features, expected(source))
    assert again.extractors["counted"].seen == 7


def test_a_damaged_file_of_the_store_is_made_again(source, tmp_path):
    extracted(source, plan_of(tmp_path))
    victim = sorted((tmp_path / "store").rglob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:30])
    again = plan_of(tmp_path)
    assert torch.equal(extracted(source, again).outputs["counted"].features, expected(source))
    assert 0 < again.extractors["counted"].seen < 11


def test_features_of_another_folder_are_asked_for(source, tmp_path):
    with pytest.raises(FileNotFoundError, match="every process needs the same folder"):
        load_features(plan_of(tmp_path), [(0, "00" * 32, 4)])


def test_corrupt_images_are_named_or_skipped(source, tmp_path):
    for i in (0, 5):
        (source.path / source.names[i]).write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"000000\.png is not a readable image"):
        extracted(source, plan_of(tmp_path))
    skipping = plan_of(tmp_path, skip_corrupt=True)
    result = extracted(source, skipping)
    assert result.index.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert result.outputs["counted"].features.shape == (9, 2)
    with pytest.raises(ValueError, match=r"000000\.png is not a readable image"):
        extracted(source, plan_of(tmp_path))  # the store does not hide them
    for name in source.names:
        (source.path / name).write_bytes(b"junk")
    with pytest.raises(ValueError, match="holds no readable image"):
        extracted(source, plan_of(tmp_path, skip_corrupt=True))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((6, 8), "000010.png is 8x6 grey but the first image is 8x8 grey"),
     ((8, 8, 3), "000010.png is 8x8 RGB but the first image is 8x8 grey")],
)  # fmt: skip
def test_mixed_images_are_refused(source, tmp_path, shape, message):
    Image.fromarray(np.zeros(shape, np.uint8)).save(source.path / source.names[10])
    with pytest.raises(ValueError, match=message):
        extracted(source, plan_of(tmp_path))


def test_nan_features_name_the_image(source, tmp_path):
    class Broken(Counted):
        def __call__(self, images):
            rows = super().__call__(images).features
            rows[-1] = torch.nan
            return Outputs(rows)

    with pytest.raises(ValueError, match="images from number 0 on hold NaN .* in row 2"):
        extracted(source, plan_of(tmp_path, Broken()))
    assert not list((tmp_path / "store").rglob("*.safetensors"))
    with pytest.raises(ValueError, match="counted features hold NaN or infinity .first in row 2"):
        extract([torch.zeros(3, 1, 8, 8, dtype=torch.uint8)], {"counted": Broken()})


def test_facts_travel_with_the_features(tmp_path):
    plan = plan_of(tmp_path)

    def pieces(rank, size):
        for start in range(0, 6, 3):
            images = torch.full((3, 1, 8, 8), start, dtype=torch.uint8)
            facts = {"labels": torch.arange(start, start + 3)}
            key = hashlib.sha256(bytes([start])).hexdigest()
            yield Chunk(start, key, 3, lambda i=images, f=facts: (i, torch.arange(3), f))

    for _ in range(2):  # made, then read
        result = collect(plan, pieces, ALONE, 6)
        assert result.metadata["labels"].tolist() == list(range(6))
        assert result.outputs["counted"].features[:, 0].tolist() == [0] * 3 + [3] * 3
    assert plan.extractors["counted"].seen == 6


def test_in_memory(source):
    images = torch.arange(5 * 64, dtype=torch.uint8).reshape(5, 1, 8, 8)
    result = extract(images.split(2), {"counted": Counted()})
    assert result.n == 5 and result.outputs["counted"].features[:, 1].tolist()[:2] == [1, 65]
    with pytest.raises(ValueError, match="there are no images"):
        extract([], {"counted": Counted()})


def test_a_subset_has_its_own_places(source, tmp_path):
    few = subset(source, 5, seed=1)
    result = extracted(few, plan_of(tmp_path))
    rows = [source.names.index(name) for name in few.names]
    assert torch.equal(result.outputs["counted"].features, expected(source)[rows])


def test_trim_removes_what_was_unused_longest(source, tmp_path):
    import os

    other = tmp_path / "store" / "models" / "ab" / "mine.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"x" * 10**6)
    plan = plan_of(tmp_path)
    extracted(source, plan)
    other.touch()
    files = sorted(
        (tmp_path / "store" / "counted-1-abababababababababababababababab").rglob("*.s*")
    )
    for age, file in enumerate(files):
        os.utime(file, (1000 - age, 1000 - age))
    size = files[0].stat().st_size
    assert store.trim(plan.cache, sum(f.stat().st_size for f in files)) == 0
    assert store.trim(plan.cache, 2 * size) >= size
    assert [file.exists() for file in files] == [True, True, False] and other.exists()


def test_a_chunk_of_broken_images_only(source, tmp_path):
    class Strict(Counted):
        def __call__(self, images):
            assert len(images), "an extractor is never shown nothing"
            return super().__call__(images)

    for i in range(4, 11):
        (source.path / source.names[i]).write_bytes(b"junk")
    for _ in range(2):  # made, then read
        plan = plan_of(tmp_path, Strict(), skip_corrupt=True)
        assert extracted(source, plan).index.tolist() == [0, 1, 2, 3]
    assert plan.extractors["counted"].seen == 0


def test_a_damaged_member_of_a_zip(source, tmp_path):
    import zipfile

    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in source.names:
            archive.write(source.path / name, name)
    data = bytearray(path.read_bytes())
    data[60] ^= 255  # inside the first image: its checksum fails
    path.write_bytes(data)
    packed = open_images(path)
    with pytest.raises(ValueError, match=r"000000\.png is not a readable image"):
        extracted(packed, plan_of(tmp_path))
    assert extracted(packed, plan_of(tmp_path, skip_corrupt=True)).index.tolist() == list(
        range(1, 11)
    )


def test_outputs_are_added_to_those_in_the_store(source, tmp_path):
    for fields in (("features", "spatial"), ("features", "logits")):
        extracted(source, plan_of(tmp_path, fields=fields))
    every = plan_of(tmp_path, fields=("features", "logits", "spatial"))
    result = extracted(source, every).outputs["counted"]
    assert every.extractors["counted"].seen == 0
    assert torch.equal(result.logits, 2 * expected(source))
    assert torch.equal(result.spatial, 1 + expected(source))


def test_images_of_another_size_than_the_reference(source, tmp_path):
    with pytest.raises(ValueError, match="8x8 pixels but what it is compared with of 64x64"):
        extracted(source, plan_of(tmp_path, image_size=(64, 64)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int16])
def test_images_in_memory_of_another_type_are_refused(dtype, digits, tmp_path):
    with pytest.raises(ValueError, match=f"uint8 tensors .* not Tensor {dtype} "):
        evaluate(digits[0][:20].to(dtype), "digits", cache=tmp_path)
