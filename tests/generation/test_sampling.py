"""generate(): the originals' images, and an image that depends on its seed alone."""

import random

import numpy as np
import pytest
import torch
from golden_data import GOLDEN, manifest, pickle_paths, ref, tensor

from erk import from_denoiser, load_model
from erk.generation.job import Job, check_labels
from erk.generation.sampling import generate
from erk.method.drift import NonFiniteError
from erk.method.settings import Settings
from erk.models.presets import find_preset

IMAGES = ref("images")
RUNS = ["pixel_heun", "pixel_churn", "pixel_erk", "pixel_class"]
TAKEN = ("S_churn", "S_min", "S_max", "S_noise", "w_stiff", "w_con", "guidance")
QUICK = Settings(steps=3, w_stiff=0.5, w_con=0.3)
PIXEL = str(GOLDEN / "nets" / "edm2_pixel.pkl")


class Spy:
    """A model that decodes to the float samples and records its calls."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, x, sigma, labels=None):
        self.calls.append((x.shape, None if labels is None else labels.clone()))
        return self.model(x, sigma, labels)

    def decode(self, x0):
        return x0


@pytest.fixture(scope="module")
def models():
    return {"digits": load_model("digits"), "edm2_pixel": load_model(PIXEL)}


def by_seed(batches):
    return {seed: image for b in batches for seed, image in zip(b.seeds, b.wait(), strict=True)}


def sample(model, seeds, batch, settings=QUICK, **kwargs):
    return by_seed(generate(Job(model, settings, seeds=seeds, batch=batch, **kwargs)))


def golden(run):
    row = manifest()["images"][run]
    settings = {name: row[name] for name in TAKEN if name in row}
    return row, Settings(steps=row["num_steps"], **settings)


def check_pixels(images, run):
    """Equal wherever the original's float is clear of a rounding boundary, else within 1."""
    level = IMAGES[f"{run}_float"].astype(np.float64) * 127.5 + 128
    clear = np.abs(level - np.round(level)) > 5e-3
    difference = np.abs(images.numpy().astype(int) - IMAGES[f"{run}_uint8"])
    assert clear.mean() > 0.98
    assert (difference[clear] == 0).all() and difference.max() <= 1


