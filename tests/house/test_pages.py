"""The code and the commands of every document run, and print what the document shows."""

import importlib.util
from contextlib import suppress
from types import SimpleNamespace

import click
import nbformat
import pytest
import torch
from cards import LEVELS, card_of
from click.exceptions import Exit
from click.testing import CliRunner
from documents import PAGES, ROOT, commands, execute, python_blocks, run_commands, run_page, same
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from PIL import Image

import erk
from erk.commands.main import main
from erk.models.adapters import discrete_times

NOTEBOOK = ROOT / "docs/tour.ipynb"


def test_same_forgives_rounding_and_nothing_else():
    assert same("a 0.65, b nan", "a 0.66,\nb nan")
    assert not same("a 0.65", "a 0.70") and not same("a 0.65", "a") and not same("a 1", "b 1")


@pytest.mark.parametrize("page", ["docs/howto/solver.md", "docs/howto/data.md", "docs/solvers.md"])
def test_a_page_of_python_runs(page):
    run_page(page)


def test_the_tutorial(tmp_path, monkeypatch):
    run_page("docs/tutorial.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    assert "beyond noise" in run_commands("docs/tutorial.md")[-1]
    assert (tmp_path / "out/tutorial/on/grid.png").is_file()


def test_the_page_without_knobs(tmp_path, monkeypatch):
    run_page("docs/howto/without-knobs.md")
    monkeypatch.chdir(tmp_path)
    assert "NFE 6 per image" in run_commands("docs/howto/without-knobs.md")[-1]
    assert len([*(tmp_path / "out/knobs/digits").glob("*.png")]) >= 16


def test_the_page_on_guidance():
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)

    def network(x, t, labels):  # exact for Gaussian data of deviation 1
        return x * (1 - table[t.round().long()]).sqrt()[:, None, None, None]

    space = {"network": network}
    space["weaker"] = lambda x, sigma, labels: x / (1 + sigma**2) * 0.9
    run_page("docs/howto/guidance.md", space)
    assert all(space[name].isfinite().all() for name in ("x0", "apg", "cfg_pp"))


class Pipeline:
    """A diffusers pipeline whose network is exact for Gaussian data of deviation 1."""

    def __init__(self):
        from diffusers import DPMSolverMultistepScheduler

        self.scheduler = DPMSolverMultistepScheduler()

    def __call__(self, prompt, num_inference_steps):
        scheduler = self.scheduler
        times = discrete_times(scheduler.alphas_cumprod)
        scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        x = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            sigma = times.to(t).float()
            noise = scheduler.scale_model_input(x, t) * sigma / (1 + sigma**2).sqrt()
            x = scheduler.step(noise, t, x).prev_sample
        return SimpleNamespace(images=[x])


class FlowPipeline:
    """The same for a flow; it gives sigmas and mu as FLUX does."""

    def __init__(self):
        from diffusers import FlowMatchEulerDiscreteScheduler

        self.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)

    def __call__(self, prompt, num_inference_steps):
        scheduler = self.scheduler
        levels = {"sigmas": torch.linspace(1, 1 / num_inference_steps, num_inference_steps)}
        if scheduler.config.get("use_flow_sigmas"):
            levels = {"num_inference_steps": num_inference_steps}
        scheduler.set_timesteps(**levels, mu=0.8)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            s = t / 1000
            clean = (1 - s) * x / ((1 - s) ** 2 + s**2)
            x = scheduler.step((x - clean) / s, t, x).prev_sample
        return SimpleNamespace(images=[x])


