"""Every public method that we override has the parameters of its parent's (F1, G3, N11)."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from scheduler_loop import HEUN, MULTI, PARENTS, SINGLE

from erk.integrations.diffusers import EDM2Network, EDM2Pipeline

BASES = {
    **PARENTS,
    EDM2Network: diffusers.ModelMixin,
    EDM2Pipeline: diffusers.DiffusionPipeline,
}
ADDED = {
    "__init__": ["w_stiff", "w_con", "erk", "card", "guidance"],
    (HEUN, "set_timesteps"): ["sigmas"],
}
FREE = {(EDM2Network, "__init__"), (EDM2Network, "forward"), (EDM2Pipeline, "__init__")}
"""The parameters of these are every model's and pipeline's choice."""
CASES = [
    (kind, name)
    for kind, parent in BASES.items()
    for name in dir(parent)
    if (not name.startswith("_") or name in ("__init__", "__call__"))
    and inspect.isroutine(getattr(parent, name))
    and (kind, name) not in FREE
]


def parameters(method):
    return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_parameters_are_the_parents(kind, name):
    theirs, ours = parameters(getattr(BASES[kind], name)), parameters(getattr(kind, name))
    added = ADDED.get((kind, name), ADDED.get(name, []) if kind in PARENTS else [])
    assert ours[: len(theirs)] == theirs
    assert [name for name, *_ in ours[len(theirs) :]] == added


@pytest.mark.parametrize("kind", PARENTS)
@pytest.mark.parametrize("weights", [{}, {"w_stiff": 0.5}], ids=str)
def test_pipelines_can_give_timesteps(kind, weights):
    """F1: the signature tells diffusers' `retrieve_timesteps` what a scheduler takes."""
    wanted = [999, 850, 700, 550, 400, 200, 24]
    scheduler, plain = kind(**weights), PARENTS[kind]()
    timesteps, count = retrieve_timesteps(scheduler, timesteps=wanted)
    theirs, _ = retrieve_timesteps(plain, timesteps=wanted)
    assert torch.equal(timesteps, theirs) and count == len(theirs)
    assert np.array_equal(scheduler.sigmas, plain.sigmas)


def test_mu_of_dynamic_shifting_reaches_the_parent():
    for kind in (SINGLE, MULTI):
        config = dict(use_flow_sigmas=True, use_dynamic_shifting=True)
        config |= dict(prediction_type="flow_prediction")
        scheduler, plain = kind(**config, w_stiff=0.5), PARENTS[kind](**config)
        for one in (scheduler, plain):
            one.set_timesteps(5, mu=0.7)
        assert torch.equal(scheduler.sigmas, plain.sigmas)
