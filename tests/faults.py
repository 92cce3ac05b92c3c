"""Processes that are killed, robbed of their disk or their memory, for the tests of reliability.

Starting Python and PyTorch takes seconds. A server that has done so forks what the tests run, so
that a process costs a tenth of that, is one of its own all the same, and dies by real signals.
"""

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

from click.testing import CliRunner

import generate

PATHS = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")]).rstrip(":")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["faults", "erk.jobs.run", "erk.models.model", "sklearn.datasets"])
FILE_OPERATIONS = ("fsync", "replace", "link", "unlink", "mkdir", "rmdir")
"""What a run does to the disk, of the module os: a kill before each of them is a moment of its
own."""


def start(work, *arguments, cwd, log=None, **environment):
    """``work(*arguments)`` in a process of its own; what it prints goes to the file ``log``."""
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


def command(arguments):
    """generate.py with these arguments, to its exit code."""
    generate.main([str(argument) for argument in arguments], prog_name="generate.py")


def in_this_process(arguments):
    """The same here, for runs that nothing happens to."""
    done = CliRunner().invoke(generate.main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


def start_ranks(arguments, cwd, logs=(None, None)):
    """generate.py as two ranks with the environment that torchrun gives them, and no torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(command, arguments, cwd=cwd, log=log, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank, log in enumerate(logs)
    ]


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
    sys.path.insert(0, str(Path(__file__).parent))
    work(*arguments)
