"""Schedulers of diffusers with ERK-Guid: the parent's at w_stiff 0, erk.sample's above it."""

import math
from types import SimpleNamespace

import pytest
import torch
from scheduler_loop import (
    HEUN,
    MULTI,
    NOISE,
    PARENTS,
    SINGLE,
    STD,
    WEIGHTS,
    close,
    draw,
    follow,
    levels,
    made_of,
    network,
    run,
    sampled,
    scale,
)

import erk
from erk.method.solvers import dpm2, dpmpp, euler

CONFIGS = [
    (HEUN, {"timestep_spacing": "leading"}),
    (HEUN, {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}),
    (HEUN, {"prediction_type": "sample", "clip_sample": True, "clip_sample_range": 0.5}),
    (HEUN, {"use_karras_sigmas": True}),
    *[(SINGLE, {"solver_order": n, "lower_order_final": True}) for n in (1, 2, 3)],
    (SINGLE, {"prediction_type": "v_prediction", "solver_type": "heun"}),
    (SINGLE, {"prediction_type": "sample", **NOISE}),
    *[(MULTI, {"solver_order": n}) for n in (1, 2, 3)],
    (MULTI, {"prediction_type": "v_prediction", "use_karras_sigmas": True}),
    (MULTI, {"prediction_type": "sample", "solver_type": "heun", "euler_at_final": True}),
    (MULTI, {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}),
    (MULTI, {"thresholding": True, "timestep_spacing": "trailing"}),
    (MULTI, NOISE),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "config"), CONFIGS, ids=str)
@pytest.mark.parametrize("steps", [7, 20])
def test_without_guidance_it_is_the_parent_bit_by_bit(kind, config, steps):
    """w_stiff 0, and a gate that never opens."""
    parent = PARENTS[kind](**config)
    predict = network(parent)
    _, wanted = run(parent, predict, draw(), steps)
    for weights in ({}, {"w_stiff": 1.0, "w_con": 1e9}):
        if weights and config.get("solver_order") == 3 and kind is SINGLE:
            continue
        _, written = run(kind(**config, **weights), predict, draw(), steps)
        assert len(written) == len(wanted) and all(map(torch.equal, written, wanted)), weights
    assert wanted[-1].isfinite().all()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_heun_is_that_of_erk(prediction):
    noise = draw()
    scheduler = made_of(HEUN, prediction_type=prediction, **WEIGHTS)
    written, _ = run(scheduler, network(scheduler), noise, 12)
    predict = network(made_of(HEUN))
    close(written, sampled(scheduler, predict, noise, "heun"))
    plain, _ = run(made_of(HEUN), predict, noise, 12)
    assert (written - plain).abs().max() > 0.01


def test_heun_on_levels_of_ones_own():
    """sigmas=: EDM's schedule, with a network that answers D and gets sigma from nobody else."""
    scheduler = HEUN(prediction_type="sample", **WEIGHTS)
    nodes = erk.Settings(steps=9).sigmas()
    scheduler.set_timesteps(sigmas=nodes)
    scheduler.set_begin_index(0)
    assert torch.equal(torch.unique_consecutive(scheduler.sigmas), nodes)
    assert len(scheduler.timesteps) == 17 and len(scheduler.sigmas) == 18

    def model(x, sigma, labels=None):
        return STD**2 / (STD**2 + sigma**2) * x

    x = draw() * nodes[0]
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step(model(x, scheduler.sigmas[index]), t, x, return_dict=False)[0]
    close(x, erk.sample(model, draw(), steps=9, **WEIGHTS))
    inside = [9.0, 2.0, 0.5, 0.0]
    scheduler.set_timesteps(sigmas=inside)
    known = erk.from_epsilon(print, scheduler.alphas_cumprod).sigma_inv(torch.tensor(inside[:3]))
    close(scheduler.timesteps[[0, 1, 3]], known.float())
    for message, how in {
        "only one of": {"sigmas": inside, "num_inference_steps": 3},
        "must end in 0": {"sigmas": inside[:3]},
        "strictly decreasing": {"sigmas": [1.0, 2.0, 0.0]},
    }.items():
        with pytest.raises(ValueError, match=message):
            scheduler.set_timesteps(**how)


def by_nodes(nodes, predict_x0):
    """DPM-Solver-2S whose middle stage is the node between, and Euler where there is none."""

    def solver(drift, x, sigma, sigma_next, memory=None):
        between = [n for n in nodes if sigma_next < n * (1 - 1e-6) and n * (1 + 1e-6) < sigma]
        if not between:
            return euler(drift, x, sigma, sigma_next, memory)
        r = math.log(sigma / between[0]) / math.log(sigma / sigma_next)
        step = dpm2(drift, x, sigma, sigma_next, r=r, predict_x0=predict_x0)
        return step._replace(memory=(step.start,))

    return solver


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_singlestep_of_order_2_is_dpm2(algorithm, prediction):
    """Odd: pairs and a last step to 0; even: one step of order 1 more, or the end at sigma_min."""
    noise, more = draw(), NOISE if algorithm == "dpmsolver" else {}
    how = {"prediction_type": prediction, **more, **WEIGHTS}
    for steps in (9, 10):
        scheduler = made_of(SINGLE, **how)
        written, _ = run(scheduler, network(scheduler), noise, steps)
        all_nodes = levels(scheduler)
        kept = [n for n, order in zip(all_nodes, scheduler.order_list) if order == 1]  # noqa: B905
        solver = by_nodes(all_nodes, not more)
        nodes = [*kept, all_nodes[-1]]
        predict = network(made_of(SINGLE))
        close(written, sampled(scheduler, predict, noise, solver, nodes))
        plain = sampled(scheduler, predict, noise, solver, nodes, w_stiff=0.0)
        assert (written - plain).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [SINGLE, MULTI])
