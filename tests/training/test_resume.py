"""A run that is killed and taken up again is the run that was never killed, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_ft.errors import UserError
from musicgen_ft.weights import read_pickle

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers and resuming

Run = Any
"""tests/training/conftest.py's."""


def same(found: Any, expected: Any) -> bool:
    """Whether nested values are equal, tensors bit for bit."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    return bool(found == expected)


def assert_same_runs(found: Run, expected: Run) -> None:
    for name in ("last", "best"):
        ours, theirs = (run.folder.read_checkpoint(name) for run in (found, expected))
        for part in (
            "state_dict",
            "ema",
            "optimizer_states",
            "lr_schedulers",
            "global_step",
            "musicgen_ft",
            "callbacks",
        ):
            assert same(ours.get(part), theirs.get(part)), f"{name}: {part}"
    assert found.rows() == expected.rows()
    assert same(found.module.lm.state_dict(), expected.module.lm.state_dict())


@pytest.fixture
def unbroken(start_run: Callable[..., Run]) -> Callable[..., Run]:
    return lambda **changes: start_run("unbroken", **changes).fit()


@pytest.mark.parametrize(
    ("step", "micro"), [(4, 0), (4, 1), (5, 1)], ids=["between two steps", "inside a step", "inside a later step"]
)
@pytest.mark.parametrize("save_every", [2, 3], ids=["saved where it validates", "saved elsewhere"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    start_run: Callable[..., Run],
    unbroken: Callable[..., Run],
    kill_at: Callable[..., Any],
    step: int,
    micro: int,
    save_every: int,
) -> None:
    changes = {"dropout": 0.1, "cfg_dropout": 0.3, "max_steps": 8, "save_every_steps": save_every}
    expected = unbroken(**changes)
    killed = start_run(**changes)
    with kill_at(killed, step=step, micro=micro):
        killed.fit()
    saved = killed.folder.read_checkpoint("last")["global_step"]
    assert 0 < saved <= step
    resumed = start_run(resume_step=saved, lm_seed=99, **changes)  # its weights come from the checkpoint alone
    assert_same_runs(resumed.fit(resume=True), expected)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_may_be_killed_again_and_again(
    start_run: Callable[..., Run], unbroken: Callable[..., Run], kill_at: Callable[..., Any], optimizer: str
) -> None:
    changes = {"dropout": 0.1, "save_every_steps": 1, "max_steps": 5, "optimizer": optimizer}
    expected = unbroken(**changes)
    run = start_run(**changes)
    with kill_at(run, step=1, micro=1):
        run.fit()
    for step in (2, 3, 4):
        run = start_run(resume_step=step - 1, **changes)
        with kill_at(run, step=step, micro=1):
            run.fit(resume=True)
    assert_same_runs(start_run(resume_step=4, **changes).fit(resume=True), expected)


def test_best_is_not_replaced_by_a_worse_one_after_a_resume(
    start_run: Callable[..., Run], make_shards: Callable[..., Path], kill_at: Callable[..., Any]
) -> None:
    # One clip by heart: the loss on other tracks only rises, so that the first validation is the best of all.
    of = make_shards(train=(12,), valid=(40, 31))
    changes = {"of": of, "lr": 0.02, "max_steps": 24, "save_every_steps": 8, "valid_every_steps": 8, "ema_decay": 0.0}
    killed = start_run(**changes)
    with kill_at(killed, step=9):
        killed.fit()
    resumed = start_run(resume_step=8, **changes).fit(resume=True)
    losses = [float(row["valid/ce"]) for row in resumed.rows() if row["valid/ce"]]
    assert losses[1] < losses[2] < losses[3], "this test needs a validation loss that rises"
    assert read_pickle(resumed.folder.checkpoints / "best.ckpt")["global_step"] == 8


def test_a_resume_with_another_number_of_micro_batches_makes_the_same_steps(
    start_run: Callable[..., Run], kill_at: Callable[..., Any], unbroken: Callable[..., Run]
) -> None:
    expected = unbroken(cfg_dropout=0.0)
    killed = start_run(cfg_dropout=0.0)
    with kill_at(killed, step=4):
        killed.fit()
    resumed = start_run(resume_step=3, cfg_dropout=0.0, micro_batch_size=4).fit(resume=True)
    assert [row["step"] for row in resumed.rows()] == [row["step"] for row in expected.rows()]
    assert resumed.trainer.global_step == 6
    found, losses = ([float(row["train/ce"] or 0) for row in run.rows()] for run in (resumed, expected))
    assert found == pytest.approx(losses, abs=1e-5)


def test_a_resume_with_another_seed_is_refused(start_run: Callable[..., Run], kill_at: Callable[..., Any]) -> None:
    killed = start_run()
    with kill_at(killed, step=4):
        killed.fit()
    with pytest.raises(UserError, match="the data of the run to resume has changed: seed is 5, was 0"):
        start_run(resume_step=3, seed=5).fit(resume=True)


def test_a_resume_without_its_average_is_refused(start_run: Callable[..., Run], kill_at: Callable[..., Any]) -> None:
    killed = start_run()
    with kill_at(killed, step=4):
        killed.fit()
    with pytest.raises(UserError, match="disagree on ema_decay"):
        start_run(resume_step=3, ema_decay=0.0).fit(resume=True)
