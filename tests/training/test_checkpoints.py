"""Training checkpoints: whole or not there, verified, within a budget, read without unpickling."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.amp.grad_scaler import GradScaler

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.training import checkpoints
from musicgen_ft.training.checkpoints import (
    BEST,
    AtomicCheckpointIO,
    SaveCheckpoints,
    damage,
    newest_whole,
    prune,
    saved_steps,
    step_file,
    validation_is_pending,
)
from musicgen_ft.training.preempt import StopRequests

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
def test_a_checkpoint_is_saved_every_so_many_steps_and_at_the_end_once_each(
    start_run: Callable[..., Run], saves: list[tuple[str, int]], changes: dict[str, int], expected: list[int]
) -> None:
    start_run(**changes).fit()
    assert [step for name, step in saves if name != BEST] == expected


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
    best, last = (torch.load(run.folder.checkpoint(name), weights_only=True) for name in ("best", "last"))
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
    assert [step for name, step in saves if name != BEST] == []


def validate(callback: SaveCheckpoints, saved: list[int], step: int, ce: float | None) -> None:
    """What Lightning does after a validation."""
    metrics = {} if ce is None else {"valid/ce": torch.tensor(ce)}

    def save(path: Path, weights_only: bool = False) -> None:
        assert weights_only
        saved.append(step)

    trainer: Any = SimpleNamespace(
        callback_metrics=metrics, global_step=step, save_checkpoint=save, world_size=1, is_global_zero=True
    )
    callback.on_validation_end(trainer, pl_module=trainer)


def test_best_only_improves_also_across_a_resume() -> None:
    def begun() -> SaveCheckpoints:
        config = FinetuneConfig(max_steps=99, save_every_steps=1000, valid_every_steps=10)
        return SaveCheckpoints(Path("run"), config, has_valid=True, stop=StopRequests())

    saved: list[int] = []
    callback = begun()
    for step, ce in [(0, 1.0), (10, 5.0), (20, 4.0), (30, 4.5), (40, float("nan")), (50, None)]:
        validate(callback, saved, step, ce)
    assert saved == [10, 20]
    resumed = begun()
    resumed.load_state_dict(callback.state_dict())
    for step, ce in [(60, 4.2), (70, 3.9)]:
        validate(resumed, saved, step, ce)
    assert saved == [10, 20, 70]
    assert resumed.state_dict() == {"best_ce": pytest.approx(3.9), "best_step": 70, "validated_step": 70}


def test_a_checkpoint_is_saved_whenever_the_last_one_is_too_old(
    start_run: Callable[..., Run], saves: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(max_steps=8, save_every_steps=100, save_every_minutes=2.0, valid_every_steps=100)

    class Clock(lightning.Callback):
        """50 s a step."""

        def on_train_start(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
            now = 50.0 * trainer.global_step
            monkeypatch.setattr(time, "monotonic", lambda: now)

        def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
            self.on_train_start(trainer)

    run.trainer.callbacks.insert(0, Clock())
    run.fit()
    # At the end of step s the clock stands at 50 (s - 1).
    assert [step for name, step in saves if name != BEST] == [4, 7, 8]


# ---- the budget on disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [6, 7]),
        ({"keep_last": 1}, [7]),
        ({"keep_last": 3}, [5, 6, 7]),
        ({"milestone_every_steps": 3}, [3, 6, 7]),
        ({"milestone_every_steps": 2, "keep_last": 1, "save_every_steps": 5}, [2, 4, 6, 7]),
        ({"keep_last": 99}, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_the_newest_stay_and_milestones_for_ever(
    start_run: Callable[..., Run], changes: dict[str, int], expected: list[int]
) -> None:
    run = start_run(**{"max_steps": 7, "save_every_steps": 1, **changes}).fit()
    assert list(saved_steps(run.folder.checkpoints)) == expected
    names = {path.name for path in run.folder.checkpoints.iterdir()}
    assert names == {"best.ckpt", *(f"step-{step:06d}.ckpt" for step in expected)}


def test_a_later_checkpoint_that_a_resume_has_passed_over_goes_with_the_next_save(tmp_path: Path) -> None:
    for step in (2, 4, 6, 9):
        step_file(tmp_path, step).touch()
    prune(tmp_path, 6, keep_last=2, milestone_every_steps=3)
    assert list(saved_steps(tmp_path)) == [4, 6]


def test_what_a_killed_write_has_left_is_removed_when_the_run_goes_on(
    start_run: Callable[..., Run], kill_at: Callable[..., Any]
) -> None:
    killed = start_run(save_every_steps=1)
    with kill_at(killed, step=2):
        killed.fit()
    left = killed.folder.checkpoints / ".step-000003.ckpt.tmp-4711"
    left.write_bytes(b"PK half of it")
    start_run(save_every_steps=1, resume_step=1).fit(resume=True)
    assert not left.exists()


# ---- damage ----------------------------------------------------------------------------------------------------------


def content_of(path: Path) -> bytes:
    """All values of a small checkpoint."""
    value = torch.load(path, weights_only=True)
    return repr(value).encode()


def test_a_checkpoint_with_any_bit_turned_is_found_damaged_or_holds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "step-000001.ckpt"
    torch.save({"state_dict": {"a": torch.arange(40.0), "b": torch.ones(3, 2)}, "global_step": 1}, path)
    whole, expected = path.read_bytes(), content_of(path)
    assert damage(path) is None
    found = 0
    for bit in np.random.default_rng(0).choice(8 * len(whole), 600, replace=False):
        turned = bytearray(whole)
        turned[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(turned)
        if damage(path) is None:
            assert content_of(path) == expected, f"bit {bit}"
        else:
            found += 1
    assert found > 100


def test_a_cut_checkpoint_is_found_damaged_wherever_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "step-000001.ckpt"
    torch.save({"state_dict": {"a": torch.arange(400.0)}, "global_step": 1}, path)
    whole = path.read_bytes()
    for length in [0, 1, 2, 30, *range(60, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert damage(path), length


def test_a_damaged_newest_is_passed_over_aloud_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        torch.save({"state_dict": {}, "global_step": step}, step_file(tmp_path, step))
    assert newest_whole(tmp_path) == step_file(tmp_path, 3)
    assert caplog.messages == []
    for step in (2, 3):
        content = step_file(tmp_path, step).read_bytes()
        step_file(tmp_path, step).write_bytes(content[: len(content) // 2])
    assert newest_whole(tmp_path) == step_file(tmp_path, 1)
    first, second = caplog.messages
    assert re.search(r"step-000003\.ckpt is damaged \(.+\): passed over, for step-000001\.ckpt", first)
    assert re.search(r"step-000002\.ckpt is damaged \(.+\): passed over, for step-000001\.ckpt", second)
    step_file(tmp_path, 1).write_bytes(b"")
    with pytest.raises(UserError, match=r"step-000003\.ckpt is damaged .*, as all before it\. Begin a new run"):
        newest_whole(tmp_path)
    assert newest_whole(tmp_path / "nothing") is None


def test_a_disk_that_gives_other_bytes_back_is_found_out_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step-000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(100)}, path)
    before = path.read_bytes()

    def lose_a_page(temporary: Path) -> None:
        content = bytearray(temporary.read_bytes())
        content[-700:-600] = bytes(100)
        temporary.write_bytes(content)

    monkeypatch.setattr(checkpoints, "sync", lose_a_page)
    with pytest.raises(OSError, match=r"gave back other bytes than were written .*step-000001\.ckpt"):
        AtomicCheckpointIO().save_checkpoint({"a": torch.arange(100.0)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


# ---- a validation that a stop came before ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "validated", "has_valid", "pending"),
    [
        (4, 2, True, True),
        (4, 4, True, False),
        (5, 4, True, False),
        (0, 0, True, False),
        (4, 2, False, False),
    ],
)
def test_a_validation_is_pending_where_the_checkpoint_does_not_know_of_it(
    step: int, validated: int, has_valid: bool, pending: bool
) -> None:
    config = FinetuneConfig(max_steps=9, valid_every_steps=2)
    assert validation_is_pending({"validated_step": validated}, step, config, has_valid=has_valid) is pending


# ---- the gradient scaler ---------------------------------------------------------------------------------------------


def test_the_scaler_of_fp16_is_in_the_checkpoint_and_comes_back(
    start_run: Callable[..., Run], kill_at: Callable[..., Any]
) -> None:
    def with_scaler(run: Run) -> Run:
        scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        run.trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
        return run

    killed = with_scaler(start_run(save_every_steps=3))
    with kill_at(killed, step=3, micro=1):
        killed.fit()
    saved = killed.folder.read_checkpoint("last")["MixedPrecision"]
    assert (saved["scale"], saved["_growth_tracker"]) == (2048.0, 1)
    resumed = with_scaler(start_run(save_every_steps=3, resume_step=3)).fit(resume=True)
    assert resumed.folder.read_checkpoint("last")["MixedPrecision"]["scale"] == 8192.0
