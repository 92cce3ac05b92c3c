"""From features to numbers: values, replicates, errors, paired differences and the floor."""

import math
from dataclasses import replace

import pytest
import torch

from metrics.distances import frechet_distance, inception_score
from metrics.evaluation import evaluate_features, fd_floor, paired_differences
from metrics.extractors import Outputs
from metrics.features import Features, extract
from metrics.measures import Measure
from metrics.neighbours import density_coverage, precision_recall
from metrics.protocols import Protocol, default_protocol, find_protocol, known_protocols
from metrics.reference_files import Reference
from metrics.statistics import Statistics, moments_of

DIGITS = find_protocol("digits")


@pytest.fixture(scope="module")
def evaluated(extractor, reference):
    def run(images, **options):
        batches = [images] if isinstance(images, torch.Tensor) else images
        return evaluate_features(
            extract(batches, {"digits": extractor}), DIGITS, reference, **options
        )

    return run


def features_of(rows, logits=None, name="any"):
    return Features({name: Outputs(rows, logits)}, torch.arange(len(rows)))


def reference_of(features, name="any"):
    moments = moments_of(features)
    return Reference("r", "", {name: Statistics(moments.mean, moments.cov, moments.n, features)})


def test_real_digits_are_perfect(evaluated, digits):
    images, labels = digits
    result = evaluated(images, labels=labels.tolist())
    values = result.values
    assert values["fd"] < 1e-6
    assert (values["precision"], values["recall"]) == (1, 1)
    assert values["accuracy"] > 0.99 and 9 < values["is"] <= 10
    assert (result.protocol, result.n, result.undefined) == ("digits", 1797, [])


def test_noise_is_far_away(evaluated):
    generator = torch.Generator().manual_seed(0)
    result = evaluated(
        torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8, generator=generator)
    )
    assert result.values["fd"] > 100
    assert result.values["precision"] < 0.5 and result.values["recall"] < 0.3
    assert result.values["accuracy"] is None
    assert any("accuracy: the images' classes are not known" in note for note in result.undefined)


def test_collapse_to_one_class_shows_in_recall(evaluated, digits):
    images, labels = digits
    result = evaluated(images[labels == 1])
    assert result.values["precision"] == 1 and result.values["recall"] < 0.2


def test_batches_do_not_matter(evaluated, digits):
    images = digits[0][:400]
    a, b = (evaluated(images.split(size)).values["fd"] for size in (33, 400))
    assert a == pytest.approx(b, rel=1e-4)


def test_replicates_leave_a_group_out(evaluated, digits):
    """Every replicate equals the measure of the images that are left."""
    images, labels = digits[0][:303], digits[1][:303]
    result = evaluated(images, labels=labels, groups=4, in_seed_order=True)
    for group in range(4):
        left = torch.arange(303) * 4 // 303 != group
        alone = evaluated(images[left], labels=labels[left], groups=1)
        for name in ("fd", "precision", "recall", "accuracy"):
            expected = pytest.approx(alone.values[name], rel=1e-5)
            assert result.replicates[name][group] == expected, name
        assert result.replicates["is"][group] == pytest.approx(alone.values["is"], rel=0.1), (
            "the shuffle of all 303 holds"
        )
    assert "is_std" not in result.replicates and result.errors["is_std"] is None


def test_errors_are_those_of_fresh_samples():
    """The jackknife's error against the spread over independent samples.

    Measured: ratios of 1.08 (fd), 1.16 (precision), 1.34 (recall), 1.06 (is).
    """
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(16, 10, generator=generator)
    real = reference_of(torch.randn(600, 16, generator=generator), "digits")
    names = ("fd", "precision", "recall", "is")
    values, errors = [], []
    for _ in range(40):
        drawn = torch.randn(500, 16, generator=generator) * 0.9 + 0.3
        result = evaluate_features(
            features_of(drawn, drawn @ weights, "digits"), DIGITS.only(names), real
        )
        values.append([result.values[name] for name in names])
        errors.append([result.errors[name] for name in names])
    ratio = torch.tensor(errors).square().mean(0).sqrt() / torch.tensor(values).std(0)
    assert ((ratio > 0.75) & (ratio < 1.5)).all(), ratio


