"""A run that is told to stop saves at a step boundary, ends with status 75, and goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import lightning
import pytest
import torch

from musicgen_ft.training.preempt import EXIT_PREEMPTED, SIGNALS, StopRequests, leave

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers and resuming

Run = Any
"""tests/training/conftest.py's."""


# ---- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_noted_and_the_handlers_from_before_come_back(signum: int) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    with StopRequests() as stop:
        assert stop.signum == 0
        os.kill(os.getpid(), signum)
        assert stop.signum == signum
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_a_thread_that_may_set_no_handler_trains_without() -> None:
    found: list[int] = []

    def enter() -> None:
        with StopRequests() as stop:
            found.append(stop.signum)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [0]


def test_taking_note_costs_no_import_of_torch() -> None:
    code = "import sys; import musicgen_ft.training.preempt; print('torch' in sys.modules, 'lightning' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


def test_lightning_handles_no_signal_of_its_own(start_run: Callable[..., Run]) -> None:
    during: list[Any] = []

    class Look(lightning.Callback):
        def on_train_start(self, *_: Any, **__: Any) -> None:
            during.extend(signal.getsignal(one) for one in SIGNALS)

    before = [signal.getsignal(one) for one in SIGNALS]
    run = start_run(max_steps=1)
    run.trainer.callbacks.append(Look())
    run.fit()
    assert during == before
    # What is switched off is Lightning's by these names; a Lightning without them needs another look.
    assert "_broadcast_sigterm_tensor" in dir(type(run.trainer.fit_loop.epoch_loop))
    assert "register_signal_handlers" in dir(type(run.trainer._signal_connector))


# ---- runs ------------------------------------------------------------------------------------------------------------


class _Signal(lightning.Callback):
    """Sends a signal in the middle of a step."""

    def __init__(self, stop: StopRequests, step: int, micro: int) -> None:
        self.stop, self.at = stop, (step, micro)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if divmod(batch_idx, trainer.accumulate_grad_batches) == self.at:
            self.stop.signum = signal.SIGTERM


def stopped(run: Run, *, within: int, micro: int = 0, resume: bool = False) -> int | str | None:
    """The status that a run ends with that is told to stop within a step, counted from 0."""
    run.trainer.callbacks.insert(0, _Signal(run.stop, within, micro))
    with pytest.raises(SystemExit) as end:
        run.fit(resume=resume)
    return end.value.code


def rows_and_weights(run: Run) -> tuple[Any, Any]:
    return run.rows(), run.folder.read_checkpoint("last")


def assert_same(found: Run, expected: Run) -> None:
    (rows, last), (expected_rows, expected_last) = rows_and_weights(found), rows_and_weights(expected)
    assert rows == expected_rows
    assert last["callbacks"] == expected_last["callbacks"]
    for part in ("state_dict", "ema"):
        ours, theirs = (one["ema"]["weights"] if part == "ema" else one[part] for one in (last, expected_last))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


CHANGES: dict[str, Any] = {"dropout": 0.1, "cfg_dropout": 0.3, "max_steps": 7, "save_every_steps": 100}


@pytest.mark.parametrize(("within", "micro"), [(0, 0), (2, 1), (3, 0), (3, 1)])
def test_a_run_told_to_stop_saves_the_step_it_is_in_and_goes_on_from_there(
    start_run: Callable[..., Run], caplog: pytest.LogCaptureFixture, within: int, micro: int
) -> None:
    # Validations are due at 2, 4, 6, 7: a stop within step 3 (the fourth) comes before one of them.
    expected = start_run("unbroken", **CHANGES).fit()
    run = start_run(**CHANGES)
    assert stopped(run, within=within, micro=micro) == EXIT_PREEMPTED
    assert f"SIGTERM: stopped after step {within + 1}, which is saved" in caplog.text
    assert f"--resume {run.folder.path}" in caplog.text
    saved = run.folder.saved()
    assert saved.step == within + 1
    assert [int(row["step"]) for row in run.rows() if row["train/ce"]] == list(range(1, within + 2))
    assert_same(start_run(resume_step=within + 1, **CHANGES).fit(resume=True), expected)


def test_a_run_stopped_before_a_validation_and_killed_within_or_after_it_validates_once(
    start_run: Callable[..., Run], kill_at: Callable[..., Any]
) -> None:
    expected = start_run("unbroken", **CHANGES).fit()
    assert stopped(start_run(**CHANGES), within=3) == EXIT_PREEMPTED

    class Killed(Exception):  # noqa: N818
        pass

    class Kill(lightning.Callback):
        def on_validation_end(self, *_: Any, **__: Any) -> None:
            raise Killed

    killed = start_run(resume_step=4, **CHANGES)
    killed.trainer.callbacks.insert(0, Kill())  # its row is written, its save not
    with pytest.raises(Killed):
        killed.fit(resume=True)
    again = start_run(resume_step=4, **CHANGES)
    with kill_at(again, step=5, micro=1):  # after both
        again.fit(resume=True)
    last = start_run(resume_step=4, **CHANGES)
    assert last.saved.state["validated_step"] == 4
    assert_same(last.fit(resume=True), expected)


def test_a_run_told_to_stop_again_and_again_makes_a_step_each_time(start_run: Callable[..., Run]) -> None:
    changes = {**CHANGES, "max_steps": 4}
    expected = start_run("unbroken", **changes).fit()
    assert stopped(start_run(**changes), within=0) == EXIT_PREEMPTED
    for step in (1, 2):
        assert stopped(start_run(resume_step=step, **changes), within=step, resume=True) == EXIT_PREEMPTED
    assert_same(start_run(resume_step=3, **changes).fit(resume=True), expected)


def test_a_run_told_to_stop_in_its_last_step_finishes(start_run: Callable[..., Run]) -> None:
    run = start_run(**CHANGES)
    run.trainer.callbacks.insert(0, _Signal(run.stop, 6, 0))
    run.fit()
    assert run.folder.saved().state["validated_step"] == run.folder.saved().step == 7


@pytest.mark.parametrize(
    ("external", "local_rank", "status"), [(False, 0, 75), (False, 1, 0), (True, 0, 75), (True, 1, 75)]
)
def test_only_a_process_that_lightning_started_hides_its_status(external: bool, local_rank: int, status: int) -> None:
    class Environment:
        creates_processes_externally = external

    class Strategy:
        cluster_environment = Environment()

    class Trainer:
        strategy = Strategy()

    trainer: Any = Trainer()
    trainer.local_rank = local_rank
    with pytest.raises(SystemExit) as end:
        leave(trainer, EXIT_PREEMPTED)
    assert end.value.code == status
