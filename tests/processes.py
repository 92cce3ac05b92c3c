"""Processes for the tests of reliability: they are killed, and lose their disk or their memory.

Starting Python and PyTorch takes seconds. A server that has done so forks what the tests run, so
a process costs a tenth of that, is a real one all the same, and dies by real signals.
"""

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from multiprocessing import forkserver
from pathlib import Path

import pytest
from command_runs import command
from PIL import Image

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "processes", "erk.generation.run"])
Image.init()  # Pillow loads its formats at first use, which every fork would repeat
HERE = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
FILE_OPERATIONS = ("fsync", "replace", "link", "unlink", "mkdir", "rmdir")
"""What a run does to the disk, of the module os: a process can be killed before each of them."""


def start(work, *arguments, cwd, log=None, **environment):
    """Run ``work(*arguments)`` in a new process; what it prints goes to the file ``log``."""
    with pytest.MonkeyPatch.context() as patch:  # where the server, if it starts now, finds us
        patch.setenv("PYTHONPATH", os.pathsep.join([*HERE, *sys.path]))
        forkserver.ensure_running()
    process = SERVER.Process(target=_work, args=(work, arguments, str(cwd), log, environment))
    process.start()
    return process


def ended(process, seconds=120):
    """Return the exit code; -9 for a process that was killed. One that hangs fails the test."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"a process still ran after {seconds} seconds")
    return process.exitcode


def forked(work, *arguments, cwd):
    """Run ``work(*arguments)`` in a fork of this process, in a folder; return its wait status."""
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


def start_ranks(arguments, cwd, logs=(None, None), work=command, more=(), **environment):
    """Start ``work(arguments, *more)`` as two ranks, in the environment that torchrun sets."""
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
    """Send SIGKILL to this process before its file operation of that number, from 0 on."""
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
    output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    work(*arguments)
