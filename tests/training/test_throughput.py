"""Speed by a clock that the tests turn, and what a real run reports."""

import csv
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_ft.training import throughput
from musicgen_ft.training.throughput import NAMES, Throughput, TimedData

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers

Run = Any
"""tests/training/conftest.py's."""


class Clock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


class Others:
    """A strategy whose other rank waited for half of the step and holds 3 TiB, as no process of tests does."""

    root_device = torch.device("cpu")

    def reduce(self, tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "max"
        return torch.maximum(tensor, torch.tensor([0.5, 3072.0]))


class Alone(Others):
    def reduce(self, tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        return tensor


OTHERS: Any = Others()
ALONE: Any = Alone()


def step(meter: Throughput, clock: Clock, seconds: float, waited_s: float, strategy: Any = ALONE) -> dict[str, float]:
    for _ in range(2):
        meter.count(3, 50)
    clock.now += seconds
    return meter.step(strategy, world=2, waited_s=waited_s)


def test_a_step_is_measured_from_the_one_before(clock: Clock) -> None:
    meter = Throughput()
    meter.begin(flops_per_frame=lambda num_frames: 10.0 * num_frames, matrix_rate=1e6)
    assert step(meter, clock, 60.0, 50.0) == {}  # it pays for starting up
    found = step(meter, clock, 4.0, 51.0)
    assert tuple(found) == NAMES
    assert found["perf/frames_per_s"] == 2 * 300 / 4.0
    assert found["perf/wait_share"] == 0.25
    assert found["perf/mfu"] == pytest.approx(300 * 500 / 4.0 / 1e6)
    assert step(meter, clock, 2.0, 51.0)["perf/wait_share"] == 0.0


def test_the_rank_that_waits_longest_and_the_one_that_holds_most_count(clock: Clock) -> None:
    meter = Throughput()
    step(meter, clock, 1.0, 0.0)
    found = step(meter, clock, 1.0, 0.25, OTHERS)
    assert (found["perf/wait_share"], found["perf/peak_memory_gib"]) == (0.5, 3072.0)


def test_what_lies_between_two_stretches_is_left_out(clock: Clock) -> None:
    meter = Throughput()
    step(meter, clock, 1.0, 0.0)
    clock.now += 1000.0  # a validation
    meter.pause()
    assert step(meter, clock, 1.0, 0.5) == {}
    found = step(meter, clock, 1.0, 0.75)
    assert (found["perf/frames_per_s"], found["perf/wait_share"]) == (600.0, 0.25)


def test_the_time_within_next_is_the_wait_and_no_other(
    clock: Clock, start_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    data: TimedData = start_run(max_steps=3).data
    loader = data.train_dataloader()

    class Slow:
        def __len__(self) -> int:
            return len(loader)

        def __iter__(self) -> Iterator[Any]:
            for batch in loader._loader:
                clock.now += 2.0
                yield batch

    timed: Any = throughput._Timed(Slow(), data)  # type: ignore[arg-type]
    seen = 0
    for batch in timed:
        seen += len(batch.keys)
        clock.now += 7.0
    assert (len(timed), seen) == (6, 12)
    assert data.waited_s == 12.0


def test_memory_is_the_most_that_this_process_has_held() -> None:
    program = (
        "import torch; from musicgen_ft.training.throughput import peak_memory_gib as peak; cpu = torch.device('cpu');"
        "torch.ones(2**27); before = peak(cpu); torch.ones(2**27 + 2**26); print(peak(cpu) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(0.25, abs=0.05)  # GiB, of what is held no more


def test_a_run_reports_all_four(start_run: Callable[..., Run]) -> None:
    run = start_run(max_steps=5, valid_every_steps=3).fit()
    with Path(run.folder.path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = {row["step"]: [float(row[name]) for name in NAMES] for row in rows if row["perf/mfu"]}
    assert list(told) == ["2", "3", "5"]  # 1 begins the run, and 4 follows a validation
    for frames_per_s, wait_share, peak_gib, mfu in told.values():
        assert frames_per_s > 0
        assert 0 < wait_share < 1
        assert 0.05 < peak_gib < 1000
        assert 0 < mfu < 1
