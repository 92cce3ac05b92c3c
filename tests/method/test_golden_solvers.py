"""Every solver against diff-sampler's code and the official ERK-Guid patch of it."""

import functools

import numpy as np
import pytest
import torch
from golden_data import manifest, pickle_paths, ref, tensor

import erk
from erk.method.coefficients import lagrange_integrals, vp_betas, vp_sigma, vp_time
from erk.method.schedule import make_schedule
from erk.models.checkpoint import build, read

NETS = ["edm_adm", "edm_ddpmpp", "edm_ncsnpp"]
NAMES = {
    "dpm_2_sampler": "dpm2",
    "dpm_pp_sampler": "dpmpp",
    "euler_sampler": "euler",
    "heun_sampler": "heun",
    "ipndm_sampler": "ipndm",
    "ipndm_v_sampler": "ipndm_v",
    "deis_sampler": "deis",
    "unipc_sampler": "unipc",
}
SCHEDULES = {"poly": "polynomial", "logsnr": "logsnr", "tu2": "time_uniform"}
CASES = [
    (net, run)
    for net in NETS
    for run, row in manifest()["nets"][net]["runs"].items()
    if row["sampler"] in NAMES and "asis" not in run
]


def options_of(run, row):
    """diff-sampler's arguments in our names; it always thresholds when it predicts x0."""
    solver = NAMES[row["sampler"]]
    options = {}
    if "max_order" in row:
        options["order"] = row["max_order"]
    if solver == "dpm2":
        options["r"] = row.get("r", 0.5)
    if solver == "deis":
        options["mode"] = "rhoab" if "rhoab" in run else "tab"
    if solver in ("dpmpp", "unipc"):
        options["predict_x0"] = row.get("predict_x0", True)
        options["lower_order_final"] = row.get("lower_order_final", True)
        options["dynamic_thresholding"] = options["predict_x0"]
    if solver == "unipc":
        options["variant"] = row["variant"]
    return solver, options


@functools.cache
def network(net):
    return build(read(pickle_paths(net)[0]), net)[0]


def run_case(net, run, **schedule):
    row, data = manifest()["nets"][net]["runs"][run], ref(net)
    solver, options = options_of(run, row)
    model = network(net)
    wanted = tensor(data["S_" + run])
    labels = tensor(data["S_labels"])[: len(wanted)] if "S_labels" in data else None
    trace = erk.Trace()
    x0 = erk.sample(
        model, tensor(data["S_noise"])[: len(wanted)], labels, solver=solver,
        solver_options=options, w_stiff=row.get("w_stiff", 0.0), w_con=row.get("w_con", 0.5),
        callback=trace, **schedule,
    )  # fmt: skip
    return row, data, x0, wanted, trace.result()


def published_sum(sigmas, sigma_next, time):
    """DEIS's `tab` weights as the original computes them: 10 000 points, both ends counted.

    That is 1e-5 to 1e-4 off the integral, which moves a sample by up to a few tolerances; ours
    are exact (a sum that is not would end the convergence of DEIS at 1e-5). A step of order 1
    takes no weights there.
    """
    if len(sigmas) == 1:
        return [sigma_next - sigmas[0]]
    nodes, end = time(np.asarray(sigmas)), time(np.asarray([sigma_next]))[0]
    t = np.linspace(nodes[0], end, 10_000)
    (beta_d, beta_min), sigma = vp_betas(0.002, 80.0), vp_sigma(t, 0.002, 80.0)
    slope = (beta_d * t + beta_min) * (1 + sigma**2) / (2 * sigma)  # dsigma/dt
    weights = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        basis = np.prod((t[:, None] - others) / (node - others), axis=1)
        weights.append(float(slope @ basis) * (end - nodes[0]) / len(t))
    return weights


