"""generate.py as a user runs it: files, resume, processes, and bad input.

Starting torch takes seconds, so what can be is run in this process; the real commands are
fixtures that several tests look at.
"""

import hashlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from golden_data import GOLDEN
from PIL import Image

from erk.commands.generate import main
from erk.models.checkpoint import read, write_safetensors
from erk.models.presets import presets
from erk.runtime.distributed import barrier, broadcast, join

ROOT = Path(__file__).parents[2]
NETS = GOLDEN / "nets"
DIGITS = ["--preset", "digits", "--device", "cpu"]
LONG = [*DIGITS, "--seeds", "0-47", "--steps", "24", "--batch", "4", "--labels", "balanced"]
"""48 pictures in 12 batches: long enough to be killed on the way."""
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def generate(tmp_path, monkeypatch):
    """The command in this process, run in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


def start(folder, *arguments, ranks=1):
    """The command as a new process in `folder`, itself or under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *(torchrun if ranks > 1 else []), ROOT / "generate.py", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=ONE_THREAD, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def files(folder):
    """Relative name -> bytes of every file but run.json and the manifest."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "manifest.jsonl")
    }


def record(folder):
    return json.loads((folder / "run.json").read_text())


# --- presets --------------------------------------------------------------------------------


def test_list_presets_is_whole_when_piped():
    command = [sys.executable, "generate.py", "--list-presets"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"COLUMNS": "40"})  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and [line.split()[0] for line in lines] == [*presets()]
    for line, preset in zip(lines, presets().values(), strict=True):
        assert f"net={preset.net.rpartition('/')[2]}" in line and "…" not in line
        assert preset.gnet is None or preset.gnet.rpartition("/")[2] in line
        assert preset.metric is None or preset.metric in line


# --- one small run and what it writes -------------------------------------------------------


@pytest.fixture(scope="module")
def two_commands(tmp_path_factory):
    """The README's two commands, one after the other, in an empty folder."""
    folder = tmp_path_factory.mktemp("two")
    made = finish(start(folder, "--preset", "digits", "--seeds", "0-63", "--outdir", "out"))
    command = [sys.executable, ROOT / "evaluate.py", "--ref", "digits"]
    judged = subprocess.run(command, cwd=folder, env=ONE_THREAD, capture_output=True, text=True)
    return folder, made, judged


def test_readme_commands(two_commands):
    folder, (out, _), judged = two_commands
    assert out.splitlines()[-1] == "out: 64 pictures, NFE 63 per picture."
    names = [f"{seed:06d}.png" for seed in range(64)]
    assert sorted(os.listdir(folder / "out")) == [*names, "manifest.jsonl", "run.json"]
    with Image.open(folder / "out" / "000063.png") as image:
        assert image.size == (8, 8) and image.mode == "L"
    assert judged.returncode == 0, judged.stderr
    row = json.loads((folder / "results" / "out-digits.json").read_text())
    assert row["n"] == 64 and row["seeds"] == "0-63" and 0 < row["fd"] < 60
    assert row["run"]["nfe"] == 63 and row["run"]["settings"]["w_stiff"] == 0


def test_run_json(two_commands):
    found = record(two_commands[0] / "out")
    card = json.loads((ROOT / "checkpoints" / "digits.json").read_text())
    assert found["network"]["sha256"] == card["sha256"]
    assert Path(found["network"]["name"]).stem == "digits"
    assert found["guide"] is None and found["nfe"] == 63 and found["guide_nfe"] == 0
    assert (found["complete"], found["seeds"], found["images"]) == (True, "0-63", 64)
    assert found["versions"]["torch"] == torch.__version__ and found["device"]
    assert found["command"] == "generate.py --preset digits --seeds 0-63 --outdir out"
    assert found["batch"] == 32 and found["processes"] == 1
    settings = found["settings"]
    assert settings["net"] == "digits.safetensors" and settings["gnet"] is None
    assert settings["S_max"] == "inf" and settings["labels"] == "random"
    wanted = {"solver": "heun", "schedule": "edm", "steps": 32, "sigma_min": 0.002,
              "sigma_max": 80.0, "rho": None, "guidance": 1.0, "w_stiff": 0.0, "w_con": 0.5,
              "format": "png", "precision": "auto on cpu", "class": None}  # fmt: skip
    assert {name: settings[name] for name in wanted} == wanted
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert (found["commit"] or "").removesuffix("-dirty") == commit.stdout.strip()


