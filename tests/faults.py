"""Processes that are killed, robbed of their disk or their memory, for the tests of reliability.

Starting Python and PyTorch takes seconds. A server that has done so forks what the tests run, so
that a process costs a tenth of that, is one of its own all the same, and dies by real signals.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
import zipfile
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from erk.commands import generate
from erk.generation.seeds import parse_seeds

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "faults", "erk.generation.run", "sklearn.datasets"])
Image.init()  # Pillow loads its formats at first use, which every fork would do anew
HERE = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
FILE_OPERATIONS = ("fsync", "replace", "link", "unlink", "mkdir", "rmdir")
"""What a run does to the disk, of the module os: a kill before each of them is a moment of its
own."""


def start(work, *arguments, cwd, log=None, **environment):
    """``work(*arguments)`` in a process of its own; what it prints goes to the file ``log``."""
    with pytest.MonkeyPatch.context() as patch:  # where the server, if it starts now, finds us
        patch.setenv("PYTHONPATH", os.pathsep.join([*HERE, *sys.path]))
        forkserver.ensure_running()
    process = SERVER.Process(target=_work, args=(work, arguments, str(cwd), log, environment))
    process.start()
    return process


def ended(process, seconds=120):
    """The exit code; -9 for a process that was killed. One that hangs fails the test."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"a process still ran after {seconds} seconds")
    return process.exitcode


def forked(work, *arguments, cwd):
    """``work(*arguments)`` in a fork of this process, in a folder; how it ended, as wait tells."""
    os.makedirs(cwd, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(cwd)
            work(*arguments)
            code = 0
        finally:
            sys.stdout.flush()
            if code:
                traceback.print_exc()
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def command(arguments):
    """generate.py with these arguments, to its exit code."""
    generate.main([str(argument) for argument in arguments], prog_name="generate.py")


def in_this_process(arguments):
    """The same here, for runs that nothing happens to."""
    done = CliRunner().invoke(generate.main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


def start_ranks(arguments, cwd, logs=(None, None), work=command, more=(), **environment):
    """``work(arguments, *more)`` as two ranks, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= environment
    return [
        start(work, arguments, *more, cwd=cwd, log=log, RANK=str(rank), LOCAL_RANK=str(rank),
              **shared)
        for rank, log in enumerate(logs)
    ]  # fmt: skip


def die_before(number):
    """SIGKILL to this process before its file operation of that number, from 0 on."""
    done = iter(range(number))

    def watched(function):
        def call(*arguments, **named):
            if next(done, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    for name in FILE_OPERATIONS:
        setattr(os, name, watched(getattr(os, name)))


def _work(work, arguments, cwd, log, environment):
    os.chdir(cwd)
    os.environ.update(environment)
    place = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(place, stream)
    work(*arguments)


def files(folder):
    """Relative name -> bytes of every file but run.json and the manifest."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "manifest.jsonl")
    }


def check_run(folder, other):
    """A finished run holds the files of the other, to the byte and no others; its manifest tells
    of every seed once and of the right bytes."""
    made = files(folder)
    assert made == files(other)
    assert not (folder / ".parts").exists()
    record = json.loads((folder / "run.json").read_text())
    assert record["complete"] is True and record["nfe"] > 0
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    listed = [json.loads(line) for line in lines]
    assert [line["seed"] for line in listed] == parse_seeds(record["seeds"])
    assert len(listed) == record["images"]
    for line, data in zip(listed, _pictures(folder, made, listed), strict=True):
        assert hashlib.sha256(data).hexdigest() == line["sha256"]


def _pictures(folder, made, listed):
    """The bytes that the lines of a manifest tell of."""
    if "images.zip" in made:
        with zipfile.ZipFile(folder / "images.zip") as archive:
            assert len(archive.namelist()) == len(listed)
            return [archive.read(line["file"]) for line in listed]
    if "images.npz" in made:
        with np.load(folder / "images.npz") as arrays:
            assert arrays["seeds"].tolist() == [line["seed"] for line in listed]
            assert [line["file"] for line in listed] == [f"arr_0[{i}]" for i in range(len(listed))]
            return [row.tobytes() for row in arrays["arr_0"]]
    return [made[line["file"]] for line in listed]
