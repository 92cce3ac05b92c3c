"""One call from images to numbers, whatever form images and references have."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import metrics
from metrics.build_reference import build_reference
from metrics.extractors import Outputs
from metrics.features import ExtractionPlan, Features
from metrics.images import open_images
from metrics.measures import Measure
from metrics.merging import merge_references
from metrics.protocols import Protocol
from metrics.reference_files import write_reference
from metrics.references import load_reference
from metrics.statistics import Statistics, moments_of


@pytest.fixture(scope="module")
def networks(extractor):
    return {"digits": extractor}


@pytest.fixture(scope="module")
def expected(digits, reference, networks):
    return metrics.evaluate(digits[0][:200], reference, extractors=networks, groups=2)


def test_two_lines_equal_the_one_call(digits, reference, networks, expected):
    features = metrics.extract(digits[0][:200], networks)
    evaluation = metrics.evaluate(features, reference, protocol="digits", groups=2)
    assert evaluation.values == expected.values and evaluation.errors == expected.errors


@pytest.mark.parametrize("form", ["folder", "npz", "zip", "batches"])
def test_every_form_of_images_gives_the_same_numbers(form, digits, save_pngs, tmp_path, expected):
    images = digits[0][:200]
    if form == "folder":
        given = save_pngs(images)
    elif form == "zip":
        import shutil

        given = shutil.make_archive(str(tmp_path / "packed"), "zip", save_pngs(images))
    elif form == "npz":
        given = tmp_path / "images.npz"
        np.savez(given, images=images[:, 0].numpy())
    else:
        given = iter(images.split(64))
    evaluation = metrics.evaluate(given, "digits", groups=2)
    assert evaluation.values["fd"] == pytest.approx(expected.values["fd"], rel=1e-5)
    for name in ("precision", "recall"):
        assert evaluation.values[name] == expected.values[name]


@pytest.mark.parametrize("form", ["tensor", "folder", "npz", "features"])
def test_real_images_serve_as_the_reference(form, digits, save_pngs, tmp_path, networks):
    real, images = digits[0][:300], digits[0][300:500]
    given = real
    if form == "folder":
        given = save_pngs(real, "real")
    elif form == "npz":
        given = tmp_path / "real.npz"
        np.savez(given, arr_0=real[:, 0].numpy())
    elif form == "features":
        given = metrics.extract(real, networks)
    evaluation = metrics.evaluate(images, given, "digits", extractors=networks, groups=1)
    assert evaluation.details["real_n"] == 300
    moments = [metrics.Moments(64), metrics.Moments(64)]
    for one, part in zip(moments, (real, images), strict=True):
        one.add(networks["digits"](part).features)
    assert evaluation.values["fd"] == pytest.approx(metrics.frechet_distance(*moments), rel=1e-5)
    with pytest.raises(ValueError, match="names? no protocol: choose one of erk-paper"):
        metrics.evaluate(images, given)


def test_labels_give_an_accuracy(digits, reference, networks):
    images, labels = digits[0][:100], digits[1][:100]
    evaluation = metrics.evaluate(images, reference, labels=labels, extractors=networks)
    assert evaluation.values["accuracy"] > 0.97


def test_images_in_memory_are_stored_where_a_cache_is_given(digits, tmp_path):
    calls = []

    class Counted:
        name, feature_dim, sha256, precision = "counted", 64, "ab" * 32, "fp32"

        def __call__(self, images):
            calls.append(len(images))
            return type(digits_outputs)(images.flatten(1).float())

    digits_outputs = metrics.load_extractor("digits")(digits[0][:2])
    for _ in range(2):
        features = metrics.extract(digits[0][:300], {"counted": Counted()}, tmp_path)
        assert features.outputs["counted"].features.shape == (300, 64)
    assert sum(calls) == 300
    metrics.extract(digits[0][:300] // 2, {"counted": Counted()}, tmp_path)
    assert sum(calls) == 600


def test_a_row_holds_all_that_is_known(expected, extractor):
    row = expected.to_dict()
    assert row["fd"] == expected.values["fd"] and row["fd_se"] == expected.errors["fd"]
    assert row["extractors"] == {"digits": extractor.sha256}
    assert row["reference"] == "digits" and row["n"] == 200 and row["groups"] == 2
    assert row["notes"] == expected.notes and "fd_floor" in row
    assert any("compare these only with 200 images" in note for note in expected.notes)


def test_the_digits_classifier_is_not_loaded_for_other_references(tmp_path, monkeypatch):
    """A reference of statistics needs no network."""
    path = tmp_path / "mine.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    monkeypatch.setattr("metrics.references.load_extractor", lambda *_: pytest.fail("loaded"))
    assert list(load_reference(path).statistics) == ["inception"]


def test_unknown_options_are_refused(digits):
    with pytest.raises(TypeError, match=r"evaluate\(\) has no argument 'grups'.* groups"):
        metrics.evaluate(digits[0][:20], "digits", grups=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"groups": 2.5}, "groups .* 2.5"), ({"groups": True}, "groups .* True"), ({"batch": 0}, "1"),
     ({"memory": 5}, "memory .* 5"), ({"device": "cuda:99"}, "device 'cuda:99' is not available")],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, message, digits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(digits[0][:20], "digits", **options)


def test_one_iterator_cannot_be_the_images_and_the_real_ones(digits):
    """J: each took every other batch, so the numbers were those of two halves."""
    batches = iter(digits[0][:40].split(20))
    with pytest.raises(ValueError, match="are one iterator, which gives each batch once: give"):
        metrics.evaluate(batches, batches, "digits")
    assert len(list(batches)) == 2


def test_frechet_distance_takes_moments_and_pairs():
    moments = metrics.Moments(3).add(torch.randn(50, 3))
    pair = moments.mean, moments.cov
    zero = pytest.approx(0, abs=1e-12)
    assert metrics.frechet_distance(moments, pair) == zero
    assert metrics.frechet_distance(real=pair, generated=moments) == zero


def enlarged(images):
    return images.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.fixture
def small_reference(digits, extractor, tmp_path):
    """A file of statistics of 8x8 images, with features."""
    rows = extractor(digits[0][:300]).features
    moments = moments_of(rows)
    one = Statistics(moments.mean, moments.cov, moments.n, rows, "")
    path = tmp_path / "small.npz"
    return write_reference(path, {"any": one}, protocol="digits", image_size=8)


class AnySize:
    """An extractor that takes images of any size, as Inception does."""

    name, feature_dim, sha256, precision = "any", 64, "ef" * 32, "fp32"

    def __call__(self, images):
        small = torch.nn.functional.adaptive_avg_pool2d(images.float(), 8)
        return Outputs(small.flatten(1))


ANY = Protocol("any", (Measure("fd", "any", ("fd",)),), "test")


@pytest.mark.parametrize("form", ["tensor", "batches", "cache", "features", "folder"])
@pytest.mark.parametrize("real", ["file", "tensor", "features", "folder"])
def test_images_of_another_size_are_refused(
    form, real, digits, save_pngs, small_reference, tmp_path
):
    """R3: in every form, also if their features are stored already."""
    networks, options = {"any": AnySize()}, {}
    large = enlarged(digits[0][:20])
    if form == "batches":
        given = iter(large.split(8))
    elif form == "features":
        given = metrics.extract(large, networks)
    elif form == "folder":
        given = save_pngs(large, "large")
    else:
        given = large
    if form == "cache":
        options["cache"] = tmp_path / "cache"
        metrics.extract(large, networks, options["cache"])
    reference = small_reference
    if real != "file":
        reference = digits[0][300:400]
        reference = metrics.extract(reference, networks) if real == "features" else reference
        reference = save_pngs(reference, "real") if real == "folder" else reference
    with pytest.raises(ValueError, match=r"of 16x16 pixels but .* of 8x8: their numbers"):
        metrics.evaluate(given, reference, ANY, extractors=networks, **options)


def test_a_known_size_is_checked_before_a_download(digits, save_pngs, monkeypatch):
    """R31"""
    monkeypatch.setattr("metrics.references.fetch", lambda *_, **__: pytest.fail("downloaded"))
    for images in (digits[0][:20], save_pngs(digits[0][:20])):
        with pytest.raises(ValueError, match="8x8 pixels but the reference imagenet512 of 512x512"):
            metrics.evaluate(images, "imagenet512")


def test_the_size_of_images_that_are_not_square_is_compared(tmp_path):
    """J5: such a reference had no size, and images of any size were measured against it."""
    images = torch.randint(0, 256, (40, 1, 8, 12), dtype=torch.uint8)
    plan = ExtractionPlan({"any": AnySize()}, {"any": ("features",)}, tmp_path / "cache")
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path, half in zip(paths, images[:, 0].numpy().reshape(2, 20, 8, 12), strict=True):
        np.savez(tmp_path / "real.npz", images=half, labels=np.full(20, -1))
        source = open_images(tmp_path / "real.npz")
        build_reference(source, path, plan, ["any"], protocol="digits", keep_features=True)
    both = load_reference(merge_references(paths, tmp_path / "both.npz"))
    assert both.image_size == (8, 12) and both.labels is None
    with pytest.raises(ValueError, match="8x12 pixels but the reference a of 12x8"):
        metrics.evaluate(
            images.transpose(2, 3), load_reference(paths[0]), ANY, extractors={"any": AnySize()}
        )
    assert metrics.evaluate(images, both, ANY, extractors={"any": AnySize()}).values["fd"] < 1e-6


def test_batches_of_two_sizes_are_refused(digits, tmp_path):
    """R3"""
    batches = [digits[0][:8], enlarged(digits[0][:8])]
    for cache in (None, tmp_path):
        with pytest.raises(ValueError, match="8x8 pixels but another batch of 16x16"):
            metrics.extract(batches, {"any": AnySize()}, cache)


def test_batches_without_images_are_passed_over(digits, extractor):
    batches = [digits[0][:0], digits[0][:5], digits[0][:0], digits[0][5:9]]
    assert metrics.extract(batches, {"digits": extractor}).n == 9
    with pytest.raises(ValueError, match="there are no images to measure"):
        metrics.extract(batches[:1], {"digits": extractor})
    with pytest.raises(ValueError, match="must be uint8 tensors .* not ndarray"):
        metrics.extract([digits[0][:5].numpy()], {"digits": extractor})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0] * 5, "holds 100 images, so give 100 labels, not 5"),
        ([0] * 101, "so give 100 labels, not 101"),
        ([99] * 100, "has the class '99', but classes are 0 to 9"),
        ([10] * 100, "has the class '10', but classes are 0 to 9"),
        ([-1] * 100, "has the class '-1'"),
        (torch.full((100,), 0.9), "has the class '0.8999"),
        (np.zeros(100, bool), "has the class 'False'"),
        ([False] + [0] * 99, "has the class 'False'"),
        (torch.zeros(100, 10, dtype=torch.long), r"has the class '\[0, 0"),
        (["0"] * 100, "has the class '0'"),
        ([None] * 100, "has the class 'None'"),
        ([2**70] * 100, "but classes are 0 to 9"),
    ],
)
@pytest.mark.parametrize("form", ["tensor", "folder", "features"])
def test_labels_are_checked(labels, message, form, digits, save_pngs, networks, reference):
    """R4"""
    images = digits[0][:100]
    if form == "folder":
        images = save_pngs(images)
    elif form == "features":
        images = metrics.extract(images, networks)
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(images, reference, "digits", labels=labels, extractors=networks)


def test_labels_of_every_type_of_integer(digits, networks, reference):
    """R4"""
    images, labels = digits[0][:60], digits[1][:60]
    forms = [labels, labels.numpy(), labels.tolist(), list(labels.numpy()), labels.to(torch.uint8)]
    values = [
        metrics.evaluate(images, reference, labels=one, extractors=networks).values["accuracy"]
        for one in forms
    ]
    assert values == [values[0]] * 5 and values[0] > 0.9


def test_labels_are_those_of_the_set_with_its_unreadable_images(digits, networks, save_pngs):
    """R4: a label of an image that is left out goes with it."""
    folder = save_pngs(digits[0][:60])
    for number in (7, 59):
        (folder / f"{number:06d}.png").write_bytes(b"junk")
    kept = [i for i in range(60) if i not in (7, 59)]
    right = networks["digits"](digits[0][kept]).logits.argmax(1) == digits[1][kept]
    features = metrics.extract(folder, networks, skip_corrupt=True)
    assert (features.n, features.total) == (58, 60)
    for images in (folder, features):
        result = metrics.evaluate(
            *(images, "digits"), labels=digits[1][:60], skip_corrupt=True, extractors=networks
        )
        assert result.values["accuracy"] == pytest.approx(right.double().mean().item(), abs=1e-12)


@pytest.mark.parametrize("value", [False, 0.0, "", {}, [], "3", 1.0, 10, -1])
def test_a_class_in_run_json_that_is_none_is_refused(value, digits, save_pngs, networks):
    """R5, R17: by a metric that needs it; without such a metric it does not matter."""
    folder = save_pngs(digits[0][:40])
    (folder / "run.json").write_text(json.dumps({"settings": {"class": value}}))
    with pytest.raises(ValueError, match="but classes are 0 to 9: correct the labels, or leave"):
        metrics.evaluate(folder, "digits", extractors=networks)
    plain = metrics.evaluate(digits[0][:40], "digits", metrics="fd", extractors=networks)
    without = metrics.evaluate(folder, "digits", metrics="fd", extractors=networks)
    assert without.details["fd_floor"] == plain.details["fd_floor"]
    assert without.details["fd_floor_balanced"] is False


def test_features_of_other_networks_are_refused(digits, networks):
    """R10"""
    features = metrics.extract(digits[0][:30], networks)
    with pytest.raises(ValueError, match="mnist features of .* needed, but digits features"):
        metrics.evaluate(replace(features, image_size=None), "mnist")
    with pytest.raises(ValueError, match="inception features of the images are needed"):
        metrics.evaluate(features, features, "erk-paper")
    only = Features({"digits": Outputs(features.outputs["digits"].features)}, features.index)
    with pytest.raises(ValueError, match="digits logits .* but digits features were"):
        metrics.evaluate(only, "digits")
    assert metrics.evaluate(only, "digits", metrics="fd").values["fd"] > 0


def test_features_know_the_weights_that_they_come_from(digits, networks, tmp_path):
    """J4: of other weights they are refused; of unknown ones, as in others' files, they are not."""
    images, real = digits[0][:30], digits[0][30:90]
    sha256, random = networks["digits"].sha256, metrics.load_extractor("digits", weights="random:0")
    stored, drawn = metrics.extract(images, networks, tmp_path), {"digits": random}
    assert stored.weights == metrics.extract(images, networks).weights == {"digits": sha256}
    others = metrics.extract(images, drawn)
    of_real = metrics.extract(real, networks)
    result = metrics.evaluate(stored, of_real, "digits", metrics="fd")
    assert result.details["extractors"] == {"digits": sha256}
    kept = {"digits": Statistics(torch.zeros(64), torch.eye(64), 90, weights=sha256)}
    path = write_reference(tmp_path / "kept.npz", kept, protocol="digits")
    for reference in ("digits", path, of_real, real):
        known = networks if reference is real else None
        with pytest.raises(ValueError, match=r"different weights of digits \(sha256 .* same wei"):
            metrics.evaluate(others, reference, "digits", metrics="fd", extractors=known)
    foreign = {"digits": kept["digits"]._replace(weights=None)}
    path = write_reference(tmp_path / "foreign.npz", foreign, protocol="digits")
    assert metrics.evaluate(others, path, metrics="fd").values["fd"] > 0
    unknown = replace(others, weights={})
    assert metrics.evaluate(unknown, path, metrics="fd").details["extractors"] == {}


