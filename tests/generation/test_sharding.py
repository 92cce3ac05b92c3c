"""Shards that never communicate, and erk merge, which joins them."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from command_runs import check_run, command, files
from injection import JOB, KINDS
from processes import die_before, ended, start

from erk.commands.generate import main
from erk.commands.merge import main as merge_command
from metrics.reference_files import read_reference, write_reference
from metrics.statistics import Statistics, moments_of


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(function, *arguments):
        done = CliRunner().invoke(function, [*map(str, arguments)])
        assert done.exit_code == 0, done.output
        return done.stdout

    return call


@pytest.fixture
def refuse(tmp_path, monkeypatch):
    """A command that must end with one sentence; what is there stays as it is."""
    monkeypatch.chdir(tmp_path)

    def call(function, arguments, message):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        done = CliRunner().invoke(function, [*map(str, arguments)])
        assert done.exit_code == 2, done.output
        assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    return call


# --- shards in one folder -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_shards_one_after_the_other_fill_one_folder(kind, run, undisturbed):
    """In any order; each samples its seeds only, and the last one completes the run."""
    for number, shard in enumerate(("2/3", "0/3", "1/3")):
        output = run(main, *JOB, "--format", kind, "--shard", shard, "--grid")
        assert ("is done. In one folder, the shard that ends last" in output) == (number < 2)
        complete = json.loads(Path("out/run.json").read_text())["complete"]
        assert complete == (number == 2)
        if kind == "png" and number == 0:
            there = sorted(path.name for path in Path("out").glob("*.png"))
            assert there == [f"{seed:06d}.png" for seed in range(2, 20, 3)]
    assert "20 images, NFE 5" in output
    Path("out/grid.png").unlink()
    check_run(Path("out"), undisturbed / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_of_srun_at_the_same_time(kind, tmp_path, undisturbed):
    """No option, no torchrun: SLURM's variables tell. The one that ends last completes the run."""
    job = [*JOB, "--format", kind]
    tasks = [
        start(command, job, cwd=tmp_path, log=tmp_path / f"log{task}", SLURM_PROCID=str(task),
              SLURM_NTASKS="3", SLURM_STEP_ID="0", SLURM_LOCALID=str(task))
        for task in range(3)
    ]  # fmt: skip
    assert [ended(task) for task in tasks] == [0, 0, 0]
    output = "".join((tmp_path / f"log{task}").read_text() for task in range(3))
    assert output.count("20 images, NFE 5 per image") >= 1 and "Traceback" not in output
    check_run(tmp_path / "out", undisturbed / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_shards_may_change(kind, run, undisturbed):
    """One of two shards, then three; existing images are not sampled again."""
    job = [*JOB, "--format", kind]
    run(main, *job, "--shard", "0/2")
    for shard in ("0/3", "1/3", "2/3"):
        run(main, *job, "--shard", shard)
    check_run(Path("out"), undisturbed / kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", ["generate", "merge"])
def test_without_a_last_shard(kind, last, run, undisturbed):
    """The job without --shard samples the rest; erk merge completes a finished run."""
    job = [*JOB, "--format", kind]
    run(main, *job, "--shard", "0/2")
    if last == "generate":
        run(main, *job)
    else:
        run(main, *job, "--shard", "1/2")
        unfinish(Path("out"))
        assert "out: 20 images, each seed once" in run(merge_command, "out")
    check_run(Path("out"), undisturbed / kind)


def unfinish(folder):
    """Undo the last write of a shard: `complete` in run.json."""
    record = json.loads((folder / "run.json").read_text())
    if record["settings"]["format"] == "png":
        (folder / "run.json").write_text(json.dumps(record | {"complete": False}))


def test_streamed_shards_give_the_numbers_of_one_run(run, monkeypatch, tmp_path):
    """Two caches on two machines, merged; then the command of all finds every feature."""
    measure = [*JOB, "--evaluate", "digits", "--json", "row.json"]
    for shard in (0, 1):
        monkeypatch.setenv("ERK_CACHE", str(tmp_path / f"cache{shard}"))
        assert "done, features in" in run(main, *measure, "--shard", f"{shard}/2")
        assert not Path("row.json").exists()
    output = run(merge_command, "cache0/features", "cache1/features", "--dest", "all/features")
    assert "all/features: 5 files of features added" in output
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "all"))
    with monkeypatch.context() as patch:
        patch.setattr("erk.generation.stream.generate", None)  # nothing is left to sample
        run(main, *measure)
    merged = json.loads(Path("row.json").read_text())
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "one"))
    run(main, *measure)
    alone = json.loads(Path("row.json").read_text())
    assert merged["replicates"] == alone["replicates"] and merged["fd"] == alone["fd"]


