"""`erk generate` refuses bad input in one sentence, and leaves nothing behind."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from command_runs import NETS, ROOT, SMALL, check_refusal, files, finish, record, start

from erk.commands import calibrate
from erk.models.checkpoint import read, write_safetensors


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """Files that must be refused."""
    folder = tmp_path_factory.mktemp("spoilt")
    complete = (NETS / "edm2_pixel.pkl").read_bytes()
    (folder / "short.pkl").write_bytes(complete[: len(complete) // 2])
    (folder / "foreign.pkl").write_bytes(pickle.dumps({"ema": Path("x")}))
    weights = ROOT / "checkpoints" / "digits.safetensors"
    shutil.copy(weights, folder / "cardless.safetensors")
    (folder / "short.safetensors").write_bytes(weights.read_bytes()[:-100])
    shutil.copy(weights.with_suffix(".json"), folder / "short.json")
    (folder / "labels.txt").write_text("0 3\n1 three\n")
    (folder / "few.txt").write_text("0 3\n")
    (folder / "twice.txt").write_text("0 1\n0 1\n0 7\n")
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
    (["--net", "{spoilt}/cardless.safetensors"], "has no metadata"),
    (["--net", "{spoilt}/short.safetensors"], "100 bytes are missing"),
    (["--preset", "edm2-img512-s", "--offline"], "edm2-img512-s-2147483-0.130.pkl"),
    ([*NET, "--guidance", "1.5"], "--guidance 1.5 needs a guiding network"),
    ([*NET, "--S-churn", "5", "--w-stiff", "1"], "set S_churn to 0"),
    ([*NET, "--steps", "1"], "needs at least 2 steps, not 1"),
    ([*NET, "--steps", "0"], "steps must be an integer from 1 to 1000000, not 0"),
    ([*NET, "--steps", "0", "--schedule", "polynomial"], "to 1000000, not 0"),
    ([*NET, "--sigma-min", "-1"], "sigma_min must be a finite number from 1e-12"),
    ([*NET, "--sigma-min", "80"], "sigma_min < sigma_max"),
    ([*NET, "--sigma-max", "nan"], "to 1e+12, not nan"),
    ([*NET, "--solver", "deis", "--sigma-max", "1e160"], "to 1e+12, not 1e+160"),
    ([*NET, "--rho", "1e-3"], "take a rho near 7 (not 0.001)"),
    ([*NET, "--solver", "unipc", "--S-churn", "8"], "take euler, heun or dpm2"),
    ([*NET, "--class", "10"], "class 10 is out of range; this model has 0 to 9"),
    ([*NET, "--class", "-1"], "class -1 is out of range"),
    ([*UNCOND, "--class", "0"], "this model has no classes"),
    ([*NET, "--class", "1", "--labels", "balanced"], "exclude each other"),
    ([*NET, "--labels", "even"], "random, balanced or a file; 'even' does not exist"),
    ([*NET, "--labels", "{spoilt}/labels.txt"], "labels.txt:2 is not 'SEED CLASS'"),
    ([*NET, "--labels", "{spoilt}/few.txt", "--seeds", "0-2"], "no line for seed 1"),
    ([*NET, "--labels", "{spoilt}/twice.txt"], "twice.txt:3 gives seed 0 the class 7, but a line"),
    ([*NET, "--schedule", ".5,.7"], "strictly decreasing"),
    ([*NET, "--seeds", "1-"], "'1-' is not a list of seeds"),
    ([*NET, "--seeds", "9-3"], "write 3-9"),
    ([*NET, "--solver", "leapfrog"], "unknown solver 'leapfrog'"),
    ([*NET, "--schedule", "flat"], "unknown schedule 'flat'"),
    ([*NET, "--w-stiff", "nan"], "w_stiff must be a finite number"),
    ([*NET, "--w-stiff", "-1"], "w_stiff must be a finite number of at least 0, not -1"),
    ([*NET, "--guidance-interval", "3"], "wants LO,HI in sigma, not '3'"),
    ([*NET, "--guidance-interval", "3,1"], "0 <= lo < hi"),
    # numbers beyond what a machine can do
    ([*NET, "--rho", "1e17", "--schedule", "polynomial"], "take a rho near 7 (not 1e+17)"),
    ([*NET, "--steps", "99999999999999999999"], "steps must be an integer from 1 to 1000000"),
    ([*NET, "--seeds", "9223372036854775808"], "the largest seed is 999999999999999999"),
    ([*NET, "--seeds", "1" * 31], "the largest seed is 999999999999999999"),
    # options that would have no effect (friction 8 of newcomers and its siblings)
    ([*NET, "--w-con", "0.3"], "--w-con has no effect without --w-stiff: give both, or neither"),
    ([*NET, "--w_con", "0.5"], "--w-con has no effect without --w-stiff"),
    ([*NET, "--erk-scale", "abs"], "--erk-scale has no effect without --w-stiff"),
    ([*NET, "--S-noise", "1.01"], "--S-noise has no effect without --S-churn"),
    ([*NET, "--churn-rule", "edm"], "--churn-rule has no effect without --S-churn"),
    ([*NET, "--pc-deterministic"], "--pc-deterministic has no effect without --pc-snr"),
    ([*NET, "--gnet", NETS / "edm2_uncond.pkl"], "--gnet has no effect without --guidance"),
    ([*NET, "--gnet", NETS / "edm2_pixel.pkl", "--guidance", "2"], "so --guidance has no effect"),
    (
        [*NET, "--w-con", "0.3", "--erk", "auto"],
        "erk (--erk) takes the place of ERK-Guid's weights: leave w_con (--w-con)",
    ),
    ([*NET, "--schedule", "3,2,1", "--steps", "6"], "so it has 2 steps and not 6: leave out steps"),
    (["--preset", "toy"], "which only erk calibrate knows"),  # N17
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


@pytest.mark.parametrize("option", ["--batch", "--vae-batch"])
def test_a_batch_beyond_memory_is_refused(option, generate):
    refused = generate(*SMALL, "--seeds", "0", option, "99999999999999999999999")
    assert refused.exit_code == 2 and "is not in the range 1<=x<=1048576" in refused.stderr


def test_seeds_with_the_same_noise_are_named(generate):
    """P3: the published rule, which run.json cannot show."""
    done = generate(*SMALL, "--seeds", "1,2,4294967298")
    assert done.exit_code == 0 and "the seeds 2 and 4294967298 draw the same noise" in done.stderr
    assert Path("out/000002.png").read_bytes() == Path("out/4294967298.png").read_bytes()
    assert "same noise" not in generate(*SMALL, "--seeds", "0-3", "--outdir", "b").stderr


def test_a_sweep_may_turn_a_correction_off(generate):
    """Every option of the plain solver's command is given, so none is forgotten."""
    for options in (["--w-stiff", "0", "--w-con", "0.3"], ["--S-churn", "0", "--S-noise", "1.01"]):
        done = generate(*SMALL, "--seeds", "0", *options, "--outdir", options[0])
        assert done.exit_code == 0, done.output


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
    check_refusal(refused.exit_code, refused.stdout, refused.stderr, "holds images but no run")
    assert files(Path("out")) == before[0]


