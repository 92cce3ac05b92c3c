"""Two processes with the same output folder (M16): no image is lost, and no run is undone."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from command_runs import check_run, command, complete_runs, in_this_process
from processes import die_before, ended, start

import erk.generation.options
from erk.commands.generate import main
from erk.generation.sampling import generate

JOB = ["--preset", "digits", "--device", "cpu", "--steps", "2", "--batch", "4",
       "--labels", "balanced", "--seeds", "0-7"]  # fmt: skip
KINDS = ["png", "zip"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """{format: folder} of complete runs."""
    return complete_runs(tmp_path_factory, JOB, KINDS)


@pytest.fixture
def meanwhile(monkeypatch, tmp_path):
    """Let something happen when a command has looked at its folder and loads its network."""
    monkeypatch.chdir(tmp_path)
    original = erk.generation.options.load_model

    def install(event):
        def load(*arguments, **named):
            monkeypatch.setattr(erk.generation.options, "load_model", original)
            event()
            return original(*arguments, **named)

        monkeypatch.setattr(erk.generation.options, "load_model", load)

    return install


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_job_twice_at_the_same_time(kind, tmp_path, undisturbed):
    """Both end with 0, or one of them with a sentence that says what to do."""
    job, logs = [*JOB, "--format", kind], [tmp_path / "0", tmp_path / "1"]
    both = [start(command, job, cwd=tmp_path, log=log) for log in logs]
    codes = [ended(process) for process in both]
    assert 0 in codes and {*codes} <= {0, 2}
    for code, log in zip(codes, logs, strict=True):
        assert (
            code == 0
            or "out is in use, another process is sampling into it: wait until"
            in (log.read_text().splitlines()[-1])
        )
        assert "Traceback" not in log.read_text()
    check_run(tmp_path / "out", undisturbed / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_comes_late_leaves_a_complete_run_as_it_is(kind, meanwhile, undisturbed):
    """It looked at an empty folder; while it loads its network, another one completes the run."""
    job = [*JOB, "--format", kind]
    meanwhile(lambda: in_this_process(job))
    done = CliRunner().invoke(main, job)
    assert done.exit_code == 0, done.output
    check_run(Path("out"), undisturbed / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_fails_removes_nothing_of_another(kind, meanwhile, monkeypatch, undisturbed):
    """The other began meanwhile and was killed amid its images; all that it wrote stays."""
    job, left = [*JOB, "--format", kind], []

    def event():
        other = start(killed, job, 14, cwd=Path.cwd())
        assert ended(other) == -9
        left.extend(path for path in Path("out").rglob("*") if path.suffix in (".png", ".json"))
        assert Path("out/run.json") in left and 0 < len(left) - 1 < 8
        monkeypatch.setattr("erk.generation.run.generate", failing)

    meanwhile(event)
    done = CliRunner().invoke(main, job)
    monkeypatch.setattr("erk.generation.run.generate", generate)
    assert isinstance(done.exception, RuntimeError), done.output
    assert all(path.is_file() for path in left)
    check_continues(job, kind, undisturbed)


def killed(arguments, number):
    die_before(number)
    command(arguments)


def failing(*arguments, **named):
    raise RuntimeError("a fault")
    yield


def check_continues(job, kind, undisturbed):
    done = CliRunner().invoke(main, job)
    assert done.exit_code == 0, done.output
    check_run(Path("out"), undisturbed / kind)
