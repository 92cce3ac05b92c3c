"""Work beside the sampler's: order, bounds, errors, and what a stop leaves."""

import threading
from contextlib import contextmanager

import pytest

from erk.generation.writer import MAX_THREADS, background, spare_cores, thread_map
from erk.io.atomic import Stopped

PATIENCE = 60  # seconds; a test that hangs fails


@pytest.fixture
def gate():
    """Writers wait until it is opened; at the end it always is."""
    opened = threading.Event()
    yield opened
    opened.set()


def test_a_slow_writer_does_not_hold_up_the_sampler_until_the_queue_is_full(gate):
    """One is being written and two wait: the fourth can only be handed over when one is done."""
    handed, written, full = [], [], threading.Event()

    def write(number):
        assert gate.wait(PATIENCE)
        written.append(number)

    @contextmanager
    def waiting():
        full.set()
        yield

    def sample():
        with background(waiting, depth=2) as submit:
            for number in range(6):
                submit(write, number)
                handed.append(number)

    sampler = threading.Thread(target=sample)
    sampler.start()
    assert full.wait(PATIENCE) and handed == [0, 1, 2] and written == []
    gate.set()
    sampler.join(PATIENCE)
    assert handed == written == list(range(6))


def test_the_writer_runs_in_another_thread_and_in_order():
    seen = []
    with background() as submit:
        for number in range(20):
            submit(lambda n: seen.append((n, threading.current_thread())), number)
    assert [number for number, _ in seen] == list(range(20))
    assert {thread for _, thread in seen} == {seen[0][1]} != {threading.main_thread()}


def failing(error):
    raise error


def test_an_error_ends_the_sampler_and_what_was_to_come_is_dropped():
    done = []
    with pytest.raises(OSError, match="No space left"), background(depth=2) as submit:
        submit(failing, OSError(28, "No space left on device"))
        for number in range(1000):
            submit(done.append, number)
        raise AssertionError("nobody noticed")
    assert len(done) <= 2


def test_an_error_of_the_last_piece_is_not_lost():
    with pytest.raises(OSError, match="quota"), background() as submit:
        submit(failing, OSError("quota"))


@pytest.mark.parametrize("stop", [Stopped(15), FloatingPointError("seed 3")])
def test_what_was_handed_over_is_written_when_the_sampler_ends_early(stop, gate):
    done = []

    def write(number):
        assert gate.wait(PATIENCE)
        done.append(number)

    with pytest.raises(type(stop)), background() as submit:
        for number in range(3):
            submit(write, number)
        gate.set()
        raise stop
    assert done == [0, 1, 2]


def test_no_thread_to_be_had(monkeypatch):
    """One of three starts: a sentence, and nobody waits for the others."""
    start, left = threading.Thread.start, iter([None])

    def failing(thread):
        if next(left, 1) is not None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    with pytest.raises(MemoryError, match="no thread can be started"), thread_map(3):
        raise AssertionError("it began")


@pytest.mark.parametrize("count", [1, 3])
def test_threads_keep_the_order(count):
    with thread_map(count) as each:
        assert list(each(lambda x: x * x, range(10))) == [x * x for x in range(10)]


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    cores = []
    for processes in ("1", "2", "4", "16", "32"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        cores.append(spare_cores())
    assert cores == [MAX_THREADS, 7, 3, 1, 1]