def nan_checkpoint(folder):
    """The digits network with a finite gain at which its outputs overflow float32."""
    checkpoint = read(ROOT / "checkpoints" / "digits.safetensors")
    checkpoint.tensors["unet.out_gain"] = torch.tensor(3e38)
    card = {k: v for k, v in checkpoint.metadata.items() if k != "sha256"}
    write_safetensors(folder / "nan.safetensors", checkpoint._replace(metadata=card))
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


def test_a_number_out_of_range_is_refused_before_torch_is_imported():
    """`erk generate --steps 0` took 13 seconds on a busy machine."""
    program = (
        "import sys\nfrom click.testing import CliRunner\n"
        "from erk.commands.generate import main\n"
        "for option, value in {'--steps': '0', '--w-stiff': '-1', '--rho': 'nan'}.items():\n"
        "    done = CliRunner().invoke(main, ['--outdir', 'out', '--seeds', '0', option, value])\n"
        "    assert done.exit_code == 2 and ' must be ' in done.output, done.output\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_a_warning_is_one_line_without_its_place_in_the_source(tmp_path):
    """A card that corrects by hundreds of steps: the warning named a line of memory.py."""
    card, folder = tmp_path / "a.card.json", tmp_path / "out"

    def erk(*arguments):
        command = [sys.executable, "-m", "erk", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    asked = ["--preset", "digits", "--nfe", "5", "--seeds", "8", "--evaluations", "40", "--solver",
             "heun", "--schedule", "edm", "--correction", "stepwise", "--out", card]  # fmt: skip
    made = CliRunner().invoke(calibrate.main, [*map(str, asked)])
    assert made.exit_code == 0, made.output
    content = json.loads(card.read_text("utf-8"))
    weights = content["correction"]["weights"]
    content["correction"]["weights"] = [[300 * one for one in row] for row in weights]
    card.write_text(json.dumps(content), "utf-8")
    done = erk("generate", "--preset", "digits", "--card", card, "--seeds", "0-3",
               "--outdir", folder)  # fmt: skip
    assert done.returncode == 0 and "UserWarning" not in done.stderr
    assert re.search("\nwarning: corrections are longer than 2 times", done.stderr)
    done = erk("generate", "--preset", "digits", "--w-stiff", "1e9", "--steps", "6",
               "--seeds", "0-3", "--outdir", tmp_path / "weights")  # fmt: skip
    assert done.returncode == 0 and "UserWarning" not in done.stderr
    assert re.search(r"warning: corrections .* w_stiff 1e\+09 is too large", done.stderr)
