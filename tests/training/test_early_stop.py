"""Runs whose validation loss only rises, and when they end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.training.early_stop import check_early_stop, stopped_early

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers

Run = Any
"""tests/training/conftest.py's."""


@pytest.fixture
def rising(start_run: Callable[..., Run], make_shards: Callable[..., Path]) -> Callable[..., Run]:
    """A function that starts a run on one clip, which it learns by heart: the loss on other tracks only rises."""
    of = make_shards(train=(12,), valid=(40, 31))
    of_all: dict[str, Any] = {"of": of, "lr": 0.02, "max_steps": 24, "ema_decay": 0.0}
    of_all |= {"valid_every_steps": 4, "save_every_steps": 100}

    def start(name: str = "run", **changes: Any) -> Run:
        return start_run(name, **{**of_all, **changes})

    return start


def losses(run: Run) -> dict[int, float]:
    return {int(row["step"]): float(row["valid/ce"]) for row in run.rows() if row["valid/ce"]}


def test_a_run_ends_when_its_validation_loss_has_not_fallen_for_so_long(rising: Callable[..., Run]) -> None:
    unstopped = rising("unstopped").fit()
    run = rising(early_stop_validations=2).fit()

    best = min(losses(unstopped), key=losses(unstopped).__getitem__)
    assert unstopped.trainer.global_step == 24
    assert run.trainer.global_step == best + 8 < 24
    assert losses(run) == {step: ce for step, ce in losses(unstopped).items() if step <= best + 8}
    assert run.folder.read_checkpoint("last")["global_step"] == best + 8  # saved once more at its end
    assert run.folder.read_checkpoint("best")["global_step"] == max(best, 4)  # the base itself is no checkpoint
    (why,) = stopped_early(run.trainer)
    ce = losses(run)[best]
    assert why == f"stopped early: the validation loss has not fallen for 2 validations (best {ce:.3f} at step {best})"
    assert stopped_early(unstopped.trainer) == []


def test_what_it_has_counted_is_taken_up_where_it_was(rising: Callable[..., Run], kill_at: Callable[..., Any]) -> None:
    changes = {"early_stop_validations": 3, "save_every_steps": 3}
    unbroken = rising("unbroken", **changes).fit()
    assert unbroken.trainer.global_step < 24
    killed = rising(**changes)
    with kill_at(killed, step=unbroken.trainer.global_step - 1):
        killed.fit()
    saved = killed.folder.saved()
    assert saved.early_stop["worse"] > 0
    resumed = rising(resume_step=saved.step, **changes).fit(resume=True)

    assert resumed.trainer.global_step == unbroken.trainer.global_step
    assert resumed.rows() == unbroken.rows()
    ours, theirs = (run.folder.read_checkpoint("last")["callbacks"] for run in (resumed, unbroken))
    assert ours == theirs
    assert resumed.folder.saved().early_stop["stopped"]


def test_a_run_that_ends_by_itself_is_not_called_stopped(rising: Callable[..., Run]) -> None:
    run = rising(early_stop_validations=2, max_steps=8).fit()
    assert run.trainer.global_step == 8
    assert run.folder.saved().early_stop["stopped"] is False
    assert stopped_early(run.trainer) == []


def test_without_a_held_out_track_it_is_refused() -> None:
    check_early_stop(FinetuneConfig(), has_valid=False)
    check_early_stop(FinetuneConfig(early_stop_validations=2), has_valid=True)
    with pytest.raises(UserError, match="--early_stop_validations needs a validation loss, found no held-out track"):
        check_early_stop(FinetuneConfig(early_stop_validations=2), has_valid=False)