SMALL = [*DIGITS, "--steps", "3", "--batch", "4"]


def test_again_writes_nothing_and_more_seeds_extend(generate):
    first = generate(*SMALL, "--seeds", "0-5")
    assert first.exit_code == 0 and "6 pictures, NFE 5" in first.stdout
    out = Path("out")
    for path in out.iterdir():
        os.utime(path, (1e9, 1e9))
    again = generate(*SMALL, "--seeds", "0-5")
    assert again.exit_code == 0 and "all 6 pictures are there; nothing to do" in again.stdout
    assert {path.stat().st_mtime for path in out.iterdir()} == {1e9}
    assert generate(*SMALL, "--seeds", "4-8").exit_code == 0
    new = sorted(path.name for path in out.iterdir() if path.stat().st_mtime != 1e9)
    assert new == ["000006.png", "000007.png", "000008.png", "manifest.jsonl", "run.json"]
    assert record(out)["seeds"] == "0-8" and record(out)["images"] == 9
    (out / "000002.png").unlink()
    old = (out / "000001.png").read_bytes()
    assert generate(*SMALL, "--seeds", "0-8").exit_code == 0
    assert generate(*SMALL, "--seeds", "8,7,6,5,4,3,2,1,0", "--outdir", "b").exit_code == 0
    assert files(out) == files(Path("b")) and (out / "000001.png").read_bytes() == old


def test_a_run_stopped_before_its_last_words_is_completed(generate):
    """All pictures are there, the record is not finished: it still knows the counted NFE."""
    assert generate(*SMALL, "--seeds", "0-3").exit_code == 0
    unfinished = record(Path("out")) | {"complete": False}
    Path("out/run.json").write_text(json.dumps(unfinished))
    done = generate(*SMALL, "--seeds", "0-3")
    assert done.exit_code == 0 and "4 pictures, NFE 5" in done.stdout
    assert record(Path("out"))["complete"] is True


def test_subdirs_grid_and_formats(generate):
    some = [*SMALL, "--seeds", "0,999-1001"]
    assert generate(*some, "--subdirs", "--grid", "--outdir", "png").exit_code == 0
    pictures = ["000000/000000.png", "000000/000999.png", "001000/001000.png", "001000/001001.png"]
    made = files(Path("png"))
    assert list(made) == [*pictures, "grid.png"]
    with Image.open("png/grid.png") as image:
        assert image.size == (2 * (6 * 8 + 1) + 1,) * 2
    assert generate(*some, "--subdirs", "--format", "zip", "--outdir", "zip").exit_code == 0
    assert sorted(os.listdir("zip")) == ["images.zip", "manifest.jsonl", "run.json"]
    with zipfile.ZipFile("zip/images.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            name: made[name] for name in pictures
        }
    assert generate(*some, "--format", "npz", "--grid", "--outdir", "npz").exit_code == 0
    assert sorted(os.listdir("npz")) == ["grid.png", "images.npz", "manifest.jsonl", "run.json"]
    with np.load("npz/images.npz") as file:
        assert file["seeds"].tolist() == [0, 999, 1000, 1001]
        with Image.open("png/001000/001001.png") as image:
            assert (file["arr_0"][3, :, :, 0] == np.asarray(image)).all()
    again = generate(*some, "--format", "npz", "--outdir", "npz")
    assert again.exit_code == 0 and "nothing to do" in again.stdout


def test_a_grid_can_be_asked_for_later(generate):
    assert generate(*SMALL, "--seeds", "0-3").exit_code == 0
    assert generate(*SMALL, "--seeds", "0-3", "--grid").exit_code == 0
    assert Path("out/grid.png").is_file()


def test_original_spellings(generate):
    done = generate(*SMALL, "--seeds", "0-1", "--w_stiff", "0.5", "--w_con", ".3", "--sigma_min",
                    "0.01", "--sigma_max", 50)  # fmt: skip
    assert done.exit_code == 0, done.output
    settings = record(Path("out"))["settings"]
    assert [settings[n] for n in ("w_stiff", "w_con", "sigma_min", "sigma_max")] == [
        0.5, 0.3, 0.01, 50
    ]  # fmt: skip
    churned = generate(*SMALL, "--seeds", "0-1", "--S_churn", "2", "--S_min", "0.1", "--S_max",
                       "40", "--S_noise", "1.01", "--outdir", "b")  # fmt: skip
    assert churned.exit_code == 0, churned.output
    settings = record(Path("b"))["settings"]
    assert [settings[f"S_{n}"] for n in ("churn", "min", "max", "noise")] == [2, 0.1, 40, 1.01]
    assert files(Path("out")) != files(Path("b"))


