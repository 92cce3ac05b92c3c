"""The samplers keep k-diffusion's contract, with a model whose answer is exact."""

import inspect
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from cards import LEVELS, card_file, card_of

import erk
from erk.integrations.diffusers import ERKHeunScheduler
from erk.integrations.kdiffusion import (
    SAMPLERS,
    card_sigmas,
    sample_erk_card,
    sample_erk_dpm2,
    sample_erk_heun,
)
from erk.method.settings import Settings

STD = 0.3
NODES = torch.tensor([10.0, 5.0, 2.5, 1.2, 0.6, 0.3, 0.15, 0.0])
SOLVERS = {"erk_heun": "heun", "erk_dpm2": "dpm2"}


class Gaussian:
    """k-diffusion's kind of model for data N(0, STD^2); it notes how it was called."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, sigma, shift=0.0, **more):
        self.calls.append((x, sigma, more))
        level = sigma.reshape(-1, *[1] * (x.ndim - 1))
        return STD**2 / (STD**2 + level**2) * (x - shift) + shift


def start(batch=3):
    return torch.randn(batch, 2, 4, generator=torch.Generator().manual_seed(0)) * NODES[0]


def denoiser(x, sigma, labels):
    return STD**2 / (STD**2 + sigma**2) * x


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("w_stiff", [0.0, 0.5])
def test_they_are_erks_samplers(name, w_stiff):
    written = SAMPLERS[name](Gaussian(), start(), NODES, disable=True, w_stiff=w_stiff, w_con=0.3)
    wanted = erk.sample(
        denoiser, start() / NODES[0], schedule=NODES.tolist(), solver=SOLVERS[name],
        w_stiff=w_stiff, w_con=0.3,
    )  # fmt: skip
    torch.testing.assert_close(written, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_model_and_the_callback_are_called_as_in_k_diffusion(name):
    """sigma is a vector, extra_args are keywords; the callback sees every step's start."""
    model, seen, extra = Gaussian(), [], {"cond": "a cat", "shift": 0.5}
    x = start()
    SAMPLERS[name](model, x, NODES, extra_args=extra, callback=seen.append, disable=True)
    assert len(model.calls) == 2 * (len(NODES) - 2) + 1
    assert all(sigma.shape == (3,) for _, sigma, _ in model.calls)
    assert all(more == {"cond": "a cat"} for *_, more in model.calls)
    between = NODES[1:-1] if name == "erk_heun" else (NODES[:-2] * NODES[1:-1]).sqrt()
    levels = [level for pair in zip(NODES, between, strict=False) for level in pair] + [NODES[-2]]
    got = torch.stack([sigma[0] for _, sigma, _ in model.calls])
    torch.testing.assert_close(got, torch.stack(levels), rtol=1e-6, atol=0)
    assert [set(one) for one in seen] == [{"x", "i", "sigma", "sigma_hat", "denoised"}] * 7
    assert [one["i"] for one in seen] == list(range(7)) and torch.equal(seen[0]["x"], x)
    for one, (state, *_) in zip(seen, model.calls[::2], strict=True):
        assert one["sigma"] == one["sigma_hat"] == NODES[one["i"]]
        assert torch.equal(one["x"], state)
        again = Gaussian()(state, one["sigma"].expand(3), shift=0.5)
        assert torch.equal(one["denoised"], again)


@pytest.mark.parametrize("name", SAMPLERS)
def test_signature_and_ends(name):
    sampler = SAMPLERS[name]
    assert [*inspect.signature(sampler).parameters] == [
        "model", "x", "sigmas", "extra_args", "callback", "disable", "w_stiff", "w_con", "erk",
        "card",
    ]  # fmt: skip
    x = start()
    assert torch.equal(sampler(Gaussian(), x, NODES[:1], disable=True), x)  # no step to go
    assert sampler(Gaussian(), x, NODES[:0], disable=True) is x
    x.requires_grad_()
    assert not sampler(Gaussian(), x, NODES, disable=True).requires_grad


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_ends_nearer_to_the_exact_solution(name):
    """For Gaussian data x / sqrt(STD^2 + sigma^2) never changes. Measured: 0.13, 0.51."""
    nodes, x = NODES[:-1], start()  # without the last step, which is Euler's
    exact = x * math.sqrt((STD**2 + nodes[-1] ** 2) / (STD**2 + nodes[0] ** 2))
    plain, guided = (
        (SAMPLERS[name](Gaussian(), x, nodes, disable=True, w_stiff=w, w_con=0.5) - exact).norm()
        for w in (0.0, 0.5)
    )
    assert guided < 0.6 * plain, (plain, guided)


def test_the_defaults_guide():
    for sampler in (sample_erk_heun, sample_erk_dpm2):
        plain = sampler(Gaussian(), start(), NODES, disable=True, w_stiff=0.0)
        assert not torch.equal(sampler(Gaussian(), start(), NODES, disable=True), plain)


