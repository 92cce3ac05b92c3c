"""What pipelines rely on: runs, precisions, configs and errors are those of the parents."""

import inspect
import itertools
import math
import subprocess
import sys

import diffusers
import pytest
import torch
from scheduler_loop import (
    HEUN,
    MULTI,
    PARENTS,
    SINGLE,
    WEIGHTS,
    draw,
    follow,
    made_of,
    network,
    run,
    scale,
)

from erk.method.guidance import erk_guid
from erk.method.point import Point, Step


@pytest.mark.parametrize("kind", PARENTS)
def test_a_second_run_knows_nothing_of_the_first(kind):
    scheduler = made_of(kind, **WEIGHTS)
    predict = network(scheduler)
    complete, _ = run(scheduler, predict, draw(), 9)
    for stop in (1, 2, 4):  # in the middle of a step, too
        scheduler.set_timesteps(9)
        x = draw(seed=1) * 10
        for t in scheduler.timesteps[:stop]:
            x = scheduler.step(predict(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        assert torch.equal(run(scheduler, predict, draw(), 9)[0], complete)


def test_a_start_between_the_stages_of_a_step():
    """The singlestep parent turns the half step that is left into one of order 1."""
    answers = []
    shut = made_of(SINGLE, w_stiff=1.0, w_con=1e9)
    for one in (shut, made_of(PARENTS[SINGLE]), made_of(SINGLE, **WEIGHTS)):
        one.set_timesteps(9)
        one.set_begin_index(3)
        answers.append(follow(one, network(one), draw(), 3)[0])
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[2], answers[1]) and answers[2].isfinite().all()


@pytest.mark.parametrize("kind", PARENTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(kind, dtype):
    """The type is the parent's, and the correction has the digits that the states leave it."""
    predict = network(made_of(kind))

    def loop(scheduler, dtype):
        scheduler.set_timesteps(9)
        alpha, sigma = scale(scheduler, 0)
        x = (alpha * sigma * draw()).to(dtype)
        for t in scheduler.timesteps:
            x = scheduler.step(predict(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        return x

    types = (dtype, torch.float32)
    plain, fine = (loop(made_of(PARENTS[kind]), one) for one in types)
    guided, guided_fine = (loop(made_of(kind, **WEIGHTS), one) for one in types)
    assert guided.dtype == plain.dtype and torch.equal(loop(made_of(kind), dtype), plain)
    assert torch.equal(loop(made_of(kind, w_stiff=1.0, w_con=1e9), dtype), plain)
    rounding, correction = (plain.float() - fine).abs().max(), (guided_fine - fine).abs().max()
    assert (guided.float() - guided_fine).abs().max() < 3 * rounding + correction / 2 + 1e-5
    assert correction > 5e-4


def test_the_pair_of_half_precision_states_has_all_digits():
    """At low noise (x - D) / sigma of numbers rounded to float16 would be mostly rounding."""
    scheduler, shut = (
        made_of(SINGLE, solver_order=1, w_stiff=40.0, w_con=limit) for limit in (0.0, 1e9)
    )
    x0, e0, x1, e1 = (one.half() for one in draw(12).chunk(4))
    answers = []
    for one in (scheduler, shut):
        one.set_timesteps(40)
        one.set_begin_index(37)
        one.step(e0, one.timesteps[37], x0)
        answers.append(one.step(e1, one.timesteps[38], x1).prev_sample.float())
    (a0, s0), (a1, s1), (a2, s2) = (scale(scheduler, i) for i in (37, 38, 39))
    step = Step(
        torch.zeros_like(x1).float(), Point(x1.float() / a1, e1.float(), s1),
        twin=Point(x0.float() / a0, e0.float(), s0), h=s2 - s1,
    )  # fmt: skip
    wanted = a2 * erk_guid(step, 40.0, 0.0)
    assert wanted.abs().max() > 0.1
    assert torch.allclose(answers[0] - answers[1], wanted, atol=2e-3)  # one rounding of the answer


@pytest.mark.parametrize("kind", PARENTS)
def test_tuples_and_arguments_are_the_parents(kind):
    parent = PARENTS[kind]
    assert inspect.signature(kind.step) == inspect.signature(parent.step)
    scheduler, plain = kind(**WEIGHTS), parent()
    predict = network(scheduler)
    x = draw() * 10
    for one in (scheduler, plain):
        one.set_timesteps(5)
    results = []
    for one in (scheduler, plain):
        t = one.timesteps[0]
        out = one.step(predict(one.scale_model_input(x, t), t), t, x, return_dict=False)
        results.append(out)
    assert all(map(torch.equal, *results)) and len(results[0]) == len(results[1])  # no pair yet
    named = kind(**WEIGHTS)
    named.set_timesteps(5)
    t = named.timesteps[0]
    answer = predict(named.scale_model_input(x, t), t)
    out = named.step(model_output=answer, timestep=t, sample=x)
    assert type(out) is type(plain.step(answer, plain.timesteps[1], x))
    assert torch.equal(out["prev_sample"], results[0][0])


@pytest.mark.parametrize("kind", PARENTS)
def test_the_config_is_the_parents_with_those_of_erk(kind, tmp_path):
    stock = PARENTS[kind](num_train_timesteps=500, beta_schedule="scaled_linear")
    ours = {"w_stiff": 0.0, "w_con": 0.5, "erk": None, "card": None, "guidance": 1.0}
    mine = dict(kind().config)
    assert {name: mine.pop(name) for name in ours} == ours
    wanted = dict(PARENTS[kind]().config)
    for config in (mine, wanted):
        config.pop("_use_default_values", None)
    assert mine == wanted
    written = kind.from_config(stock.config, w_stiff=0.7)
    assert written.config.num_train_timesteps == 500 and written.config.w_stiff == 0.7
    assert torch.equal(written.alphas_cumprod, stock.alphas_cumprod)
    written.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert again.config.w_stiff == 0.7 and again.config.w_con == 0.5
    assert again.config.beta_schedule == "scaled_linear"
    assert kind.from_pretrained(tmp_path, w_con=0.1).config.w_con == 0.1
    back = PARENTS[kind].from_config(written.config)
    assert "w_stiff" not in inspect.signature(type(back)).parameters
    assert back.config.num_train_timesteps == 500
    assert kind(500, w_stiff=1).config.num_train_timesteps == 500


def test_configs_of_other_schedulers_are_taken_as_the_parent_takes_them():
    """The scheduler of one kind of pipeline is often made from the config of another."""
    for kind, parent in PARENTS.items():
        for other in (diffusers.DDIMScheduler, diffusers.DEISMultistepScheduler, *PARENTS.values()):
            config = other(beta_end=0.03).config
            written, wanted = kind.from_config(config, w_stiff=1.0), parent.from_config(config)
            same = [key for key in inspect.signature(parent).parameters if key != "self"]
            assert {k: written.config[k] for k in same} == {k: wanted.config[k] for k in same}


@pytest.mark.parametrize(("kind", "config"), [
    (HEUN, {"beta_schedule": "steep"}),
    (HEUN, {"use_karras_sigmas": True, "use_beta_sigmas": True}),
    *itertools.product((SINGLE, MULTI), [
        {"algorithm_type": "dpm"}, {"solver_type": "rk4"}, {"beta_schedule": "steep"},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "zero"},
    ]),
    (SINGLE, {"solver_order": 4}),
], ids=str)  # fmt: skip
def test_what_the_parent_refuses_is_refused_in_its_words(kind, config):
    messages = []
    for one in (kind, PARENTS[kind]):
        with pytest.raises((ValueError, NotImplementedError)) as caught:
            one(**config)
        messages.append((caught.type, str(caught.value).replace(one.__name__, "")))
    assert messages[0][0] == messages[1][0]
    assert messages[0][1].split("<class")[0] == messages[1][1].split("<class")[0]


def test_where_there_is_no_pair_it_says_so():
    for kind, algorithm in ((SINGLE, "sde-dpmsolver++"), (MULTI, "sde-dpmsolver++")):
        kind(algorithm_type=algorithm)
        with pytest.raises(ValueError, match="deterministic step"):
            kind(algorithm_type=algorithm, w_stiff=1.0)
    with pytest.raises(ValueError, match="no pair for singlestep solvers of order 3"):
        SINGLE(solver_order=3, w_stiff=1.0)
    for weights in ({"w_stiff": -1.0}, {"w_con": math.nan}, {"w_stiff": math.inf}, {"w_con": "1"}):
        for kind in PARENTS:
            with pytest.raises(ValueError, match="finite number of at least 0"):
                kind(**weights)
    scheduler = HEUN(prediction_type="score", w_stiff=1.0)
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="prediction_type"):
        scheduler.step(draw(), scheduler.timesteps[0], draw())
    later = MULTI(algorithm_type="sde-dpmsolver++")
    later.register_to_config(w_stiff=1.0)
    with pytest.raises(ValueError, match="deterministic step"):
        later.set_timesteps(5)


def test_importing_erk_imports_no_diffusers():
    code = "import erk, sys; erk.from_epsilon; erk.sample; print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