def test_the_page_on_integrations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(run_commands("docs/integrations.md")) == 2 and not [*tmp_path.iterdir()]
    page = "docs/integrations.md"
    digits = erk.load_model("digits").sha256
    for name, networks in (("card", ("", None)), ("digits.card", (digits, None))):
        card_of(networks=networks).save(f"{name}.json")
    card_of(levels=[80.0, *LEVELS]).save("flow.card.json")
    weights, auto, flow, edm2, card, k_diffusion, cards, *own = python_blocks(page)
    space = {"pipe": Pipeline(), "flow": FlowPipeline()}
    execute(weights, page, space)
    assert space["pipe"].scheduler.config.w_stiff == 1 and space["image"].isfinite().all()
    for block in (auto, flow):
        execute(block, page, space)
        assert space["image"].isfinite().all()
    assert space["flow"].scheduler.num_inference_steps == 6
    for block in (edm2, card):
        execute(block, page, space)
        assert len(space["images"]) == 3 and (tmp_path / "out/digits-pipeline").is_dir()
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    space = {"noise": noise, "sigmas": torch.tensor([5.0, 1.0, 0.3, 0.0])}
    space["model"] = lambda x, sigma: x / (1 + sigma.reshape(-1, 1) ** 2)
    for block in (k_diffusion, cards):
        execute(block, page, space)
        assert space["x0"].isfinite().all()
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    space |= {"alphas_cumprod": table, "labels": torch.ones(2, 1), "no_labels": torch.zeros(2, 1)}
    space["network"] = lambda x, t, y: x * (1 - table[t.round().long()]).sqrt()[:, None]
    any_model, images, calibrate, numbers, unet = own
    execute(any_model, page, space)
    assert space["x0"].isfinite().all()
    space["network"] = lambda x, t, y: x * (1 - table[t.round().long()]).sqrt().reshape(-1, 1, 1, 1)
    execute(images, page, space)
    assert len([*(tmp_path / "out/own").glob("*.png")]) == 16
    assert space["labels"].shape == (16, 10)
    execute(calibrate, page, space)
    assert (tmp_path / "heun-9.card.json").is_file() and space["card"].settings.solver == "heun"
    classes, seen = torch.nn.Embedding(11, 1), set()

    def embedding_network(x, t, numbers):
        seen.update(numbers.tolist())
        return space["network"](x, t, None) + 0 * classes(numbers).reshape(-1, 1, 1, 1)

    space["embedding_network"] = embedding_network
    execute(numbers, page, space)
    assert space["x0"].isfinite().all() and seen == {10, *space["labels"].argmax(1).tolist()}
    execute(unet, page, space)
    assert len([*(tmp_path / "out/unet").glob("*.png")]) == 4


def test_the_page_on_images_and_traces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    assert len(run_commands("docs/looking.md")) == 6
    for name in ("off/grid.png", "film.gif", "trace.png", "differences.png", "nearest.png",
                 "nearest-features.png"):  # fmt: skip
        with Image.open(tmp_path / "out/looking" / name) as image:
            assert min(image.size) > 100
    (block,) = python_blocks("docs/looking.md")
    assert execute(block, "docs/looking.md", {}).startswith("0.23%")


def test_the_page_on_metrics():
    (block,) = python_blocks("docs/evaluation.md")
    space = {}
    execute(block, "docs/evaluation.md", space)
    assert space["result"].values["fd"] > 100 and space["result"].errors["fd"] > 0


def test_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    first, scheduler, network, loop = python_blocks("README.md")
    space = {}
    execute(first, "README.md", space)
    assert len([*(tmp_path / "out/first").glob("*.png")]) == 16
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    space |= {"alphas_cumprod": table, "pipe": Pipeline()}
    space["network"] = lambda x, t: x * (1 - table[t.round().long()]).sqrt()[:, None, None, None]
    few = network.replace("nfe=8", "nfe=5, seeds=8, solver='deis', corrections=()")  # seconds
    few = few.replace("(3, 32, 32)", "(1, 2, 2)")
    assert few.count("(1, 2, 2)") == few.count("nfe=5") == 1
    execute(few, "README.md", space)
    assert space["x0"].isfinite().all() and space["card"].nfe == 5
    assert len([*(tmp_path / "out/own").glob("*.png")]) == 16
    x, f = torch.ones(2, 3), torch.full((2, 3), 0.5)
    space |= {"x": x, "f": f, "sigma": torch.tensor(2.0), "sigma_next": torch.tensor(1.5)}
    space |= {"f_euler": f * 0.9, "x_euler": x - 0.25, "x_heun": x - 0.2, "twin": None}
    execute(loop, "README.md", space)
    execute(loop, "README.md", space)  # now with a twin
    assert space["x"].shape == (2, 3)
    execute(scheduler, "README.md", space)
    assert space["pipe"].scheduler.config.erk == "auto"
    assert space["pipe"]("a fox", 5).images[0].isfinite().all()