@pytest.mark.parametrize(("net", "run"), CASES)
def test_runs_equal_the_originals(net, run, monkeypatch):
    """Within the manifest's tolerance, on the noise levels that the original computed."""
    if "deis_tab" in run:
        monkeypatch.setattr("erk.method.solvers.lagrange_integrals", published_sum)
    kind = manifest()["nets"][net]["runs"][run]
    nodes = ref(net)[f"T_{kind['schedule']}_{kind['num_steps']}"].astype(np.float64).tolist()
    row, data, x0, wanted, trace = run_case(net, run, schedule=nodes)
    assert (x0 - wanted).abs().max() <= row["atol"]
    if f"S_{run}_trace_gate" in data:
        steps = [int(i) for i in data[f"S_{run}_trace_step"]]
        gate = tensor(data[f"S_{run}_trace_gate"])
        assert (trace["gate"][steps] == gate).all()
        z2 = tensor(data[f"S_{run}_trace_z2"])
        for ours, theirs in ((trace["z"][steps] ** 2, z2), (trace["slope"][steps], None)):
            expected = tensor(data[f"S_{run}_trace_dot"]) if theirs is None else theirs
            error = (ours.abs() - expected.abs()).abs() / expected.abs().clamp_min(1)
            assert error.max() <= max(20 * row["atol"], 1e-3)


@pytest.mark.parametrize("net", NETS)
def test_rhoab_does_not_reuse_coefficients_as_the_original_does(net):
    """As shipped, rhoab of order 4 takes one coefficient too many and reuses those of its third
    step from the fourth on: its sample is off by far. Ours is `deis_rhoab_o4`, with the right ones.
    """
    nodes = ref(net)["T_tu2_7"].astype(np.float64).tolist()
    row, data, x0, wanted, _ = run_case(net, "deis_rhoab_o4_n7", schedule=nodes)
    assert (x0 - wanted).abs().max() <= row["atol"]
    theirs = tensor(data["S_deis_rhoab_asis_o4_n7"])
    assert (x0 - theirs).square().mean().sqrt() > 100 * row["atol"]


@pytest.mark.parametrize("exact_nodes", [False, True])
@pytest.mark.parametrize(("net", "run"), [c for c in CASES if "deis" in c[1]])
def test_exact_deis_is_near_the_originals(net, run, exact_nodes):
    """With our exact weights, on their float32 nodes (which end at 0.0020132) and on ours.

    1e-3 of the sample's rms, 1e-2 with ERK-Guid.
    """
    row = manifest()["nets"][net]["runs"][run]
    nodes = ref(net)[f"T_tu2_{row['num_steps']}"].astype(np.float64).tolist()
    named = {"schedule": "time_uniform", "steps": row["num_steps"] - 1} if exact_nodes else {}
    row, _, x0, wanted, _ = run_case(net, run, **(named or {"schedule": nodes}))
    error = (x0 - wanted).square().mean().sqrt()
    assert error <= (1e-2 if "w_stiff" in row else 1e-3) * row["rms"]


@pytest.mark.parametrize("nodes", [2, 4, 5, 6, 7, 9, 11])
@pytest.mark.parametrize("rho", [1, 2])
def test_time_uniform_is_near_the_original(nodes, rho):
    """The original loses 1.5 % of ln(1 + sigma_min^2) to float32: 0.0020132 at the end."""
    theirs = ref("schedules")[f"time_uniform_rho{rho}_n{nodes}_0.002_80.0"].astype(np.float64)
    ours = make_schedule("time_uniform", nodes - 1, rho=rho).numpy()
    assert np.abs(ours / theirs - 1).max() < 0.7e-2
    assert ours[-1] == 0.002 and theirs[-1] == pytest.approx(0.0020132, abs=1e-7)
    assert np.abs(ours / theirs - 1)[:-2].max(initial=0) < 3e-4


@pytest.mark.parametrize("nodes", [2, 4, 5, 7, 9, 11])
def test_discrete_equals_the_original_at_rho_1(nodes):
    model = network("vp_ddpmpp")
    theirs = ref("schedules")[f"discrete_vp_rho1_n{nodes}_0.002_80.0"].astype(np.float64)
    ours = make_schedule("discrete", nodes - 1, model=model).numpy()
    assert np.allclose(ours[:-1], theirs[:-1], rtol=1e-5)  # theirs is float32; 4.6e-6 seen
    assert (ours[0], ours[-1]) == (80.0, 0.002)


def test_discrete_starts_at_sigma_max_where_the_original_does_not():
    """The original forgets to raise t_max to 1/rho: at rho 2 it starts at 45.67, not at 80."""
    model = network("vp_ddpmpp")
    theirs = ref("schedules")["discrete_vp_rho2_n7_0.002_80.0"]
    assert theirs[0] < 60
    assert make_schedule("discrete", 6, rho=2, model=model)[0] == 80.0