# --- shards in separate folders ---------------------------------------------------------


@pytest.fixture
def parts(run):
    """(format) -> three folders, each a shard's, as of three machines."""

    def make(kind, *more):
        for shard in range(3):
            path = ["--outdir", f"part{shard}", "--shard", f"{shard}/3"]
            run(main, *JOB, "--format", kind, *path, *more)
        return ["part0", "part1", "part2"]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_folders_become_one(kind, run, parts, undisturbed):
    """Unfinished archives and, merged a second time, finished ones; the sources stay."""
    names = parts(kind)
    before = [files(Path(name)) for name in names]
    assert "all: 20 images, each seed once\n" in run(merge_command, *names, "--dest", "all")
    check_run(Path("all"), undisturbed / kind)
    assert [files(Path(name)) for name in names] == before
    run(merge_command, undisturbed / kind, *names, "--dest", "more")
    check_run(Path("more"), undisturbed / kind)
    record = json.loads(Path("all/run.json").read_text())
    assert record["merged"] == names and record["nfe"] == 5


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_of_seeds_become_one(kind, run, undisturbed):
    """Finished runs of other seeds, with an overlap: an image of both counts once."""
    job = [*JOB[:-2], "--format", kind]
    run(main, *job, "--seeds", "0-11", "--outdir", "a")
    run(main, *job, "--seeds", "8-19", "--outdir", "b")
    name = {"png": "b", "zip": "b/images.zip", "npz": "b/images.npz"}[kind]
    output = run(merge_command, "a", name, "--dest", "all")
    assert "20 images, each seed once, 4 of them in several folders" in output
    check_run(Path("all"), undisturbed / kind)


def test_a_missing_shard_is_named(parts, refuse):
    parts("png")
    message = "no folder holds the images of the seeds 1,4,7,10,13,16,19"
    refuse(merge_command, ["part0", "part2", "--dest", "all"], message)
    refuse(merge_command, ["part0"], "no folder holds the images of the seeds 1-2,4-5")


def test_two_images_of_one_seed_are_named(run, refuse):
    """Rounding of another batch size, or another machine: nobody chooses silently."""
    run(main, *JOB, "--outdir", "a")
    run(main, *JOB, "--outdir", "b")
    manifest = Path("b/manifest.jsonl")
    text = manifest.read_text().splitlines(keepends=True)
    line = json.loads(text[3])
    text[3] = json.dumps(line | {"sha256": "0" * 64, "batch": 8}) + "\n"
    manifest.write_text("".join(text))
    message = "a and b hold different images of seed 3 (batch 4 and 8)"
    refuse(merge_command, ["a", "b", "--dest", "all"], message)


def test_other_settings_are_named(run, refuse):
    run(main, *JOB, "--outdir", "a")
    run(main, *JOB, "--outdir", "b", "--w-stiff", "0.5")
    message = "(w_stiff 0.0 there, 0.5 here); only images of the same settings"
    refuse(merge_command, ["a", "b", "--dest", "all"], message)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_a_damaged_image_is_refused(kind, state, run, parts, undisturbed):
    """One byte of one image; merging succeeds once it is restored."""
    names = parts(kind)
    path = Path({"png": "part1/000007.png", "zip": "part1/.parts/000007.png",
                  "npz": "part1/.parts/000007.png"}[kind])  # fmt: skip
    if state == "finished":
        shutil.copytree(undisturbed / kind, "finished")
        names, path = ["finished"], Path("finished") / {
            "png": "000007.png", "zip": "images.zip", "npz": "images.npz"
        }[kind]  # fmt: skip
    content = path.read_bytes()
    at = len(content) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    done = CliRunner().invoke(merge_command, [*names, "--dest", "all"])
    assert done.exit_code == 2 and "damaged" in done.stderr and "Traceback" not in done.stderr
    path.write_bytes(content)
    run(merge_command, *names, "--dest", "all")
    check_run(Path("all"), undisturbed / kind)


@pytest.mark.parametrize("name", ["../../evil.png", "/tmp/evil.png", "evil/000003.png"])
def test_no_name_in_a_manifest_is_trusted(name, run, undisturbed):
    """A manifest from a stranger: the path of an image follows from its seed."""
    run(main, *JOB, "--outdir", "a")
    manifest = Path("a/manifest.jsonl")
    manifest.write_text(manifest.read_text().replace('"000003.png"', json.dumps(name)))
    run(merge_command, "a", "--dest", "all")
    check_run(Path("all"), undisturbed / "png")


