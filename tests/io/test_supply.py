"""Nothing speaks to the network unless something is fetched: no import, no run, no telemetry."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Imports every module, samples images and measures them. Whatever reaches for a socket is noted
# and gets an error. One thing may: urllib3 asks the system, not the network, whether it knows IPv6.
DRIVER = """
import json, pkgutil, sys
from importlib import import_module

seen = []

def watch(event, arguments):
    if event.startswith(("socket.", "http.client.", "urllib.", "ftplib.", "smtplib.")):
        frame, names = sys._getframe(), []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        if "_has_ipv6" not in names:
            seen.append([event, names[1:6]])
            raise OSError(f"the network is forbidden here: {event}")

sys.addaudithook(watch)
import erk, metrics
names = ["generate", "evaluate"]
for package in (erk, metrics):
    names += [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    import_module(name)
import generate, evaluate
from diffusers.utils.hub_utils import http_user_agent
for command, arguments in (
    (generate, "--preset digits --seeds 0-3 --steps 2 --device cpu --batch 4"),
    (evaluate, "--images out --ref digits --device cpu --metrics fd --json row.json"),
):
    command.main(arguments.split(), standalone_mode=False)
print(json.dumps({"seen": seen, "modules": names, "agent": http_user_agent()}))
"""
OPT_OUTS = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_OFFLINE")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What the driver found, in an environment that opts out of nothing by itself."""
    folder = tmp_path_factory.mktemp("quiet")
    env = {name: value for name, value in os.environ.items() if name not in OPT_OUTS}
    env |= {"PYTHONPATH": str(ROOT), "ERK_CACHE": str(folder / "cache"), "HF_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], env=env, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "row.json").exists()
    return json.loads(done.stdout.splitlines()[-1])


def test_no_import_and_no_run_speaks_to_the_network(report):
    files = [path for name in ("erk", "metrics") for path in (ROOT / name).rglob("*.py")]
    assert len(report["modules"]) == len(files)  # all but two __init__, and two commands
    assert report["seen"] == []


def test_the_hub_learns_nothing_of_what_runs(report):
    assert report["agent"].endswith("telemetry/off")


def test_whoever_asks_for_telemetry_keeps_it():
    code = "import erk, os; print(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    env = os.environ | {"HF_HUB_DISABLE_TELEMETRY": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert done.stdout.strip() == b"0"


def test_the_watch_sees_who_reaches_for_the_network():
    """The driver itself, with a function that asks for an address in it."""
    code = DRIVER.partition("import erk")[0] + (
        "import socket\n"
        "try:\n    socket.create_connection(('localhost', 9))\nexcept OSError:\n    pass\n"
        "print(json.dumps(seen))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout)[0][0] == "socket.getaddrinfo"
