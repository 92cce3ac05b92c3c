"""The drift: model guidance, its interval, ERK-Proj, and what a denoiser must return."""

import math

import pytest
import torch
from problems import gaussian, linear

import erk
from erk.method.drift import GuidedDrift, NonFiniteError
from erk.method.schedule import make_schedule


def test_model_guidance_extrapolates_and_respects_its_interval():
    x, sigma = torch.ones(1, 2), torch.tensor(0.5)
    main, guide = linear(0.2), linear(0.8)
    d_main, d_guide = main(x, sigma), guide(x, sigma)
    drift = GuidedDrift(main, None, guide, 3.0, interval=(0.4, 0.5))
    assert torch.allclose(drift(x, sigma).f, (x - (d_guide + 3 * (d_main - d_guide))) / sigma)
    for outside in (0.4, 0.51):  # open below, closed above
        sigma = torch.tensor(outside)
        assert torch.equal(drift(x, sigma).f, (x - main(x, sigma)) / sigma)


def test_one_network_as_main_and_guide_shares_its_call():
    sizes = []

    def model(x, sigma, labels):
        sizes.append(len(x))
        return 0.5 * x + labels.mean(1, keepdim=True)

    noise, labels = torch.randn(3, 2), torch.eye(3)
    chosen = dict(guidance=2.0, steps=4, guide_labels=torch.zeros(3, 3))
    shared = erk.sample(model, noise, labels, guide_model=model, **chosen)
    assert sizes == [6] * 7
    apart = erk.sample(model, noise, labels, guide_model=lambda *a: model(*a), **chosen)
    assert torch.allclose(shared, apart, atol=1e-5)


def test_a_guide_that_is_the_network_with_its_labels_is_refused():
    """J: D + (guidance - 1) (D - D) is no guidance, at twice the cost."""
    noise, labels = torch.randn(3, 2), torch.eye(3)
    for more in ({}, {"labels": labels}, {"labels": labels, "guide_labels": labels}):
        with pytest.raises(ValueError, match="guidance has no effect: give guide_labels or ano"):
            erk.sample(gaussian, noise, guide_model=gaussian, guidance=2.0, **more)


def test_erk_proj_keeps_the_stiff_part_of_guidance():
    """eta -> 1 at small w_stiff is plain guidance; at a large one only <g, v> v is left."""
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))

    def guide(x, sigma, labels):
        return 0.8 * gaussian(x, sigma) + 0.1

    chosen = dict(guide_model=guide, guidance=2.0, steps=6)
    plain = erk.sample(gaussian, noise, **chosen)
    weak = erk.sample(gaussian, noise, erk_proj=True, w_stiff=1e-9, **chosen)
    strong = erk.sample(gaussian, noise, erk_proj=True, w_stiff=5.0, **chosen)
    first = [
        next(erk.trajectory(gaussian, noise, **chosen, **more)).x
        for more in ({}, {"erk_proj": True, "w_stiff": 5.0})
    ]
    assert torch.allclose(*first, rtol=1e-5)  # no pair yet: the first step has plain guidance
    assert torch.allclose(weak, plain, atol=1e-4)
    assert not torch.allclose(strong, plain, atol=1e-2)


@pytest.mark.parametrize("solver", ["dpm2", "deis"])
def test_erk_proj_of_solvers_that_never_return_to_a_sigma(solver):
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    chosen = dict(solver=solver, guide_model=linear(0.01), guidance=2.0, steps=6)
    plain = erk.sample(gaussian, noise, **chosen)
    assert not torch.equal(plain, erk.sample(gaussian, noise, erk_proj=True, w_stiff=1.0, **chosen))


def test_nan_is_reported_with_its_sample_and_step():
    def model(x, sigma, labels):
        denoised = 0.5 * x
        if sigma < 1:
            denoised[2] = math.nan
        return denoised

    with pytest.raises(NonFiniteError) as caught:
        erk.sample(model, torch.ones(4, 2), steps=8)
    sigmas = make_schedule("edm", 8)
    assert caught.value.sample == 2
    assert sigmas[caught.value.step + 1] < 1 <= sigmas[caught.value.step - 1]
    assert "for seed 7 at step" in str(caught.value.named("seed 7"))


@pytest.mark.parametrize("answer", [None, torch.zeros(1), torch.zeros(4, 3), 1j * torch.ones(4, 2)])
def test_a_denoiser_that_returns_another_shape_is_refused(answer):
    """J: of complex numbers only the real part was used."""
    with pytest.raises(ValueError, match="must return D"):
        erk.sample(lambda x, sigma, labels: answer, torch.randn(4, 2), steps=3)
