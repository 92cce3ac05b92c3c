"""Read hostile files in a process that may only read, and report what happened.

A hook on Python's audit events reports programs, sockets, imports, code compiled from text, and
files that are opened or changed. Memory and processor time are limited and measured.
"""

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from erk.commands.cli import LONGEST, sentence

MEMORY = 256 << 20  # bytes that reading one of our small files may take beyond what is in use
SECONDS = 20  # of the processor's time, for one file
ROOTS = [
    os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, Path(__file__).parents[2])
]
DEVICES = ("/proc/", "/dev/null", "/dev/urandom", "/sys/", "/etc/localtime", "/usr/share/zoneinfo")
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "pty.",
             "os.startfile", "subprocess.", "socket.", "ctypes.dlopen", "urllib.", "http.",
             "webbrowser.", "pickle.find_class", "code.__new__", "os.putenv")  # fmt: skip
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod",
           "os.chown", "os.truncate", "shutil.", "tempfile.")  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Outcome(NamedTuple):
    """The result of reading a set of files."""

    error: str | None  # the name of the exception's class; None: it was read
    text: str  # the error message, or the repr of what was read
    faults: list[str]  # forbidden actions


class Caught(BaseException):
    """A forbidden action was attempted; no reader catches this exception."""


class _State:
    armed = False
    target = ""
    known: frozenset[str] = frozenset()
    faults: list[str] = []  # noqa: RUF012


def read_all(jobs, scratch):
    """Return the Outcome of each job (reader, {name: bytes}); ``scratch`` is an empty folder.

    reader(folder) reads the files in a new folder; it may write below folder/dest.
    """
    outcomes = []
    while len(outcomes) < len(jobs):
        log = scratch / "log"
        log.write_text("")
        pid = os.fork()
        if pid == 0:
            try:
                _child(jobs[len(outcomes) :], scratch, log)
            finally:
                os._exit(1)
        status = os.waitpid(pid, 0)[1]
        outcomes += [Outcome(*json.loads(line)) for line in log.read_text().splitlines()]
        if status:
            killed = signal.Signals(status & 127).name if status & 127 else f"exit {status >> 8}"
            reason = "it took too long" if killed == "SIGPROF" else f"the process died: {killed}"
            outcomes.append(Outcome(None, "", [reason]))
    return outcomes


def _child(jobs, scratch, log):
    sys.addaudithook(_hook)
    target = scratch / "target"
    log_file = os.open(log, os.O_WRONLY)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for reader, files in jobs:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name, data in files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(data)
        outcome = _read(reader, target)
        os.write(log_file, json.dumps(outcome).encode() + b"\n")
    shutil.rmtree(target, ignore_errors=True)
    os._exit(0)


def _read(reader, target):
    error, text, before = None, "", _start(target)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        text = repr(reader(target))[:2000]
    except Caught:
        pass
    except BaseException as caught:
        error, text = type(caught).__name__, sentence(caught)
        if not isinstance(caught, ValueError | OSError):
            _State.faults.append(f"it raises {error}: {text[:200]}")
        elif str(target) not in str(caught) or len(text) > LONGEST + 3:
            _State.faults.append(f"the error names no file: {text[:200]}")
    _State.armed = False
    signal.setitimer(signal.ITIMER_PROF, 0)
    _limit(0)
    grown = _peak() - before
    if grown > MEMORY:
        _State.faults.append(f"it takes {grown >> 20} MiB")
    return Outcome(error, text, _State.faults)


def _start(target):
    """Arm the guard; return the memory in use, in bytes."""
    _State.target, _State.faults = os.path.realpath(target), []
    _State.known = frozenset(name.partition(".")[0] for name in sys.modules)
    if os.path.exists("/proc/self/clear_refs"):
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        _limit(4 * MEMORY)  # allocations fail before the machine runs out of memory
    _State.armed = True
    return _peak()


def _limit(more):
    """Limit this process to ``more`` bytes above its size; 0: to the hard limit."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + more if more else hard, hard))


def _peak():
    if os.path.exists("/proc/self/clear_refs"):
        armed, _State.armed = _State.armed, False
        peak = _status("VmHWM")
        _State.armed = armed
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))


def _hook(event, arguments):
    if not _State.armed:
        return
    fault = _fault(event, arguments)
    if fault is not None:
        _State.faults.append(fault)
        raise Caught(fault)


def _fault(event, arguments):
    """Describe a forbidden event; None for a permitted one."""
    if event.startswith(FORBIDDEN):
        return f"it calls {event}"
    if event.startswith(CHANGES):
        paths = [path for path in arguments if isinstance(path, str | bytes | os.PathLike)]
        if isinstance(arguments[-1], int) and arguments[-1] >= 0:  # relative to an open folder
            folder = os.readlink(f"/proc/self/fd/{arguments[-1]}")
            paths = [os.path.join(folder, os.fsdecode(path)) for path in paths]
        return None if all(map(_is_dest, paths)) else f"it calls {event} for {paths}"
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path, flags = arguments[0], arguments[2] or 0
        if flags & WRITING:
            return None if _is_dest(path) else f"it writes to {path!r}"
        return None if _may_read(path) else f"it reads {path!r}"
    if event == "import":
        top = arguments[0].partition(".")[0]
        return None if top in _State.known else f"it imports {arguments[0]}"
    if event == "exec":
        file = getattr(arguments[0], "co_filename", "")
        return (
            None if file.startswith("<frozen") or _may_read(file) else f"it runs code of {file!r}"
        )
    return None


def _real(path):
    return os.path.realpath(os.fsdecode(path))


def _is_dest(path):
    return _real(path).startswith(f"{_State.target}/dest") or _real(path) == os.devnull


def _may_read(path):
    real = _real(path)
    return real.startswith((_State.target, *ROOTS, *DEVICES))
