"""Sampling runs against the original samplers: EDM2, ERK-Guid, EDM, closed-form cases."""

import functools
import math

import pytest
import torch
from golden_data import manifest, pickle_paths, ref, tensor

import erk
from erk.models.checkpoint import build, read

EDM2 = ["edm2_cond", "edm2_uncond", "edm2_auto", "edm2_pixel"]
EDM = ["edm_adm", "edm_ddpmpp", "edm_ncsnpp", "vp_ddpmpp", "ve_ncsnpp", "iddpm_adm"]
RUNS = [(net, run) for net in EDM2 for run in manifest()["nets"][net]["runs"]]
TAKEN = ("sigma_min", "sigma_max", "rho", "w_stiff", "w_con", "guidance",
         "S_churn", "S_min", "S_max", "S_noise")  # fmt: skip


class Replay:
    """Return recorded noise in order, as randn_like."""

    def __init__(self, draws):
        self.draws = [tensor(draw) for draw in draws]

    def __call__(self, x):
        return self.draws.pop(0).to(x)


@functools.cache
def network(name):
    return build(read(pickle_paths(name)[0]), name)[0]


def settings(row):
    chosen = {key: row[key] for key in TAKEN if key in row}
    if row.get("dtype") == "float64":
        chosen["dtype"] = torch.float64
    return chosen | {"steps": row["num_steps"]}


def guide_of(run, row):
    if row.get("guidance", 1) == 1:
        return None
    return network(row.get("gnet") or {"cfg_churn": "edm2_uncond"}[run])


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_edm2_runs_equal_the_originals(name, run):
    row, data = manifest()["nets"][name]["runs"][run], ref(name)
    labels = tensor(data["S_labels"]) if "S_labels" in data else None
    noise = Replay(data["S_" + row["eps"]] if "eps" in row else [])
    trace = erk.Trace()
    x0 = erk.sample(
        network(name), tensor(data["S_noise"]), labels,
        guide_model=guide_of(run, row), randn_like=noise, callback=trace, **settings(row),
    )  # fmt: skip
    assert x0.dtype == tensor(data["S_" + run]).dtype
    assert (x0 - tensor(data["S_" + run])).abs().max() <= row["atol"]
    assert noise.draws == []
    if f"S_{run}_trace_gate" in data:
        check_trace(data, run, trace.result(), row)


def check_trace(data, run, trace, row):
    """The trace of the originals leaves out the first step, without a pair, and the last."""
    assert trace["stiffness"][0].isnan().all() and trace["stiffness"][-1].isnan().all()
    opened = tensor(data[f"S_{run}_trace_gate"])
    if row["w_stiff"] == 0:  # their gate opens, but nothing is corrected (N10)
        opened = torch.zeros_like(opened)
    assert (trace["gate"][1:-1] == opened).all()
    for ours, theirs in (("stiffness", "stiffness"), ("z", "z"), ("slope", "dot")):
        expected = tensor(data[f"S_{run}_trace_{theirs}"])
        error = (trace[ours][1:-1] - expected).abs() / expected.abs().clamp_min(1)
        assert error.max() <= max(20 * row["atol"], 1e-3), ours


@pytest.mark.parametrize("name", EDM)
def test_edm_sampler_runs_equal_the_originals(name):
    """EDM's sampler: float64, levels rounded to those the network knows, and clipped."""
    data, runs = ref(name), manifest()["nets"][name]["runs"]
    net = network(name)
    noise = tensor(data["S_noise"])
    labels = tensor(data["S_labels"]) if "S_labels" in data else None
    wanted = tensor(data["S_edm"])
    x0 = erk.sample(net, noise[: len(wanted)], labels, **settings(runs["edm"]), dtype=torch.float64)
    assert (x0 - wanted).abs().max() <= runs["edm"]["atol"]


@pytest.mark.parametrize("name", EDM)
def test_edm_churn_runs_equal_the_originals(name):
    """G8: a network of EDM's draws noise at every step, in float64, by default."""
    data, row = ref(name), manifest()["nets"][name]["runs"]["edm_churn"]
    draws = Replay(data["S_" + row["eps"]])
    noise, wanted = tensor(data["S_noise"]), tensor(data["S_edm_churn"])
    labels = tensor(data["S_labels"]) if "S_labels" in data else None
    x0 = erk.sample(
        network(name), noise[: len(wanted)], labels, randn_like=draws, dtype=torch.float64,
        **settings(row),
    )  # fmt: skip
    assert (x0 - wanted).abs().max() <= row["atol"]
    assert draws.draws == []


ANALYTIC = ref("analytic")


def closed_form(kind):
    """Denoisers with a closed form: data that are Gaussian, one point, or never noisy."""
    std, mean = tensor(ANALYTIC["std"]), tensor(ANALYTIC["mean"])
    return {
        "gauss": lambda x, sigma, _: mean + std**2 / (std**2 + sigma**2) * (x - mean),
        "const": lambda x, sigma, _: mean.expand_as(x),
        "ident": lambda x, sigma, _: x,
    }[kind]


def float32_nodes(count):
    """EDM's noise levels as the originals compute them, in float32.

    With w_con = 0 the guidance amplifies rounding at high sigma, so the nodes must be theirs.
    """
    lo, hi = 0.002 ** (1 / 7), 80 ** (1 / 7)
    nodes = (hi + torch.arange(count, dtype=torch.float32) / (count - 1) * (lo - hi)) ** 7
    return [*nodes.double().tolist(), 0.0]


@pytest.mark.parametrize("kind", ["gauss", "const", "ident"])
@pytest.mark.parametrize("count", [8, 16])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_closed_forms_equal_the_originals(kind, count, index):
    row = manifest()["analytic"][f"{kind}_erk{index}_{count}"]
    trace = erk.Trace()
    x0 = erk.sample(
        closed_form(kind), tensor(ANALYTIC["noise"]), schedule=float32_nodes(count),
        w_stiff=row["w_stiff"], w_con=row["w_con"], callback=trace,
    )  # fmt: skip
    wanted = tensor(ANALYTIC[f"{kind}_erk{index}_{count}"])
    assert (x0 - wanted).abs().max() <= 2e-4
    if kind != "const":  # there both differences are pure rounding, and so is the gate
        assert trace.result()["gate"][1:-1].sum(1).tolist() == row["gates_open_per_step"]


@pytest.mark.parametrize("kind", ["gauss", "const", "ident"])
def test_closed_forms_without_guidance_equal_the_originals(kind):
    for count in (8, 16):
        x0 = erk.sample(closed_form(kind), tensor(ANALYTIC["noise"]), steps=count)
        assert (x0 - tensor(ANALYTIC[f"{kind}_heun{count}"])).abs().max() <= 1e-4


def test_rms_of_the_goldens_is_not_trivial():
    """Guards the tolerance: an answer of zeros would be off by 10^3 tolerances."""
    row = manifest()["nets"]["edm2_cond"]["runs"]["erk3"]
    assert math.isclose(float(ref("edm2_cond")["S_erk3"].std()), row["rms"], rel_tol=0.2)
    assert row["rms"] > 1000 * row["atol"]
