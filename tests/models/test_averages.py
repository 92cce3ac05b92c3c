"""Averages of other lengths: the algebra against numerical integration, and a real training run."""

import copy
import json
import shutil

import click.testing
import numpy as np
import pytest
import torch
from golden_data import pickle_paths

from erk import load_model
from erk.commands import ema
from erk.io.files import sha256_of
from erk.models.checkpoint import Checkpoint, Part, read, write_safetensors
from erk.models.edm2 import MPConv, Precond
from erk.models.ema import MAX_STD, Profile, combine, exponent_of, inner_product, std_of
from erk.models.snapshots import find_snapshots, sums, write_sum
from scripts.train.denoiser import edm2_loss
from scripts.train.digits import NETWORK, RECIPE, encoded

PAIR = (0.05, 0.10)  # what EDM2's training stores
GRID = [Profile(std, time) for time in np.arange(1, 9) / 8 for std in PAIR]


def design(profiles, pieces):
    """sqrt(weight) p(tau) at Gauss-Legendre nodes of [0, 1], cut at the profiles' ends: [K, N]."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    ends = np.array([0, *pieces])
    width = np.diff(ends)[:, None]
    tau, w = (ends[:-1, None] + width * (nodes + 1) / 2).ravel(), (width * weights / 2).ravel()
    columns = []
    for std, time in profiles:
        g = exponent_of(std)
        inside = np.where(tau <= time, tau, 0)
        columns.append(np.sqrt(w) * (g + 1) / time ** (g + 1) * inside**g * (tau <= time))
    return np.stack(columns, 1)


@pytest.mark.parametrize("std", [1e-3, 0.01, 0.05, 0.1, 0.15, 0.25, 0.288])
def test_std_and_exponent_are_inverse(std):
    assert std_of(exponent_of(std)) == pytest.approx(std, rel=1e-10)


def test_the_width_is_that_of_the_profile():
    """Mean and deviation of tau under p, integrated: the definition of std."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    tau, w = (nodes + 1) / 2, weights / 2
    for std in (0.03, 0.1, 0.2):
        p = (exponent_of(std) + 1) * tau ** exponent_of(std)
        mean = w @ (p * tau)
        assert w @ p == pytest.approx(1, rel=1e-12)
        assert np.sqrt(w @ (p * (tau - mean) ** 2)) == pytest.approx(std, rel=1e-10)


def test_inner_products_are_the_integrals():
    profiles = [Profile(std, time) for std in (0.03, 0.1, 0.2) for time in (0.3, 0.75, 1.0)]
    columns = design(profiles, [0.3, 0.75, 1.0])
    closed = np.array([[inner_product(p, q) for q in profiles] for p in profiles])
    np.testing.assert_allclose(closed, columns.T @ columns, rtol=1e-11)


@pytest.mark.parametrize("std", [0.04, 0.07, 0.12, 0.15, 0.2, 0.25])
def test_coefficients_are_the_least_squares_solution_of_sum_one(std):
    wanted = Profile(std, 1.0)
    ends = sorted({p.time for p in GRID})
    columns, target = design(GRID, ends), design([wanted], ends)[:, 0]
    expected, *_ = np.linalg.lstsq(columns, target, rcond=None)
    expected /= expected.sum()
    written = combine(GRID, wanted)
    assert written.coefficients.dtype == np.float64
    np.testing.assert_allclose(written.coefficients, expected, rtol=1e-7, atol=1e-9)
    left = np.linalg.norm(columns @ expected - target) / np.linalg.norm(target)
    assert written.misfit == pytest.approx(left, rel=1e-6)


def test_the_unit_of_time_does_not_matter():
    a = combine(GRID, Profile(0.15, 1.0))
    b = combine([p._replace(time=p.time * 2.1e9) for p in GRID], Profile(0.15, 2.1e9))
    np.testing.assert_allclose(a.coefficients, b.coefficients, rtol=1e-9)


