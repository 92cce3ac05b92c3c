"""Noise and labels of every seed, bit for bit against the original rule."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_data import GOLDEN, ref, tensor

import erk
from erk.models.noise import SeededNoise, noise_and_labels, one_hot

RNG = ref("rng")
SEEDS = RNG["seeds"].tolist()  # the last one is 5 + 2^32
FACTS = json.loads((GOLDEN / "ref" / "rng.json").read_text())
CASES = [name for name in FACTS if "_L" in name]


def model_of(shape, label_dim):
    return SimpleNamespace(
        sample_shape=tuple(shape), label_dim=label_dim, device=torch.device("cpu")
    )


def same(ours, theirs):
    return ours.dtype == tensor(theirs).dtype and torch.equal(ours, tensor(theirs))


def test_noise_labels_and_churn_in_their_order():
    source = SeededNoise(SEEDS, "cpu")
    noise = source.randn((4, 8, 8))
    assert same(noise, RNG["noise"])
    assert same(source.randint(int(RNG["label_dim"])), RNG["labels"])
    assert same(source.randn_like(noise), RNG["churn0"])
    assert same(source.randn_like(noise.double()), RNG["churn1_f64"])


def test_without_classes_the_churn_follows_the_noise():
    source = SeededNoise(SEEDS, "cpu")
    noise = source.randn((4, 8, 8))
    assert same(source.randn_like(noise), RNG["churn0_when_unconditional"])
    assert not same(source.randn_like(noise), RNG["churn0"])


def test_public_function():
    model = model_of((4, 8, 8), int(RNG["label_dim"]))
    noise, labels = erk.noise_and_labels(SEEDS, model)
    assert same(noise, RNG["noise"])
    assert labels.dtype == torch.float32 and labels.shape == (len(SEEDS), 10)
    assert (labels.sum(1) == 1).all() and labels.argmax(1).tolist() == RNG["labels"].tolist()
    noise, labels = noise_and_labels(SEEDS, model_of((4, 8, 8), 0))
    assert same(noise, RNG["noise"]) and labels is None


@pytest.mark.parametrize("case", CASES)
def test_released_shapes_by_hash(case):
    """Shapes of the released networks: sha256 of every seed's noise, and its class."""
    facts = FACTS[case]
    shape, _, classes = case.partition("_L")
    model = model_of([int(n) for n in shape.split("x")], int(classes))
    noise, labels = noise_and_labels(SEEDS, model)
    result = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in noise]
    assert result == facts["sha256_per_seed"]
    assert (None if labels is None else labels.argmax(1).tolist()) == facts["labels"]


def test_seeds_wrap_at_2_to_the_32():
    assert FACTS["seed_wraps_mod_2**32"] is True
    a, b = (SeededNoise([seed], "cpu").randn((5,)) for seed in (5, 5 + 2**32))
    assert torch.equal(a, b)
    assert not torch.equal(a, SeededNoise([6], "cpu").randn((5,)))
    assert SeededNoise([2**70 + 5], "cpu").randn((5,)).equal(a)


def test_a_seed_knows_nothing_of_its_mates():
    alone = SeededNoise([16], "cpu")
    first, second = alone.randn((3, 4)), alone.randint(10)
    among = SeededNoise([1, 16, 0], "cpu")
    assert torch.equal(among.randn((3, 4))[1], first[0])
    assert torch.equal(among.randint(10)[1], second[0])


def test_one_hot():
    rows = one_hot(torch.tensor([2, 0]), model_of((1, 1, 1), 3))
    assert rows.tolist() == [[0, 0, 1], [1, 0, 0]] and rows.dtype == torch.float32


@pytest.mark.parametrize("seeds", [[0.5], [1.0], "12", 3, [None]])
def test_seeds_that_are_no_whole_numbers(seeds):
    """J: 0.5 and "12" drew, unseen, the samples of the seeds 0 and 1, 2."""
    model = SimpleNamespace(sample_shape=(1, 2, 2))
    with pytest.raises(ValueError, match="seeds must be a list of whole numbers, such as range"):
        noise_and_labels(seeds, model)


def test_a_device_that_is_none():
    """J: PyTorch's RuntimeError."""
    model = SimpleNamespace(sample_shape=(1, 2, 2))
    with pytest.raises(ValueError, match="'auto' is no device: give cpu, cuda"):
        noise_and_labels([0], model, device="auto")


def test_seeds_of_every_type_of_integer():
    model = SimpleNamespace(sample_shape=(1, 2, 2))
    right = noise_and_labels([3, 1], model)[0]
    for seeds in (np.array([3, 1], np.uint8), torch.tensor([3, 1]), (np.int64(3), True)):
        assert torch.equal(noise_and_labels(seeds, model)[0], right)
