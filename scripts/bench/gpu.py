"""The first minutes on a GPU: its tests and all benchmarks, the most valuable first.

    python -m scripts.bench.gpu --peer DIR --budget 540     # a call of nine minutes
    python -m scripts.bench.gpu --resume --budget 540       # what is left
    python -m scripts.bench.gpu --tiny --device cpu         # every piece, at a size for a trial

Every piece is a process with a time limit: one that hangs or fails does not stop the others. After
every piece its records, pieces.json and the summary README.md are packed into records.tar, in the
folder of the environment variable OUT if it is set, else in results/bench/cuda. DIR is a checkout
of NVlabs/edm2. A machine with PyTorch 2.11, pandas and timm may lack five packages of ours, 9 MB
with what they need. Download them here, for its Python, and carry the folder:

    pip download --no-deps -d wheels diffusers torch-fidelity
    pip download --only-binary=:all: --python-version 3.12 -d wheels pydantic cloup platformdirs
    pip install --no-index --no-deps wheels/*.whl           # there
"""

import io
import json
import os
import shlex
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from erk.commands.cli import CONTEXT, clean_exit
from erk.io.atomic import save_file
from metrics.report import number, to_json, to_markdown
from scripts.bench.network import SELECTED
from scripts.bench.paired import FIVE, RESULTS, ROOT, check_device
from scripts.bench.pieces import DONE, run_piece

STATE, SUMMARY, ARCHIVE = "pieces.json", "README.md", "records.tar"
SHARED = ("diffusers.models.autoencoders.autoencoder_kl", "erk.commands.evaluate", "pytest",
          "erk.commands.generate", "erk.commands.make_reference", "scripts.bench.networks",
          "timm", "torch_fidelity", "torch_fidelity.metric_prc")  # fmt: skip
"""Modules of several pieces, imported once on a CPU; some ask for a GPU, then nothing may fork."""

Rows = Sequence[dict[str, Any]]


class Target(NamedTuple):
    """What the rows of a piece must show on one H100: at least one number, at most another."""

    text: str
    figure: Callable[[Rows], float]
    least: float = 0
    most: float = float("inf")


class Piece(NamedTuple):
    """One part of the plan."""

    module: str  # of scripts.bench, or "pytest" or "doctor"
    options: str
    tiny: str  # options of a trial on a CPU
    limit: int  # seconds
    target: Target | None = None


def _of(column: str, code: str, **others: Any) -> Callable[[Rows], float]:
    """Return a function that reads a column of the row of this code."""

    def figure(rows: Rows) -> float:
        wanted = others | {"code": code}
        row = next(row for row in rows if wanted.items() <= row.items())
        return float(row[column])

    return figure


def _selected(rows: Rows) -> float:
    """Return the time of the compiled network with cuDNN's selection relative to without."""
    times = [_of("seconds", f"ours, fp16, compiled{end}")(rows) for end in (SELECTED, "")]
    return times[0] / times[1]


FP16 = "--device cuda --precision fp16 --batch 64"
S = f"{FP16} --size s --steps 32"
COMPILED = "--with=--compile=always"  # as erk generate does for so many images as in the targets
TINY = "--size tiny --batch 1"
PIECES = {
    "tests": Piece("pytest", "-q -m gpu", "-q -m gpu --collect-only", 180),
    "network": Piece("network", f"{FP16} --rounds 5 --size s --compile --top 40 PEER",
                     f"{TINY} --precision fp32 --top 3", 240,
                     Target("S: at least 55 % of the rate of matrix products, compiled",
                            _of("of matmul rate", "ours, fp16, compiled", size="s"), least=0.55)),
    "decoding": Piece("decoding", "--device cuda --batch 8 --rounds 5 --compile", "--tiny", 300),
    "neighbours": Piece("precision_recall",
                        "--device cuda --n 50000 --dim 4096 --rounds 1 --alone",
                        "--n 100 --dim 8 --alone", 120,
                        Target("50 000 x 50 000 in at most 5 s", _of("seconds", "ours"), most=5)),
    "guidance": Piece("guidance", S, f"{TINY} --steps 2", 120,
                      Target("ERK-Guid: at most 0.15 % of the GPU's time",
                             _of("share in guidance", "ERK-Guid"), most=0.0015)),
    "sampling": Piece("sampling", f"{S} --latent {COMPILED} PEER",
                      f"{TINY} --steps 2 --latent", 420,
                      Target("S, 32 steps, batch 64: at least 3 times the peer's images per second",
                             _of("times ours", "peer"), least=3)),
    "half_vae": Piece("sampling", f"{S} --latent {COMPILED} --with=--vae-precision=fp16 PEER",
                      f"{TINY} --steps 2 --latent", 420,
                      Target("at least 3.3 times", _of("times ours", "peer"), least=3.3)),
    "xxl": Piece("sampling", f"{FP16} --size xxl --steps 32 --latent --rounds 2 {COMPILED} PEER",
                 f"{TINY} --steps 2 --latent", 540,
                 Target("at least 1.8 times", _of("times ours", "peer"), least=1.8)),
    "evaluation": Piece("evaluation", "--device cuda --images 3000 --rounds 1 --threads 16",
                        "--fid-only --images 10", 300,
                        Target("five metrics of 50 000 images in at most 6 minutes: 139 images/s",
                               _of("images/s", "ours", metrics=FIVE), least=50_000 / 360)),
    "evaluator": Piece("evaluator", "--device cuda --images 256 --sets 2000",
                       "--extractor digits --images 3 --sets 60", 300),
    "cudnn": Piece("network", f"{FP16} --rounds 5 --size s --compile --cudnn-benchmark",
                   f"{TINY} --precision fp32 --cudnn-benchmark", 240,
                   Target("compiled, time of cudnn.benchmark: above 0.95 it stays off", _selected,
                          most=0.95)),
    "sizes": Piece("network", f"{FP16} --rounds 5 --size xs --size m --size l --size xl --size xxl "
                   "PEER", f"{TINY} --precision fp32", 540),
    "precision": Piece("precision", "--images 256", "--images 2 --steps 2", 240),
    "scaling": Piece("scaling", f"{S} --latent --batch 16 --batch 128 --further 3 --ranks 1",
                     f"{TINY} --steps 2 --ranks 0 --further 1", 540),
    "full_mode": Piece("precision_recall", "--device cuda --n 8000 --dim 4096",
                       "--n 100 --dim 8", 180),
    "doctor": Piece("doctor", "", "", 60),
}  # fmt: skip