def by_hand(name, model, x, sigmas, callback=None):
    """k-diffusion's sample_heun and sample_dpm_2 without churn, in plain formulas."""
    ones = x.new_ones([len(x)])
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        denoised = model(x, now * ones)
        d = (x - denoised) / now.reshape(1, 1, 1)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": now, "sigma_hat": now, "denoised": denoised})
        if after == 0:
            x = x + d * (after - now)
        elif name == "erk_heun":
            end = x + d * (after - now)
            second = (end - model(end, after * ones)) / after.reshape(1, 1, 1)
            x = x + (d + second) / 2 * (after - now)
        else:
            mid = now.log().lerp(after.log(), 0.5).exp()
            end = x + d * (mid - now)
            x = x + (end - model(end, mid * ones)) / mid.reshape(1, 1, 1) * (after - now)
    return x


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_becomes_float32_as_in_k_diffusion(name, dtype):
    """G4: the first call of the model sees x as given, later ones see float32."""
    model, theirs = Gaussian(), Gaussian()
    x = start().to(dtype)
    ours = SAMPLERS[name](model, x, NODES, disable=True, w_stiff=0.0)
    wanted = by_hand(name, theirs, x, NODES)
    assert ours.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)
    types = [[(a.dtype, b.dtype) for a, b, _ in one.calls] for one in (model, theirs)]
    assert types[0] == types[1]
    guided = SAMPLERS[name](Gaussian(), x, NODES, disable=True, w_stiff=0.5, w_con=0.3)
    fine = SAMPLERS[name](Gaussian(), x.float(), NODES, disable=True, w_stiff=0.5, w_con=0.3)
    rounding = (wanted - by_hand(name, Gaussian(), x.float(), NODES)).norm()
    assert (guided - fine).norm() <= 2 * rounding


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_callback_comes_first_and_may_change_x(name, dtype):
    """G9: it is called before the second evaluation, and edits of x in place have effect."""
    runs = []
    for sampler in (SAMPLERS[name], None):
        model, order = Gaussian(), []

        def edit(state, model=model, order=order):
            order.append(len(model.calls))
            state["x"].mul_(0.9)

        x = start().to(dtype)
        if sampler is None:
            runs.append((by_hand(name, model, x, NODES, edit), order))
        else:
            runs.append((sampler(model, x, NODES, callback=edit, disable=True, w_stiff=0), order))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-6, atol=1e-6)
    assert runs[0][1] == runs[1][1] == [1, 3, 5, 7, 9, 11, 13]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("patched", [False, True])
def test_flow_models_of_comfyui_are_refused(name, patched):
    flow = type("ModelSampling", (type("CONST", (), {}),), {})()

    class Wrapped(Gaussian):
        if patched:
            patcher = SimpleNamespace(get_model_object=lambda name: flow)
            inner_model = SimpleNamespace(model_patcher=patcher)
        else:
            inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=flow))

    with pytest.raises(ValueError, match="set w_stiff to 0, or sample with erk.from_flow"):
        SAMPLERS[name](Wrapped(), start(), NODES / 10, disable=True)
    with pytest.raises(ValueError, match="leave erk and card out"):
        SAMPLERS[name](Wrapped(), start(), NODES / 10, disable=True, erk="auto")
    assert SAMPLERS[name](Wrapped(), start(), NODES / 10, disable=True, w_stiff=0).isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_auto_is_that_of_erk(name):
    """M4: erk="auto", without weights."""
    written = SAMPLERS[name](Gaussian(), start(), NODES, disable=True, erk="auto")
    more = {"schedule": NODES.tolist(), "solver": SOLVERS[name], "erk": "auto"}
    torch.testing.assert_close(
        written, erk.sample(denoiser, start() / NODES[0], **more), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="leave w_stiff .* at 0"):
        SAMPLERS[name](Gaussian(), start(), NODES, disable=True, erk="auto", w_stiff=1.0)


@pytest.mark.parametrize("last", [[], [0.0]], ids=["above 0", "to 0"])
@pytest.mark.parametrize("solver", ["heun", "dpm2", "deis", "unipc", "dpmpp", "euler"])
def test_a_card_gives_the_samples_of_erk(solver, last, tmp_path):
    """M4: sample_erk_card takes the card of every solver, the others that of theirs."""
    path = card_file(tmp_path, solver, LEVELS[:-1] + last)
    sigmas, seen = card_sigmas(path), []
    noise = start() / NODES[0]
    wanted = erk.sample(denoiser, noise, card=path)
    how = {"disable": True, "card": path, "callback": seen.append}
    written = sample_erk_card(Gaussian(), noise * sigmas[0], sigmas, **how)
    torch.testing.assert_close(written, wanted, rtol=1e-5, atol=1e-5)
    steps = [one["i"] for one in seen]  # one of unipc's only predicts
    assert steps == [*range(len(sigmas) - 1)] or (solver == "unipc" and len(steps) > 2)
    for name, theirs in SOLVERS.items():
        if theirs == solver:
            same = SAMPLERS[name](Gaussian(), noise * sigmas[0], sigmas, **how)
            assert torch.equal(same, written)
        else:
            with pytest.raises(ValueError, match=f"for the solver {solver}, and this sampler"):
                SAMPLERS[name](Gaussian(), noise, sigmas, **how)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm2", "unipc"])
