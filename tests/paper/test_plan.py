"""scripts.paper.plan: files and times of the chosen rows, known before anything is loaded."""

import json

import pytest
import torch

from erk.commands.cli import ListingError
from scripts.paper import plan
from scripts.paper import rows as paper_rows
from scripts.paper.config import Request, load_config
from scripts.paper.plan import File, describe, fetch_files, files_of
from scripts.paper.scales import at_scale


def test_missing_files_are_listed_before_anything_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(paper_rows, "load_evaluator", None)
    (tmp_path / "val.zip").touch()
    real = str(tmp_path / "val.zip")
    output = run("table2", "--scale", "paper", "--offline", "--real", real, code=2)
    lines = [line.strip() for line in output.splitlines()]
    assert lines[0] == f"Error: 7 of 7 files are not in {tmp_path / 'cache'}:"
    for what, file in (
        ("network", "posthoc-reconstructions/edm2-img512-s-2147483-0.130.pkl (about 560 MB)"),
        ("VAE", "hf://stabilityai/sd-vae-ft-mse/diffusion_pytorch_model.safetensors"),
        ("reference imagenet512", "dataset-refs/img512.pkl"),
        ("weights of inception", "weights-inception-2015-12-05-6726825d.pth"),
        ("weights of vgg16", "vgg16-397923af.pth (about 553 MB)"),
        ("weights of dinov2", "dinov2_vitl14_pretrain.pth"),
    ):
        assert any(line.startswith(f"{what}: ") and file in line for line in lines), what
    fetching = f"bash scripts/reproduce.sh table2 --scale paper --real {real} --fetch"
    assert lines[-1].endswith(fetching)
    monkeypatch.setenv("ERK_OFFLINE", "1")
    assert "3 of 3 files" in run("table4", "--scale", "paper", "--rows", "35", code=2)
    assert not (tmp_path / "results").exists()


def test_files_are_those_of_the_chosen_rows():
    config = load_config("table4")
    for rows, reference in (("0-17", "imagenet-64x64.npz"), ("18-35", "ffhq-64x64.npz")):
        files = files_of(config, Request(scale="paper", rows=rows))
        assert len(files) == 3 and files[1].source.endswith(reference)
    assert files_of(at_scale(config, Request()), Request()) == []
    timing = load_config("table6")
    assert [file.what for file in files_of(timing, Request(scale="paper"))] == [
        "network", "VAE", "VAE"
    ]  # fmt: skip


def test_fetching_stops_with_the_list_of_what_is_missing(monkeypatch, tmp_path):
    here = tmp_path / "here.pkl"
    here.touch()
    files = [File("network", "https://a.invalid/1.pkl"), File("guide", str(here))]

    def fetch(source, offline=False):
        if source == str(here):
            return here
        raise (FileNotFoundError if offline else ConnectionError)("no answer")

    monkeypatch.setattr(plan, "fetch", fetch)
    with pytest.raises(ListingError, match="1 of 2 files are not in") as caught:
        fetch_files(files, False, "the command")
    assert "network: https://a.invalid/1.pkl" in str(caught.value)
    assert str(here) not in str(caught.value) and "the command" in str(caught.value)
    assert fetch_files(files[1:], True, "the command") is None


def test_every_sampled_table_fits_in_fifteen_minutes():
    """All rows on digits, each once, on two processes at the stated 0.11 ms: 6 minutes."""
    rows = {}
    for number in (2, 3, 4, 8, 10, 11):
        config = at_scale(load_config(f"table{number}"), Request())
        for row in config.rows:
            options = plan.options_of_row(config, row, Request())
            rows[json.dumps(options, sort_keys=True)] = plan.cost_of(options).seconds
        assert describe(config, Request())
    assert 200 < sum(rows.values()) / 2 < 900
    assert torch.get_num_threads() == 1