def test_errors_of_images_that_are_sorted_by_class(evaluated, digits):
    """Groups of one class each would make the error ten times too large (F4)."""
    images, labels = digits[0][:1000], digits[1][:1000]
    mixed = evaluated(images, in_seed_order=True).errors["fd"]
    order = labels.argsort()
    assert evaluated(images[order], in_seed_order=True).errors["fd"] > 5 * mixed
    drawn = evaluated(images[order]).errors["fd"]
    assert drawn == pytest.approx(mixed, rel=0.7)
    known = evaluated(images[order], in_seed_order=True, labels=labels[order])  # seeds of blocks
    assert known.errors["fd"] == drawn


def test_paired_differences_see_what_single_errors_hide(evaluated, digits):
    """The same images, some of them a little darker: the difference is small but sure."""
    images = digits[0][:600]
    changed = images.clone()
    changed[::2] = (changed[::2] * 0.8).to(torch.uint8)
    a, b = evaluated(changed), evaluated(images)
    difference = paired_differences(a, b)["fd"]
    assert difference.value == pytest.approx(a.values["fd"] - b.values["fd"])
    assert difference.error < min(a.errors["fd"], b.errors["fd"])
    same = paired_differences(a, a)
    assert all(one.value == 0 and not one.exceeds for one in same.values())
    assert set(same) == {"fd", "precision", "recall", "is"}


def test_every_kind_of_measure_equals_its_function():
    generator = torch.Generator().manual_seed(1)
    real, generated = (torch.randn(n, 6, generator=generator) for n in (1200, 1100))
    logits = torch.randn(1100, 5, generator=generator)
    rules = Protocol(
        "all",
        (
            Measure("fd", "any", ("fd",)),
            Measure("fd_infinity", "any", ("fd_infinity",)),
            Measure("is", "any", ("is", "is_std"), {"split_size": 400}),
            Measure("kid", "any", ("kid", "kid_std")),
            Measure("neighbours", "any", ("precision", "recall", "density", "coverage"),
                    {"k": 5, "strict": True, "reduced": 300}),
        ),
        "a test",
    )  # fmt: skip
    result = evaluate_features(features_of(generated, logits), rules, reference_of(real), groups=2)
    values, (a, b) = result.values, (moments_of(real), moments_of(generated))
    assert values["fd"] == pytest.approx(
        frechet_distance(real=(a.mean, a.cov), generated=(b.mean, b.cov)), rel=1e-9
    )
    assert values["fd_infinity"] < values["fd"] and abs(values["kid"]) < 0.05
    score = inception_score(logits, shuffle=False, split_size=400)
    assert (values["is"], values["is_std"]) == score
    rows = [
        torch.randperm(n, generator=torch.Generator().manual_seed(0))[:300].sort().values
        for n in (1200, 1100)
    ]
    few = {"real": real[rows[0]], "generated": generated[rows[1]]}
    assert (values["precision"], values["recall"]) == precision_recall(**few, k=5, strict=True)
    assert (values["density"], values["coverage"]) == density_coverage(**few, k=5)
    assert all(len(result.replicates[name]) == 2 for name in values if not name.endswith("_std"))


def test_real_images_serve_where_the_reference_has_no_features(reference, evaluated, digits):
    bare = {"digits": reference.statistics["digits"]._replace(features=None)}
    few = reference._replace(statistics=bare)
    generated = features_of(reference.statistics["digits"].features[:50], name="digits")
    rules = DIGITS.only(["fd", "precision"])
    result = evaluate_features(generated, rules, few)
    assert result.values["precision"] is None and result.values["fd"] > 0
    assert result.undefined == [
        "precision and recall: real images are needed, give them by --real PATH "
        "(in Python real=PATH)"
    ]
    real = {"digits": Outputs(reference.statistics["digits"].features)}
    with_real = evaluate_features(generated, rules, few, real=real)
    assert with_real.values["precision"] == 1
    alone = evaluate_features(generated, rules, None, real=real)
    assert alone.values == pytest.approx(with_real.values, rel=1e-9)