def test_an_analytic_first_step_of_a_card(solver, tmp_path):
    path = card_file(tmp_path, solver, afs=True)
    noise, seen = start() / NODES[0], []
    written = sample_erk_card(
        Gaussian(), noise * LEVELS[0], card_sigmas(path), callback=seen.append, disable=True,
        card=path,
    )  # fmt: skip
    torch.testing.assert_close(
        written, erk.sample(denoiser, noise, card=path), rtol=1e-5, atol=1e-5
    )
    if solver == "euler":
        assert [one["i"] for one in seen] == [1, 2, 3, 4]  # the model is not called in the first


def test_cards_for_something_else_are_refused(tmp_path):
    path, sigmas = card_file(tmp_path), torch.tensor(LEVELS)
    settings = Settings(schedule=LEVELS, w_stiff=0.4, w_con=0.1)
    weights = card_of()._replace(settings=settings)

    class Guided(Gaussian):
        inner_model = SimpleNamespace(cfg=4.0)

    class FromFile(Gaussian):
        sha256 = "1" * 64

    def run(model=None, sigmas=sigmas, **more):
        sample_erk_heun(model or Gaussian(), start(), sigmas, disable=True, **more)

    for message, more in {
        "sets guidance to 1.0, which contradicts 4.0": {"model": Guided(), "card": path},
        "sets guidance to 1.0, which contradicts 7.5": {
            "card": path, "extra_args": {"cond_scale": 7.5},
        },
        "the card's network: not from a file, this one: 111111111111": {
            "model": FromFile(), "card": path,
        },
        "sets 6 noise levels from 10 to 0, which contradicts the 8 sigmas": {
            "sigmas": NODES, "card": path,
        },
        "sets w_stiff to 0.0, which contradicts 1.0": {"card": path, "w_stiff": 1.0},
        "sets w_stiff to 0.4, which contradicts 0.0": {"card": weights, "w_stiff": 0.0},
        "sets w_con to 0.1, which contradicts 0.5": {"card": weights, "w_con": 0.5},
        "there is no card 'nowhere.json'": {"card": "nowhere.json"},
    }.items():  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run(**more)
    guided = card_file(tmp_path, networks=("", ""), guidance=4.0)
    run(Guided(), card=guided)
    with pytest.raises(ValueError, match="needs a card: give card='FILE'"):
        sample_erk_card(Gaussian(), start(), sigmas)


def test_a_card_of_a_module_is_for_what_a_host_makes_of_it(tmp_path):
    """Hosts wrap networks in modules of their own, or do not show them."""
    card = card_of()
    known = card.networks | {"parameters": "a" * 64}
    path = tmp_path / "module.card.json"
    card._replace(networks=known).save(path)

    class Wrapped(torch.nn.Linear):
        def forward(self, x, sigma):
            return Gaussian()(x, sigma)

    levels = torch.tensor(LEVELS)
    written = sample_erk_heun(Wrapped(1, 1), start(), levels, disable=True, card=path)
    alone = sample_erk_heun(Gaussian(), start(), levels, disable=True, card=path)
    assert torch.equal(written, alone)
    scheduler = ERKHeunScheduler(card=str(path))
    scheduler.set_timesteps()
    assert scheduler.sigmas[0].item() == pytest.approx(LEVELS[0])


@pytest.mark.parametrize(
    "weights", [{"w_stiff": -1.0}, {"w_con": math.nan}, {"w_stiff": "1"}], ids=str
)
def test_invalid_weights_are_refused(weights):
    """A negative w_stiff was off in silence."""
    (name,) = weights
    with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 0, not"):
        sample_erk_heun(lambda x, sigma: x, torch.ones(1, 2), torch.tensor([2.0, 1.0]), **weights)


@pytest.mark.parametrize("name", ["model", "x", "sigmas", "extra_args", "callback"])
def test_a_wrong_type_is_refused_by_the_name_of_the_argument(name):
    """J: tracebacks of the inside."""
    given = dict(model=Gaussian(), x=start(), sigmas=NODES, disable=True)
    with pytest.raises(ValueError, match=f"^{name} must be "):
        sample_erk_heun(**{**given, name: 2.5})