def test_order_1_is_euler(kind):
    scheduler = made_of(kind, solver_order=1, **WEIGHTS)
    predict = network(scheduler)
    written, _ = run(scheduler, predict, draw(), 12)
    close(written, sampled(scheduler, predict, draw(), "euler"))


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize(("order", "steps"), [(2, 8), (2, 16), (3, 8), (3, 16)])
def test_multistep_is_dpmpp(algorithm, order, steps):
    """Below 15 steps the parent lowers the order at the end; with a last step to 0 that is its."""
    more = NOISE if algorithm == "dpmsolver" else {}
    scheduler = made_of(MULTI, solver_order=order, **more, **WEIGHTS)
    predict = network(scheduler)
    written, _ = run(scheduler, predict, draw(), steps)
    orders = [1, *range(2, order), *[order] * steps][:steps]
    if steps < 15:
        orders[-2:] = [2, 1]
    left = iter(orders)

    def solver(*arguments):
        sigmas = torch.tensor(levels(scheduler))
        how = dict(sigmas=sigmas, predict_x0=not more, lower_order_final=False)
        return dpmpp(*arguments, order=next(left), **how)

    close(written, sampled(scheduler, predict, draw(), solver))
    plain, _ = run(made_of(MULTI, solver_order=order, **more), predict, draw(), steps)
    assert (written - plain).abs().max() > 2e-4


def test_multistep_by_its_name_in_erk():
    scheduler = made_of(MULTI, **WEIGHTS)
    predict = network(scheduler)
    written, _ = run(scheduler, predict, draw(), 20)
    how = {"order": 2, "lower_order_final": False}
    close(written, sampled(scheduler, predict, draw(), "dpmpp", solver_options=how))


