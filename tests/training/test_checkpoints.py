"""Training checkpoints: whole or not there, best and last, read without unpickling."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from musicgen_ft.errors import UserError
from musicgen_ft.training.checkpoints import BEST, LAST, AtomicCheckpointIO, BestAndLast

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers

Run = Any
"""tests/training/conftest.py's."""


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "state_dict": {"a": torch.randn(3, 2)},
        "global_step": 7,
        "nested": {"list": [1, None, "x"]},
    }
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "deeper" / "last.ckpt")
    found = AtomicCheckpointIO().load_checkpoint(str(tmp_path / "deeper" / "last.ckpt"))
    assert torch.equal(found["state_dict"]["a"], content["state_dict"]["a"])
    assert (found["global_step"], found["nested"]) == (7, content["nested"])


@pytest.mark.parametrize("error", [OSError("No space left on device"), RuntimeError("killed"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, path)

    def save(_: object, file: Any) -> None:
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(type(error)):
        AtomicCheckpointIO().save_checkpoint({"global_step": 2}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(path) == {"global_step": 1}


def test_a_checkpoint_with_a_foreign_object_is_refused_and_not_executed(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"state_dict": {}, "callbacks": Malicious()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="pickled objects other than tensors"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "executed").exists()


# ---- what a run saves, and when --------------------------------------------------------------------------------------


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Name and step of every checkpoint that is written."""
    seen: list[tuple[str, int]] = []
    save = AtomicCheckpointIO.save_checkpoint

    def spy(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Any, *args: Any, **kwargs: Any) -> None:
        seen.append((Path(path).name, checkpoint["global_step"]))
        save(self, checkpoint, path, *args, **kwargs)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", spy)
    return seen


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"save_every_steps": 3, "valid_every_steps": 2, "max_steps": 7}, [3, 6, 7]),
        ({"save_every_steps": 2, "valid_every_steps": 2, "max_steps": 6}, [2, 4, 6]),
        ({"save_every_steps": 1, "valid_every_steps": 3, "max_steps": 4}, [1, 2, 3, 4]),
        ({"save_every_steps": 100, "valid_every_steps": 100, "max_steps": 3}, [3]),
        ({"save_every_steps": 2, "micro_batch_size": 4, "max_steps": 5}, [2, 4, 5]),
        ({"save_every_steps": 2, "micro_batch_size": 1, "max_steps": 5}, [2, 4, 5]),
    ],
)
def test_last_is_saved_every_so_many_steps_and_at_the_end_once_each(
    start_run: Callable[..., Run], saves: list[tuple[str, int]], changes: dict[str, int], expected: list[int]
) -> None:
    start_run(**changes).fit()
    assert [step for name, step in saves if name == LAST] == expected


def test_best_is_written_after_validations_of_a_trained_model_alone(
    start_run: Callable[..., Run], saves: list[tuple[str, int]]
) -> None:
    run = start_run(lr=3e-3, max_steps=6, valid_every_steps=2).fit()
    losses = [(int(row["step"]), float(row["valid/ce"])) for row in run.rows() if row["valid/ce"]]
    assert [step for step, _ in losses] == [0, 2, 4, 6]
    best, expected = float("inf"), []
    for step, ce in losses[1:]:
        if ce < best:
            best = ce
            expected.append(step)
    assert [step for name, step in saves if name == BEST] == expected


def test_both_files_are_plain_tensors_and_best_holds_no_optimizer(start_run: Callable[..., Run]) -> None:
    run = start_run().fit()
    best, last = (torch.load(run.folder.checkpoints / name, weights_only=True) for name in (BEST, LAST))
    assert last["optimizer_states"]
    assert "optimizer_states" not in best
    for checkpoint in (best, last):
        assert checkpoint["state_dict"].keys() == {f"lm.{name}" for name in run.module.lm.state_dict()}
        assert checkpoint["ema"]["weights"].keys() == dict(run.module.lm.named_parameters()).keys()
        assert checkpoint["musicgen_ft"]["base_ce"] > 0
    raw = {
        name: value
        for name, value in last["state_dict"].items()
        if not torch.equal(value, last["ema"]["weights"][name[3:]])
    }
    assert raw, "raw and averaged weights must differ, and the raw ones be under state_dict"


def test_an_exception_saves_nothing(
    start_run: Callable[..., Run], saves: list[tuple[str, int]], kill_at: Callable[..., Any]
) -> None:
    run = start_run(save_every_steps=4)
    with kill_at(run, step=3):
        run.fit()
    assert [step for name, step in saves if name == LAST] == []


def validate(callback: BestAndLast, saved: list[int], step: int, ce: float | None) -> None:
    """What Lightning does after a validation."""
    metrics = {} if ce is None else {"valid/ce": torch.tensor(ce)}

    def save(path: Path, weights_only: bool = False) -> None:
        assert weights_only
        saved.append(step)

    trainer: Any = SimpleNamespace(callback_metrics=metrics, global_step=step, save_checkpoint=save)
    callback.on_validation_end(trainer, pl_module=trainer)


def test_best_only_improves_also_across_a_resume() -> None:
    saved: list[int] = []
    callback = BestAndLast(Path("run"), every_steps=1000, valid_every_steps=10)
    for step, ce in [(0, 1.0), (10, 5.0), (20, 4.0), (30, 4.5), (40, float("nan")), (50, None)]:
        validate(callback, saved, step, ce)
    assert saved == [10, 20]
    resumed = BestAndLast(Path("run"), every_steps=1000, valid_every_steps=10)
    resumed.load_state_dict(callback.state_dict())
    for step, ce in [(60, 4.2), (70, 3.9)]:
        validate(resumed, saved, step, ce)
    assert saved == [10, 20, 70]
    assert resumed.state_dict() == {"best_ce": pytest.approx(3.9), "best_step": 70}