def test_too_few_images_for_some_metrics(evaluated, digits):
    result = evaluated(digits[0][:3])
    assert math.isfinite(result.values.pop("fd"))
    assert set(result.values.values()) == {None}
    assert "precision and recall: 3 images are too few, 4 are needed" in result.undefined
    assert result.errors["precision"] is None


def test_floor_falls_with_n_and_is_lower_with_balanced_classes(reference):
    real, labels = reference.statistics["digits"], reference.labels
    small, large = (fd_floor(real, n, labels) for n in (500, 4000))
    assert 0 < large.value < small.value / 3
    assert fd_floor(real, 500).value > small.value
    assert fd_floor(real, 500, labels) == small
    assert fd_floor(real, 500, labels, seed=1) != small


def test_refusals(evaluated, reference, digits):
    images = digits[0][:20]
    with pytest.raises(ValueError, match="there are 1 images: at least 2"):
        evaluated(images[:1])
    with pytest.raises(ValueError, match="20 images, so give 20 labels, not 19"):
        evaluated(images, labels=[0] * 19)
    with pytest.raises(ValueError, match="needs real features"):
        fd_floor(reference.statistics["digits"]._replace(features=None), 100)
    with pytest.raises(ValueError, match="FD floor of 19 images needs 20 or more"):
        fd_floor(reference.statistics["digits"], 19, reference.labels)
    for given in ({"n": 100.5}, {"n": 100, "repeats": 2.5}, {"n": 100, "seed": "1"}):  # J
        with pytest.raises(ValueError, match="must be a whole number, not"):
            fd_floor(reference.statistics["digits"], **given)


def test_protocols():
    assert {"erk-paper", "edm", "edm2", "adm", "dgm-eval", "kynkaat-dinov2", "digits"} <= {
        *known_protocols()
    }
    paper = find_protocol("erk-paper")
    assert paper.columns == ["fid", "fd_dinov2", "precision", "recall", "is", "is_std"]
    assert paper.outputs() == {
        "inception": ["features", "logits"], "dinov2": ["features"], "vgg16": ["features"]
    }  # fmt: skip
    assert paper.outputs(real=True) == {"vgg16": ["features"]}
    assert paper.only(["recall", "is"]).columns == ["precision", "recall", "is", "is_std"]
    assert find_protocol("adm").outputs() == {"inception": ["features", "spatial", "logits"]}
    assert find_protocol("adm").measures[1].statistics == "inception-spatial"
    assert default_protocol(["inception"]) == "edm"
    assert default_protocol(["inception", "inception-spatial"]) == "adm"
    assert default_protocol(["vgg16"]) is None
    assert default_protocol(["vgg16", "inception"]) == "torch-fidelity"  # friction 13
    assert default_protocol(["inception", "dinov2", "vgg16"]) == "erk-paper"
    with pytest.raises(ValueError, match="does not measure kid: choose among fid, fd_dinov2"):
        paper.only(["fid", "kid"])
    with pytest.raises(ValueError, match="no protocol 'fidelity': choose one of erk-paper"):
        find_protocol("fidelity")