def test_the_commands_of_the_readme(tmp_path, monkeypatch):
    """With MNIST's network of features, which needs no download, in the place of Inception."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    generate, *evaluations = commands("README.md")
    assert CliRunner().invoke(main, generate).exit_code == 0
    assert (tmp_path / "out/digits/grid.png").is_file()
    for name in ("fake", "real", "new", "old"):
        (tmp_path / name).symlink_to(tmp_path / "out/digits")
    other = {"torch-fidelity": "mnist", "edm2": "mnist", "inception": "mnist", "fid": "fd"}
    for words in evaluations:
        done = CliRunner().invoke(main, [other.get(word, word) for word in words])
        assert done.exit_code == 0, (words, done.output)
        assert words[0] == "make-reference" or "fd" in done.output


def test_the_trial_without_internet(tmp_path, monkeypatch):
    """The command of docs/howto/data.md names every network of its protocol."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ERK_OFFLINE", "1")
    for name in ("fake", "real"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (8, 8), (99 * number, 9, 9)).save(tmp_path / name / f"{number}.png")
    trials = [words for words in commands("docs/howto/data.md") if "--weights" in words]
    assert len(trials) == 1 and trials[0][6] == "torch-fidelity"
    done = CliRunner().invoke(main, trials[0])
    assert done.exit_code == 0 and "RANDOM WEIGHTS" in done.output, done.output


def test_every_command_of_the_documents_has_known_options(monkeypatch):
    seen = 0
    for page in PAGES:
        for words in commands(page):
            if not words or words[0].startswith("-"):  # erk --help
                continue
            name, *given = words
            with click.Context(main) as parent:
                command = main.get_command(parent, name)
            assert command is not None, (page, name)
            for option in command.params:
                if "..." in given or "$job" in given:  # the reader's own options
                    monkeypatch.setattr(option, "required", False)
                if isinstance(option.type, click.Path):  # the reader's files
                    monkeypatch.setattr(option.type, "exists", False)
            with suppress(Exit):  # --list and --list-presets
                command.make_context(name, [word for word in given if word not in ("...", "$job")])
            seen += 1
    assert seen > 30


def test_the_notebook(tmp_path):
    """N: in an empty folder, as it runs from anywhere."""
    shown = nbformat.read(NOTEBOOK, 4)
    executed = nbformat.from_dict(shown)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(executed, timeout=600, resources=resources, coalesce_streams=True).execute()
    for before, after in zip(shown.cells, executed.cells, strict=True):
        pairs = [*zip(before.get("outputs", ()), after.get("outputs", ()), strict=True)]
        for a, b in pairs:
            assert a.output_type == b.output_type
            assert same(b.get("text", ""), a.get("text", "")), (a, b)
    assert NOTEBOOK.stat().st_size < 150_000


@pytest.mark.parametrize("missing", [True, False])
def test_the_notebook_installs_what_is_missing(monkeypatch, missing):
    first = next(cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code")
    installed = []
    shell = SimpleNamespace(run_line_magic=lambda *words: installed.append(words))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if missing else name)
    exec(TransformerManager().transform_cell(first.source), {"get_ipython": lambda: shell})
    assert [words[0] for words in installed] == ["pip"] * missing
    assert all(words[1].startswith('install --quiet "git+https://') for words in installed)
