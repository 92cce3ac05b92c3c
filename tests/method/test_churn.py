"""The noise of stochastic sampling is drawn as the release of the network draws it (G8)."""

import functools
import inspect
import math

import pytest
import torch
from golden_data import pickle_paths
from problems import linear

import erk
from erk.method.churn import Churn
from erk.method.solvers import ONE_STEP, SOLVERS
from erk.models.edm import iddpm_levels
from erk.models.model import load_model
from erk.models.noise import SeededNoise

SEEDS = range(3)
RUN = dict(steps=6, S_churn=8.0, S_min=0.05, S_max=20.0, S_noise=1.003)


@functools.cache
def model(name):
    return load_model(pickle_paths(name)[0])


def draw(net):
    source = SeededNoise(SEEDS, "cpu")
    noise, labels = source.randn(net.sample_shape), None
    if net.label_dim:
        labels = torch.eye(net.label_dim)[source.randint(net.label_dim)]
    return source, noise, labels


def by_hand(net, rule, run=RUN):
    """Algorithm 2 of Karras et al. 2022 in plain formulas, with noise as EDM or EDM2 draws it."""
    source, noise, labels = draw(net)
    dtype = torch.float64 if rule == "edm" else torch.float32
    n = run["steps"]
    i = torch.arange(n, dtype=torch.float64)
    high, low = min(80, net.sigma_max) ** (1 / 7), max(0.002, net.sigma_min) ** (1 / 7)
    t = net.round_sigma((high + i / (n - 1) * (low - high)) ** 7)
    t = torch.cat([t, torch.zeros(1, dtype=torch.float64)]).to(dtype)
    x = noise.to(dtype) * t[0]
    for now, after in zip(t[:-1], t[1:], strict=True):
        inside = run["S_min"] <= now <= run["S_max"]
        gamma = min(run["S_churn"] / n, math.sqrt(2) - 1) if inside else 0.0
        hat = net.round_sigma(now + gamma * now)
        if inside or rule == "edm":
            eps = source.randn(net.sample_shape, dtype)
            x = x + (hat**2 - now**2).sqrt() * run["S_noise"] * eps
        slope = (x - net(x.float(), hat.float(), labels).to(dtype)) / hat
        end = x + (after - hat) * slope
        if after > 0:
            second = (end - net(end.float(), after.float(), labels).to(dtype)) / after
            end = x + (after - hat) * (slope + second) / 2
        x = end
    return x


@pytest.mark.parametrize(
    ("name", "rule"),
    [("edm_ddpmpp", "edm"), ("edm_adm", "edm"), ("edm2_pixel", "edm2"), ("edm_ddpmpp", "edm2")],
)
def test_samples_of_seeds_are_those_of_the_release(name, rule):
    net = model(name)
    chosen = {} if rule == net.churn_rule else {"churn_rule": rule}
    source, noise, labels = draw(net)
    wanted = by_hand(net, rule)
    x0 = erk.sample(
        net, noise, labels, randn_like=source.randn_like, dtype=wanted.dtype, **RUN, **chosen
    )
    assert (x0 - wanted).abs().max() < (1e-6 if rule == "edm" else 1e-4)
    other = by_hand(net, "edm2" if rule == "edm" else "edm")
    assert (x0 - other).abs().max() > 0.1  # the rules give other samples of the same seeds


class Discrete:
    """D for Gaussian data, known at the 1000 levels of the released iDDPM networks alone."""

    u = iddpm_levels(0.001, 0.008, 1000)
    sigma_max, sigma_min = u[0].item(), u[999].item()
    sample_shape, label_dim, churn_rule = (1, 4, 4), 0, "edm"

    def round_sigma(self, sigma):
        nearest = (torch.as_tensor(sigma).to(self.u)[..., None] - self.u).abs().argmin(-1)
        return self.u[nearest].to(sigma)

    def __call__(self, x, sigma, labels=None):
        return x * 0.25 / (0.25 + self.round_sigma(sigma) ** 2)


