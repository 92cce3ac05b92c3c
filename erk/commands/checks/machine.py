"""Python, its packages and their traps; the devices. Nothing here needs a package to import."""

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

from erk.commands.checks.row import SETUP, Row, failed, few, told

ROOT = Path(__file__).resolve().parents[3]
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}  # package -> its import
NVIDIA = Path("/proc/driver/nvidia/version")  # of a driver that is loaded
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16")
MATE = re.compile(r"torch \(?(==|>=)([\d.]+)")  # what torchvision requires
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
    """The interpreter."""
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    number = tuple(numbers(platform.python_version())[:2])
    if number < (3, 11):
        yield Row("FAIL", "python", f"{found}: 3.11 or newer is needed")
    elif number >= (3, 14):
        yield Row("note", "python", f"{found}: tried with 3.11 to 3.13 only")
    else:
        yield Row("ok", "python", found)


def packages() -> Iterator[Row]:
    """Each direct dependency: there, new enough, importable; whether it is the locked one."""
    lock = PIN.findall((ROOT / "requirements.txt").read_text("utf-8"))
    names, moved = declared(), []
    for name, least in names.items():
        try:
            here = version(name)
        except PackageNotFoundError:
            yield Row("FAIL", name, f"is not installed: {SETUP}")
            continue
        if numbers(here) < numbers(least):
            yield Row("FAIL", name, f"{here} is older than {least}: {SETUP}")
        if here.partition("+")[0] not in {pin for known, pin in lock if known == name}:
            moved.append(f"{name} {here}")
        try:
            import_module(MODULES.get(name, name.replace("-", "_")))
        except Exception as error:  # a library that lacks, a build that does not fit
            yield Row("FAIL", name, f"{here} cannot be imported, {told(error)}: {SETUP}")
    if moved:
        yield Row("note", "packages", f"not as in requirements.txt: {few(moved)}")
    else:
        yield Row("ok", "packages", f"{len(names)} as in requirements.txt")


def declared() -> dict[str, str]:
    """{package: its lowest version} of pyproject.toml."""
    import tomllib  # late: Python 3.10 lacks it, and is told of before

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return dict(line.split(">=") for line in project["dependencies"])


def numbers(text: str) -> list[int]:
    """'2.15.0+cu130' -> [2, 15, 0]."""
    return [int(part) for part in re.match(r"[\d.]*\d", text)[0].split(".")]  # type: ignore[index]


def torch_and_mates() -> Iterator[Row]:
    """PyTorch's build, and what must fit it: torchvision, numpy, the GPU's driver."""
    import torch

    yield Row("ok", "torch", f"{torch.__version__}, CPU kernels for {cpu_kernels(torch)}")
    yield from torchvision(torch)
    try:
        import numpy as np

        torch.from_numpy(np.zeros(1)).numpy()
    except Exception as error:
        text = f"torch and numpy {version('numpy')} do not work together, {told(error)}: {SETUP}"
        yield Row("FAIL", "numpy", text)


def torchvision(torch: Any) -> Iterator[Row]:
    """Whether it is made for this torch, and for the same devices."""
    words = [MATE.match(line) for line in requires("torchvision") or []]
    for kind, wanted in (word.groups() for word in words if word):
        here, there = numbers(torch.__version__), numbers(wanted)
        if (here[: len(there)] != there) if kind == "==" else (here < there):
            text = f"is made for torch{kind}{wanted}, not {torch.__version__}: {SETUP}"
            yield Row("FAIL", "torchvision", text)
    with suppress(Exception):  # `packages` tells why it cannot be imported
        build = import_module("torchvision").__version__
        if ("+cpu" in build) != ("+cpu" in torch.__version__):
            text = f"{build} is another build than torch {torch.__version__}: {SETUP}"
            yield Row("FAIL", "torchvision", text)


def cpu_kernels(torch: Any) -> str:
    """What PyTorch computes with on this CPU, such as AVX512."""
    return torch.backends.cpu.get_cpu_capability()


def pillow() -> Iterator[Row]:
    """The formats that images come in."""
    from PIL import features

    lacking = [name for name in ("zlib", "jpg") if not features.check(name)]
    if "zlib" in lacking:
        yield Row("FAIL", "pillow", "was built without zlib and writes no PNG: " + SETUP)
    elif lacking:
        yield Row("note", "pillow", "was built without libjpeg and reads no JPEG: " + SETUP)


def variables() -> Iterator[Row]:
    """Variables of the environment that change results or speed unseen."""
    for name, advice in VARIABLES.items():
        value = os.environ.get(name, "")
        if value and (name, value) != ("OMP_NUM_THREADS", "1"):
            yield Row("note", name, f"is {value}: {advice}")


def devices() -> Iterator[Row]:
    """CPU and memory; the GPUs, each tried with a small product."""
    yield Row("ok", "cpu", cpu())
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            yield gpu(torch, i)
    elif torch.backends.mps.is_available():
        yield Row("ok", "gpu", "Apple MPS")
    elif NVIDIA.exists() or shutil.which("nvidia-smi"):
        if torch.version.cuda is None:
            text = "there is one of NVIDIA, but PyTorch's build is for the CPU only: " + SETUP
        else:
            text = f"PyTorch cannot use it: its driver must know CUDA {torch.version.cuda}"
        yield Row("note", "gpu", text)
    else:
        yield Row("ok", "gpu", "none; the CPU does the work")


def gpu(torch: Any, number: int) -> Row:
    """Name, memory and whether it computes."""
    try:
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        text = f"{number}: {name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        ones = torch.ones(64, 64, device=f"cuda:{number}")
        is_wrong = bool((ones @ ones != 64).any())
    except Exception as error:  # of the driver, of CUDA's libraries
        return failed("gpu", error, f"{number}: cannot compute, {told(error)}: {SETUP}")
    if is_wrong:
        return Row("FAIL", "gpu", f"{text}; it computes wrongly: have it checked")
    return Row("ok", "gpu", text)


def cpu() -> str:
    """Name, cores that this process may use, kinds of arithmetic, memory."""
    name, flags = platform.processor() or platform.machine(), []
    place, memory = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if place.exists():
        about = dict(
            (part.strip() for part in line.split(":", 1))
            for line in place.read_text("utf-8").split("\n\n")[0].splitlines() if ":" in line
        )  # fmt: skip
        name = about.get("model name", name)
        flags = [flag for flag in FLAGS if flag in about.get("flags", "").split()]
    able = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if able else os.cpu_count()
    text = f"{name}, {cores} cores, {' '.join(flags[-3:]) or 'no AVX2'}"
    if memory.exists():
        sizes = dict(re.findall(r"(\w+):\s+(\d+) kB", memory.read_text("utf-8")))
        free, total = (int(sizes[key]) / 2**20 for key in ("MemAvailable", "MemTotal"))
        text += f", {free:.0f} of {total:.0f} GiB of memory free"
    return text
