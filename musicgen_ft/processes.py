"""How many processes may run here, which of them this one is, and how one ends with another."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


def num_cores() -> int:
    """Cores that this process may use, its share of them where several workers run on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // _number("LOCAL_WORLD_SIZE", 1))


def worker_number() -> int:
    """Number of this worker among those that torchrun or a SLURM array started."""
    return _number("RANK", _number("SLURM_ARRAY_TASK_ID", 0) - _number("SLURM_ARRAY_TASK_MIN", 0)) % num_workers()


def num_workers() -> int:
    """Workers that torchrun or a SLURM array started."""
    return max(1, _number("WORLD_SIZE", _number("SLURM_ARRAY_TASK_COUNT", 1)))


def end_with_parent() -> None:
    """Ends this process, one of multiprocessing's, soon after whoever started it is gone: a killed one tells nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def handing_on_sigterm(terminate: Callable[[], object]) -> Iterator[None]:
    """While this process waits for another one, SIGTERM is for that one: it may have something to save.

    Args:
        terminate: sends it SIGTERM.

    Raises:
        SystemExit: with 143, after SIGTERM, when what it waits for is over.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal can be set there
        yield
        return
    told: list[int] = []

    def hand_on(number: int, _: object) -> None:
        told.append(number)
        terminate()

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if told:
            sys.exit(128 + signal.SIGTERM)


def _number(name: str, default: int) -> int:
    with suppress(ValueError):
        return int(os.environ.get(name, default))
    return default
