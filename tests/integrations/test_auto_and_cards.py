"""Schedulers with erk="auto" and with cards (M4): the samples are those of erk.sample."""

import json

import pytest
import torch
from cards import LEVELS, card_file, card_of
from scheduler_loop import (
    HEUN,
    MULTI,
    PARENTS,
    SD,
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
from erk.integrations.diffusers import EDM2Pipeline
from erk.integrations.kdiffusion import card_sigmas, sample_erk_card
from erk.integrations.walk import Walk
from erk.method.point import Point
from erk.method.settings import Settings
from erk.models.adapters import discrete_times

CARDS = [
    (HEUN, "heun", {}),
    (SINGLE, "dpm2", {}),
    (SINGLE, "dpm2", {"predict_x0": True, "r": 0.4}),
    (MULTI, "dpmpp", {"order": 2}),
    (MULTI, "dpmpp", {"order": 3}),
    (MULTI, "euler", {}),
]


def exact(table):
    """A network for every fractional timestep: the noise in data N(0, STD^2)."""
    times = discrete_times(table)

    def predict(x, t):
        sigma = times.to(torch.as_tensor(t)).reshape(-1, 1, 1, 1)
        scale = (1 + sigma**2).sqrt()
        return (sigma * x * scale / (STD**2 + sigma**2)).to(x.dtype)

    return predict


@pytest.mark.parametrize("last", [[], [0.0]], ids=["above 0", "to 0"])
@pytest.mark.parametrize(("kind", "solver", "options"), CARDS, ids=str)
def test_a_card_gives_the_samples_of_erk(kind, solver, options, last, tmp_path):
    """Also after the file is gone and the config went through JSON."""
    nodes = LEVELS[:-1] + last
    path = card_file(tmp_path, solver, nodes, solver_options=options)
    scheduler = kind.from_config(made_of(PARENTS[kind]).config, card=path)
    (tmp_path / "card.json").unlink()
    scheduler.save_pretrained(tmp_path)
    scheduler = kind.from_pretrained(tmp_path)
    predict = exact(scheduler.alphas_cumprod)
    scheduler.set_timesteps(len(nodes) - 1)
    assert levels(scheduler)[0] == pytest.approx(nodes[0])
    alpha, sigma = scale(scheduler, 0)
    written, _ = follow(scheduler, predict, alpha * sigma * draw())
    model = erk.from_epsilon(predict, scheduler.alphas_cumprod)
    card = card_of(solver, nodes, solver_options=options)
    close(written, erk.sample(model, draw(), card=card) * scale(scheduler, -1)[0])
    for result in (scheduler.set_timesteps(), scheduler.set_timesteps(device="cpu")):
        assert result is None and len(scheduler.timesteps) >= len(nodes) - 1


@pytest.mark.parametrize(
    ("solver", "options"), [("heun", {}), ("dpm2", {}), ("dpmpp", {"order": 1})]
)
def test_a_state_that_the_pipeline_changes_is_where_the_next_step_starts(solver, options):
    """Pipelines for inpainting replace latents between steps; without drift they stay."""
    sigmas = torch.tensor(LEVELS)
    settings = Settings(solver=solver, solver_options=options)
    walk = Walk(settings.solver_for(sigmas, None), sigmas)
    x, sigma = torch.zeros(2, 3), sigmas[0]
    while not walk.is_done:
        x = torch.ones_like(x) if walk.index == 2 else x
        x, sigma = walk(Point(x, torch.zeros_like(x), sigma))
    assert torch.allclose(x, torch.ones_like(x))


def test_auto_is_that_of_erk():
    scheduler = HEUN.from_config(made_of(PARENTS[HEUN]).config, erk="auto")
    predict = network(scheduler)
    written, _ = run(scheduler, predict, draw(), 8)
    nodes, model = levels(scheduler), erk.from_epsilon(predict, scheduler.alphas_cumprod)
    close(written, erk.sample(model, draw(), schedule=nodes, erk="auto"))
    one = made_of(MULTI, solver_order=1, erk="auto")
    written, _ = run(one, predict, draw(), 12)
    wanted = erk.sample(model, draw(), solver="euler", schedule=levels(one), erk="auto")
    close(written, wanted * scale(one, -1)[0])
    assert (
        written - run(made_of(MULTI, solver_order=1), predict, draw(), 12)[0]
    ).abs().max() > 0.05


def test_auto_lowers_the_error_of_the_singlestep_scheduler():
    """Against the exact solution before the last step to 0. Measured: 0.40 of the parent's."""
    std, noise = torch.tensor(0.5), draw(16)
    predict = network(made_of(SINGLE), std)

    def error(**config):
        scheduler = made_of(SINGLE, **config)
        _, seen = run(scheduler, predict, noise, 17)
        alpha, last = scale(scheduler, -2)
        first = scale(scheduler, 0)[1]
        solution = noise * first * ((std**2 + last**2) / (std**2 + first**2)).sqrt()
        return (seen[-2] / alpha - solution).norm().item()

    assert error(erk="auto") < 0.7 * error()


def test_where_auto_changes_nothing_it_says_so():
    scheduler, predict = made_of(MULTI, erk="auto"), network(made_of(MULTI))
    with pytest.warns(UserWarning, match="erk='auto' finds no multiple .* solver of ERKDPM"):
        written, _ = run(scheduler, predict, draw(), 9)
    assert torch.equal(written, run(made_of(MULTI), predict, draw(), 9)[0])


@pytest.mark.parametrize("kind", PARENTS)
def test_img2img_starts_auto_in_the_middle(kind):
    scheduler = made_of(kind, erk="auto", **({} if kind is HEUN else {"solver_order": 1}))
    scheduler.set_timesteps(10)
    first = 4 * scheduler.order
    scheduler.set_begin_index(first)
    predict, (alpha, sigma) = network(scheduler), scale(scheduler, first)
    written, _ = follow(scheduler, predict, alpha * sigma * draw(), first)
    solver = "heun" if kind is HEUN else "euler"
    more = {"w_stiff": 0.0, "w_con": 0.5, "erk": "auto"}
    close(written, sampled(scheduler, predict, draw(), solver, levels(scheduler)[4:], **more))


CONFLICTS = {
    "is for the solver deis, and ERKHeunScheduler runs heun: calibrate": ("deis", {}),
    "sets guidance to 4.0, which contradicts 1.0": ("heun", {"guidance": 4.0}),
}


@pytest.mark.parametrize("message", CONFLICTS)
def test_cards_for_something_else_are_refused(message):
    solver, more = CONFLICTS[message]
    networks = ("", "") if more else ("", None)
    with pytest.raises(ValueError, match=message):
        HEUN(**SD, card=card_of(solver, networks=networks, **more))
    HEUN(**SD, card=card_of(networks=("", ""), guidance=4.0), guidance=4.0)


@pytest.mark.parametrize("rule", [{"guidance_kind": "apg"}, {"guidance_interval": (0.1, 2.0)}])
def test_cards_of_a_rule_that_the_host_does_not_apply_are_refused(rule):
    card = card_of(networks=("", ""), guidance=4.0, **rule)
    with pytest.raises(ValueError, match=f"card is for {next(iter(rule))} .* does not apply"):
        HEUN(**SD, card=card, guidance=4.0)
    with pytest.raises(ValueError, match="this sampler .* does not apply: sample with erk.sample"):
        sample_erk_card(lambda x, sigma, **_: x, torch.ones(1, 4), card_sigmas(card), card=card,
                        extra_args={"cond_scale": 4.0}, disable=True)  # fmt: skip


@pytest.mark.parametrize(("config", "message"), [
    ({"w_stiff": 0.3}, "sets w_stiff to 0.0, which contradicts 0.3: leave w_stiff out"),
    ({"erk": "auto"}, "sets erk to a correction, which contradicts auto"),
    ({"use_karras_sigmas": True}, "contradicts use_karras_sigmas: leave use_karras_sigmas out"),
    ({"card": "nowhere.json"}, "there is no card 'nowhere.json'"),
    ({"card": {"format": "erk-guid card 2"}}, "this content is not a card of erk calibrate"),
], ids=str)  # fmt: skip
def test_arguments_beside_a_card(config, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        HEUN.from_config(made_of(PARENTS[HEUN]).config, **({"card": card_of()} | config))


def test_what_is_given_replaces_that_of_the_config():
    first = HEUN.from_config(made_of(PARENTS[HEUN]).config, w_stiff=1.0, w_con=0.2)
    auto = HEUN.from_config(first.config, erk="auto")
    card = HEUN.from_config(auto.config, card=card_of())
    weights = HEUN.from_config(card.config, w_stiff=0.3)
    seen = [
        (one.config.w_stiff, one.config.erk, one.config.card is not None)
        for one in (first, auto, card, weights)
    ]
    assert seen == [
        (1.0, None, False), (0.0, "auto", False), (0.0, None, True), (0.3, None, False)
    ]  # fmt: skip


def test_timesteps_beside_a_card():
    scheduler = HEUN(**SD, card=card_of())
    for given, message in (
        ({"num_inference_steps": 20}, "sets steps to 5, which contradicts 20"),
        ({"timesteps": [900, 100]}, "leave timesteps out of set_timesteps, or the card out"),
        ({"sigmas": LEVELS}, "leave sigmas out of set_timesteps"),
    ):
        with pytest.raises(ValueError, match=message):
            scheduler.set_timesteps(**given)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(2)
    with pytest.raises(ValueError, match="begin at its first noise level"):
        scheduler.step(draw(), scheduler.timesteps[2], draw())
    with pytest.raises(ValueError, match=r"skips the first evaluation \(afs\)"):
        HEUN(**SD, card=card_of(afs=True)).set_timesteps(5)
    with pytest.raises(ValueError, match="leave w_stiff .* at 0"):
        HEUN(erk="auto", w_stiff=0.5)
    for kind, more in (
        (MULTI, {"algorithm_type": "sde-dpmsolver++"}),
        (SINGLE, {"solver_order": 3}),
    ):
        with pytest.raises(ValueError, match="deterministic step|no pair for singlestep"):
            kind(erk="auto", **more)
    with pytest.raises(ValueError, match="is computed for solver_type 'midpoint', not 'heun'"):
        MULTI(erk="auto", solver_type="heun")


def test_a_card_of_weights():
    """The choice of `--correction weights`: w_stiff and w_con, no coefficients."""
    card = card_of()._replace(settings=Settings(schedule=LEVELS, **WEIGHTS))
    scheduler = HEUN(**SD, card=card)
    scheduler.set_timesteps(5)
    predict = exact(scheduler.alphas_cumprod)
    written, _ = follow(scheduler, predict, LEVELS[0] * draw())
    model = erk.from_epsilon(predict, scheduler.alphas_cumprod)
    close(written, erk.sample(model, draw(), schedule=LEVELS, **WEIGHTS))


def test_the_pipeline_of_edm2(tmp_path):
    model = erk.load_model("digits")
    noise, labels = erk.noise_and_labels(range(3), model)
    classes = labels.argmax(1)
    path = card_file(tmp_path, networks=(model.sha256, None))
    pipe = EDM2Pipeline.from_checkpoint("digits", card=path)
    pipe.save_pretrained(tmp_path / "pipe")
    wanted = erk.sample(model, noise, labels, card=path)
    for one in (pipe, EDM2Pipeline.from_pretrained(tmp_path / "pipe")):
        one.set_progress_bar_config(disable=True)
        close(one(classes, latents=noise, output_type="latent").images, wanted)
    with pytest.raises(ValueError, match="sets steps to 5, which contradicts 8"):
        pipe(classes, 8)
    with pytest.raises(ValueError, match="does not see: sample with EDM2Pipeline, or call"):
        HEUN(card=path).set_timesteps()
    other = card_file(tmp_path, networks=("0" * 64, None))
    with pytest.raises(ValueError, match="other networks.*the card's network: 000000000000, this"):
        EDM2Pipeline.from_checkpoint("digits", card=other)
    with pytest.raises(ValueError, match="sets guidance to 1.0, which contradicts"):
        EDM2Pipeline.from_checkpoint("digits-cfg", card=path)
    auto = EDM2Pipeline.from_checkpoint("digits", erk="auto")
    auto.set_progress_bar_config(disable=True)
    images = auto(classes, 6, latents=noise, output_type="latent").images
    close(images, erk.sample(model, noise, labels, steps=6, erk="auto"))
    assert json.loads((tmp_path / "pipe/scheduler/scheduler_config.json").read_text())["card"]


def test_arguments_of_from_config_that_would_be_ignored():
    """diffusers passes over what a scheduler does not know: ERK-Guid was off without a word."""
    config = made_of(PARENTS[HEUN]).config
    with pytest.raises(TypeError, match="'wstiff'; did you mean 'w_stiff'"):
        HEUN.from_config(config, wstiff=1.0)
    with pytest.raises(ValueError, match="w_con has no effect without w_stiff"):
        HEUN.from_config(config, w_con=0.3)
    again = HEUN.from_config(HEUN.from_config(config, w_stiff=1.0).config, w_con=0.3)
    assert (again.config.w_stiff, again.config.w_con) == (1.0, 0.3)
    assert HEUN.from_config(config, subfolder="scheduler").config.w_stiff == 0
