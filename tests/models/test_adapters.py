"""Networks that predict other things than D, on Gaussian data, for which every one is known."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

import erk

MEAN, STD = 0.3, 0.6
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHAS = torch.cumprod(1 - BETAS, 0)


def exact(x, sigma):
    """D for data N(MEAN, STD^2)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def alpha_at(t):
    """A_t between the table's levels: ln sigma is linear there."""
    levels = ((1 - ALPHAS) / ALPHAS).sqrt().log()
    low = t.long().clamp(max=len(ALPHAS) - 2)
    sigma = (levels[low] + (t - low) * (levels[low + 1] - levels[low])).exp()
    return (1 / (1 + sigma**2)).reshape(-1, 1)


def epsilon(x, t):
    a = alpha_at(t)
    clean = exact(x / a.sqrt(), ((1 - a) / a).sqrt())
    return (x - a.sqrt() * clean) / (1 - a).sqrt()


def velocity(x, t):
    a = alpha_at(t)
    clean = exact(x / a.sqrt(), ((1 - a) / a).sqrt())
    return a.sqrt() * epsilon(x, t) - (1 - a).sqrt() * clean


def flow(x, t):
    """Data at t = 0: dx/dt = noise - data."""
    t = t.reshape(-1, 1)
    clean = exact(x / (1 - t), t / (1 - t))
    return (x - (1 - t) * clean) / t - clean


def flow_to_data(x, t):
    """The same with data at t = 1."""
    return -flow(x, 1 - t)


def denoiser(x, sigma):
    return exact(x, sigma.reshape(-1, 1))


ADAPTERS = {
    "epsilon": lambda: erk.from_epsilon(epsilon, ALPHAS),
    "v": lambda: erk.from_v(velocity, ALPHAS.tolist()),
    "flow": lambda: erk.from_flow(flow),
    "flow, data at 1": lambda: erk.from_flow(flow_to_data, data_at=1),
    "denoiser": lambda: erk.from_denoiser(denoiser),
}


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_denoiser_is_exact(name):
    """At levels of the table, between them, one for all or one for each sample."""
    model, x = ADAPTERS[name](), draw(3, 4)
    for sigma in (0.011, 0.5, 3.21, 80.0):
        level = torch.tensor(sigma, dtype=torch.float64)
        assert torch.allclose(model(x, level), exact(x, level), rtol=1e-9, atol=1e-9)
        assert torch.allclose(model(x, sigma), exact(x, level), rtol=1e-5, atol=1e-5)
    levels = torch.tensor([0.02, 1.0, 50.0], dtype=torch.float64)
    assert torch.allclose(model(x, levels), exact(x, levels.reshape(-1, 1)), atol=1e-9)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("w_stiff", [0.0, 0.5])
def test_all_samplers_get_the_same_image(name, w_stiff):
    """From the same noise: as from the denoiser itself, plain and guided."""
    noise, levels = draw(2, 5).float(), [10.0, 3.0, 1.0, 0.3, 0.1, 0.0]
    for solver in ("heun", "dpm2", "ipndm_v"):
        how = dict(solver=solver, schedule=levels, w_stiff=w_stiff, w_con=0.1)
        written = erk.sample(ADAPTERS[name](), noise, **how)
        wanted = erk.sample(lambda x, sigma, labels: exact(x, sigma), noise, **how)
        assert torch.allclose(written, wanted, atol=1e-5)  # measured: 4e-6


def test_the_network_sees_its_own_state_and_time():
    seen = []

    def network(x, t, labels):
        seen.append((x, t, labels))
        return torch.zeros_like(x)

    x, labels = draw(2, 3), torch.tensor([4, 7])
    sigma = ((1 - ALPHAS[500]) / ALPHAS[500]).sqrt()
    assert torch.equal(erk.from_epsilon(network, ALPHAS)(x, sigma, labels), x)
    (state, time, given), *_ = seen
    assert torch.allclose(state, x * ALPHAS[500].sqrt()) and given is labels
    assert time.shape == (2,) and torch.allclose(time, torch.full_like(time, 500), atol=1e-9)
    assert torch.allclose(erk.from_flow(network)(x, 3.0, labels), x / 4)
    assert torch.allclose(seen[-1][0], x / 4) and seen[-1][1].tolist() == [0.75, 0.75]
    erk.from_flow(network, data_at=1)(x, 3.0, labels)
    assert seen[-1][1].tolist() == [0.25, 0.25]