def test_guides_and_their_interval(generate):
    cards = ROOT / "checkpoints"
    paths = ["--net", cards / "digits.safetensors", "--gnet", cards / "digits-weak.safetensors"]
    some = ["--seeds", "0-3", "--steps", "8", "--device", "cpu"]
    assert generate(*paths, *some, "--guidance", "1.25", "--outdir", "a").exit_code == 0
    assert generate("--preset", "digits-autog", *some, "--outdir", "b").exit_code == 0
    assert files(Path("a")) == files(Path("b"))
    found = record(Path("a"))
    assert (found["nfe"], found["guide_nfe"]) == (15, 15)
    card = json.loads((cards / "digits-weak.json").read_text())
    assert found["guide"]["sha256"] == card["sha256"]
    within = generate("--preset", "digits-autog", *some, "--guidance-interval", "0.1,2.0",
                      "--outdir", "c")  # fmt: skip
    assert within.exit_code == 0, within.output
    found = record(Path("c"))
    assert found["settings"]["guidance_interval"] == [0.1, 2.0]
    assert found["nfe"] == 15 and 0 < found["guide_nfe"] < 15
    off = generate("--preset", "digits-autog", *some, "--guidance", "1", "--outdir", "d")
    assert off.exit_code == 0 and record(Path("d"))["guide"] is None
    assert len({files(Path(name))["000000.png"] for name in "bcd"}) == 3


def test_labels(generate):
    Path("labels.txt").write_text("0 7\n1,7\n2 3\n9 9\n")
    runs = {"file": ["--labels", "labels.txt"], "class": ["--class", "7"],
            "balanced": ["--labels", "balanced"], "random": []}  # fmt: skip
    for name, options in runs.items():
        done = generate(*SMALL, "--seeds", "0-2", *options, "--outdir", name)
        assert done.exit_code == 0, done.output
    made = {name: files(Path(name)) for name in runs}
    same = {seed: made["file"][f"{seed:06d}.png"] == made["class"][f"{seed:06d}.png"]
            for seed in range(3)}  # fmt: skip
    assert same == {0: True, 1: True, 2: False}
    assert len({pictures["000000.png"] for pictures in made.values()}) >= 2
    content = hashlib.sha256(Path("labels.txt").read_bytes()).hexdigest()
    assert record(Path("file"))["settings"]["labels"] == f"file {content}"
    assert record(Path("class"))["settings"]["class"] == 7


# --- several processes, and processes that die ----------------------------------------------


def kill_in_the_middle(folder, ranks):
    """Start LONG in `folder`, kill all its processes by signal 9 after some pictures."""
    process = start(folder, *LONG, ranks=ranks)
    end = time.time() + 120
    while time.time() < end and len(list((folder / "out").glob("0*.png"))) < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    for pid in [*children(process.pid), process.pid]:  # torchrun's workers lead own sessions
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    return len(list((folder / "out").glob("0*.png"))), record(folder / "out")["complete"]


def children(pid):
    """Process ids below `pid`, all generations."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *children(child)]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    assert CliRunner().invoke(main, [*LONG, "--outdir", str(folder)]).exit_code == 0
    return files(folder)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_run_again_gives_the_same_bytes(ranks, undisturbed, generate, tmp_path):
    """The bytes of one process that nobody disturbed; with 2 ranks each picture is one of two's."""
    made, complete = kill_in_the_middle(tmp_path, ranks)
    assert 0 < made < 48 and complete is False
    (tmp_path / "out" / ".000047.png.1.tmp").write_bytes(b"half a picture")
    out = generate(*LONG).stdout if ranks == 1 else finish(start(tmp_path, *LONG, ranks=ranks))[0]
    assert out.count("48 pictures, NFE 47") == 1
    assert files(tmp_path / "out") == undisturbed
    found = record(tmp_path / "out")
    assert found["complete"] is True and found["nfe"] == 47 and found["processes"] == ranks