def test_what_was_stored_comes_back_and_copies_share():
    written = combine(GRID, GRID[5])
    np.testing.assert_allclose(written.coefficients, np.eye(len(GRID))[5], atol=1e-9)
    assert written.misfit < 1e-7
    twice = combine([*GRID, GRID[5]], GRID[5])  # one snapshot given twice
    assert twice.coefficients[[5, -1]] == pytest.approx([0.5, 0.5], abs=1e-6)


@pytest.mark.parametrize(("std", "off"), [(0.075, 0.011), (0.13, 0.021), (0.2, 0.09)])
def test_weights_that_never_changed_come_back(std, off):
    """G1: few snapshots, where the least squares alone sum to 1 - ``off``."""
    stored = [Profile(width, time) for time in (2048, 4096, 6144, 8192) for width in PAIR]
    coefficients = combine(stored, Profile(std, 8192)).coefficients
    assert coefficients.sum() == pytest.approx(1, abs=1e-14)
    a = [[inner_product(p, q) for q in stored] for p in stored]
    plain = np.linalg.solve(a, [inner_product(p, Profile(std, 8192)) for p in stored])
    assert abs(1 - plain.sum()) == pytest.approx(off, abs=1e-3)
    np.testing.assert_allclose(coefficients, plain / plain.sum(), atol=1e-13)  # rounding


@pytest.mark.parametrize("std", [0, -0.1, MAX_STD * 1.01, float("nan")])
def test_widths_that_no_profile_has_are_refused(std):
    with pytest.raises(ValueError, match="std must be above 0 and at most 0.2887"):
        exponent_of(std)


def test_combine_refuses_nothing_and_time_zero():
    with pytest.raises(ValueError, match="no stored averages"):
        combine([], Profile(0.1, 1))
    with pytest.raises(ValueError, match="above 0"):
        combine([Profile(0.1, 0)], Profile(0.1, 1))


