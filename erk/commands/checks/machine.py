"""Check Python, its packages and the devices; importing this module needs no package."""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from erk.commands.checks.row import SETUP, Row, describe, failed, few

ROOT = Path(__file__).resolve().parents[3]
MODULES = {"pillow": "PIL", "pyyaml": "yaml"}  # package -> its import
NVIDIA = Path("/proc/driver/nvidia/version")  # exists if the driver is loaded
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16")
TORCH = re.compile(r"torch \(?(==|>=)([\d.]+)")  # what torchvision requires
PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;]+)", re.MULTILINE)

# Variables that change numbers or speed, and what to do about them.
VARIABLES = {
    "OPENBLAS_CORETYPE": "numpy's linear algebra may be far slower: unset it",
    "ONEDNN_DEFAULT_FPMATH_MODE": "networks on the CPU may round to 8 bits: unset it",
    "NVIDIA_TF32_OVERRIDE": "overrules --precision on GPUs: unset it",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "overrules --precision on GPUs: unset it",
    "ONEDNN_MAX_CPU_ISA": "changes rounding and speed on the CPU: unset it",
    "ATEN_CPU_CAPABILITY": "changes rounding and speed on the CPU: unset it",
    "OMP_NUM_THREADS": "rounding on the CPU depends on it: give all runs the same",
    "ERK_OFFLINE": "nothing will be downloaded",
}


def python() -> Iterator[Row]:
    """Check the interpreter's version."""
    text = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    number = tuple(numbers(platform.python_version())[:2])
    if number < (3, 11):
        yield Row("FAIL", "python", f"{text}: 3.11 or newer is needed")
    elif number >= (3, 14):
        yield Row("note", "python", f"{text}: tested with 3.11 to 3.13 only")
    else:
        yield Row("ok", "python", text)


def packages() -> Iterator[Row]:
    """Check that each direct dependency is installed, recent enough, importable and locked."""
    lock = locked()
    names, unlocked = declared(), []
    for name, lowest in names.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            yield Row("FAIL", name, f"is not installed: {SETUP}")
            continue
        if numbers(installed) < numbers(lowest):
            yield Row("FAIL", name, f"{installed} is older than {lowest}: {SETUP}")
        if lock is not None and (name, installed.partition("+")[0]) not in lock:
            unlocked.append(f"{name} {installed}")
        try:
            import_module(MODULES.get(name, name.replace("-", "_")))
        except Exception as error:  # a missing library, an incompatible build
            text = f"{installed} cannot be imported, {describe(error)}: {SETUP}"
            yield Row("FAIL", name, text)
    if unlocked:
        yield Row("note", "packages", f"not as in requirements.txt: {few(unlocked)}")
    elif lock is None:
        yield Row("ok", "packages", f"{len(names)} as erk-guid declares them")
    else:
        yield Row("ok", "packages", f"{len(names)} as in requirements.txt")


def locked() -> set[tuple[str, str]] | None:
    """Return the (package, version) pairs of requirements.txt; None outside of a checkout."""
    path = ROOT / "requirements.txt"
    return set(PIN.findall(path.read_text("utf-8"))) if path.is_file() else None


def declared() -> dict[str, str]:
    """Return {package: lowest version} of pyproject.toml, or of the installed erk-guid."""
    path = ROOT / "pyproject.toml"
    if path.is_file():
        import tomllib  # late: Python 3.10, which `python` reports, does not have it

        lines = tomllib.loads(path.read_text("utf-8"))["project"]["dependencies"]
    else:
        lines = [line for line in requires("erk-guid") or [] if "extra ==" not in line]
    return dict(line.replace(" ", "").split(">=") for line in lines)


def numbers(text: str) -> list[int]:
    """Return the numbers of a version: '2.15.0+cu130' -> [2, 15, 0]."""
    return [int(part) for part in re.match(r"[\d.]*\d", text)[0].split(".")]  # type: ignore[index]


def torch_build() -> Iterator[Row]:
    """Check PyTorch's build and whether torchvision and numpy fit it."""
    import torch

    yield Row("ok", "torch", f"{torch.__version__}, CPU kernels for {cpu_kernels(torch)}")
    yield from torchvision(torch)
    try:
        import numpy as np

        torch.from_numpy(np.zeros(1)).numpy()
    except Exception as error:
        text = (
            f"torch and numpy {version('numpy')} do not work together, {describe(error)}: {SETUP}"
        )
        yield Row("FAIL", "numpy", text)