@pytest.mark.parametrize("nodes", [5, 7, 9, 11])
@pytest.mark.parametrize("order", [3, 4])
@pytest.mark.parametrize("mode", ["tab", "rhoab"])
def test_deis_weights_equal_the_original_tables(nodes, order, mode):
    """Their `tab` is a sum over 10 000 points with both ends, 1e-4 off; ours are exact integrals.

    Their `rhoab` uses one node more than asked, so its orders 1-3 hold our orders 2-4; steps of
    order 1 need no table and are NaN in theirs.
    """
    tables = ref("schedules")
    levels = tables[f"time_uniform_rho2_n{nodes}_0.002_80.0"].astype(np.float64)
    time = (lambda s: vp_time(s, 0.002, 80.0)) if mode == "tab" else (lambda s: s)
    theirs = tables[f"deis_{mode}_n{nodes}_o{order if mode == 'tab' else order - 1}"]
    for i in range(1, nodes - 1):
        used = levels[max(0, i - order + 1) : i + 1][::-1].tolist()
        ours = lagrange_integrals(used, float(levels[i + 1]), time)
        error = np.abs(ours - theirs[i][: len(ours)]).max()
        assert error <= 3e-4 * np.abs(ours).max()


def test_thresholding_equals_the_original():
    from erk.method.solvers import _threshold

    data = ref("schedules")
    error = _threshold(tensor(data["dynthresh_in"])) - tensor(data["dynthresh_out"])
    assert error.abs().max() <= 1e-6


ANALYTIC = ref("analytic")
CLOSED = sorted(key for key in ANALYTIC if key.rpartition("_n")[2].isdecimal())


def closed_form(kind):
    """Data that are Gaussian ('gauss'), or one of two points, +mean and -mean ('mix')."""
    std, mean = tensor(ANALYTIC["std"]), tensor(ANALYTIC["mean"])
    if kind == "gauss":
        return lambda x, sigma, _: mean + std**2 / (std**2 + sigma**2) * (x - mean)

    def two_points(x, sigma, labels):
        side = torch.tanh((x * mean).flatten(1).sum(1) / sigma**2)
        return side.reshape(-1, 1, 1, 1) * mean

    return two_points


@pytest.mark.parametrize("key", CLOSED)
def test_closed_form_runs_equal_the_originals(key, monkeypatch):
    if "deis_tab" in key:
        monkeypatch.setattr("erk.method.solvers.lagrange_integrals", published_sum)
    name, _, count = key.partition("_")[2].rpartition("_n")
    solver, options, kind = parse(name)
    levels = ref("schedules")[f"{kind}_n{count}_0.002_80.0"].astype(np.float64).tolist()
    w_stiff = 0.0 if "erk" not in name else 2.5 if solver == "deis" else 1.25
    x0 = erk.sample(
        closed_form(key.partition("_")[0]), tensor(ANALYTIC["noise"]), solver=solver,
        solver_options=options, schedule=levels, w_stiff=w_stiff, w_con=0.05,
    )  # fmt: skip
    wanted = tensor(ANALYTIC[key])
    assert (x0 - wanted).abs().max() <= 1e-4 * max(1, wanted.abs().max().item())


def test_two_point_runs_of_the_edm2_sampler_equal_the_originals():
    for name, row in manifest()["analytic"].items():
        if name.startswith("mix"):
            nodes = make_schedule("edm", row["num_steps"]).float().double().tolist()
            x0 = erk.sample(
                closed_form("mix"), tensor(ANALYTIC["noise"]), schedule=nodes,
                w_stiff=row["w_stiff"], w_con=row["w_con"],
            )  # fmt: skip
            assert (x0 - tensor(ANALYTIC[name])).abs().max() <= 1e-4


def parse(name):
    """'deis_tab_o3_erk' -> solver, options, schedule as the goldens name them."""
    words = name.replace("dpm_2", "dpm2").replace("ipndm_v", "ipndmv").split("_")
    solver = words[0].replace("ipndmv", "ipndm_v")
    orders = [int(word[1]) for word in words if word[0] == "o" and word[1:].isdecimal()]
    options = {"order": orders[0]} if orders else {}
    kind = "polynomial_rho7"
    if solver == "deis":
        options["mode"], kind = words[1], "time_uniform_rho2"
    if solver in ("dpmpp", "unipc"):
        options["dynamic_thresholding"], kind = True, "logsnr_rho7"
    if solver == "unipc":
        options["variant"] = words[1]
    return solver, options, kind
