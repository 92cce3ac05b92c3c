"""The nodes for ComfyUI: what they register and return, and the workflow file."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from cards import LEVELS, card_file
from PIL import Image
from test_kdiffusion import NODES, Gaussian, start

import erk
from erk.integrations.kdiffusion import (
    SAMPLERS,
    sample_erk_card,
    sample_erk_dpm2,
    sample_erk_heun,
)

FOLDER = Path(erk.__file__).parent / "integrations/comfyui"


def loaded():
    """The node folder as ComfyUI loads it: from its place, under a name of its own."""
    spec = importlib.util.spec_from_file_location("custom_nodes/erk", FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def comfy(monkeypatch):
    """The parts of ComfyUI that custom samplers touch."""
    package, samplers = ModuleType("comfy"), ModuleType("comfy.samplers")
    k_diffusion, sampling = (
        ModuleType("comfy.k_diffusion"),
        ModuleType("comfy.k_diffusion.sampling"),
    )
    samplers.KSAMPLER_NAMES = ["euler", "heun"]
    samplers.SAMPLER_NAMES = [*samplers.KSAMPLER_NAMES, "ddim"]
    samplers.KSampler = type("KSampler", (), {
        "SAMPLERS": samplers.SAMPLER_NAMES, "DISCARD_PENULTIMATE_SIGMA_SAMPLERS": {"dpm_2"},
    })  # fmt: skip
    samplers.KSAMPLER = lambda function, extra_options: SimpleNamespace(
        sampler_function=function, extra_options=extra_options
    )
    package.samplers, package.k_diffusion, k_diffusion.sampling = samplers, k_diffusion, sampling
    for module in (package, samplers, k_diffusion, sampling):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return package


def test_the_comfyui_folder_without_comfyui():
    node = loaded()
    names = {"ERKGuidSampler", "ERKGuidAuto", "ERKGuidCard"}
    assert not node.register() and node.NODE_CLASS_MAPPINGS.keys() == names
    assert node.NODE_DISPLAY_NAME_MAPPINGS.keys() == node.NODE_CLASS_MAPPINGS.keys()


def test_the_comfyui_folder_registers_its_samplers(comfy):
    node = loaded()
    assert node.register()  # a second time, as when nodes are loaded again
    names = comfy.samplers.KSampler.SAMPLERS
    assert names == ["euler", "heun", "ddim", "erk_heun", "erk_dpm2"]
    assert comfy.samplers.SAMPLER_NAMES is names
    assert comfy.samplers.KSAMPLER_NAMES == ["euler", "heun", "erk_heun", "erk_dpm2"]
    dropping = comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS
    assert dropping == {"dpm_2", "erk_dpm2"}  # G10
    for name, function in SAMPLERS.items():  # what ComfyUI's ksampler(name) looks up
        assert getattr(comfy.k_diffusion.sampling, f"sample_{name}") is function


def test_the_comfyui_node_makes_a_sampler(comfy):
    node = loaded().NODE_CLASS_MAPPINGS["ERKGuidSampler"]
    inputs = node.INPUT_TYPES()["required"]
    assert inputs["solver"][0] == ["erk_heun", "erk_dpm2"]
    defaults = {name: inputs[name][1]["default"] for name in ("w_stiff", "w_con")}
    same = [
        sample_erk_heun(Gaussian(), start(), NODES, disable=True, **one) for one in ({}, defaults)
    ]
    assert torch.equal(*same)
    assert node.RETURN_TYPES == ("SAMPLER",)
    (sampler,) = getattr(node(), node.FUNCTION)(solver="erk_dpm2", w_stiff=0.5, w_con=0.3)
    written = sampler.sampler_function(
        Gaussian(), start(), NODES, extra_args={}, callback=None, disable=True,
        **sampler.extra_options,
    )  # fmt: skip
    wanted = sample_erk_dpm2(Gaussian(), start(), NODES, disable=True, w_stiff=0.5, w_con=0.3)
    assert torch.equal(written, wanted)


def test_the_comfyui_nodes_of_auto_and_cards(comfy, tmp_path):
    """M4: what they return is what the functions give."""
    nodes = loaded().NODE_CLASS_MAPPINGS
    node = nodes["ERKGuidAuto"]
    inputs = node.INPUT_TYPES()["required"]
    assert [*inputs] == ["solver"] and inputs["solver"][0] == ["erk_heun", "erk_dpm2"]
    (sampler,) = getattr(node(), node.FUNCTION)(solver="erk_heun")
    arguments = {"extra_args": {}, "callback": None, "disable": True}
    written = sampler.sampler_function(
        Gaussian(), start(), NODES, **arguments, **sampler.extra_options
    )
    assert torch.equal(
        written, sample_erk_heun(Gaussian(), start(), NODES, disable=True, erk="auto")
    )
    path, node = card_file(tmp_path, "deis"), nodes["ERKGuidCard"]
    assert node.RETURN_TYPES == ("SAMPLER", "SIGMAS")
    sampler, sigmas = getattr(node(), node.FUNCTION)(card=path)
    assert sigmas.tolist() == pytest.approx(LEVELS) and sigmas.dtype == torch.float32
    written = sampler.sampler_function(
        Gaussian(), start(), sigmas, **arguments, **sampler.extra_options
    )
    assert torch.equal(
        written, sample_erk_card(Gaussian(), start(), sigmas, disable=True, card=path)
    )
    with pytest.raises(FileNotFoundError, match="there is no card"):
        node().get_sampler("nowhere.json")


def test_every_input_and_output_has_a_tooltip():
    for node in loaded().NODE_CLASS_MAPPINGS.values():
        assert node.DESCRIPTION.endswith(".")
        assert len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES)
        for _, options in node.INPUT_TYPES()["required"].values():
            assert options["tooltip"].endswith(".")


def test_a_wrong_card_is_refused_before_any_node_runs(tmp_path):
    node, path = loaded().NODE_CLASS_MAPPINGS["ERKGuidCard"], card_file(tmp_path)
    assert node.VALIDATE_INPUTS(card=path) is True
    assert node.VALIDATE_INPUTS(card=None) is True  # from another node: known when that has run
    assert "there is no card 'nowhere.json'" in node.VALIDATE_INPUTS(card="nowhere.json")
    content = json.loads(Path(path).read_text())
    content["settings"] |= {"guidance": 2.0, "guidance_interval": [0.1, 2.0]}
    Path(path).write_text(json.dumps(content | {"networks": {"network": "", "guide": ""}}))
    assert "which ComfyUI does not apply" in node.VALIDATE_INPUTS(card=path)
    Path(path).write_text("{}")
    assert "is not a card of erk calibrate" in node.VALIDATE_INPUTS(card=path)


def test_a_card_that_was_written_again_is_read_again(comfy, tmp_path):
    """ComfyUI repeats a node whose IS_CHANGED differs; what was sampled with stays as it was."""
    node, path = loaded().NODE_CLASS_MAPPINGS["ERKGuidCard"], card_file(tmp_path)
    before, (sampler, sigmas) = node.IS_CHANGED(card=path), node().get_sampler(path)
    assert node.IS_CHANGED(card=path) == before
    card_file(tmp_path, "heun", [8.0, *LEVELS[1:]])
    assert node.IS_CHANGED(card=path) != before
    assert node.IS_CHANGED(card=None) != node.IS_CHANGED(card=None)
    sampler.sampler_function(
        Gaussian(), start(), sigmas, extra_args={}, disable=True, **sampler.extra_options
    )


COMFYUI = {
    "CheckpointLoaderSimple": ({}, ["MODEL", "CLIP", "VAE"], 1),
    "CLIPTextEncode": ({"clip": "CLIP"}, ["CONDITIONING"], 1),
    "EmptyLatentImage": ({}, ["LATENT"], 3),
    "BasicScheduler": ({"model": "MODEL"}, ["SIGMAS"], 3),
    "SamplerCustom": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING",
         "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT"},
        ["LATENT", "LATENT"], 4,  # one of the four is the seed's control_after_generate
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"], 0),
    "SaveImage": ({"images": "IMAGE"}, [], 1),
}  # fmt: skip
"""Inputs to link, outputs and number of widgets of ComfyUI's nodes, read in its nodes.py and
comfy_extras/nodes_custom_sampler.py (0109431 and 065c1df)."""


def test_the_screenshot_holds_the_workflow():
    """ComfyUI loads a dropped PNG's text "workflow"."""
    with Image.open(FOLDER.parents[2] / "docs/images/comfyui.png") as image:
        assert json.loads(image.text["workflow"]) == json.loads(
            (FOLDER / "workflow.json").read_text()
        )


def test_the_workflow_names_only_nodes_that_exist():
    graph = json.loads((FOLDER / "workflow.json").read_text())
    ours = loaded().NODE_CLASS_MAPPINGS
    nodes = {one["id"]: one for one in graph["nodes"]}
    known = COMFYUI | {
        name: ({}, [*kind.RETURN_TYPES], len(kind.INPUT_TYPES()["required"]))
        for name, kind in ours.items()
    }
    for one in nodes.values():
        inputs, outputs, widgets = known[one["type"]]
        assert {i["name"]: i["type"] for i in one["inputs"]} == inputs
        assert [o["type"] for o in one["outputs"]] == outputs
        assert len(one["widgets_values"]) == widgets
        assert all(i["link"] is not None for i in one["inputs"])
    (mine,) = [one for one in nodes.values() if one["type"] in ours]
    assert mine["type"] == "ERKGuidAuto" and mine["widgets_values"][0] in SAMPLERS
    for number, source, out, target, into, kind in graph["links"]:
        start, end = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert start["type"] == end["type"] == kind
        assert number in start["links"] and end["link"] == number
        assert nodes[source]["order"] < nodes[target]["order"]
    assert graph["last_link_id"] == len(graph["links"]) and graph["last_node_id"] == len(nodes)
