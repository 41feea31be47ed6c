"""Runs that are killed, stopped, starved of disk, and taken up again, as processes of their own.

1 process: killed with SIGKILL at 20 steps drawn at random, and within saves. 2 processes over gloo: one of the two
killed at 6 steps, stopped at 2, hung once; from 2 processes to 1 and back.
"""

import csv
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_ft.cli import recipe_path
from musicgen_ft.training.checkpoints import newest_whole, saved_steps
from musicgen_ft.training.run import RunFolder

pytestmark = pytest.mark.slow

MAX_STEPS = 30
TRAINING = [
    *("--max_steps", MAX_STEPS, "--batch_size", 4, "--micro_batch_size", 2, "--segment_s", 1, "--accelerator", "cpu"),
    *("--dropout", 0.1, "--cfg_dropout", 0.3, "--lr", 1.0e-3, "--warmup_steps", 2, "--ema_decay", 0.9),
    *("--valid_every_steps", 8, "--tensorboard", "false"),
]
"""Steps of 0.1 s; validations at 8, 16, 24 and 30."""
PATIENCE_S = 120.0


Process = Any
"""What the fixtures ``start`` and ``start_two`` give: a command that runs."""
Start = Callable[..., Process]
Group = Callable[..., list[Process]]


def rows(run: Path) -> list[dict[str, str]]:
    """Of ``metrics.csv``, without the metrics of a clock, or of the process's memory."""
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


def steps_made(run: Path) -> int:
    """The last step in the metrics."""
    return max((int(row["step"]) for row in rows(run) if (row["step"] or "").isdigit()), default=0)


def wait_for_step(run: Path, step: int, process: Process) -> None:
    until = time.monotonic() + PATIENCE_S
    while steps_made(run) < step:
        assert process.runs(), process.text()
        assert time.monotonic() < until, process.text()


def assert_same(found: Path, expected: Path, *, same_ranks: bool = True) -> None:
    """Bit for bit: weights, average, optimizer, schedule, every number in the metrics.

    On another number of processes the sums of a validation are rounded otherwise, and what tells of them.
    """
    ours, theirs = (RunFolder.open(run).read_checkpoint("last") for run in (found, expected))
    assert ours["global_step"] == theirs["global_step"] == MAX_STEPS
    of_validation = ("callbacks", "musicgen_ft") if same_ranks else ()
    for part in ("state_dict", "ema", "optimizer_states", "lr_schedulers", *of_validation):
        assert same(ours[part], theirs[part]), part
    best, expected_best = (RunFolder.open(run).read_checkpoint("best") for run in (found, expected))
    assert best["global_step"] == expected_best["global_step"]
    assert same(best["ema"], expected_best["ema"])
    for row, expected_row in zip(rows(found), rows(expected), strict=True):
        if same_ranks or row["train/ce"]:
            assert row == expected_row
        else:
            assert {k: float(v or 0) for k, v in row.items()} == pytest.approx(
                {k: float(v or 0) for k, v in expected_row.items()}, rel=1e-5
            )


def same(found: object, expected: object) -> bool:
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        assert isinstance(found, list | tuple)
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and torch.equal(found, expected)
    return found == expected