@pytest.mark.parametrize("counts", [(100,), (99, 1), (50, 50)])
@pytest.mark.parametrize("groups", [2, 10])
def test_a_collapsed_generator_has_numbers(evaluated, digits, extractor, reference, counts, groups):
    """F3: FD by the closed form where the spread has rank 0, with errors from every group."""
    images = torch.cat([digits[0][i : i + 1].repeat(n, 1, 1, 1) for i, n in enumerate(counts)])
    result = evaluated(images, groups=groups)
    assert result.errors["fd"] is not None and len(result.replicates["fd"]) == groups
    if len(counts) == 1:
        real = reference.statistics["digits"]
        row = extractor(images[:1]).features[0].double()
        expected = float((row - real.mean).square().sum() + real.cov.trace())
        assert result.values["fd"] == pytest.approx(expected, rel=1e-6)  # float32 rows
        assert result.errors["fd"] < 1e-6 * expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": DIGITS.only(["fd"]), "rows": 50}, "60 images by protocol digits and 50 by"),
        ({"protocol": replace(DIGITS, name="other")}, "by protocol digits and 60 by other"),
        ({"labels": [1] * 60}, "differ in their classes asked for"),
        ({"in_seed_order": False}, "differ in their groups of images"),
        ({"groups": 5}, "differ in their groups of images"),
    ],
)
def test_a_paired_difference_needs_the_same_of_both(reference, options, message):
    """Seeds, classes, groups and protocol: else the error would be that of something else."""
    rows = reference.statistics["digits"].features[:60]
    features = features_of(rows, rows[:, :10], "digits")
    usual = {"protocol": DIGITS, "labels": [0] * 60, "in_seed_order": True}
    first = evaluate_features(features, reference=reference, **usual)
    few = options.pop("rows", 60)
    changed = usual | options | ({"labels": [0] * few} if few < 60 else {})
    second = evaluate_features(
        features_of(rows[:few], rows[:few, :10], "digits"), reference=reference, **changed
    )
    with pytest.raises(ValueError, match=message):
        paired_differences(first, second)
    unknown = evaluate_features(features, reference=reference, **usual | {"labels": None})
    assert paired_differences(first, unknown)["fd"].value == 0  # one knows no classes: fine
    other = replace(first, details={"reference_sha256": "a"})
    with pytest.raises(ValueError, match="differ in their reference sha256"):
        paired_differences(other, replace(first, details={"reference_sha256": "b"}))


@pytest.mark.parametrize("groups", [2, 10])
@pytest.mark.parametrize("n", [20, 26, 41])
def test_a_measure_with_too_few_images_for_a_replicate_has_a_value(n, groups):
    """F6: FD-infinity's smallest subset of 20 images has 2; one of them may be left out."""
    rows = torch.randn(60, 6, generator=torch.Generator().manual_seed(3))
    real = reference_of(rows, "dinov2-pil")
    result = evaluate_features(
        features_of(rows[:n], name="dinov2-pil"), "dgm-eval", real, groups=groups
    )
    alone = evaluate_features(features_of(rows[:n], name="dinov2-pil"), "dgm-eval", real, groups=1)
    assert result.values == pytest.approx(alone.values) and None not in result.values.values()
    known = {name for name, error in result.errors.items() if error is not None}
    assert {"fd_dinov2", "precision", "recall", "density", "coverage"} <= known
    note = f"no standard error of fd_infinity: {n} images are too few for {groups} groups"
    assert ("fd_infinity" in known) == (note not in result.notes)
    if n == 20:
        assert "fd_infinity" not in known


def test_an_inception_score_with_too_few_images_for_a_replicate_has_a_value(reference):
    """F7: without one of 5 groups, 9 of 12 images are left for 10 splits."""
    rows = reference.statistics["digits"].features[:12]
    logits = torch.randn(12, 10, generator=torch.Generator().manual_seed(4))
    result = evaluate_features(
        features_of(rows, logits, "digits"), DIGITS, reference, groups=5, labels=[0] * 12
    )
    assert result.values["is"] == pytest.approx(inception_score(logits)[0])
    assert result.errors["is"] is None and result.errors["fd"] > 0 and result.errors["recall"] > 0
    assert "no standard error of is: 12 images are too few for 5 groups" in result.undefined


def test_few_real_images_leave_too_few_generated_ones_for_some_replicates():
    """dgm-eval takes as many images of both sets: 8 of 40 may miss a group."""
    rows = torch.randn(48, 6, generator=torch.Generator().manual_seed(5))
    real = reference_of(rows[40:], "dinov2-pil")
    generated = features_of(rows[:40], name="dinov2-pil")
    few = evaluate_features(generated, find_protocol("dgm-eval"), real)
    assert few.values["precision"] is not None and few.errors["precision"] is None
    assert few.errors["fd_dinov2"] > 0


@pytest.mark.parametrize("groups", [6, 10, 13, 10**6])
def test_more_groups_than_images_give_values_without_errors(reference, groups):
    rows = reference.statistics["digits"].features[:11]
    rules = DIGITS.only(["fd", "precision"])
    result = evaluate_features(features_of(rows, name="digits"), rules, reference, groups=groups)
    assert result.values["fd"] > 0 and set(result.errors.values()) == {None}
    assert f"no standard errors: 11 images are too few for {groups} groups" in result.undefined
