"""The documents' code runs, and what they list is what there is."""

import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from erk.method.solvers import SOLVERS
from metrics.protocols import PROTOCOLS

ROOT = Path(__file__).parents[2]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)


@pytest.mark.parametrize("name", ["docs/solvers.md"])
def test_the_code_of_a_document_runs(name):
    space = {}
    for block in blocks(name):
        exec(compile(block, name, "exec"), space)
    assert space["x0"].isfinite().all()


class Pipeline:
    """What a document calls `pipe`: a pipeline of diffusers whose network knows Gaussian data."""

    def __init__(self):
        from diffusers import DPMSolverMultistepScheduler

        self.scheduler = DPMSolverMultistepScheduler()

    def __call__(self, prompt, num_inference_steps):
        import torch

        table = self.scheduler.alphas_cumprod
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in self.scheduler.timesteps:
            noise = x * (1 - table[t]).sqrt()  # data of deviation 1
            x = self.scheduler.step(noise, t, x).prev_sample
        return SimpleNamespace(images=[x])


def test_the_code_on_integrations_runs(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    diffusers, edm2, k_diffusion, any_model = blocks("docs/integrations.md")
    space = {"pipe": Pipeline()}
    exec(compile(diffusers, "integrations.md", "exec"), space)
    assert space["pipe"].scheduler.config.w_stiff == 1 and space["image"].isfinite().all()
    exec(compile(edm2, "integrations.md", "exec"), space)
    assert len(space["images"]) == 3 and (tmp_path / "out/digits-pipeline").is_dir()
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    space = {"noise": noise, "sigmas": torch.tensor([5.0, 1.0, 0.3, 0.0])}
    space["model"] = lambda x, sigma: x / (1 + sigma.reshape(-1, 1) ** 2)
    exec(compile(k_diffusion, "integrations.md", "exec"), space)
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    space |= {"alphas_cumprod": table, "labels": torch.ones(2, 1), "no_labels": torch.zeros(2, 1)}
    space["network"] = lambda x, t, y: x * (1 - table[t.round().long()]).sqrt()[:, None]
    guided = space["x0"]
    exec(compile(any_model, "integrations.md", "exec"), space)
    assert guided.isfinite().all() and space["x0"].isfinite().all()


def test_every_integration_and_adapter_is_in_the_document():
    from erk.integrations import diffusers
    from erk.integrations.kdiffusion import SAMPLERS
    from erk.models.adapters import __dict__ as adapters

    text = (ROOT / "docs/integrations.md").read_text()
    names = [name for name in adapters if name.startswith("from_")]
    names += [*diffusers.__all__, *SAMPLERS, *(f"sample_{name}" for name in SAMPLERS)]
    assert len(names) == 13
    assert [name for name in names if name not in text and name != "EDM2Network"] == []


def run_commands(name):
    """Run every `python FILE ...` of a document's bash blocks in this process; how many."""
    import click.testing

    text = "".join(re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text(), re.S))
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("python ")]
    for line in lines:
        _, file, *arguments = shlex.split(line)
        command = importlib.import_module(file.removesuffix(".py").replace("/", ".")).main
        done = click.testing.CliRunner().invoke(command, arguments)
        assert done.exit_code == 0, (line, done.stderr)
    return len(lines)


def test_the_commands_on_looking_run(tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    assert run_commands("docs/looking.md") == 6
    for name in ("off/grid.png", "film.gif", "trace.png", "differences.png", "nearest.png",
                 "nearest-features.png"):  # fmt: skip
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100
    (block,) = blocks("docs/looking.md")
    space = {}
    exec(compile(block, "looking.md", "exec"), space)
    assert capsys.readouterr().out == "0.23% of the profile is not met\n"


def test_the_commands_on_weights_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_commands("docs/integrations.md") == 2 and list(tmp_path.iterdir()) == []


def test_the_code_on_measuring_runs(capsys):
    (block,) = blocks("docs/evaluation.md")
    space = {}
    exec(compile(block, "evaluation.md", "exec"), space)
    assert space["result"].values["fd"] > 100 and space["result"].errors["fd"] > 0
    assert "Difference(value=" in capsys.readouterr().out


def test_every_protocol_and_column_is_in_the_document():
    text = (ROOT / "docs/evaluation.md").read_text()
    for protocol in PROTOCOLS.values():
        rows = [line for line in text.splitlines() if line.startswith(f"| `{protocol.name}` |")]
        row = rows[-1]  # digits is the name of a network, too, in the table before
        for column in protocol.columns:
            assert column in row or column.removesuffix("_std") in row or column in (
                "precision", "recall"
            ), (protocol.name, column)  # fmt: skip


def test_the_readmes_python_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    api, own, scheduler = blocks("README.md")
    space = {}
    exec(compile(api, "README.md", "exec"), space)
    assert space["images"].shape == (16, 1, 8, 8) and space["state"].stiffness.shape == (16,)
    import torch

    x, f = torch.ones(2, 3), torch.full((2, 3), 0.5)
    space = {"x": x, "f": f, "sigma": torch.tensor(2.0), "sigma_next": torch.tensor(1.5)}
    space |= {"f_euler": f * 0.9, "x_euler": x - 0.25, "twin": None}
    exec(compile(own, "README.md", "exec"), space)
    first = space["x"]
    exec(compile(own, "README.md", "exec"), space)  # now with a twin
    assert first.shape == space["x"].shape == (2, 3)
    space = {"pipe": Pipeline()}
    exec(compile(scheduler, "README.md", "exec"), space)
    assert space["pipe"].scheduler.config.w_stiff == 1
    assert space["pipe"]("a fox", 5).images[0].isfinite().all()


def test_every_solver_and_option_is_in_the_table():
    text = (ROOT / "docs/solvers.md").read_text()
    for name, solver in SOLVERS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        options = inspect.signature(solver).parameters.values()
        for option in options:
            if option.kind is option.KEYWORD_ONLY and option.name not in ("sigmas", "ends"):
                assert f"`{option.name}`" in row or "those of `dpmpp`" in row


def test_the_table_of_local_errors_is_what_the_script_prints():
    made = subprocess.run(
        [sys.executable, "-m", "scripts.studies.local_errors"], cwd=ROOT, capture_output=True,
        text=True, check=True,
    ).stdout  # fmt: skip
    assert made in (ROOT / "docs/theory.md").read_text()


def test_the_readme_shows_what_the_demo_measured():
    demo = (ROOT / "results/demo.md").read_text()
    table = [line for line in demo.splitlines() if line.startswith("|")]
    assert len(table) == 14
    readme = (ROOT / "README.md").read_text()
    assert all(line in readme for line in table)


def test_every_test_that_the_page_on_reliability_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text()))
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 25 and {n for n in named if f"def {n}(" not in sources} == set()
