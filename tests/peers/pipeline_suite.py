"""diffusers' PipelineTesterMixin, from a checkout on the path, on a small EDM2Pipeline."""

import unittest

import torch
from tests.pipelines.test_pipelines_common import PipelineTesterMixin

from erk.integrations.diffusers import EDM2Network, EDM2Pipeline, ERKHeunScheduler


def network(seed, label_dim):
    torch.manual_seed(seed)
    sizes = dict(
        img_resolution=8, img_channels=3, model_channels=16, channel_mult=[1], num_blocks=1
    )
    architecture = {"class": "Precond", "kwargs": sizes | {"label_dim": label_dim}}
    model = EDM2Network(architecture, {"class": "StandardRGBEncoder", "kwargs": {}})
    for name, parameter in model.named_parameters():
        if "gain" in name:
            parameter.data.fill_(0.5)
    return model


class EDM2PipelineTest(PipelineTesterMixin, unittest.TestCase):
    pipeline_class = EDM2Pipeline
    params = frozenset(["class_labels"])
    batch_params = frozenset(["class_labels"])
    required_optional_params = frozenset(
        ["num_inference_steps", "generator", "latents", "output_type", "return_dict"]
    )
    test_attention_slicing = test_xformers_attention = False
    test_num_images_per_prompt = None  # the pipeline has no prompts

    def get_dummy_components(self):
        return {
            "network": network(0, 4),
            "guide": network(1, 0),
            "scheduler": ERKHeunScheduler(prediction_type="sample", w_stiff=0.5),
        }

    def get_dummy_inputs(self, device, seed=0):
        generator = torch.Generator("cpu").manual_seed(seed)
        without_guide = self._testMethodName == "test_save_load_optional_components"
        return {
            "class_labels": 1,
            "generator": generator,
            "num_inference_steps": 3,
            "output_type": "np",
            "guidance_scale": 1.0 if without_guide else 1.5,
        }
