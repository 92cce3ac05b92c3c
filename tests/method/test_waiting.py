"""The sampling loop never makes the host wait for the device.

The device "meta" stands for a GPU: a tensor there has no values, so whatever reads one on the
host (item, a comparison in an `if`, nonzero) raises, and the guard catches copies between devices.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from erk.method.sampler import loop
from erk.method.settings import Settings
from erk.method.solvers import SOLVERS
from erk.models import adapters
from erk.models.edm import EDMPrecond
from erk.models.edm2 import Precond

UNET = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}


class NoCopies(TorchDispatchMode):
    """Raise where a tensor is copied between devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        seen = [x.device.type for x in tree_leaves(args) if isinstance(x, torch.Tensor) and x.ndim]
        more = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            seen += [x.device.type for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
            seen += [x.device.type for x in more]
        if len(set(seen)) > 1:
            raise AssertionError(f"{func} copies between devices")
        return result


def edm2_network():
    with torch.device("meta"):
        network = Precond(16, 3, 10, **UNET).eval().requires_grad_(False)
        network.fold()
    return network


def edm_network():
    with torch.device("meta"):
        network = EDMPrecond(
            img_resolution=16, img_channels=3, model_type="DhariwalUNet", label_dim=10, **UNET
        ).requires_grad_(False)
        network.fold()
    return network


def walk(settings, network=edm2_network, guide=None):
    """Run the loop on the device without values."""
    model = network()
    with torch.device("meta"):
        noise, labels = torch.empty(2, 3, 16, 16), torch.empty(2, 10)
    drift = settings.drift(model, labels, guide and guide())
    with torch.inference_mode(), NoCopies():
        start = noise * settings.sigmas()[0]
        return list(loop(drift, start, settings.sigmas(), settings, torch.empty_like))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("chosen", [{}, {"w_stiff": 1.0}, {"erk": "auto"}], ids=str)
def test_no_solver_waits(solver, chosen):
    x, _ = walk(Settings(solver=solver, steps=5, **chosen))[-1]
    assert x.device.type == "meta" and x.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    "chosen",
    [
        {"guidance": 2.0, "guidance_interval": (0.1, 10.0), "w_stiff": 1.0, "dtype": torch.float64},
        {"guidance": 2.0, "w_stiff": 1.0, "erk_proj": True},
        {"S_churn": 10.0},
        {"pc_snr": 0.1},
        {"afs": True, "w_stiff": 1.0, "erk_scale": "alpha"},
        {"solver": "dpmpp", "solver_options": {"dynamic_thresholding": True}},
        {"solver": "dpm2", "solver_options": {"predict_x0": True}, "schedule": "polynomial",
         "denoise_to_zero": True},
    ],
    ids=str,
)  # fmt: skip
def test_no_guidance_and_no_baseline_waits(chosen):
    guide = edm2_network if "guidance" in chosen else None
    assert len(walk(Settings(steps=4, **chosen), guide=guide)) >= 4


def test_no_network_waits():
    assert len(walk(Settings(steps=3), edm_network)) == 3


@pytest.mark.parametrize("adapt", [
    lambda model: adapters.from_epsilon(model, torch.linspace(0.999, 0.001, 50)),
    lambda model: adapters.from_v(model, torch.linspace(0.999, 0.001, 50)),
    adapters.from_flow,
    adapters.from_denoiser,
])  # fmt: skip
def test_no_adapter_waits(adapt):
    def network():
        return adapt(lambda x, time, labels: x * time[:, None, None, None])

    assert len(walk(Settings(steps=3), network)) == 3


def test_the_guard_catches_copies_and_reads():
    x = torch.empty(2, 3, device="meta")
    with NoCopies(), pytest.raises(AssertionError, match="copies between devices"):
        torch.tensor(1.0).to(x.device)
    with pytest.raises(RuntimeError, match="meta"):
        bool((x > 0).any())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        x.cpu()