def torchvision(torch: Any) -> Iterator[Row]:
    """Check that torchvision was built for this torch and for the same devices."""
    words = [TORCH.match(line) for line in requires("torchvision") or []]
    for kind, wanted in (word.groups() for word in words if word):
        here, there = numbers(torch.__version__), numbers(wanted)
        if (here[: len(there)] != there) if kind == "==" else (here < there):
            text = f"was built for torch{kind}{wanted}, not {torch.__version__}: {SETUP}"
            yield Row("FAIL", "torchvision", text)
    with suppress(Exception):  # `packages` reports why it cannot be imported
        build = import_module("torchvision").__version__
        if ("+cpu" in build) != ("+cpu" in torch.__version__):
            text = f"{build} is another build than torch {torch.__version__}: {SETUP}"
            yield Row("FAIL", "torchvision", text)


def cpu_kernels(torch: Any) -> str:
    """Return the CPU instructions that PyTorch uses, such as AVX512."""
    return torch.backends.cpu.get_cpu_capability()


def pillow() -> Iterator[Row]:
    """Check that Pillow reads and writes the image formats."""
    from PIL import features

    missing = [name for name in ("zlib", "jpg") if not features.check(name)]
    if "zlib" in missing:
        yield Row("FAIL", "pillow", "was built without zlib and writes no PNG: " + SETUP)
    elif missing:
        yield Row("note", "pillow", "was built without libjpeg and reads no JPEG: " + SETUP)


def variables() -> Iterator[Row]:
    """Report environment variables that change results or speed."""
    for name, advice in VARIABLES.items():
        value = os.environ.get(name, "")
        if value and (name, value) != ("OMP_NUM_THREADS", "1"):
            yield Row("note", name, f"is {value}: {advice}")


def devices() -> Iterator[Row]:
    """Report CPU and memory; check each GPU with a small matrix product."""
    yield Row("ok", "cpu", cpu())
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            yield gpu(torch, i)
    elif torch.backends.mps.is_available():
        yield Row("ok", "gpu", "Apple MPS")
    elif NVIDIA.exists() or shutil.which("nvidia-smi"):
        if torch.version.cuda is None:
            text = "this machine has an NVIDIA GPU, but PyTorch's build is CPU-only: " + SETUP
        else:
            text = f"PyTorch cannot use it: its driver must support CUDA {torch.version.cuda}"
        yield Row("note", "gpu", text)
    else:
        yield Row("ok", "gpu", "none; the CPU is used")


def gpu(torch: Any, number: int) -> Row:
    """Return name and memory of a GPU, or why it cannot compute."""
    try:
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        text = f"{number}: {name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        ones = torch.ones(64, 64, device=f"cuda:{number}")
        is_wrong = bool((ones @ ones != 64).any())
    except Exception as error:  # of the driver, of CUDA's libraries
        return failed("gpu", error, f"{number}: cannot compute, {describe(error)}: {SETUP}")
    if is_wrong:
        return Row("FAIL", "gpu", f"{text}; its matrix product is wrong: have the GPU checked")
    return Row("ok", "gpu", text)


def cpu() -> str:
    """Return the name, usable cores, vector instructions and free memory."""
    name, flags = platform.processor() or platform.machine(), []
    cpuinfo, memory = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpuinfo.exists():
        first = cpuinfo.read_text("utf-8").split("\n\n")[0]
        about = dict(re.findall(r"^([^:\n]*?)\s*: (.*)$", first, re.MULTILINE))
        name = about.get("model name", name)
        flags = [flag for flag in FLAGS if flag in about.get("flags", "").split()]
    affinity = getattr(os, "sched_getaffinity", None)  # Linux knows which cores may be used
    cores = len(affinity(0)) if affinity else os.cpu_count()
    text = f"{name}, {cores} cores, {' '.join(flags[-3:]) or 'no AVX2'}"
    if memory.exists():
        sizes = dict(re.findall(r"(\w+):\s+(\d+) kB", memory.read_text("utf-8")))
        free, total = (int(sizes[key]) / 2**20 for key in ("MemAvailable", "MemTotal"))
        text += f", {free:.0f} of {total:.0f} GiB of memory free"
    return text