class Recorder(torch.nn.Module):
    """A network that keeps the dtypes it sees."""

    def __init__(self, answer=0.0):
        super().__init__()
        self.codes = torch.nn.Parameter(torch.ones(1).to(torch.float8_e4m3fn), requires_grad=False)
        self.weight, self.answer = torch.nn.Parameter(torch.ones(1)), answer

    def forward(self, x, t, labels):
        self.seen = x.dtype, t.dtype, labels.dtype
        assert t.tolist() == [999.0] * len(x)  # 1000 in bfloat16
        return torch.full_like(x, self.answer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_state_has_the_dtype_of_the_weights(dtype):
    network, x = Recorder(), torch.ones(2, 3)
    network.weight = torch.nn.Parameter(network.weight.to(dtype))
    model = erk.from_epsilon(network, ALPHAS)
    assert model(x, 1e4, torch.ones(2, 7)).dtype == torch.float32
    assert network.seen == (dtype, torch.float32, dtype) and model.compute_dtype == dtype
    model(x, 1e4, torch.tensor([4, 7]))
    assert network.seen == (dtype, torch.float32, torch.int64)
    whole = torch.nn.Linear(3, 3).to(dtype)
    half = erk.from_denoiser(lambda x, sigma: whole(x.to(dtype)))
    assert half(x, 1.0).dtype == torch.float32 and half.compute_dtype is None


def test_float16_that_overflows_is_named():
    model = erk.from_epsilon(Recorder(answer=math.inf).half(), ALPHAS, label_dim=3)
    noise, labels = torch.ones(2, 3), torch.ones(2, 3)
    with pytest.raises(erk.NonFiniteError, match="end at 65504: use bfloat16 or float32"):
        erk.sample(model, noise, labels, schedule=[1e4, 5e3])


def test_levels_the_network_knows():
    """A named schedule stays within them; `discrete` walks in the network's own time."""
    model = ADAPTERS["epsilon"]()
    first, last = (((1 - a) / a).sqrt().item() for a in (ALPHAS[0], ALPHAS[-1]))
    assert model.sigma_min == pytest.approx(first) and model.sigma_max == pytest.approx(last)
    settings = erk.Settings(schedule="discrete", steps=4, sigma_max=1e6)
    levels = settings.sigmas(model).double()
    steps = model.sigma_inv(levels)
    assert torch.allclose(steps, torch.linspace(999, 0, 5).double(), atol=0.01)
    assert torch.allclose(model.sigma(steps), levels, rtol=1e-5)
    beyond = torch.tensor([1e-5, 1e5])
    assert model.sigma_inv(beyond).tolist() == [0.0, 999.0]
    halves = erk.from_flow(flow).sigma_inv(torch.tensor([0.0, 1.0, 3.0]))
    assert halves.tolist() == [0.0, 0.5, 0.75]
    assert erk.from_flow(flow, data_at=1).sigma(torch.tensor(0.2)).item() == pytest.approx(4)
    limited = erk.from_denoiser(denoiser, 0.1, 5.0)
    assert erk.Settings(steps=3).sigmas(limited).tolist() == pytest.approx(
        [5.0, (0.5 * (5 ** (1 / 7) + 0.1 ** (1 / 7))) ** 7, 0.1, 0.0]
    )


def test_classifier_free_guidance_of_one_network():
    """Labels reach the network, the guide's too, in one batch."""

    def network(x, t, labels):
        return epsilon(x, t) + labels

    noise, one, none = draw(2, 3).float(), torch.ones(2, 1), torch.zeros(2, 1)
    model = erk.from_epsilon(network, ALPHAS)
    how = dict(schedule=[2.0, 1.0, 0.5], w_stiff=0.5, w_con=0.1)
    written = erk.sample(
        model, noise, one, guide_model=model, guide_labels=none, guidance=2.0, **how
    )  # fmt: skip
    doubled = erk.from_epsilon(lambda x, t: epsilon(x, t) + 2, ALPHAS)
    assert torch.allclose(written, erk.sample(doubled, noise, **how), atol=1e-5)


def test_mistakes_have_one_sentence():
    with pytest.raises(ValueError, match="numbers that fall from below 1 to above 0"):
        erk.from_epsilon(epsilon, ALPHAS.flip(0))
    with pytest.raises(ValueError, match="numbers that fall from below 1 to above 0"):
        erk.from_v(velocity, [0.5])
    with pytest.raises(ValueError, match="numbers that fall from below 1 to above 0"):
        erk.from_v(velocity, [0.9, math.nan, 0.1])
    with pytest.raises(ValueError, match="data_at must be 0 or 1"):
        erk.from_flow(flow, data_at=2)
    with pytest.raises(ValueError, match=r"answers \[2, 6\] to a state of \[2, 3\]"):
        erk.from_denoiser(lambda x, sigma: torch.cat([x, x], 1))(torch.ones(2, 3), 1.0)
    with pytest.raises(ValueError, match=r"answers <class 'tuple'> to a state of \[2, 3\]"):  # J
        erk.from_denoiser(lambda x, sigma: (x,))(torch.ones(2, 3), 1.0)
    advice = "such as lambda x, t: network(x, t).sample for a network of diffusers"
    with pytest.raises(ValueError, match=re.escape(advice)):
        erk.from_epsilon(lambda x, t: SimpleNamespace(sample=x), ALPHAS)(torch.ones(2, 3), 1.0)


def test_a_network_that_needs_labels_says_so():
    model = erk.from_flow(lambda x, t, labels: x * labels.sum(1)[:, None], sample_shape=(2,))
    noise, labels = erk.noise_and_labels(range(2), model)
    assert labels is None
    with pytest.raises(ValueError, match="gets no labels: give them, or label_dim"):
        erk.sample(model, noise, labels)
