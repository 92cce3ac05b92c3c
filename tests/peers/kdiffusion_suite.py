"""Our samplers with w_stiff 0 against sample_heun and sample_dpm_2 of a k-diffusion checkout."""

import importlib
import itertools
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from erk.integrations.kdiffusion import sample_erk_dpm2, sample_erk_heun


@pytest.fixture(scope="module")
def theirs():
    """k_diffusion.sampling, without the packages that only other modules of it need."""
    package = ModuleType("k_diffusion")
    package.__path__ = [str(Path(os.environ["PEERS_KDIFFUSION"]) / "k_diffusion")]
    sys.modules["k_diffusion"] = package
    for name in ("torchsde", "torchdiffeq", "scipy"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = ModuleType(name)
    return importlib.import_module("k_diffusion.sampling")


PAIRS = [("sample_heun", sample_erk_heun), ("sample_dpm_2", sample_erk_dpm2)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def model(x, sigma, scale=0.25):
    sigma = sigma.reshape(-1, 1, 1)
    return (x * scale / (scale + sigma**2)).to(x.dtype)


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
@pytest.mark.parametrize(("dtype", "steps"), itertools.product(DTYPES, [2, 5, 12]))
@pytest.mark.parametrize("edits", [False, True])
def test_equal(theirs, name, sampler, dtype, steps, edits):
    sigmas = theirs.get_sigmas_karras(steps, 0.02, 20.0)
    noise = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    runs = []
    for function, more in ((sampler, {"w_stiff": 0.0}), (getattr(theirs, name), {})):
        seen = []

        def callback(state, seen=seen):
            if edits:
                state["x"].mul_(0.95)
            seen.append(
                (state["i"], float(state["sigma_hat"]), state["x"].clone(), state["denoised"])
            )

        x = noise.to(dtype, copy=True)
        runs.append((function(model, x, sigmas, {"scale": 0.5}, callback, True, **more), seen, x))
    (a, seen_a, x_a), (b, seen_b, x_b) = runs
    assert a.dtype == b.dtype and torch.equal(x_a, x_b)
    torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)
    for one, two in zip(seen_a, seen_b, strict=True):
        assert one[0] == two[0] and one[1] == pytest.approx(two[1])
        torch.testing.assert_close(one[2:], two[2:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_leading_parameters_are_theirs(theirs, name, sampler):
    import inspect

    common = ["model", "x", "sigmas", "extra_args", "callback", "disable"]
    for function in (sampler, getattr(theirs, name)):
        assert [*inspect.signature(function).parameters][:6] == common