@pytest.mark.parametrize("path", pickle_paths("edm2_pixel"), ids=["torch2", "torch1"])
@pytest.mark.parametrize("run", RUNS)
def test_images_of_the_originals(path, run):
    """From seeds to uint8 pixels, churn and drawn classes included."""
    row, settings = golden(run)
    model = load_model(path)
    labels = row.get("class_idx", "random")
    batches = list(generate(Job(model, settings, seeds=row["seeds"], labels=labels, batch=3)))
    assert [batch.seeds for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    check_pixels(torch.cat([batch.wait() for batch in batches]), run)
    classes = torch.cat([batch.classes for batch in batches])
    assert classes.tolist() == IMAGES[f"{run}_labels"].argmax(1).tolist()
    assert {batch.nfe for batch in batches} == {2 * row["num_steps"] - 1}
    assert {batch.guide_nfe for batch in batches} == {0}


def test_samples_of_the_originals_before_rounding(models):
    row, settings = golden("pixel_erk")
    samples = sample(Spy(models["edm2_pixel"]), row["seeds"], 8, settings)
    stacked = torch.stack([samples[seed] for seed in row["seeds"]])
    assert (stacked - tensor(IMAGES["pixel_erk_float"])).abs().max() < 1e-4


def test_guiding_by_the_net_itself_changes_nothing(models):
    row, settings = golden("pixel_guided_self")
    model = models["edm2_pixel"]
    batches = list(generate(Job(model, settings, model, row["seeds"], batch=3)))
    check_pixels(torch.cat([batch.wait() for batch in batches]), "pixel_guided_self")
    assert {(batch.nfe, batch.guide_nfe) for batch in batches} == {(11, 11)}


@pytest.mark.parametrize("name", ["digits", "edm2_pixel"])
@pytest.mark.parametrize("batch", [1, 7, 16])
def test_batch_mates_do_not_matter(name, batch, models):
    """At one batch size: any order and any subset gives the same float samples, bit for bit."""
    model, seeds = Spy(models[name]), list(range(18))
    mixed = random.Random(batch).sample(seeds, len(seeds))
    straight = sample(model, seeds, batch)
    for others in (mixed, seeds[::-1], mixed[:5], [17]):
        samples = sample(model, others, batch)
        assert list(samples) == others
        assert all(torch.equal(samples[seed], straight[seed]) for seed in others)
    assert {shape[0] for shape, _ in model.calls} == {batch}


def test_batch_mates_do_not_matter_with_guide_and_churn(models):
    preset = find_preset("digits-autog")
    guide, seeds = load_model(preset.gnet), list(range(12))
    settings = Settings(steps=3, guidance=preset.guidance, S_churn=2)
    runs = [
        sample(Spy(models["digits"]), order, 5, settings, guide=guide)
        for order in (seeds, seeds[::-1])
    ]
    assert all(torch.equal(runs[0][seed], runs[1][seed]) for seed in seeds)


@pytest.mark.parametrize(("name", "count"), [("digits", 64), ("edm2_pixel", 24)])
def test_batch_size_moves_a_pixel_by_one_level_at_most(name, count, models):
    """Measured: 1 of 4096 pixels of digits between batch 1 and the others, none of edm2_pixel."""
    settings = Settings(steps=6 if name == "digits" else 4, w_stiff=0.5, w_con=0.3)
    runs = [
        torch.stack(list(sample(models[name], range(count), batch, settings).values()))
        for batch in (32, 16, 7, 1)
    ]
    for other in runs[1:]:
        difference = (other.int() - runs[0].int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() <= 0.001


def test_other_seeds_and_settings_give_other_images(models):
    model = Spy(models["digits"])
    a = sample(model, [0, 1], 2)
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a[0], sample(model, [0], 2, Settings(steps=4))[0])
    same_noise = sample(model, [2**32], 2)
    assert torch.equal(same_noise[2**32], a[0])


def classes_of(model, seeds, labels, batch=4):
    """Classes that the batches report; the network must have seen the same ones."""
    spy = Spy(model)
    batches = list(generate(Job(spy, Settings(steps=2), seeds=seeds, labels=labels, batch=batch)))
    seen = []
    calls = len(spy.calls) // len(batches)
    for i, one in enumerate(batches):
        assert one.classes.dtype == torch.int64 and len(one.classes) == len(one.seeds)
        vectors = spy.calls[i * calls][1]
        assert vectors.sum(1).tolist() == [1] * batch
        seen += vectors.argmax(1)[: len(one.seeds)].tolist()
    assert seen == torch.cat([one.classes for one in batches]).tolist()
    return seen


def test_label_policies(models):
    digits, seeds = models["digits"], [3, 14, 0, 25, 7]
    assert classes_of(digits, seeds, "balanced") == [3, 4, 0, 5, 7]
    assert classes_of(digits, seeds, 6) == [6] * 5
    assert classes_of(digits, seeds, {0: 1, 3: 2, 7: 9, 14: 0, 25: 5, 99: 77}) == [2, 0, 1, 5, 9]
    huge = 2**70 + 3
    assert classes_of(digits, [huge], "balanced") == [huge % 10]


def test_random_labels_follow_the_original_rule(models):
    seeds = ref("images")["pixel_heun_labels"]
    assert classes_of(models["edm2_pixel"], list(range(8)), "random") == seeds.argmax(1).tolist()


def test_the_policy_does_not_move_later_draws(models):
    """With churn: class 7 of seed 0 drawn or requested gives the same image."""
    settings = Settings(steps=3, S_churn=2)
    model = Spy(models["digits"])
    (drawn,) = generate(Job(model, settings, seeds=[0], batch=1))
    asked = sample(model, [0], 1, settings, labels=int(drawn.classes[0]))
    other = sample(model, [0], 1, settings, labels=(int(drawn.classes[0]) + 1) % 10)
    assert torch.equal(asked[0], drawn.wait()[0])
    assert not torch.equal(other[0], drawn.wait()[0])


def test_a_model_without_classes():
    model = Spy(load_model(find_preset("digits-cfg").gnet))
    (batch,) = generate(Job(model, Settings(steps=2), seeds=[0, 1], batch=2))
    assert batch.classes is None and model.calls[0][1] is None
    assert batch.wait().shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("labels", "label_dim", "message"),
    [
        (10, 10, "class 10 is out of range; this model has 0 to 9"),
        (-1, 10, "class -1 is out of range"),
        ({0: 3, 1: 12}, 10, "class 12 is out of range"),
        ({0: 3}, 10, "the label file has no line for seed 1"),
        (3, 0, "this model has no classes"),
        ({0: 3, 1: 3}, 0, "this model has no classes"),
        ("even", 10, "unknown labels 'even'"),
    ],
)
def test_labels_that_do_not_fit(labels, label_dim, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, label_dim, [0, 1])


