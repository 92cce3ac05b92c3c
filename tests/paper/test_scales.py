"""configs/scales.yaml: networks that exist, and the rows of the paper's experiments on them."""

import pytest

from erk.models.presets import find_preset
from metrics.references import reference_names
from scripts.paper.config import Request, config_names, load_config
from scripts.paper.scales import NoNetworkError, at_scale, left_out, scales, scales_of

TABLE2 = ["32 steps", "32 steps, w_stiff 0.5", "32 steps, w_stiff 1", "32 steps, w_stiff 1.5",
          "32 steps, w_stiff 2", "32 steps, w_stiff 2.5", "32 steps, auto", "16 steps",
          "16 steps, w_stiff 0.75", "16 steps, auto", "8 steps", "8 steps, w_stiff 0.5",
          "8 steps, auto", "32 steps, w_stiff 1/sqrt(6), w_con 0",
          "16 steps, w_stiff 1/sqrt(6), w_con 0", "8 steps, w_stiff 1/sqrt(6), w_con 0",
          "64 steps (32 halved)", "converged (DEIS, 128 steps)"]  # fmt: skip


def rows_of(name, scale):
    """The rows of an experiment on a scale, by name."""
    return {row.name: row for row in at_scale(load_config(name), Request(scale=scale)).rows}


def test_every_network_and_reference_of_a_scale_exists():
    assert [*scales()][:3] == ["digits", "digits-early", "mnist"]
    for scale in scales().values():
        assert scale.reference in reference_names()
        for released, preset in scale.networks.items():
            assert find_preset(released).net.startswith("https://")
            assert "checkpoints" in find_preset(preset).net
            guided = find_preset(released).gnet is not None
            assert (find_preset(preset).gnet is not None) == guided


@pytest.mark.parametrize("scale", ["digits", "digits-early", "mnist"])
@pytest.mark.parametrize("name", [name for name in config_names() if name != "figure5"])
def test_nothing_is_left_out_on_the_main_scales(name, scale):
    config = load_config(name)
    if any("preset" in row.settings for row in config.rows):
        assert left_out(name, scale) == []
        assert {row.name for row in config.rows} <= rows_of(name, scale).keys()


def test_rows_for_auto_follow_their_group_and_controls_come_last():
    rows = rows_of("table2", "digits-early")
    assert [*rows] == TABLE2
    auto = rows["16 steps, auto"]
    assert auto.against == "16 steps" and auto.published == {}
    plain = {name: value for name, value in rows["16 steps"].settings.items() if name != "w_stiff"}
    assert auto.settings == plain | {"erk": "auto"}
    assert [name for name in rows_of("table3", "mnist") if "auto" in name] == [
        "32 steps, CFG, auto", "32 steps, Autoguidance, auto", "16 steps, CFG, auto",
        "16 steps, Autoguidance, auto",
    ]  # fmt: skip
    assert len(rows_of("table4", "mnist")) == 36 + 18
    only = {"table8": "Autoguidance, auto", "table10": "(B) Heun, auto",
            "table11": "ERK-Guid, auto", "figure6": "Heun, auto", "figure8": "auto",
            "figure9": "auto"}  # fmt: skip
    for name, auto in only.items():
        last = list(rows_of(name, "digits").values())[-1]
        assert last.name == auto and last.settings["erk"] == "auto", name
        assert not {"w_stiff", "w_con", "adaptive_tau", "pc_snr"} & last.settings.keys(), name
    assert rows_of("table11", "digits")["ERK-Guid, auto"].settings["steps"] == 32


def test_the_paper_s_scale_is_the_file():
    for name in config_names():
        assert at_scale(load_config(name), Request(scale="paper")) == load_config(name)


def test_guidance_and_labels_belong_to_the_network():
    for row in rows_of("table3", "digits").values():
        assert "guidance" not in row.settings and row.settings["preset"].startswith("digits-")
    rows = rows_of("table4", "mnist")
    assert rows["conditional, NFE 6, Heun"].settings["labels"] == "balanced"
    assert "labels" not in rows["unconditional, NFE 6, Heun"].settings
    assert rows_of("figure3", "digits")["EDM2-S"].settings["labels"] == "random"
    assert rows_of("figure6", "mnist")["Heun"].settings["steps"] == 8  # the config's small scales


def test_images_go_by_the_evaluations_of_the_row_that_is_compared_with():
    """MNIST: 5000 at 31 NFE, 2000 at 63; the controls of 32 steps have as many as 32 steps."""
    numbers = {name: row.num for name, row in rows_of("table2", "mnist").items()}
    assert numbers["16 steps"] == numbers["8 steps, auto"] == 5000
    assert numbers["32 steps"] == numbers["64 steps (32 halved)"] == 2000
    assert numbers["converged (DEIS, 128 steps)"] == numbers["32 steps, auto"] == 2000
    assert {row.num for row in rows_of("table11", "mnist").values()} == {2000}
    assert {row.num for row in rows_of("table4", "digits-early").values()} == {5000}


def test_rows_without_a_network_are_left_out():
    with pytest.raises(NoNetworkError, match="table8 has no row on the scale digits-early-1"):
        rows_of("table8", "digits-early-1")
    assert len(left_out("table4", "digits-early-1")) == 36


def test_names_of_scales():
    assert scales_of("mnist, digits,mnist") == ["mnist", "digits"]
    assert scales_of("paper") == ["paper"]
    with pytest.raises(ValueError, match="--scale: unknown name 'embedded': known are digits"):
        scales_of("embedded")