def gpu_tests() -> list[str]:
    """List the files with tests marked gpu: the others need more packages to be collected."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "mark.gpu" in path.read_text("utf-8")]


def command_of(name: str, tiny: bool, device: str, peer: Path | None, out: Path) -> list[str]:
    """Return a piece as words after `python -m`; its records go to the folder out/NAME."""
    piece = PIECES[name]
    words = shlex.split(piece.tiny if tiny else piece.options)
    at = words.index("PEER") if "PEER" in words else None
    if at is not None:
        words[at : at + 1] = [] if peer is None else ["--peer", str(peer)]
    if piece.module == "pytest":
        return ["pytest", "-p", "no:cacheprovider", *words, *gpu_tests()]
    if piece.module == "doctor":
        return ["erk", "doctor"]
    trial = ["--rounds", "1", "--device", device] if tiny else []
    return [f"scripts.bench.{piece.module}", *words, *trial, "--out", str(out / name)]


def read_rows(out: Path, name: str) -> Rows:
    """Return the rows that a piece has recorded, [] without a record."""
    path = out / name / f"{PIECES[name].module}.json"
    rows: Rows = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else []
    return rows


def judged(target: Target | None, rows: Rows, device: str) -> tuple[str | None, str | None]:
    """Return the figure of a target, and whether it is hit or missed, which a CPU does not show."""
    if target is None:
        return None, None
    try:
        measured = target.figure(rows)
    except (StopIteration, KeyError):
        return None, "not measured"
    is_hit = target.least <= measured <= target.most
    return number(measured), "trial" if device == "cpu" else "hit" if is_hit else "missed"


def summary_of(out: Path, states: dict[str, dict[str, Any]], device: str) -> str:
    """Return a table of the pieces: state, time, measured figure and target."""
    table = []
    for name, piece in PIECES.items():
        measured, verdict = judged(piece.target, read_rows(out, name), device)
        state = states.get(name, {"state": "not run", "seconds": None})
        table.append({"piece": name, "state": state["state"], "seconds": state["seconds"],
                      "measured": measured, "verdict": verdict,
                      "target on one H100": piece.target and piece.target.text})  # fmt: skip
    return f"Device: {device}. Written by `python -m scripts.bench.gpu`.\n\n{to_markdown(table)}"


def pack(out: Path, target: Path) -> None:
    """Write all records below `out` to the archive records.tar in `target`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(out.rglob("*")):
            if path.is_file() and path.name != ARCHIVE:
                archive.add(path, path.relative_to(out).as_posix())
    save_file(target / ARCHIVE, buffer.getvalue())


@click.command(context_settings=CONTEXT)
@click.argument("names", nargs=-1, metavar="[PIECE]...")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cuda",
    show_default=True,
    callback=check_device,
)
@click.option("--peer", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A checkout of NVlabs/edm2, timed as well.")  # fmt: skip
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Start no piece whose limit exceeds the time that is left.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Leave out the pieces that are done.")
@click.option("--tiny", is_flag=True, help="Run every piece at a size for a trial.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "cuda",
              show_default="results/bench/cuda", help="Folder of the records.")  # fmt: skip
@clean_exit
def main(
    names: Sequence[str], device: str, peer: Path | None, budget: float | None, resume: bool,
    tiny: bool, out: Path,
) -> None:  # fmt: skip
    """Run the GPU tests and all benchmarks, or the named PIECEs, the most valuable first."""
    unknown = next((name for name in names if name not in PIECES), None)
    if unknown is not None:
        raise ValueError(f"there is no piece '{unknown}': choose among {', '.join(PIECES)}")
    if device != "cuda" and not tiny:
        raise ValueError("without --tiny the sizes are those of a GPU: leave out --device cpu")
    path, begin = out / STATE, time.monotonic()
    states = json.loads(path.read_text("utf-8")) if resume and path.is_file() else {}
    for name in [name for name in PIECES if name in names or not names]:
        if states.get(name, {}).get("state") == DONE:
            continue
        left = float("inf") if budget is None else budget - (time.monotonic() - begin)
        if left < PIECES[name].limit:
            click.echo(f"{name}: left for --resume ({PIECES[name].limit} s are not left)")
            continue
        command = command_of(name, tiny, device, peer, out)
        states[name] = run_piece(command, PIECES[name].limit, SHARED if device == "cpu" else ())
        click.echo(f"{name}: {states[name]['state']}, {states[name]['seconds']:.0f} s")
        save_file(path, to_json(states))
        save_file(out / SUMMARY, summary_of(out, states, device))
        pack(out, Path(os.environ.get("OUT") or out))
    failed = [name for name, one in states.items() if one["state"] != DONE]
    if failed:
        for name in failed:
            click.echo("\n".join([f"{name}:", *states[name]["output"]]), err=True)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