def test_random_weights_of_features_are_a_note(digits):
    """J4: also where the features were extracted before."""
    drawn = {"digits": metrics.load_extractor("digits", weights="random:0")}
    images, real = (metrics.extract(part, drawn) for part in (digits[0][:30], digits[0][30:90]))
    assert any("RANDOM WEIGHTS" in note for note in metrics.evaluate(images, real, "digits").notes)


def test_what_is_given_is_used_or_refused(digits, networks):
    """R12, R23"""
    images, real = digits[0][:30], digits[0][30:90]
    with pytest.raises(ValueError, match="is real images already: leave out real"):
        metrics.evaluate(images, real, "digits", real=real, extractors=networks)
    features = metrics.extract(images, networks)
    options = {"weights": {"digits": "random:0"}, "allow_random": True}
    with pytest.raises(ValueError, match="weights for digits are not used here"):
        metrics.evaluate(features, "digits", **options)


def test_messages_are_not_those_of_the_command(digits):
    """R24"""
    for arguments in [(None,), (digits[0][30:90],)]:
        with pytest.raises(ValueError, match="nothing to compare with|name no protocol") as error:
            metrics.evaluate(digits[0][:30], *arguments)
        assert "--" not in str(error.value)


def test_metrics_as_one_text(digits, networks):
    """R24: not letter by letter"""
    images = digits[0][:30]
    result = metrics.evaluate(images, "digits", metrics="fd", extractors=networks)
    assert list(result.values) == ["fd"]
    result = metrics.evaluate(images, "digits", metrics="fd, is", extractors=networks)
    assert list(result.values) == ["fd", "is", "is_std"]


def test_the_precision_is_that_of_the_extractors_given(digits):
    """R25"""
    given = {"digits": metrics.load_extractor("digits", precision="bf16")}
    result = metrics.evaluate(digits[0][:30], "digits", metrics="fd", extractors=given)
    assert result.details["extractor_precision"] == "bf16"
    assert any("extractors computed in bf16" in note for note in result.notes)
    features = metrics.extract(digits[0][:30], given)
    unknown = metrics.evaluate(features, "digits", metrics="fd")
    assert unknown.details["extractor_precision"] is None