@pytest.fixture(scope="module")
def unbroken(shards: Path, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that nothing happens to."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    process = start("finetune", shards, "--out", run, *TRAINING)
    assert process.status() == 0, process.text()
    return run


@pytest.fixture(scope="module")
def unbroken_of_two(shards: Path, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of two processes, which Lightning starts: ``--devices 2``."""
    run = tmp_path_factory.mktemp("unbroken-of-two") / "run"
    words = [str(word) for word in ("finetune", shards, "--out", run, *TRAINING, "--devices", 2)]
    script = Path(sys.executable).with_name("musicgen-ft")
    done = subprocess.run([script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return run


# ---- kill -9 ---------------------------------------------------------------------------------------------------------


def test_a_run_killed_at_20_random_steps_is_the_run_that_never_was(
    shards: Path, unbroken: Path, start: Start, tmp_path: Path
) -> None:
    chance = random.Random(5)
    run, save_every = tmp_path / "run", 3
    targets = sorted(chance.sample(range(1, MAX_STEPS), 20))
    process = start("finetune", shards, "--out", run, *TRAINING, "--save_every_steps", save_every)
    for target in targets:
        wait_for_step(run, target, process)
        time.sleep(chance.random() * 0.1)  # anywhere in the next step, a save or a validation
        process.kill()
        assert process.status() == -signal.SIGKILL
        process = start("finetune", "--resume", run)
    assert process.status() == 0, process.text()
    assert "going on from step" in process.text()
    assert_same(run, unbroken)


def test_a_run_killed_within_saves_loses_only_the_one_it_was_in(
    shards: Path, unbroken: Path, start: Start, tmp_path: Path
) -> None:
    run, cut = tmp_path / "run", 0
    process = start("finetune", shards, "--out", run, *TRAINING, "--save_every_steps", 1)
    for attempt in range(6):
        least, until = 4 + 4 * attempt, time.monotonic() + PATIENCE_S
        while not any(int(path.name[6:12]) >= least for path in (run / "checkpoints").glob(".step-*.ckpt.tmp-*")):
            assert process.runs(), process.text()
            assert time.monotonic() < until, process.text()
        process.kill()
        assert process.status() == -signal.SIGKILL
        cut += len(list((run / "checkpoints").glob(".step-*.ckpt.tmp-*")))
        assert newest_whole(run / "checkpoints") == list(saved_steps(run / "checkpoints").values())[-1]
        process = start("finetune", "--resume", run)
    assert process.status() == 0, process.text()
    assert cut >= 3, "it was hardly ever killed within a save"
    assert not list((run / "checkpoints").glob(".*"))
    assert_same(run, unbroken)


def test_a_run_whose_newest_checkpoint_was_cut_goes_on_from_the_one_before_aloud(
    shards: Path, unbroken: Path, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start("finetune", shards, "--out", run, *TRAINING, "--save_every_steps", 4)
    wait_for_step(run, 14, process)
    process.kill()
    assert process.status() == -signal.SIGKILL
    before, newest = list(saved_steps(run / "checkpoints").values())[-2:]
    newest.write_bytes(newest.read_bytes()[:-5000])
    process = start("finetune", "--resume", run)
    assert process.status() == 0, process.text()
    assert f"{newest} is damaged" in process.text()
    assert f"passed over, for {before.name}" in process.text()
    assert_same(run, unbroken)


def test_one_of_two_processes_killed_again_and_again_leaves_none_hanging(
    shards: Path, unbroken_of_two: Path, start_two: Group, tmp_path: Path
) -> None:
    chance, run = random.Random(7), tmp_path / "run"
    both = start_two("finetune", shards, "--out", run, *TRAINING, "--save_every_steps", 2)
    for number, target in enumerate(sorted(chance.sample(range(1, MAX_STEPS - 2), 6))):
        wait_for_step(run, target, both[0])
        time.sleep(chance.random() * 0.1)
        killed, left = both if number % 2 else reversed(both)
        killed.kill()
        assert killed.status() == -signal.SIGKILL
        assert left.status() not in (0, 75)
        assert "gone: rank 1 (" in left.text() or "rank 0, where all meet, is gone" in left.text(), left.text()
        both = start_two("finetune", "--resume", run)
    assert [process.status() for process in both] == [0, 0], both[0].text() + both[1].text()
    assert_same(run, unbroken_of_two)


# ---- told to stop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_told_to_stop_saves_ends_with_75_and_goes_on(
    shards: Path, unbroken: Path, start: Start, tmp_path: Path, signum: int
) -> None:
    run = tmp_path / "run"
    process = start("finetune", shards, "--out", run, *TRAINING, "--save_every_steps", 1000)
    for target in (7, 15):  # the next step is validated: the save does not wait for it
        wait_for_step(run, target, process)
        process.kill(signum)
        assert process.status() == 75, process.text()
        step = list(saved_steps(run / "checkpoints"))[-1]
        assert step == steps_made(run) >= target
        assert f"{signal.Signals(signum).name}: stopped after step {step}, which is saved" in process.text()
        process = start("finetune", "--resume", run)
    assert process.status() == 0, process.text()
    assert_same(run, unbroken)


def test_one_of_two_processes_told_to_stop_stops_both_at_the_same_step(
    shards: Path, unbroken_of_two: Path, start_two: Group, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    both = start_two("finetune", shards, "--out", run, *TRAINING, "--save_every_steps", 1000)
    for told, target in ((1, 5), (0, 15)):
        wait_for_step(run, target, both[0])
        both[told].kill(signal.SIGTERM)
        assert [process.status() for process in both] == [75, 75], both[0].text() + both[1].text()
        assert list(saved_steps(run / "checkpoints"))[-1] == steps_made(run)
        both = start_two("finetune", "--resume", run)
    assert [process.status() for process in both] == [0, 0], both[0].text() + both[1].text()
    assert_same(run, unbroken_of_two)


def test_a_run_that_started_its_own_second_process_stops_with_75_when_the_first_is_told(
    shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    script = Path(sys.executable).with_name("musicgen-ft")
    words = ["finetune", shards, "--out", run, *TRAINING, "--devices", 2, "--max_steps", 10_000]
    with subprocess.Popen([script, *map(str, words)], stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + PATIENCE_S
        while steps_made(run) < 3 and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, errors
    assert "SIGTERM: stopped after step" in errors
    assert "Traceback" not in errors
    assert RunFolder.open(run).saved() is not None


def test_a_whole_job_told_to_stop_keeps_its_workers_until_it_has_saved(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    script = Path(sys.executable).with_name("musicgen-ft")
    words = ["finetune", shards, "--out", run, *TRAINING, "--num_workers", 2, "--max_steps", 10_000]
    command = [str(script), *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        until = time.monotonic() + PATIENCE_S
        while steps_made(run) < 3 and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, errors


def test_torchrun_told_to_stop_lets_its_processes_save(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [recipe_path("finetune"), shards, "--out", run, *TRAINING, "--max_steps", 10_000]
    with subprocess.Popen([*torchrun, *map(str, words)], stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + PATIENCE_S
        while steps_made(run) < 3 and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0  # 1, its own: it hides the 75 of its processes
    assert "SIGTERM: stopped after step" in errors
    saved = RunFolder.open(run).saved()
    assert saved is not None
    assert saved.step == steps_made(run)


# ---- a rank that hangs -----------------------------------------------------------------------------------------------


def test_a_process_that_stands_still_is_named_and_waited_for_no_longer_than_said(
    shards: Path, start_two: Group, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    both = start_two("finetune", shards, "--out", run, *TRAINING, "--save_every_steps", 2, "--timeout_minutes", 0.25)
    wait_for_step(run, 5, both[0])
    both[1].kill(signal.SIGSTOP)
    since = time.monotonic()
    status, text = both[0].status(), both[0].text()
    assert time.monotonic() - since < 60
    both[1].kill(signal.SIGKILL)
    assert status not in (0, 75)
    assert f"gone: rank 1 ({socket.gethostname()})" in text


# ---- a full disk -----------------------------------------------------------------------------------------------------


def test_a_save_that_finds_the_disk_full_ends_the_run_with_one_line_and_costs_nothing_that_was_saved(
    shards: Path, unbroken: Path, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start("finetune", shards, "--out", run, *TRAINING, "--save_every_steps", 4)
    wait_for_step(run, 9, process)
    process.kill()
    assert process.status() == -signal.SIGKILL
    kept = {path.name: path.read_bytes() for path in (run / "checkpoints").glob("step-*.ckpt")}
    assert kept

    full = start("finetune", "--resume", run, largest=12_000_000)  # best.ckpt has 11 MB, a step 21
    assert full.status() == 2, full.text()
    assert "Free or choose another place, and run again" in full.text().splitlines()[-1]
    assert "Traceback" not in full.text()
    assert {path.name: path.read_bytes() for path in (run / "checkpoints").glob("*step-*")} == kept

    process = start("finetune", "--resume", run)
    assert process.status() == 0, process.text()
    assert_same(run, unbroken)


# ---- on another number of processes ----------------------------------------------------------------------------------


def test_two_processes_make_the_run_of_one_with_as_many_micro_batches(unbroken: Path, unbroken_of_two: Path) -> None:
    """Of the same micro-batches each step adds the same two gradients: even the weights are equal, bit for bit."""
    assert_same(unbroken_of_two, unbroken, same_ranks=False)


@pytest.mark.parametrize("before", [1, 2])
def test_a_run_goes_on_with_another_number_of_processes(
    shards: Path, unbroken: Path, start: Start, start_two: Group, tmp_path: Path, before: int
) -> None:
    run = tmp_path / "run"
    words = ("finetune", shards, "--out", run, *TRAINING, "--save_every_steps", 3)
    processes = [start(*words)] if before == 1 else start_two(*words)
    wait_for_step(run, 13, processes[0])
    for process in processes:
        process.kill(signal.SIGTERM)
    assert [process.status() for process in processes] == [75] * before
    processes = start_two("finetune", "--resume", run) if before == 1 else [start("finetune", "--resume", run)]
    assert [process.status() for process in processes] == [0] * len(processes), processes[0].text()
    assert_same(run, unbroken, same_ranks=False)
