"""evaluate.py end to end: in this process, as the user runs it, and under torchrun."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from erk.commands.evaluate import main
from erk.io.download import cache_dir
from metrics.extractors.classifier import known_classifiers
from metrics.reference_files import write_reference
from metrics.statistics import Statistics, moments_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


def row_of(result, path):
    assert result.exit_code == 0, result.output
    return json.loads(Path(path).read_text())


def test_row_and_table(evaluate, save_pngs, digits):
    folder = save_pngs(digits[0][:200], "run-0.5")
    (folder / "run.json").write_text(
        '{"seeds": "0-199", "complete": false, "images": 300, "settings": {"w_stiff": 0.5}}'
    )
    result = evaluate("--images", folder, "--ref", "digits", "--csv", "row.csv", "--device", "cpu")
    row = row_of(result, "results/run-0.5-digits.json")
    assert row["n"] == 200 and row["seeds"] == "0-199" and row["run"]["settings"]["w_stiff"] == 0.5
    assert row["precision"] == 1 and 0 < row["fd"] < 50 and row["fd_se"] > 0
    assert row["groups"] == 10 and len(row["replicates"]["fd"]) == 10
    assert row["protocol"] == "digits" and row["device"] == "cpu" and row["skipped"] == 0
    card = json.loads(known_classifiers()["digits"].path.with_suffix(".json").read_text())
    assert row["extractors"] == {"digits": card["sha256"]}
    assert len(row["reference_sha256"]) == 64 and row["reference_n"] == 1797
    assert {"python", "torch", "numpy"} <= set(row["versions"])
    assert row["fd_floor"] > 0 and row["command"] and "commit" in row
    line = next(csv.DictReader(Path("row.csv").read_text().splitlines()))
    assert line["n"] == "200" and line["fd_se"]
    assert "not complete: it should have 300 images" in result.output
    for shown in ("fd", "precision", "recall", "is", "standard error", "run-0.5-digits.json",
                  "protocol digits", "compare these only with 200 images"):  # fmt: skip
        assert shown in result.output


def test_the_precision_of_extractors_is_reported(evaluate, save_pngs, digits):
    """In the row, beside the numbers, and in the names of the row and of what is kept."""
    save_pngs(digits[0][:200])
    how = ("--ref", "digits", "--device", "cpu", "--cache", "features")
    rows = [row_of(evaluate(*how, "--json", "fp32.json"), "fp32.json")]
    report = evaluate(*how, "--extractor-precision", "bf16")
    assert "extractors computed in bf16, references in fp32" in report.output
    (target,) = Path("results").glob("out-digits-*.json")
    rows.append(row_of(report, target))
    assert [row["extractor_precision"] for row in rows] == ["fp32", "bf16"]
    assert 0 < abs(rows[0]["fd"] / rows[1]["fd"] - 1) < 0.02
    stores = {path.name.endswith("-bf16") for path in Path("features").iterdir()}
    assert stores == {True, False}


def test_defaults_and_seeds_from_names(evaluate, save_pngs, digits):
    folder = save_pngs(digits[0][:12])
    (folder / "000003.png").unlink()
    (folder / "000011.png").rename(folder / "000020.png")
    result = evaluate("--ref", "digits")
    assert row_of(result, "results/out-digits.json")["seeds"] == "0-2,4-10,20"
    assert "covariance of 11 images in 64 dimensions is rank-deficient" in result.output


def test_balanced_labels_give_an_accuracy(evaluate, save_pngs, digits):
    images, labels = digits
    order = [int((labels == seed % 10).nonzero()[seed // 10]) for seed in range(100)]
    folder = save_pngs(images[order])
    (folder / "run.json").write_text('{"settings": {"labels": "balanced"}}')
    row = row_of(evaluate("--ref", "digits", "--json", "row.json", "--groups", 1), "row.json")
    assert row["accuracy"] >= 0.97 and row["seeds"] == "0-99" and row["fd_se"] is None
    (folder / "000007.png").write_bytes(b"junk")  # its label goes with it
    row = row_of(evaluate("--ref", "digits", "--json", "row.json", "--skip-corrupt"), "row.json")
    assert row["accuracy"] >= 0.97 and row["n"] == 99 and row["skipped"] == 1


def test_paired_runs(evaluate, save_pngs, digits):
    images = digits[0][:400]
    save_pngs(images, "off")
    save_pngs((images * 0.5).byte(), "on")
    result = evaluate("--images", "on", "--paired", "off", "--ref", "digits")
    row = row_of(result, "results/on-digits.json")
    plain = json.loads(Path("results/off-digits.json").read_text())
    assert row["minus"]["images"] == "off"
    assert row["minus"]["fd"]["value"] == pytest.approx(row["fd"] - plain["fd"])
    assert row["minus"]["fd"]["exceeds"] is True
    assert "on minus off" in result.output and "beyond noise" in result.output
    assert result.output.index("difference") < result.output.index("standard errors by leaving")
    for folder, chosen in (("on", 3), ("off", 5)):
        (Path(folder) / "run.json").write_text(json.dumps({"settings": {"class": chosen}}))
    result = evaluate("--images", "on", "--paired", "off", "--ref", "digits")
    assert result.exit_code == 2 and "different classes for the same seeds" in result.output
    (Path("on") / "run.json").unlink()
    (Path("off") / "000003.png").write_bytes(b"junk")
    result = evaluate("--images", "on", "--paired", "off", "--ref", "digits", "--skip-corrupt")
    assert result.exit_code == 2 and "cannot be paired" in result.output
    (Path("off") / "000000.png").unlink()
    result = evaluate("--images", "on", "--paired", "off", "--ref", "digits")
    assert result.exit_code == 2 and "are not of the same seeds" in result.output


def test_measuring_again_equals_and_a_subset_is_drawn(evaluate, save_pngs, digits):
    save_pngs(digits[0][:60])
    cache = ("--cache", "features", "--json", "row.json", "--ref", "digits")
    first, again = (row_of(evaluate(*cache), "row.json") for _ in range(2))
    assert first["fd"] == again["fd"] and first["replicates"] == again["replicates"]
    few = row_of(evaluate(*cache, "--num", 30, "--seed", 5), "row.json")
    order = np.arange(60)
    np.random.RandomState(5).shuffle(order)
    assert few["n"] == 30
    assert few["seeds"].split(",")[0].split("-")[0] == str(min(order[:30]))


def test_the_floor_follows_the_labels(evaluate, save_pngs, digits):
    folder = save_pngs(digits[0][:300])
    free = row_of(evaluate("--ref", "digits", "--json", "row.json"), "row.json")
    (folder / "run.json").write_text('{"settings": {"labels": "balanced"}}')
    rows = []
    for more in ((), ("--metrics", "fd"), ("--num", 15)):
        result = evaluate("--ref", "digits", "--json", "row.json", *more)
        rows.append(row_of(result, "row.json"))
    assert rows[0]["fd_floor"] == rows[1]["fd_floor"] < free["fd_floor"] / 1.5
    assert [row["fd_floor_balanced"] for row in rows] == [True, True, False]
    assert "drawn at random" in result.output and "no standard errors" in result.output


def test_labels_of_other_classes_matter_to_the_metrics_that_need_them(evaluate, save_pngs, digits):
    """17: --metrics fd was refused for the classes 10 to 19."""
    how = ("--ref", "digits", "--json", "row.json", "--metrics")
    folder = save_pngs(digits[0][:50])
    plain = row_of(evaluate(*how, "fd"), "row.json")
    rows = [[path.name, 10 + i % 10] for i, path in enumerate(sorted(folder.iterdir()))]
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    labelled = row_of(evaluate(*how, "fd"), "row.json")
    assert labelled["fd"] == plain["fd"] and labelled["fd_floor"] == plain["fd_floor"]
    refused = evaluate(*how, "fd,accuracy")
    assert refused.exit_code == 2
    assert "has the class '10', but classes are 0 to 9: correct the labels, or leave out the " in (
        refused.stderr
    )


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_archives_give_the_same_numbers(evaluate, save_pngs, digits, kind):
    folder = save_pngs(digits[0][:50])
    if kind == "zip":
        shutil.make_archive("packed", "zip", folder)
    else:
        np.savez("packed.npz", arr_0=digits[0][:50, 0].numpy())
    rows = []
    for images, name in ((folder, "out"), (f"packed.{kind}", f"packed-{kind}")):
        result = evaluate("--images", images, "--ref", "digits")
        rows.append(row_of(result, f"results/{name}-digits.json"))
    assert rows[0]["fd"] == pytest.approx(rows[1]["fd"], rel=1e-6)  # of 50 images: sums differ
    assert rows[0]["recall"] == rows[1]["recall"]


def test_shards_then_one_run(evaluate, save_pngs, digits):
    save_pngs(digits[0][:40])
    common = ("--ref", "digits", "--cache", "features")
    for shard in ("0/2", "1/2"):
        result = evaluate(*common, "--shard", shard)
        assert result.exit_code == 0 and "are in features" in result.output
        assert not Path("results").exists()
    assert row_of(evaluate(*common), "results/out-digits.json")["n"] == 40


def test_real_images_alone(evaluate, save_pngs, digits):
    save_pngs(digits[0][:600], "real")
    save_pngs(digits[0][600:1000])
    result = evaluate("--real", "real", "--protocol", "digits", "--metrics", "fd,recall")
    (written,) = Path("results").glob("out-real-??????.json")
    row = row_of(result, written)
    assert row["reference"] is None and row["real_n"] == 600
    assert row["fd"] > 0 and 0.6 < row["recall"] < 0.9 and "is" not in row


def test_own_statistics_and_real_images(evaluate, save_pngs, digits, extractor):
    features = extractor(digits[0]).features
    moments = moments_of(features)
    written = {"digits": Statistics(moments.mean, moments.cov, moments.n, None, extractor.sha256)}
    write_reference("mine.npz", written, protocol="digits", image_size=8)
    save_pngs(digits[0][:100])
    common = ("--ref", "mine.npz", "--json", "row.json")
    result = evaluate(*common)
    row = row_of(result, "row.json")
    assert row["precision"] is None and row["fd"] > 0
    assert "real images are needed, give them by --real" in result.output
    save_pngs(digits[0], "real")
    row = row_of(evaluate(*common, "--real", "real"), "row.json")
    assert row["precision"] == 1 and row["real_n"] == 1797
    other = {"digits": written["digits"]._replace(weights="0" * 64)}
    write_reference("mine.npz", other, protocol="digits")
    result = evaluate(*common)
    assert result.exit_code == 2 and "come from different weights of digits" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "out"], "--ref is missing"),
        (["--images", "nowhere", "--ref", "digits"], "nowhere does not exist"),
        (["--ref", "imagenet99"], "imagenet99"),
        (["--ref", "digits", "--batch", "0"], "0 is not in the range 1<=x"),
        (
            ["--ref", "digits", "--groups", "0"],
            "groups must be a whole number of at least 1, not 0",
        ),
        (["--ref", "digits", "--json", "out/000000.png/row.json"], "000000.png"),
        (["--ref", "digits", "--protocol", "edm"], "needs inception: choose another"),
        (["--ref", "digits", "--protocol", "fid"], "there is no protocol 'fid'"),
        (["--ref", "digits", "--metrics", "fid"], "does not measure fid"),
        (["--ref", "digits", "--shard", "2/2"], "--shard must be I/N"),
        (["--ref", "digits", "--num", "21"], "a subset has 2 to as many"),
        (["--ref", "digits", "--weights", "digits=random:0"], "random weights measure nothing"),
        (["--ref", "digits", "--weights", "random:0"], "--weights wants NAME=FILE"),
        (["--ref", "digits", "--weights", "digits=a", "--weights", "digits=b"], "digits twice"),
        (["--ref", "digits", "--weights", "vgg16=a.pth"], "weights for vgg16 are not used here"),
        (
            ["--ref", "digits", "--real", "large"],
            "out holds images of 8x8 pixels but large of 16x16",
        ),
        (["--real", "large"], "--protocol is missing"),
        (["--real", "large", "--protocol", "digits"], "8x8 pixels but large of 16x16"),
        (["--ref", "imagenet512"], "8x8 pixels but the reference imagenet512 of 512x512"),  # R31
        (["--ref", "digits", "--cache-limit", "-1"], "--cache-limit"),
    ],
)
def test_bad_input_is_one_sentence(evaluate, save_pngs, digits, arguments, message):
    save_pngs(digits[0][:20])
    save_pngs(digits[0][:4].repeat_interleave(2, 2).repeat_interleave(2, 3), "large")
    result = evaluate(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output and result.output.count("Error") == 1
    assert not Path("results").exists()


@pytest.mark.parametrize("only", ["is", "accuracy", "recall"])
def test_one_metric_alone(evaluate, save_pngs, digits, only):
    folder = save_pngs(digits[0][:50])
    (folder / "run.json").write_text('{"settings": {"labels": "balanced"}}')
    row = row_of(
        evaluate("--ref", "digits", "--metrics", only, "--json", "row.json", "--csv", "row.csv"),
        "row.json",
    )
    assert row[only] is not None and "fd" not in row
    (line,) = csv.DictReader(Path("row.csv").read_text().splitlines())
    assert json.loads(line["extractors"]) == row["extractors"] and "versions" in line


def test_grey_16_bit_and_transparent_images(evaluate, save_pngs, digits):
    folder = save_pngs(digits[0][:20])
    for pixels, mode in (
        (np.zeros((8, 8, 4), np.uint8), "RGBA"),
        (np.zeros((8, 8), np.uint16), "I"),
    ):
        Image.fromarray(pixels).save(folder / "000019.png")
        result = evaluate("--ref", "digits")
        assert result.exit_code == 2 and f"000019.png has mode {mode}" in result.output


def test_list(evaluate):
    output = evaluate("--list").output
    for name in ("imagenet512", "cifar10", "erk-paper", "dgm-eval", "fd_dinov2", "digits"):
        assert name in output


def test_two_processes_and_the_user_give_one_result(save_pngs, digits, tmp_path):
    folder = save_pngs(digits[0][:600])
    script = [ROOT / "evaluate.py", "--images", folder, "--ref", "digits", "--device", "cpu"]
    run = {"cwd": tmp_path, "capture_output": True, "text": True}
    env = os.environ | {"OMP_NUM_THREADS": "1", "ERK_CACHE": str(tmp_path / "one")}
    done = subprocess.run([sys.executable, *script, "--json", "one.json"], env=env, **run)
    assert done.returncode == 0, done.stderr
    env["ERK_CACHE"] = str(tmp_path / "two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, *script, "--json", "two.json"], env=env, **run)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert one["n"] == 600 and one["replicates"] == two["replicates"]
    assert all(one[name] == two[name] for name in ("fd", "precision", "recall", "is"))


def test_lazy_names_all_resolve():
    import metrics

    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)
    assert set(metrics.__all__) <= set(dir(metrics))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = metrics.nonsense


def test_a_folder_name_that_is_not_utf_8(evaluate, save_pngs, digits):  # F11
    os.rename(save_pngs(digits[0][:30]), b"caf\xe9")
    result = evaluate("--images", os.fsdecode(b"caf\xe9"), "--ref", "digits", "--csv", "row.csv")
    assert result.exit_code == 0, result.output
    (path,) = Path("results").iterdir()
    assert re.fullmatch("caf-xe9-digits-[0-9a-f]{6}.json", path.name)
    assert json.loads(path.read_bytes())["images"] == r"caf\xe9"
    assert r"caf\xe9" in Path("row.csv").read_text() and r"caf\xe9: 30 images" in result.output


@pytest.mark.parametrize("limit", ["inf", "1e308", "nan", "-1"])
def test_options_are_refused_before_the_work(evaluate, save_pngs, digits, limit):
    save_pngs(digits[0][:30])
    result = evaluate("--ref", "digits", "--cache-limit", limit)
    assert result.exit_code == 2 and "--cache-limit" in result.stderr
    Path("folder").mkdir()
    for option in ("--json", "--csv"):
        for path, message in (("folder", "is a folder"), ("x" * 250, "is too long")):
            result = evaluate("--ref", "digits", option, path)
            assert result.exit_code == 2 and message in result.stderr
    assert not Path("results").exists()


def test_a_home_that_is_not_there(monkeypatch):
    monkeypatch.setenv("ERK_CACHE", "~nobody-here/x")
    with pytest.raises(ValueError, match="ERK_CACHE=~nobody-here/x is no folder"):
        cache_dir()


@pytest.mark.parametrize(
    "close",
    [
        ">&- 2>&-",
        "| true",
        pytest.param(">&-", marks=pytest.mark.slow),
        pytest.param(">/dev/full", marks=pytest.mark.slow),
    ],
)
def test_a_closed_output_loses_no_row(save_pngs, digits, tmp_path, close):  # M25
    save_pngs(digits[0][:30])
    line = f"{sys.executable} {ROOT}/evaluate.py --ref digits --cache features {close}"
    subprocess.run(line, shell=True, cwd=tmp_path, stderr=subprocess.PIPE)
    assert json.loads((tmp_path / "results/out-digits.json").read_text())["n"] == 30


def test_latin_1_and_control_characters(save_pngs, digits, tmp_path):  # M25, M19
    folder = save_pngs(digits[0][:30])
    run = {"complete": False, "images": "\x1b[2J", "settings": {}}
    (folder / "run.json").write_text(json.dumps(run))
    line = [sys.executable, ROOT / "evaluate.py", "--ref", "digits", "--cache", "features"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout and rb"it should have \x1b[2J images" in done.stdout
    assert (tmp_path / "results/out-digits.json").exists()


def test_a_mistyped_path_does_not_wait_for_a_download(tmp_path, monkeypatch):  # N5
    from metrics import evaluator

    monkeypatch.setattr(evaluator, "load_evaluator", lambda *_, **__: pytest.fail("loaded"))
    done = CliRunner().invoke(main, ["--images", str(tmp_path / "nope"), "--ref", "imagenet512"])
    assert done.exit_code == 2 and "nope" in done.stderr