def test_flow_predictions_are_solved_in_sigma():
    """x_t = (1 - t) data + t noise; timesteps are rounded, so the network gets t itself."""
    scheduler = MULTI(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=1, **WEIGHTS
    )
    scheduler.set_timesteps(12)

    def velocity(x, t):
        t = t.reshape(-1, 1, 1, 1)
        clean = STD**2 * (1 - t) * x / (STD**2 * (1 - t) ** 2 + t**2)
        return (x - clean) / t

    x = draw() * scheduler.sigmas[0]
    for level, t in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        x = scheduler.step(velocity(x, level), t, x).prev_sample
    how = dict(schedule=levels(scheduler), solver="euler")
    close(x, erk.sample(erk.from_flow(velocity), draw(), **how, **WEIGHTS))
    assert (x - erk.sample(erk.from_flow(velocity), draw(), **how)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", PARENTS)
def test_every_sample_is_decided_on_its_own(kind):
    """The first of three is above w_con; the others keep every bit.

    Heun's pair lies at one sigma and sees sigma / (S^2 + sigma^2), which is large for small S; the
    others' lie at two and see S^2 / (sigma (S^2 + sigma^2)).
    """
    std = torch.tensor([0.3, 5.0, 8.0] if kind is HEUN else [1.0, 0.01, 0.02]).reshape(3, 1, 1, 1)
    predict = network(made_of(kind), std)
    plain, _ = run(made_of(kind), predict, draw(), 16)
    guided, _ = run(made_of(kind, w_stiff=0.4, w_con=0.3), predict, draw(), 16)
    assert torch.equal(guided[1:], plain[1:]) and not torch.equal(guided[0], plain[0])


@pytest.mark.parametrize("kind", PARENTS)
def test_the_pair_is_that_of_the_guided_prediction(kind):
    """Classifier-free guidance in one batch, as pipelines do it, against guidance in erk.sample."""
    scheduler = made_of(kind, **WEIGHTS, **({} if kind is HEUN else {"solver_order": 1}))
    one, none = network(scheduler, mean=0.4), network(scheduler, mean=0.0)

    def guided(x, t):
        labelled, free = torch.cat([one(x, t), none(x, t)]).chunk(2)
        return free + 1.7 * (labelled - free)

    written, _ = run(scheduler, guided, draw(), 10)
    adapted = [erk.from_epsilon(net, scheduler.alphas_cumprod) for net in (one, none)]
    wanted = erk.sample(
        adapted[0], draw(), guide_model=adapted[1], guidance=1.7, schedule=levels(scheduler),
        solver="heun" if kind is HEUN else "euler", **WEIGHTS,
    )  # fmt: skip
    close(written, wanted)


@pytest.mark.parametrize("kind", PARENTS)
@pytest.mark.parametrize("report", [True, False])
def test_a_start_in_the_middle(kind, report):
    """img2img: noise on a image at the 4th level; its first step has no pair, as erk.sample's."""
    scheduler = made_of(kind, **WEIGHTS, **({} if kind is HEUN else {"solver_order": 1}))
    scheduler.set_timesteps(10)
    first = 4 * scheduler.order
    if report:
        scheduler.set_begin_index(first)
    t = scheduler.timesteps[first : first + 1]
    x = scheduler.add_noise(draw(seed=5) * 0.1, draw(), t)
    predict = network(scheduler)
    written, _ = follow(scheduler, predict, x, first)
    alpha, sigma = scale(scheduler, first)
    nodes = levels(scheduler)[4:]
    assert sigma.item() == nodes[0]
    solver = "heun" if kind is HEUN else "euler"
    close(written, sampled(scheduler, predict, x / alpha / sigma, solver, nodes))


@pytest.mark.parametrize("kind", PARENTS)
def test_the_drift_is_that_of_the_clipped_denoiser(kind):
    """clip_sample and dynamic thresholding are part of the ODE that is solved."""
    more = {"clip_sample": True, "clip_sample_range": 0.3} if kind is HEUN else {
        "thresholding": True, "sample_max_value": 0.3, "solver_order": 1
    }  # fmt: skip
    scheduler = made_of(kind, **more, **WEIGHTS)
    predict = network(scheduler)
    free = erk.from_epsilon(predict, scheduler.alphas_cumprod)

    def clipped(x, sigma):
        if kind is HEUN:
            return free(x, sigma).clamp(-0.3, 0.3)
        return scheduler._threshold_sample(free(x, sigma))

    written, _ = run(scheduler, predict, draw(), 12)
    wanted = erk.sample(
        erk.from_denoiser(clipped), draw(), schedule=levels(scheduler),
        solver="heun" if kind is HEUN else "euler", **WEIGHTS,
    )  # fmt: skip
    close(written, wanted)
    assert (written.abs() > 0.29).any()


@pytest.mark.parametrize("kind", PARENTS)
def test_guidance_lowers_the_error(kind):
    """Before the last step to 0, against the exact solution for Gaussian data.

    Measured: to 0.01, 0.27 and 0.45 of the parent's.
    """
    std = 1.0 if kind is MULTI else 0.3  # the sign of dpmpp is right below sigma = std
    predict = network(made_of(kind), torch.tensor(std))
    noise = draw(16)

    def error(weight):
        scheduler = made_of(kind, w_stiff=weight, w_con=0.5)
        _, seen = run(scheduler, predict, noise, 17)
        alpha, last = scale(scheduler, -2)
        first = scale(scheduler, 0)[1]
        exact = noise * first * ((std**2 + last**2) / (std**2 + first**2)).sqrt()
        return (seen[-2] / alpha - exact).norm().item()

    assert error(0.6) < 0.5 * error(0.0)


@pytest.mark.parametrize("kind", [HEUN, SINGLE, MULTI])
def test_wrong_types_are_refused_by_the_name_of_the_argument(kind):
    """J: tracebacks of diffusers' inside."""
    scheduler = made_of(kind, w_stiff=0.5)
    for bad in (2.5, "4", -1, [], True):
        with pytest.raises(ValueError, match="num_inference_steps must be an integer of at least"):
            scheduler.set_timesteps(bad)
    scheduler.set_timesteps(torch.tensor(4))
    for name in ("model_output", "sample"):
        given = {"model_output": draw(), "sample": draw(), name: 3}
        with pytest.raises(ValueError, match=f"^{name} must be a tensor"):
            scheduler.step(timestep=scheduler.timesteps[0], **given)


class Net(torch.nn.Module):
    """A network as the pipelines of diffusers use one."""

    config = SimpleNamespace(sample_size=4, in_channels=1)
    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, x, t):
        return SimpleNamespace(sample=0.1 * x)


def test_pipelines_of_ddim_and_ddpm():
    """As docs/integrations.md says: what to do about it depends on diffusers."""
    from diffusers import DDIMPipeline, DDPMPipeline

    ddim = DDIMPipeline(Net(), SINGLE())
    assert type(ddim.scheduler).__name__ == "DDIMScheduler"
    for scheduler in (HEUN, SINGLE, MULTI):
        ddim.scheduler = scheduler(erk="auto")
        with pytest.raises(TypeError, match="unexpected keyword argument 'eta'"):
            ddim(num_inference_steps=3)
    for scheduler in (SINGLE, MULTI):
        run = DDPMPipeline(ddim.unet, scheduler(w_stiff=0.5))
        assert run(num_inference_steps=3, output_type="np").images.shape == (1, 4, 4, 1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'generator'"):
        DDPMPipeline(ddim.unet, HEUN())(num_inference_steps=3)
