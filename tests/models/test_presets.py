"""configs/models.yaml against the released lists, and the embedded presets as they are."""

import re
from pathlib import Path

import pytest
import torch
from golden_data import models

from erk import load_model
from erk.models.presets import describe, find_preset, presets, short_names

ROOT = "https://nvlabs-fi-cdn.nvidia.com"
LABELS = {"fid": "FID", "fd_dinov2": "FD-DINOv2"}
EMBEDDED = {
    "digits": (10, None),
    "digits-weak": (10, None),
    "digits-uncond": (0, None),
    "digits-autog": (10, "digits-weak.safetensors"),
    "digits-cfg": (10, "digits-uncond.safetensors"),
    "digits-early": (10, None),
    "digits-early-1": (10, None),
    "digits-early-2": (10, None),
    "digits-early-weak": (10, None),
    "digits-early-uncond": (0, None),
    "digits-early-autog": (10, "digits-early-weak.safetensors"),
    "digits-early-cfg": (10, "digits-early-uncond.safetensors"),
    "mnist": (10, None),
    "mnist-weak": (10, None),
    "mnist-uncond": (0, None),
    "mnist-cfg": (10, "mnist-uncond.safetensors"),
    "mnist-autog": (10, "mnist-weak.safetensors"),
}


def test_edm2_presets_are_the_released_ones():
    released = models()["edm2_presets"]
    ours = {name: preset for name, preset in presets().items() if name.startswith("edm2-")}
    assert list(ours) == list(released) and len(ours) == 36
    assert models()["edm2_root"] == f"{ROOT}/edm2/posthoc-reconstructions"
    for name, facts in released.items():
        preset = ours[name]
        assert preset.net == f"{models()['edm2_root']}/{facts['net']}"
        guide = facts["gnet"] and f"{models()['edm2_root']}/{facts['gnet']}"
        assert preset.gnet == guide
        assert preset.guidance == (facts["guidance"] or 1.0)
        assert preset.metric == f"{LABELS[facts['metric']]} {facts['value']:.2f}"
        assert preset.licence == "CC BY-NC-SA 4.0"


@pytest.mark.parametrize(
    ("name", "net", "gnet", "guidance", "metric"),
    [  # some rows typed by hand from the tables of the papers
        ("edm2-img512-s-fid", "s-2147483-0.130", None, 1, "FID 2.56"),
        ("edm2-img512-s-guid-fid", "s-2147483-0.025", "xs-uncond-2147483-0.025", 1.4, "FID 2.23"),
        ("edm2-img512-s-autog-fid", "s-2147483-0.070", "xs-0134217-0.125", 2.1, "FID 1.34"),
        ("edm2-img512-xxl-dino", "xxl-0939524-0.150", None, 1, "FD-DINOv2 42.84"),
    ],
)
def test_rows_of_the_papers(name, net, gnet, guidance, metric):
    target = f"{ROOT}/edm2/posthoc-reconstructions/edm2-img512-"
    expected = f"{target}{net}.pkl", gnet and f"{target}{gnet}.pkl", guidance, metric
    preset = find_preset(name)
    assert (preset.net, preset.gnet, preset.guidance, preset.metric) == expected


def test_edm_presets_are_the_released_ones():
    ours = {name: preset for name, preset in presets().items() if "edm2" not in name and "/edm/" in
            preset.net}  # fmt: skip
    assert [preset.net for preset in ours.values()] == list(models()["edm_files"])
    assert len(ours) == 12
    for name, preset in ours.items():
        assert Path(preset.net).stem == name and preset.net.startswith(f"{ROOT}/edm/pretrained/")
        assert (preset.gnet, preset.guidance, preset.metric) == (None, 1.0, None)


def test_no_other_presets_exist():
    assert len(presets()) == 36 + 12 + len(EMBEDDED)


def test_short_names_end_before_fid():
    short = short_names()
    assert short["edm2-img512-s"] == "edm2-img512-s-fid"
    assert short["edm2-img512-s-autog"] == "edm2-img512-s-autog-fid"
    assert len(short) == sum(name.endswith("-fid") for name in presets()) == 20
    assert not set(short) & set(presets())
    for name, full in short.items():
        assert find_preset(name) == find_preset(full) == presets()[full]


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("edm2-img512-S", "edm2-img512-s"),
        ("emd2-img512-xxl", "edm2-img512-xxl"),
        ("digit", "digits"),
        ("digits_cfg", "digits-cfg"),
        ("edm-ffhq-vp", "edm-ffhq-64x64-uncond-vp"),
    ],
)
def test_a_typo_is_answered_by_the_nearest_name(typed, nearest):
    with pytest.raises(ValueError, match=f"unknown preset '{typed}'; did you mean") as error:
        find_preset(typed)
    assert nearest in re.split(r"[ ?]", str(error.value))


@pytest.mark.parametrize("typed", ["", "stable-diffusion-xl", "?"])
def test_a_name_like_no_other_leads_to_the_list(typed):
    with pytest.raises(ValueError, match="unknown preset .*erk presets lists all"):
        find_preset(typed)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_presets_load_and_denoise(name):
    label_dim, guide = EMBEDDED[name]
    preset = find_preset(name)
    assert preset.licence == "Apache-2.0"
    assert Path(preset.net).is_file()
    assert (preset.gnet and Path(preset.gnet).name) == guide
    for file in filter(None, (preset.net, preset.gnet)):
        model = load_model(file, offline=True)
        assert model.sample_shape == ((4, 14, 14) if "mnist" in file else (1, 8, 8))
        assert model.label_dim == (0 if "uncond" in file else label_dim)
        x = torch.randn(2, *model.sample_shape, generator=torch.Generator().manual_seed(0))
        denoised = model(x * 0.5, 0.1, torch.tensor([3, 7]))
        assert denoised.shape == x.shape and denoised.isfinite().all()


def test_describe_gives_one_full_line_per_preset():
    lines = describe()
    assert len(lines) == len(presets())
    for line, preset in zip(lines, presets().values(), strict=True):
        assert "\n" not in line
        words = line.split()
        assert words[0] == preset.name
        assert f"net={Path(preset.net).name}" in words
        if preset.gnet:
            assert f"gnet={Path(preset.gnet).name}" in words
            assert f"guidance={preset.guidance:g}" in words
        assert preset.metric is None or f"published: {preset.metric}" in line
    line = next(line for line in lines if line.startswith("edm2-img512-s-fid "))
    assert line.endswith("short: edm2-img512-s")