def test_labels_are_checked_before_the_network_runs(models):
    spy = Spy(models["digits"])
    with pytest.raises(ValueError, match="class 10"):
        next(generate(Job(spy, Settings(steps=2), seeds=[0], labels=10)))
    assert spy.calls == []


class Broken(Spy):
    """Gives NaN for one sample of a batch from its n-th call on."""

    def __init__(self, model, sample, call):
        super().__init__(model)
        self.sample, self.call = sample, call

    def __call__(self, x, sigma, labels=None):
        denoised = super().__call__(x, sigma, labels).clone()
        if len(self.calls) >= self.call:
            denoised[self.sample, 0, 0, 0] = float("nan")
        return denoised


@pytest.mark.parametrize(
    ("sample_index", "call", "seed", "step"),
    [(0, 1, 40, 0), (2, 1, 42, 0), (1, 3, 41, 1), (2, 6, 42, 2), (1, 7, 41, 3)],
)
def test_nan_names_seed_and_step(sample_index, call, seed, step, models):
    """Heun calls the network twice a step: the k-th call belongs to step (k - 1) // 2."""
    settings = Settings(steps=4)
    model = Broken(models["digits"], sample_index, call)
    with pytest.raises(NonFiniteError, match=f"for seed {seed} at step {step} ") as caught:
        list(generate(Job(model, settings, seeds=[40, 41, 42], batch=3)))
    assert caught.value.step == step
    assert caught.value.sigma == pytest.approx(settings.sigmas()[step].item())


def test_nan_in_a_later_batch_spares_the_earlier_ones(models):
    model = Broken(models["digits"], 0, 8)
    batches = generate(Job(model, Settings(steps=4), seeds=[5, 6, 7], batch=2))
    assert next(batches).seeds == [5, 6]
    with pytest.raises(NonFiniteError, match="seed 7"):
        next(batches)


def test_only_a_job_that_can_be_recognized_has_a_key(models):
    """J3: without an identity or a hash of the network, other jobs would have the same key."""
    model, identity = models["digits"], QUICK.identity()
    keys = {
        Job(model, QUICK, identity=identity).key(),
        Job(model, QUICK, identity=identity, batch=3).key(),
        Job(model, QUICK, models["edm2_pixel"], identity=identity).key(),
        Job(model, QUICK, identity=identity | {"steps": 4}).key(),
    }
    assert len(keys) == 4
    unnamed = from_denoiser(model.network, sample_shape=(1, 8, 8))
    for job in (Job(model, QUICK), Job(unnamed, QUICK, identity=identity),
                Job(model, QUICK, unnamed, identity=identity)):  # fmt: skip
        with pytest.raises(ValueError, match="only for a job with an identity, of networks with a"):
            job.key()
