"""Shared by the tests of the schedulers: pipelines' loop around a network with an exact answer."""

import diffusers
import torch

import erk
from erk.integrations.diffusers import (
    ERKDPMSolverMultistepScheduler,
    ERKDPMSolverSinglestepScheduler,
    ERKHeunScheduler,
)

PARENTS = {
    ERKHeunScheduler: diffusers.HeunDiscreteScheduler,
    ERKDPMSolverSinglestepScheduler: diffusers.DPMSolverSinglestepScheduler,
    ERKDPMSolverMultistepScheduler: diffusers.DPMSolverMultistepScheduler,
}
HEUN, SINGLE, MULTI = PARENTS
WEIGHTS = {"w_stiff": 0.4, "w_con": 0.1}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
STD = torch.tensor([1.0, 0.5, 0.1, 0.02]).reshape(4, 1, 1)


def made_of(kind, **config):
    """A scheduler with Stable Diffusion's levels; Heun's at whole timesteps, as the others'."""
    complete = {"timestep_spacing": "leading"} if issubclass(kind, PARENTS[HEUN]) else {}
    return kind(**SD | complete | config)


def network(scheduler, std=STD, mean=0.0):
    """What a perfect network of the scheduler's kind predicts for data N(mean, std^2)."""
    kind, table = scheduler.config.prediction_type, scheduler.alphas_cumprod.double()

    def predict(x, t):
        if kind == "flow_prediction":
            noise = torch.as_tensor(t).double() / 1000
            alpha = 1 - noise
        else:
            alpha = table[torch.as_tensor(t).round().long()].sqrt()
            noise = (1 - alpha**2).sqrt()
        alpha, noise = alpha.reshape(-1, 1, 1, 1), noise.reshape(-1, 1, 1, 1)
        clean = (std**2 * alpha * x + noise**2 * mean) / (std**2 * alpha**2 + noise**2)
        epsilon = (x - alpha * clean) / noise
        answers = {"epsilon": epsilon, "sample": clean, "flow_prediction": epsilon - clean,
                   "v_prediction": alpha * epsilon - noise * clean}  # fmt: skip
        return answers[kind].to(x.dtype)

    return predict


def draw(batch=3, seed=0):
    return torch.randn(batch, 4, 2, 2, generator=torch.Generator().manual_seed(seed))


def scale(scheduler, index):
    """(alpha, sigma) at a level: a sample is alpha (data + sigma noise)."""
    if isinstance(scheduler, diffusers.HeunDiscreteScheduler):
        return torch.tensor(1.0), scheduler.sigmas[index]
    alpha, noise = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
    return alpha, noise / alpha


def levels(scheduler):
    """The levels of the run, each once."""
    result = [scale(scheduler, i)[1].item() for i in range(len(scheduler.sigmas))]
    return list(dict.fromkeys(result))


def run(scheduler, predict, noise, steps=None, first=0, **timesteps):
    """The loop of every pipeline, from the `first` call on; (answer, all samples)."""
    scheduler.set_timesteps(steps, **timesteps)
    alpha, sigma = scale(scheduler, first)
    return follow(scheduler, predict, alpha * sigma * noise.float(), first)


def follow(scheduler, predict, x, first=0):
    seen = []
    for t in scheduler.timesteps[first:]:
        answer = predict(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(answer, t, x).prev_sample
        seen.append(x)
    return x, seen


def sampled(scheduler, predict, noise, solver, nodes=None, **more):
    """erk.sample with the same network on the same levels."""
    model = erk.from_epsilon(predict, scheduler.alphas_cumprod)
    nodes = nodes or levels(scheduler)
    answer = erk.sample(model, noise, solver=solver, schedule=nodes, **(WEIGHTS | more))
    return answer * scale(scheduler, -1)[0]


def close(a, b):
    """As far as float32 tells: measured 2e-6, of samples of size 1."""
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
