"""How many processes may run here, and which of them this one is: as the machine, torchrun and SLURM tell."""

import os
import threading
import time
from contextlib import suppress


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


def end_with(parent: int) -> None:
    """Ends this process soon after ``parent``, the process that started it, is gone: a killed one tells nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _number(name: str, default: int) -> int:
    with suppress(ValueError):
        return int(os.environ.get(name, default))
    return default
