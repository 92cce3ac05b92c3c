"""ERKFlowMatchHeunScheduler: diffusers' Heun without ERK-Guid, Heun's method in sigma with it."""

import inspect
import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from cards import card_of
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import retrieve_timesteps
from scheduler_loop import STD, close, draw

import erk
from erk.integrations.diffusers import ERKFlowMatchHeunScheduler as Flow

PARENT = diffusers.FlowMatchHeunDiscreteScheduler
TIMES = diffusers.FlowMatchEulerDiscreteScheduler
SHUT = {"w_stiff": 1.0, "w_con": 1e9}  # a gate that never opens


def velocity(x, t, std=STD):
    """The exact velocity for data N(0, std^2) at x_t = (1 - t) data + t noise."""
    t = torch.as_tensor(t).double().reshape(-1, 1, 1, 1)
    clean = std**2 * (1 - t) * x / (std**2 * (1 - t) ** 2 + t**2)
    return ((x - clean) / t).to(x.dtype)


def follow(scheduler, x, first=0, predict=velocity):
    seen = []
    for t in scheduler.timesteps[first:]:
        answer = predict(x, t / scheduler.config.num_train_timesteps)
        x = scheduler.step(answer, t, x, return_dict=False)[0]
        seen.append(x)
    return seen


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_without_erk_guid_it_is_heun_of_diffusers_bit_by_bit(shift, steps):
    ours, theirs = Flow(shift=shift), PARENT(shift=shift)
    for one in (ours, theirs):
        one.set_timesteps(steps)
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    for one, other in zip(follow(ours, draw()), follow(theirs, draw()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("config", [
    {}, {"shift": 3.0}, {"use_dynamic_shifting": True}, {"use_karras_sigmas": True},
    {"shift_terminal": 0.1}, {"use_dynamic_shifting": True, "time_shift_type": "linear"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("given", [
    {"num_inference_steps": 6}, {"sigmas": np.linspace(1, 0.2, 5)}, {"timesteps": [900.0, 500, 90]},
], ids=str)  # fmt: skip
def test_levels_are_those_of_the_scheduler_of_pipelines(config, given):
    mu = {"mu": 0.8} if "use_dynamic_shifting" in config else {}
    ours, theirs = Flow(**config), TIMES(**config)
    for one in (ours, theirs):
        one.set_timesteps(**given, **mu)
    assert torch.equal(torch.unique_consecutive(ours.sigmas), theirs.sigmas)
    assert torch.equal(torch.unique_consecutive(ours.timesteps), theirs.timesteps)
    assert len(ours.timesteps) == 2 * len(theirs.timesteps) - 1
    assert ours.num_inference_steps == len(theirs.timesteps)


def test_the_contract_of_pipelines(tmp_path):
    """SD3 and FLUX give sigmas and mu; img2img gives a batch of timesteps to scale_noise."""
    config = TIMES(shift=3.0, use_dynamic_shifting=True).config
    scheduler = Flow.from_config(config, erk="auto")
    timesteps, count = retrieve_timesteps(scheduler, sigmas=np.linspace(1, 0.25, 4), mu=1.15)
    assert (len(timesteps), count) == (7, 7) and scheduler.config.shift == 3.0
    assert isinstance(scheduler, TIMES) and isinstance(scheduler, PARENT)
    assert inspect.signature(Flow.step) == inspect.signature(PARENT.step)
    for name in ("set_timesteps", "scale_noise", "set_shift", "time_shift"):
        assert inspect.signature(getattr(Flow, name)) == inspect.signature(getattr(TIMES, name))
    added = {*Flow().config} - {*TIMES().config}
    assert added == {"w_stiff", "w_con", "erk", "card", "guidance"}
    x, noise, at = draw(), draw(seed=1), scheduler.timesteps[3:4].repeat(3)
    share = scheduler.sigmas[3]
    close(scheduler.scale_noise(x, at, noise), share * noise + (1 - share) * x)
    scheduler.save_pretrained(tmp_path)
    assert Flow.from_pretrained(tmp_path).config.erk == "auto"
    out = scheduler.step(velocity(x, 1.0), scheduler.timesteps[0], x)
    assert type(out).__name__ == "FlowMatchHeunDiscreteSchedulerOutput"
    for name in ("invert_sigmas", "stochastic_sampling"):
        with pytest.raises(ValueError, match=f"Heun's steps have no {name}"):
            Flow(**{name: True})


def test_heun_in_sigma_and_in_s_by_hand():
    """One step from s to s' of scalar data N(0, 0.25), in plain arithmetic.

    Beyond Euler's answer, in s: (n2 - n1) (s' - s) / 2 / (1 - s'); in sigma: ... / (1 - s).
    """
    s, s_next, x, std = 0.8, 0.6, 1.3, 0.5

    def slopes(x, s):  # the noise in x, and the velocity
        data = std**2 * (1 - s) * x / (std**2 * (1 - s) ** 2 + s**2)
        return (x - (1 - s) * data) / s, (x - data) / s

    n1, v1 = slopes(x, s)
    euler = x + (s_next - s) * v1
    sigma, sigma_next = s / (1 - s), s_next / (1 - s_next)
    in_sigma = (1 - s_next) * (x / (1 - s) + (sigma_next - sigma) * n1)
    assert euler == pytest.approx(in_sigma)  # Euler's steps agree
    n2, v2 = slopes(euler, s_next)
    heun_s = x + (s_next - s) * (v1 + v2) / 2
    heun_sigma = (1 - s_next) * (x / (1 - s) + (sigma_next - sigma) * (n1 + n2) / 2)
    move = (n2 - n1) * (s_next - s) / 2
    assert heun_s - euler == pytest.approx(move / (1 - s_next))
    assert heun_sigma - euler == pytest.approx(move / (1 - s))
    assert abs(heun_s - heun_sigma) > 0.01
    for config, wanted in (({}, heun_s), (SHUT, heun_sigma)):
        scheduler = Flow(**config)
        scheduler.set_timesteps(sigmas=[s, s_next])
        start = torch.full((1, 1, 1, 1), x)
        seen = follow(scheduler, start, predict=lambda x, t: velocity(x, t, std))
        assert seen[0].item() == pytest.approx(euler, abs=1e-6)
        assert seen[1].item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("config", [SHUT, {"w_stiff": 0.5, "w_con": 0.1}, {"erk": "auto"}], ids=str)
@pytest.mark.parametrize("first", [0, 3])
def test_with_erk_guid_it_is_erk_in_sigma(config, first):
    """From the first level below s = 1 on, whose step is the parent's; and from the middle."""
    scheduler, plain = Flow(shift=3.0, **config), PARENT(shift=3.0)
    for one in (scheduler, plain):
        one.set_timesteps(8)
    x = draw()
    if first:
        scheduler.set_begin_index(2 * first)
        seen = [None] * 2 + follow(scheduler, x, 2 * first)
    else:
        first, seen = 1, follow(scheduler, x)
        assert all(map(torch.equal, seen[:2], follow(plain, draw())[:2]))
        x = seen[1]
    shares = torch.unique_consecutive(scheduler.sigmas).double()[first:]
    nodes = (shares / (1 - shares)).tolist()
    noise = x * (1 + nodes[0]) / nodes[0]
    close(seen[-1], erk.sample(erk.from_flow(velocity), noise, schedule=nodes, **config))


def test_the_table_of_flows():
    """docs/integrations.md: distances to the exact solution before the last step to 0."""

    def error(kind, steps, **config):
        scheduler, noise = kind(**config), draw(16)
        scheduler.set_timesteps(steps)
        last = scheduler.sigmas[-2]
        exact = noise * ((1 - last) ** 2 * STD**2 + last**2).sqrt()
        return (follow(scheduler, noise)[-2] - exact).norm().item()

    page = (Path(__file__).parents[2] / "docs/integrations.md").read_text("utf-8")
    rows = re.findall(r"(?m)^\| (\d+), (\d) \| ([\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+) \|$", page)
    assert len(rows) == 5
    guided = SHUT, {"w_stiff": 0.4, "w_con": 0.1}, {"erk": "auto"}
    kinds = (PARENT, {}), *((Flow, config) for config in guided)
    for steps, shift, shown in rows:
        measured = [error(kind, int(steps), shift=float(shift), **more) for kind, more in kinds]
        assert measured == pytest.approx([*map(float, shown.split(" | "))], abs=0.001)
        assert error(Flow, int(steps), shift=float(shift)) == measured[0]


@pytest.mark.parametrize("last", [[], [0.0]], ids=["above 0", "to 0"])
def test_a_card_gives_the_samples_of_erk(last):
    nodes = [80.0, 20.0, 4.0, 1.5, 0.5, 0.1, *last]
    scheduler = Flow(shift=3.0, use_dynamic_shifting=True, card=card_of(levels=nodes))
    scheduler.set_timesteps(len(nodes) - 1, mu=0.9)
    assert scheduler.config.use_flow_sigmas  # FLUX then gives no sigmas
    assert "use_flow_sigmas" not in Flow.from_config(scheduler.config, erk="auto").config
    end = follow(scheduler, draw() * scheduler.sigmas[0])[-1]
    wanted = erk.sample(erk.from_flow(velocity), draw(), card=card_of(levels=nodes))
    close(end, wanted / (1 + nodes[-1]))
    with pytest.raises(ValueError, match="leave sigmas out of set_timesteps"):
        scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=0.9)
    with pytest.raises(ValueError, match="contradicts shift: leave shift out"):
        Flow.from_config(scheduler.config, card=card_of(levels=nodes), shift=2.0)


def test_arguments_that_have_no_effect_or_no_meaning_are_refused():
    scheduler = Flow(w_stiff=0.5)
    with pytest.raises(ValueError, match="num_inference_steps must be an integer of at least 1"):
        scheduler.set_timesteps(2.5)
    scheduler.set_timesteps(sigmas=[0.9, 0.5])
    with pytest.raises(ValueError, match="deterministic step: leave s_churn out"):
        scheduler.step(draw(), scheduler.timesteps[0], draw(), s_churn=1.0)


def test_half_precision():
    scheduler = Flow(erk="auto")
    scheduler.set_timesteps(6)
    seen = follow(scheduler, draw().to(torch.bfloat16))
    scheduler.set_timesteps(6)
    fine = follow(scheduler, draw())
    assert all(one.dtype == torch.bfloat16 for one in seen)
    assert (seen[-1].float() - fine[-1]).norm() < 0.05 * fine[-1].norm()