BATCH, STEPS, EVERY, WANTED = 16, 160, 10, 0.15


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A tiny digits network trained for a moment: the folder of its snapshots at two widths, in
    float16 as released ones are, the same in float32, and a third average that was tracked."""
    data = encoded()
    labels = torch.nn.functional.one_hot(data.classes, 10).float()
    kwargs = {**NETWORK, "label_dim": 10, "model_channels": 16, "channel_mult": [1],
              "attn_resolutions": []}  # fmt: skip
    torch.manual_seed(0)
    network = Precond(**kwargs).train()
    averages = {std: copy.deepcopy(network) for std in (*PAIR, WANTED)}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, betas=(0.9, 0.99))
    draw = torch.Generator().manual_seed(0)
    folders = {kind: tmp_path_factory.mktemp(str(kind)) for kind in (torch.float16, torch.float32)}
    for step in range(1, STEPS + 1):
        pick = torch.randint(len(data.images), [BATCH], generator=draw)
        for module in network.modules():
            if isinstance(module, MPConv):
                module.force_unit_weight()
        optimizer.zero_grad()
        edm2_loss(network, data.images[pick], labels[pick], RECIPE, draw).backward()
        optimizer.step()
        for std, average in averages.items():
            keep = (1 - 1 / step) ** (exponent_of(std) + 1)
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(average.parameters()), list(network.parameters()), 1 - keep
                )
        if step % EVERY == 0:
            for std in PAIR:
                for kind, folder in folders.items():
                    state = {k: t.to(kind) for k, t in averages[std].state_dict().items()}
                    training = {"images": step * BATCH, "ema_std": std}
                    write_safetensors(
                        folder / f"snap-{step:04d}-{std:.3f}.safetensors",
                        Checkpoint(Part("Precond", kwargs), data.encoder,
                                   state, {"licence": "Apache-2.0", "training": training}),
                    )  # fmt: skip
    return folders, averages


def run(*arguments):
    result = click.testing.CliRunner().invoke(ema.main, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def distance(tensors, network):
    """Of the parameters, relative."""
    pairs = [(tensors[name].float(), p) for name, p in network.named_parameters()]
    off, complete = (sum(float(t.detach().square().sum()) for t in ts) for ts in
                  ((a - b for a, b in pairs), (b for _, b in pairs)))  # fmt: skip
    return (off / complete) ** 0.5


def test_a_reconstruction_is_the_average_that_was_tracked(training, tmp_path):
    folders, averages = training
    direct = averages[WANTED]
    others = [distance(averages[std].state_dict(), direct) for std in PAIR]
    errors = {}
    for kind, folder in folders.items():
        out = tmp_path / f"{kind}.safetensors"
        code, _, _ = run("--in", folder, "--std", WANTED, "--out", out, "--dtype", "float32")
        assert code == 0
        errors[kind] = distance(read(out).tensors, direct)
    print(f"relative error {errors}, of the stored averages {others}")
    assert errors[torch.float32] < min(others) / 20
    assert errors[torch.float16] < errors[torch.float32] + 2e-4  # what float16 itself rounds by


def test_the_card_says_how_it_was_made(training, tmp_path):
    folder = training[0][torch.float16]
    out = tmp_path / "ema-{std}.safetensors"
    snapshots = f"{folder}/*.safetensors"
    code, report, _ = run("--in", snapshots, "--std", 0.08, "--std", 0.1, "--out", out)
    assert code == 0 and report.count("of the profile is not met") == 2
    written = tmp_path / "ema-0.080.safetensors"
    card = json.loads(written.with_suffix(".json").read_text())
    assert card["training"] == {"images": STEPS * BATCH, "ema_std": 0.08}
    assert card["licence"] == "Apache-2.0" and 0 < card["misfit"] < 0.01
    files = sorted(folder.glob("*.safetensors"))
    assert [s["file"] for s in card["snapshots"]] == [f.name for f in files]
    assert [s["sha256"] for s in card["snapshots"]] == [sha256_of(f) for f in files]
    tensors = read(written).tensors
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    parts = [read(f).tensors for f in files]
    x = [s["coefficient"] for s in card["snapshots"]]
    summed = sum(c * p["unet.out_conv.weight"].float() for c, p in zip(x, parts, strict=True))
    assert torch.allclose(tensors["unet.out_conv.weight"].float(), summed, rtol=1e-3, atol=1e-5)
    for name in ("unet.emb_fourier.freqs", "logvar_fourier.phases"):  # buffers: never averaged
        assert torch.equal(tensors[name], parts[0][name])
    again = read(tmp_path / "ema-0.100.safetensors").tensors  # a width that was stored
    assert all(torch.equal(t, parts[-1][name]) for name, t in again.items())
    assert load_model(written)(torch.zeros(1, 1, 8, 8), 1.0).isfinite().all()


def test_released_pickles_are_snapshots_by_their_names(tmp_path):
    source = pickle_paths("edm2_cond")[0].read_bytes()
    for name in ("net-0000100-0.050.pkl", "net-0000100-0.100.pkl", "net-0000200-0.050.pkl",
                 "net-0000200-0.100.pkl"):  # fmt: skip
        (tmp_path / name).write_bytes(source)
    out = tmp_path / "out.safetensors"
    code, report, _ = run("--in", tmp_path, "--std", 0.07, "--kimg", 200, "--out", out)
    assert code == 0, report
    written, one = read(out), read(pickle_paths("edm2_cond")[0])
    assert written.architecture == one.architecture and written.encoder == one.encoder
    assert written.metadata["training"] == {"images": 196 * 1024, "ema_std": 0.07}
    weight = "unet.out_conv.weight"  # the same in all snapshots, and so in their average
    torch.testing.assert_close(written.tensors[weight].float(), one.tensors[weight].float(),
                               rtol=1e-3, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "images"),
    [("134217", 2**27), ("2147483", 2**31), ("0000100", 98 * 1024), ("0000042", 42_000)],
)
def test_names_stand_for_multiples_of_1024_images(name, images, tmp_path):
    """G1: EDM2 writes the thousands only; 42 is none of its names (41 * 1024 and 43,008)."""
    (tmp_path / f"net-{name}-0.050.pkl").touch()
    (snapshot,) = find_snapshots([str(tmp_path)])
    assert snapshot.profile == Profile(0.05, images)


def test_an_average_ends_at_a_snapshot_and_uses_none_after_it(training, tmp_path):
    """G1: the sum at an earlier time is that of a training that stopped there."""
    folder, stopped = training[0][torch.float16], tmp_path / "stopped"
    stopped.mkdir()
    for path in folder.glob("snap-00*"):
        shutil.copy(path, stopped)
    out = [tmp_path / f"{i}.safetensors" for i in range(2)]
    assert run("--in", folder, "--std", 0.15, "--kimg", 1.44, "--out", out[0])[0] == 0
    assert run("--in", stopped, "--std", 0.15, "--out", out[1])[0] == 0
    first, second = map(read, out)
    assert first.metadata == second.metadata
    assert len(first.metadata["snapshots"]) == 18  # 10, 20, ... 90 steps at two widths
    assert first.metadata["training"] == {"images": 90 * BATCH, "ema_std": 0.15}
    assert all(torch.equal(t, second.tensors[name]) for name, t in first.tensors.items())


def test_ema_refuses_in_one_sentence(training, tmp_path):
    folder, out = training[0][torch.float16], tmp_path / "a.safetensors"
    lone = tmp_path / "net.pkl"
    lone.write_bytes(pickle_paths("edm2_auto")[0].read_bytes())
    other = tmp_path / "net-0000001-0.050.pkl"
    other.write_bytes(lone.read_bytes())
    for arguments, reason in [
        (("--in", tmp_path / "x*", "--std", 0.1, "--out", out), "names no .pkl or .safetensors"),
        (("--in", lone, "--std", 0.1, "--out", out), "does not say what it averages: name it"),
        (("--in", folder, "--std", 0.3, "--out", out), "std must be above 0 and at most 0.2887"),
        (("--in", folder, "--std", 0.1, "--out", tmp_path / "a.pkl"), "must end in .safetensors"),
        (("--in", folder, "--std", 0.1, "--std", 0.2, "--out", out), "write {std} in --out"),
        (
            ("--in", folder, "--std", 0.1, "--kimg", 4, "--out", out),
            "--kimg 4 is not the time of one snapshot: choose one of ..., 1.44, 1.6, ",
        ),
        (("--in", folder, "--std", 0.1, "--kimg", 1, "--out", out), "is not the time of one"),
        (("--in", folder, "--std", 0.1, "--kimg", "nan", "--out", out), "is not the time of one"),
        (("--in", folder, "--in", other, "--std", 0.1, "--out", out), "is another network than"),
    ]:
        code, _, errors = run(*arguments)
        assert code == 2 and errors.splitlines()[-1].startswith("Error: "), errors
        assert reason in errors.splitlines()[-1] and not out.exists()


def test_one_file_by_two_names_is_one_snapshot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net-0000001-0.050.safetensors").touch()
    (tmp_path / "link-0000001-0.050.safetensors").symlink_to("net-0000001-0.050.safetensors")
    assert len(find_snapshots([".", str(tmp_path)])) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("net-0000000-0.050", "names snapshots of 0 images only"),  # it ended in a TypeError
        ("net-0000001-0.500", "net-0000001-0.500.pkl averages std 0.5 at 1024 images, but std"),
        ("net-0000001-0.000", "net-0000001-0.000.pkl averages std 0 at 1024 images, but std"),
    ],
)
def test_impossible_averages_are_refused_by_the_name_of_their_file(tmp_path, name, reason):
    (tmp_path / f"{name}.pkl").touch()
    arguments = ["--in", str(tmp_path), "--std", "0.05", "--out", str(tmp_path / "x.safetensors")]
    done = click.testing.CliRunner().invoke(ema.main, arguments)
    assert done.exit_code == 2 and reason in done.stderr and done.stderr.count("\n") == 1


def test_impossible_averages_of_metadata_are_refused_by_their_numbers(tmp_path):
    path = tmp_path / "net.safetensors"
    path.touch()
    facts = {"training": {"images": -1, "ema_std": 0.05}}
    path.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="averages std 0.05 at -1 images, but std"):
        find_snapshots([str(path)])


def test_sums_with_nan_or_beyond_their_type_are_not_written(training, tmp_path):
    """A sibling of F3: numbers that are none went into a file without a word."""
    snapshots = find_snapshots([str(training[0][torch.float32])])[:2]
    plan = combine([one.profile for one in snapshots], snapshots[0].profile)
    for factor in (float("nan"), 1e9):
        spoilt = plan._replace(coefficients=plan.coefficients * factor)
        with pytest.raises(ValueError, match="the sum has NaN or infinity in .* --dtype float32"):
            next(sums(snapshots, [spoilt], "float16"))


def test_ema_keeps_an_existing_file(training, tmp_path):
    """It was replaced without a word."""
    out = tmp_path / "a-0.150.safetensors"
    out.write_text("mine")
    words = ("--in", training[0][torch.float16], "--std", 0.1, "--std", 0.15, "--out",
             tmp_path / "a-{std}.safetensors")  # fmt: skip
    code, output, errors = run(*words)
    assert (code, output) == (2, "") and f"{out} exists: choose another --out" in errors
    assert [*tmp_path.iterdir()] == [out] and out.read_text() == "mine"
    assert run(*words, "--overwrite")[0] == 0 and read(out).tensors


def test_a_width_far_from_what_was_stored_is_reported(training, tmp_path):
    folder = training[0][torch.float16]
    code, _, errors = run("--in", f"{folder}/*-0.050.safetensors", "--std", 0.01, "--out",
                          tmp_path / "a.safetensors")  # fmt: skip
    assert code == 0 and "warning: 0.01 lies too far from the stored widths" in errors


def test_hashes_are_of_the_bytes_that_were_summed(training, tmp_path):
    """M17: a snapshot that is replaced after it was read; its folder's name is no pattern."""
    folder = tmp_path / "snap[1]"
    folder.mkdir()
    for path in sorted(training[0][torch.float16].glob("snap-0010-*")):
        shutil.copy(path, folder)
    snapshots = find_snapshots([str(path) for path in folder.glob("*.safetensors")])
    read_bytes = [sha256_of(s.path) for s in snapshots]
    plan = combine([s.profile for s in snapshots], snapshots[0].profile)
    (total,) = sums(snapshots, [plan])
    snapshots[0].path.write_bytes(b"another")
    write_sum(tmp_path / "a.safetensors", total, snapshots, plan, snapshots[0].profile)
    parts = read(tmp_path / "a.safetensors").metadata["snapshots"]
    assert [part["sha256"] for part in parts] == read_bytes


def test_networks_of_other_arguments_are_not_summed(training, tmp_path):
    """The same shapes with another sigma_data are another network."""
    path = training[0][torch.float16] / "snap-0010-0.050.safetensors"
    checkpoint = read(path)
    kwargs = checkpoint.architecture.kwargs | {"sigma_data": 2.0}
    other = checkpoint._replace(architecture=Part("Precond", kwargs))
    write_safetensors(tmp_path / "net-0000001-0.050.safetensors", other)
    for part in (path, path.with_suffix(".json")):
        shutil.copy(part, tmp_path)
    snapshots = find_snapshots([str(tmp_path)])
    plan = combine([s.profile for s in snapshots], snapshots[0].profile)
    with pytest.raises(ValueError, match="is another network than"):
        list(sums(snapshots, [plan]))
