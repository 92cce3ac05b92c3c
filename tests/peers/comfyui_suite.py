"""Our nodes in a ComfyUI checkout: a small UNet with random weights, sampled by ComfyUI itself."""

import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cards import card_file

import erk

FOLDER = Path(erk.__file__).parent / "integrations/comfyui"
PREDICTIONS = ["EPS", "V_PREDICTION", "EDM"]
SOLVERS = {"erk_heun": "heun", "erk_dpm2": "dpm_2"}
LEVELS = torch.tensor([14.0, 6.0, 2.5, 1.0, 0.3, 0.0])
UNET = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "num_res_blocks": [1, 1], "channel_mult": [1, 2], "num_heads": 2, "context_dim": 16,
    "use_spatial_transformer": True, "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "legacy": False, "dtype": torch.float32,
}  # fmt: skip


@pytest.fixture(scope="module")
def comfy():
    """The modules of ComfyUI that sample, on the CPU."""
    importlib.import_module("comfy.cli_args").args.cpu = True
    names = ("model_base", "model_patcher", "sample", "samplers", "supported_models_base")
    return SimpleNamespace(**{name: importlib.import_module(f"comfy.{name}") for name in names})


@pytest.fixture(scope="module")
def nodes(comfy):
    """Our nodes, loaded from their folder as ComfyUI does."""
    spec = importlib.util.spec_from_file_location("erk_nodes", FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS


def sampled(comfy, sampler, prediction="EPS", cfg=1.0, sigmas=LEVELS):
    """What ComfyUI samples from noise of seed 0, as SamplerCustom does."""
    config = comfy.supported_models_base.BASE({**UNET})
    config.unet_config = {**UNET}  # its defaults are those of larger networks
    config.sampling_settings = {"shift": 1.0} if prediction == "FLOW" else {}
    kind = comfy.model_base.ModelType[prediction]
    model, cpu = comfy.model_base.BaseModel(config, kind, device="cpu"), torch.device("cpu")
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, one in model.diffusion_model.named_parameters():
            scale = one[0].numel() ** -0.5 if one.ndim > 1 else 0.0
            one.copy_(torch.randn(one.shape, generator=random) * scale)
            one += one.ndim == 1 and name.endswith("weight")  # of the norms
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    texts = [[[torch.randn(1, 5, 16, generator=random), {}]] for _ in range(2)]
    return comfy.sample.sample_custom(
        comfy.model_patcher.ModelPatcher(model, cpu, cpu), noise, cfg, sampler, sigmas, *texts,
        torch.zeros_like(noise), disable_pbar=True, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("cfg", [1.0, 6.0])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_without_weight_theirs_and_with_auto_not(comfy, nodes, prediction, solver, cfg):
    (off,) = nodes["ERKGuidSampler"]().get_sampler(solver, w_stiff=0.0, w_con=0.5)
    (auto,) = nodes["ERKGuidAuto"]().get_sampler(solver)
    theirs = comfy.samplers.ksampler(SOLVERS[solver])
    off, auto, theirs = (sampled(comfy, one, prediction, cfg) for one in (off, auto, theirs))
    size = theirs.abs().max()
    assert (off - theirs).abs().max() < 1e-4 * size < (auto - theirs).abs().max()  # of rounding
    assert auto.isfinite().all()


@pytest.mark.parametrize("name", SOLVERS)
def test_in_the_lists(comfy, nodes, name):
    assert name in comfy.samplers.KSampler.SAMPLERS
    assert sampled(comfy, comfy.samplers.ksampler(name)).isfinite().all()


@pytest.mark.parametrize("solver", ["heun", "dpm2", "deis"])
def test_cards(comfy, nodes, solver, tmp_path):
    path = card_file(tmp_path, solver, networks=("", ""), guidance=4.0)
    assert nodes["ERKGuidCard"].VALIDATE_INPUTS(path) is True
    sampler, sigmas = nodes["ERKGuidCard"]().get_sampler(path)
    assert sampled(comfy, sampler, cfg=4.0, sigmas=sigmas).isfinite().all()
    with pytest.raises(ValueError, match="contradicts 6.0: set .*cfg"):
        sampled(comfy, sampler, cfg=6.0, sigmas=sigmas)
    with pytest.raises(ValueError, match="connect SIGMAS of ERK-Guid card"):
        sampled(comfy, sampler, cfg=4.0, sigmas=LEVELS[1:])


def test_flow_models(comfy, nodes):
    (sampler,) = nodes["ERKGuidAuto"]().get_sampler("erk_heun")
    with pytest.raises(ValueError, match="does not help flow models"):
        sampled(comfy, sampler, "FLOW", sigmas=torch.tensor([1.0, 0.7, 0.3, 0.0]))