def test_processes_wait_for_each_other_longer_than_torch_does(monkeypatch):
    seen = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "init_process_group", lambda *a, **k: seen.append((a, k)))
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: seen.append("left"))
    with join(torch.device("cpu")) as world:
        assert (world.rank, world.size) == (1, 2)
    (arguments, options), left = seen
    assert arguments == ("gloo",) and options["timeout"].days >= 1 and left == "left"


def test_one_process_makes_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join(torch.device("cpu")) as world:
        barrier(world)
        assert world[:2] == (0, 1) and broadcast(world, [3]) == [3]
        assert not torch.distributed.is_initialized()


# --- bad input ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """Files that must be refused."""
    folder = tmp_path_factory.mktemp("spoilt")
    whole = (NETS / "edm2_pixel.pkl").read_bytes()
    (folder / "short.pkl").write_bytes(whole[: len(whole) // 2])
    (folder / "foreign.pkl").write_bytes(pickle.dumps({"ema": Path("x")}))
    weights = ROOT / "checkpoints" / "digits.safetensors"
    shutil.copy(weights, folder / "cardless.safetensors")
    (folder / "short.safetensors").write_bytes(weights.read_bytes()[:-100])
    shutil.copy(weights.with_suffix(".json"), folder / "short.json")
    (folder / "labels.txt").write_text("0 3\n1 three\n")
    (folder / "few.txt").write_text("0 3\n")
    return folder


NET = ["--net", NETS / "edm2_pixel.pkl"]
UNCOND = ["--net", NETS / "edm2_uncond.pkl"]
BAD = [
    (["--preset", "digitz"], "unknown preset 'digitz'; did you mean digits"),
    (["--preset", "edm2-img512-q"], "did you mean edm2-img512-"),
    ([], "no network: give --preset NAME or --net FILE"),
    (["--net", "nowhere.pkl"], "nowhere.pkl"),
    (["--net", "{spoilt}/short.pkl"], "short.pkl"),
    (["--net", "{spoilt}/foreign.pkl"], "pathlib"),
    (["--net", "{spoilt}/cardless.safetensors"], "has no card"),
    (["--net", "{spoilt}/short.safetensors"], "100 bytes are missing"),
    (["--preset", "edm2-img512-s", "--offline"], "edm2-img512-s-2147483-0.130.pkl"),
    ([*NET, "--guidance", "1.5"], "--guidance 1.5 needs a guiding network"),
    ([*NET, "--S-churn", "5", "--w-stiff", "1"], "set S_churn to 0"),
    ([*NET, "--steps", "1"], "needs at least 2 steps, not 1"),
    ([*NET, "--steps", "0"], "needs at least 2 steps, not 0"),
    ([*NET, "--steps", "0", "--schedule", "polynomial"], "steps, not 0"),
    ([*NET, "--sigma-min", "-1"], "sigma_min = -1"),
    ([*NET, "--sigma-min", "80"], "sigma_min < sigma_max"),
    ([*NET, "--sigma-max", "nan"], "sigma_max = nan"),
    ([*NET, "--class", "10"], "class 10 is out of range; this model has 0 to 9"),
    ([*NET, "--class", "-1"], "class -1 is out of range"),
    ([*UNCOND, "--class", "0"], "this model has no classes"),
    ([*NET, "--class", "1", "--labels", "balanced"], "exclude each other"),
    ([*NET, "--labels", "even"], "random, balanced or a file; 'even' does not exist"),
    ([*NET, "--labels", "{spoilt}/labels.txt"], "labels.txt:2 is not 'SEED CLASS'"),
    ([*NET, "--labels", "{spoilt}/few.txt", "--seeds", "0-2"], "no line for seed 1"),
    ([*NET, "--seeds", ""], "is not a list of seeds"),
    ([*NET, "--seeds", "1-"], "'1-' is not a list of seeds"),
    ([*NET, "--seeds", "9-3"], "write 3-9"),
    ([*NET, "--solver", "leapfrog"], "unknown solver 'leapfrog'"),
    ([*NET, "--schedule", "flat"], "unknown schedule 'flat'"),
    ([*NET, "--w-stiff", "nan"], "w_stiff must be a finite number"),
    ([*NET, "--w-stiff", "-1"], "w_stiff must not be negative"),
    ([*NET, "--guidance-interval", "3"], "wants LO,HI in sigma, not '3'"),
    ([*NET, "--guidance-interval", "3,1"], "0 <= lo < hi"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_input_is_one_sentence(arguments, message, generate, spoilt, monkeypatch):
    monkeypatch.setenv("ERK_CACHE", str(Path("cache").absolute()))
    arguments = [str(argument).format(spoilt=spoilt) for argument in arguments]
    seeds = [] if "--seeds" in arguments else ["--seeds", "0-1"]
    refused = generate("--device", "cpu", *seeds, *arguments)
    check_refusal(refused.exit_code, refused.stdout, refused.stderr, message)
    assert not Path("out").exists()
    assert [*Path("cache").rglob("*.pkl")] == []


def check_refusal(code, out, err, message):
    assert code == 2, err
    assert err.startswith("Error: ") and message in err, err
    assert len(err.splitlines()) == 1 and out == ""


def test_an_output_folder_below_a_file(generate):
    Path("file").write_text("mine")
    refused = generate(*SMALL, "--seeds", "0-1", "--outdir", "file/deep")
    check_refusal(refused.exit_code, refused.stdout, refused.stderr, "cannot write to file")
    assert os.listdir() == ["file"] and Path("file").read_text() == "mine"


def test_a_folder_of_another_run_or_of_others(generate):
    assert generate(*SMALL, "--seeds", "0-1").exit_code == 0
    before = files(Path("out")), record(Path("out"))
    refused = generate(*SMALL, "--seeds", "0-3", "--w-stiff", "1", "--steps", "5")
    check_refusal(refused.exit_code, refused.stdout, refused.stderr,
                  "(steps 3 there, 5 here; w_stiff 0.0 there, 1.0 here)")  # fmt: skip
    assert (files(Path("out")), record(Path("out"))) == before
    Path("out/run.json").unlink()
    refused = generate(*SMALL, "--seeds", "7")
    check_refusal(refused.exit_code, refused.stdout, refused.stderr, "holds pictures but no run")
    assert files(Path("out")) == before[0]


def nan_checkpoint(folder):
    """The digits network with one weight that is not a number."""
    checkpoint = read(ROOT / "checkpoints" / "digits.safetensors")
    name = next(n for n, value in checkpoint.tensors.items() if value.ndim == 4)
    checkpoint.tensors[name][0, 0, 0, 0] = float("nan")
    card = {k: v for k, v in checkpoint.card.items() if k != "sha256"}
    write_safetensors(folder / "nan.safetensors", checkpoint._replace(card=card))
    return folder / "nan.safetensors"


def test_another_network_of_the_same_name(generate):
    Path("nets").mkdir()
    bad = nan_checkpoint(Path("nets"))
    for suffix in (".safetensors", ".json"):
        good = ROOT / "checkpoints" / f"digits{suffix}"
        Path(f"nan{suffix}").write_bytes(good.read_bytes())
    some = ["--device", "cpu", "--steps", "2", "--seeds"]
    assert generate("--net", "./nan.safetensors", *some, "0").exit_code == 0
    refused = generate("--net", bad, *some, "0-1")
    check_refusal(refused.exit_code, refused.stdout, refused.stderr, "another network of the same")


def test_nan_names_seed_and_step_and_leaves_nothing(generate):
    Path("nets").mkdir()
    bad = nan_checkpoint(Path("nets"))
    for kind in ("png", "zip"):
        refused = generate("--net", bad, "--device", "cpu", "--seeds", "40-43", "--steps", "4",
                           "--format", kind)  # fmt: skip
        assert refused.exit_code == 2
        last = refused.stderr.splitlines()[-1]
        assert "NaN or infinity for seed 40 at step 0 (sigma 80)" in last
        assert "Traceback" not in refused.stderr
        assert not Path("out").exists()


def test_bad_input_as_the_user_sees_it(tmp_path):
    out, err = finish(start(tmp_path, "--preset", "digitz", "--seeds", "0-1"), code=2)
    check_refusal(2, out, err, "unknown preset 'digitz'; did you mean digits")
    assert os.listdir(tmp_path) == []


def test_a_port_is_not_needed_for_one_process(generate, monkeypatch):
    """WORLD_SIZE 1, as `torchrun --nproc-per-node 1` sets it, opens no connection."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(socket.socket, "bind", lambda *_: pytest.fail("opened a port"))
    assert generate(*SMALL, "--seeds", "0-1").exit_code == 0
