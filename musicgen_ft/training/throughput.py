"""How fast a run is, and what holds it up."""

import functools
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch.utils.data import DataLoader

from musicgen_ft.shards.batch import Batch
from musicgen_ft.shards.datamodule import ShardDataModule

NAMES = ("perf/frames_per_s", "perf/wait_share", "perf/peak_memory_gib", "perf/mfu")


class TimedData(ShardDataModule):
    """The data of a run, with the time that the training loop has waited for it."""

    waited_s: float = 0.0
    """Seconds, of all training batches so far, on this rank."""

    def train_dataloader(self) -> Any:
        """As the shards', with a clock."""
        return _Timed(super().train_dataloader(), self)


class _Timed:
    """Counts the time within ``next``: with worker processes only what they are too late by."""

    def __init__(self, loader: DataLoader[Any], data: TimedData) -> None:
        self._loader, self._data = loader, data

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)
        while True:
            since = time.perf_counter()
            batch = next(batches, None)
            self._data.waited_s += time.perf_counter() - since
            if batch is None:
                return
            yield batch


class Throughput:
    """Measures from one step to the next; what lies between two stretches of training is left out."""

    def __init__(self) -> None:
        self._frames, self._flops = 0, 0.0
        self._since: float | None = None
        self._waited_s = 0.0
        self._flops_per_frame: Callable[[int], float] = lambda num_frames: 0.0
        self._matrix_rate = 1.0

    def begin(self, *, flops_per_frame: Callable[[int], float], matrix_rate: float) -> None:
        """A run begins, or goes on.

        Args:
            flops_per_frame: what training needs for a frame, by the frames of its clip.
            matrix_rate: operations per second of the device.
        """
        self._flops_per_frame, self._matrix_rate = functools.cache(flops_per_frame), matrix_rate
        self.pause()

    def count(self, num_clips: int, num_frames: int) -> None:
        """Adds a micro-batch of this rank: clips of so many frames each."""
        self._frames += num_clips * num_frames
        self._flops += num_clips * num_frames * self._flops_per_frame(num_frames)

    def pause(self) -> None:
        """What follows is no training; the next step begins a new stretch."""
        self._since = None

    def step(self, strategy: Strategy, *, world: int, waited_s: float) -> dict[str, float]:
        """Metrics of the step that ends now; none of the first of a stretch, which pays for starting up.

        Args:
            strategy: takes the maximum over the ranks.
            world: ranks.
            waited_s: for data, since the run began, on this rank.

        Returns:
            Frames per second of all ranks; of the rank that waited longest the share of the step's time, since all
            others wait for it; of the rank that held most the memory in GiB since the run began: CUDA's allocations, or
            this process's on a CPU; of each device's rate the share that the model uses.
        """
        now, since = time.perf_counter(), self._since
        frames, flops, waited = self._frames, self._flops, waited_s - self._waited_s
        self._frames, self._flops, self._since, self._waited_s = 0, 0.0, now, waited_s
        if since is None:
            return {}
        seconds = now - since
        worst = torch.tensor([waited / seconds, peak_memory_gib(strategy.root_device)], device=strategy.root_device)
        wait_share, peak_gib = strategy.reduce(worst, reduce_op="max").tolist()
        mfu = flops / seconds / self._matrix_rate
        return dict(zip(NAMES, (frames * world / seconds, wait_share, peak_gib, mfu), strict=True))


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that this process has held: on the CUDA device, or else in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where getrusage tells of a child what its parent held when it was started
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**30 if sys.platform == "darwin" else most / 2**20  # macOS counts bytes, others KiB