@pytest.mark.parametrize("rule", ["edm", "edm2"])
def test_levels_that_rounding_makes_equal_are_steps_that_add_noise(rule):
    """256 steps as for the paper's ImageNet-64 (iDDPM) results, of which 207 levels differ."""
    net, run = Discrete(), dict(steps=256, S_churn=40.0, S_min=0.05, S_max=50.0, S_noise=1.003)
    settings = erk.Settings(churn_rule=rule, **run)
    assert len(settings.sigmas(net)) == 257 and settings.sigmas(net)[-2] > 0
    source, noise, _ = draw(net)
    wanted = by_hand(net, rule, run)
    x0 = erk.sample(
        net, noise, randn_like=source.randn_like, dtype=wanted.dtype, churn_rule=rule, **run
    )
    assert (x0 - wanted).abs().max() < (1e-6 if rule == "edm" else 1e-4)


def test_without_noise_equal_levels_stay_one_level():
    levels = erk.Settings(steps=256).sigmas(Discrete())
    assert len(levels) == 208 and torch.equal(levels, levels.unique_consecutive())
    none = erk.Settings(schedule=[1.0, 1e-7, 0.0], S_churn=1.0).sigmas(Discrete())
    assert none.tolist() == [Discrete().round_sigma(torch.tensor(1.0)).item(), 0.0]


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in ONE_STEP])
def test_solvers_that_continue_earlier_steps_are_refused(solver):
    """Their samples would be noise: 93 % of the pixels of digits black or white with unipc."""
    run = {"sigmas": torch.tensor([2.0, 1.0]), "ends": (0.002, 80.0)}  # deis, dpmpp, unipc need it
    known = inspect.signature(SOLVERS[solver]).parameters
    needs = {name: value for name, value in run.items() if name in known}
    function = functools.partial(SOLVERS[solver], **needs)
    for form in (solver, function, functools.partial(function, order=2)):
        with pytest.raises(ValueError, match="take euler, heun or dpm2, or set S_churn to 0"):
            erk.Settings(solver=form, S_churn=8.0)
    erk.Settings(solver=functools.partial(SOLVERS["dpm2"], r=0.4), S_churn=8.0)
    erk.Settings(solver=lambda *arguments: None, S_churn=8.0)  # of the user's


@pytest.mark.parametrize("solver", ONE_STEP)
def test_one_step_solvers_keep_the_spread_of_gaussian_data(solver):
    net, run = Discrete(), dict(steps=128, S_churn=20.0, S_min=0.05, S_max=50.0)
    noise = torch.randn(1024, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    x0 = erk.sample(net, noise, solver=solver, schedule="edm", **run)
    assert abs(x0.std().item() - 0.5) < 0.05  # unipc: 100


def test_the_rule_is_the_networks_unless_it_is_named():
    assert model("edm_adm").churn_rule == "edm" and model("edm2_pixel").churn_rule == "edm2"
    settings = erk.Settings(S_churn=1.0)
    assert settings.state_dtype(model("edm_adm")) == torch.float64
    assert settings.state_dtype(model("edm2_pixel")) == torch.float32
    assert settings.state_dtype(linear(1.0)) == torch.float32
    assert erk.Settings().state_dtype(model("edm_adm")) == torch.float32  # nothing is drawn
    assert erk.Settings(S_churn=1.0, churn_rule="edm").state_dtype() == torch.float64
    assert erk.sample(model("edm_adm"), draw(model("edm_adm"))[1], **RUN).dtype == torch.float32


def test_the_rule_is_part_of_the_identity_only_where_noise_is_drawn():
    plain, named = erk.Settings(), erk.Settings(churn_rule="edm")
    assert plain.identity() == named.identity() and "churn_rule" not in plain.identity()
    churned, named = erk.Settings(S_churn=1.0), erk.Settings(S_churn=1.0, churn_rule="edm")
    assert churned.identity() != named.identity()


def test_edm_draws_outside_the_range_and_drops_it():
    count = []
    noise = lambda x: count.append(x.dtype) or torch.ones_like(x)  # noqa: E731
    for every, calls in ((True, 2), (False, 1)):
        churn = Churn(0.1, 0.5, 2.0, 1.0, noise, every_step=every)
        x, level = churn(torch.zeros(1, 2), torch.tensor(4.0))
        assert level == 4 and not x.any()
        x, level = churn(torch.zeros(1, 2), torch.tensor(1.0))
        assert level > 1 and x.all() and len(count) == calls
        count.clear()