@pytest.mark.parametrize("kind", KINDS)
def test_merging_that_was_killed_goes_on(kind, run, parts, undisturbed, tmp_path):
    names = [*parts(kind), "--dest", "all"]
    for number in range(3, 60, 7):
        if ended(start(killed_merge, names, number, cwd=tmp_path)) == 0:
            break
    run(merge_command, *names)
    check_run(Path("all"), undisturbed / kind)


def killed_merge(arguments, number):
    die_before(number)
    merge_command(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--dest", "all"], "nowhere does not exist"),
        (["a"], "several sources need a result: add --dest"),
        (["a", "./a", "--dest", "all"], "a source is named twice"),
        (["a", "b", "--dest", "b"], "--dest b is one of the sources"),
        (["a", "b", "--dest", "all"], "holds no features: give the folder of --cache"),
        (["a", "file.txt", "--dest", "all"], "not a mix"),
    ],
)
def test_bad_input(arguments, message, tmp_path, refuse):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "file.txt").write_text("")
    refuse(merge_command, arguments, message)


# --- features and references ----------------------------------------------------------------


def test_stores_with_a_broken_file_or_other_outputs(run, monkeypatch, tmp_path):
    """Outputs of the same images are joined; a file that is cut is named."""
    from safetensors.torch import load_file, save_file

    def store(name, tensors):
        path = tmp_path / name / "digits-1-aa" / "ab" / f"ab{'0' * 62}.safetensors"
        path.parent.mkdir(parents=True)
        save_file(tensors, path)
        return path

    kept = torch.arange(3)
    store("a", {"kept": kept, "features": torch.ones(3, 2)})
    store("b", {"kept": kept, "logits": torch.zeros(3, 4)})
    assert "2 files of features added, 0 existed" in run(merge_command, "a", "b", "--dest", "all")
    (merged,) = Path("all").rglob("*.safetensors")
    assert {*load_file(merged)} == {"kept", "features", "logits"}
    assert "0 files of features added, 2 existed" in run(merge_command, "a", "b", "--dest", "all")
    broken = store("c", {"kept": kept})
    broken.write_bytes(broken.read_bytes()[:-5])
    done = CliRunner().invoke(merge_command, ["a", "c", "--dest", "all"])
    assert done.exit_code == 2 and f"{broken.relative_to(tmp_path)} is not readable" in done.stderr


def reference(path, features, protocol="digits", keep=True, n=None):
    moments = moments_of(features)
    kept = features if keep else None
    statistics = Statistics(moments.mean, moments.cov, n or moments.n, kept, "w")
    labels = torch.arange(len(features)) if keep else None
    write_reference(path, {"digits": statistics}, protocol=protocol, labels=labels, image_size=8)


def test_references_of_parts_become_the_one_of_all(run, refuse):
    """Mean and covariance of all images, to float64's rounding; features and labels in order."""
    torch.manual_seed(0)
    features = torch.randn(90, 5, dtype=torch.float64).float() + 3
    reference("all.npz", features)
    for name, part in zip("abc", features.split([20, 30, 40]), strict=True):
        reference(f"{name}.npz", part)
    names = "a.npz", "b.npz", "c.npz"
    run(merge_command, *names, "--dest", "merged.npz")
    refuse(merge_command, [*names, "--dest", "merged.npz"], "merged.npz exists")  # R28
    run(merge_command, *names, "--dest", "merged.npz", "--overwrite")
    of_all, merged = (read_reference(Path(f"{name}.npz")) for name in ("all", "merged"))
    one, other = (one.statistics["digits"] for one in (of_all, merged))
    assert other.n == 90 and other.weights == "w" and merged.protocol == "digits"
    torch.testing.assert_close(other.mean, one.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(other.cov, one.cov, rtol=1e-12, atol=1e-13)
    assert torch.equal(other.features, features) and len(merged.labels) == 90


def test_references_that_do_not_fit(run, refuse):
    reference("a.npz", torch.randn(9, 3))
    reference("b.npz", torch.randn(9, 3), protocol="edm")
    shutil.copy("a.npz", "c.npz")
    refuse(merge_command, ["a.npz", "b.npz", "--dest", "new.npz"], "only references of one kind")
    refuse(merge_command, ["a.npz", "c.npz", "--dest", "new.npz"], "are the same file")


def test_every_seed_of_a_merged_zip_is_a_member_once(run, parts):
    names = parts("zip", "--subdirs")
    run(merge_command, *names, "--dest", "all")
    with zipfile.ZipFile("all/images.zip") as archive:
        assert archive.namelist() == [f"000000/{seed:06d}.png" for seed in range(20)]
    lines = [json.loads(line) for line in Path("all/manifest.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [f"000000/{seed:06d}.png" for seed in range(20)]
