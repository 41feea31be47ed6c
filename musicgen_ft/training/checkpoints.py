"""Training checkpoints: written whole or not at all, verified, as many as there is room for."""

import errno
import logging
import pickle
import re
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.devices import is_main_process
from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_path, forget, sync
from musicgen_ft.training import sharded
from musicgen_ft.training.preempt import EXIT_PREEMPTED, StopRequests, leave
from musicgen_ft.weights import read_pickle, write_pickle

logger = logging.getLogger(__name__)

BEST = "best.ckpt"

_STEP = re.compile(r"step-(\d+)\.ckpt")


# ---- files -----------------------------------------------------------------------------------------------------------


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, verifies, renames; reads without unpickling.

    Lightning's own goes through ``$TMPDIR``: killed during the move between two filesystems it leaves a cut file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves a Lightning checkpoint.

        Raises:
            OSError: if the disk is full, or gives other bytes back than it was given.
        """
        with atomic_path(Path(path)) as temporary:
            write_pickle(temporary, checkpoint)
            sync(temporary)
            forget(temporary)
            if reason := damage(temporary):
                raise OSError(errno.EIO, f"the disk gave back other bytes than were written ({reason})", str(path))
            if Path(path).is_dir():  # of a run on more processes before
                sharded.set_aside(Path(path))
        sharded.remove_aside(Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a Lightning checkpoint of tensors and plain values onto the CPU, whole also where it is a folder."""
        return sharded.read(Path(path)) if Path(path).is_dir() else read_pickle(Path(path))


def damage(path: Path) -> str | None:
    """What is wrong with the bytes of a checkpoint, None if nothing is.

    A ``torch.save`` file is a zip archive, with a CRC-32 of every tensor, which torch writes but does not check when it
    reads. Of a folder that several ranks have written, see ``sharded``.
    """
    if path.is_dir():
        return sharded.damage(path)
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                return "it is cut, or holds pickled objects other than tensors, which are never read"
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
        if record is None:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # reads no tensor
    except pickle.UnpicklingError:
        return None  # whole, but of foreign objects: for whoever reads it to refuse
    except Exception as error:  # on damaged bytes zipfile raises whatever comes: struct.error, EOFError, KeyError
        return first_line(error)
    return None if record is None else f"wrong checksum of {record}"


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def step_file(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies: a file, or the folder of a sharded run."""
    return folder / f"step-{step:06d}.ckpt"


def saved_steps(folder: Path) -> dict[int, Path]:
    """Step -> checkpoint, the oldest first, whole or not."""
    found = {int(match[1]): path for path in folder.glob("step-*.ckpt") if (match := _STEP.fullmatch(path.name))}
    return dict(sorted(found.items()))


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is not damaged; None if nothing was saved yet. Damaged ones are passed over, aloud.

    Raises:
        UserError: if all are damaged.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(saved_steps(folder).values()):
        reason = damage(path)
        if reason is not None:
            damaged[path] = reason
            continue
        if is_main_process():
            for passed, why in damaged.items():
                logger.warning(f"{passed} is damaged ({why}): passed over, for {path.name}")
        return path
    if damaged:
        path, reason = next(iter(damaged.items()))
        others = ", as all before it" if len(damaged) > 1 else ""
        raise UserError(f"{path} is damaged ({reason}){others}. Begin a new run.")
    return None


def prune(folder: Path, step: int, *, keep_last: int, milestone_every_steps: int | None) -> None:
    """Removes the checkpoints that are over the budget, after the one of ``step`` was saved.

    Those of later steps are damaged ones that a resume has passed over.
    """
    saved = saved_steps(folder)
    kept = [number for number in saved if number <= step][-keep_last:]
    for number, path in saved.items():
        is_milestone = milestone_every_steps is not None and number % milestone_every_steps == 0 and number <= step
        if number not in kept and not is_milestone:
            sharded.remove(path)


def remove_cut(folder: Path) -> None:
    """Removes what writes left that were killed."""
    sharded.put_back(folder)
    for path in folder.glob(".*.ckpt.tmp-*"):
        sharded.remove(path)


# ---- when ------------------------------------------------------------------------------------------------------------


class SaveCheckpoints(lightning.Callback):
    """``step-N.ckpt`` to resume from, and ``best.ckpt`` by validation loss, to export.

    A step is saved when its number or the clock says so, at the end, and when the run is told to stop, which ends it.
    ``best.ckpt`` holds the weights and their average without the optimizer's state. It is saved after validation, when
    the module has its raw weights back. Where both are due the step waits for the validation: saved before it, a
    resumed run would know nothing of it. Only a run that is told to stop does not wait; resumed, it validates first.
    """

    def __init__(self, folder: Path, config: FinetuneConfig, *, has_valid: bool, stop: StopRequests) -> None:
        """Saves nothing yet.

        Args:
            folder: of the checkpoints.
            config: when, and how many stay.
            has_valid: whether there are tracks to validate on.
            stop: looked at after every step.
        """
        self.folder = folder
        self.config = config
        self.has_valid = has_valid
        self.stop = stop
        self.best_ce = float("inf")
        self.best_step = -1
        self.validated_step = 0
        self._saved_step, self._saved_at = 0, 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Makes up for the validation that a stopped run has not waited for."""
        step = trainer.global_step
        self._saved_step, self._saved_at = step, time.monotonic()
        if trainer.is_global_zero:
            remove_cut(self.folder)
        if validation_is_pending(self.state_dict(), step, self.config, has_valid=self.has_valid):
            validate(trainer)
            self._save_step(trainer)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves when a step that is due has been made; ends the run if it was told to stop.

        Raises:
            SystemExit: on all ranks at the same step, with status 75.
        """
        if (batch_idx + 1) % trainer.accumulate_grad_batches:  # else gradients are half gathered
            return
        step = trainer.global_step
        signum, is_time = highest(trainer, self.stop.signum, int(self._is_time(trainer)))
        is_last = step == self.config.max_steps  # only its validation is left: it is quicker to finish
        if signum and not is_last:
            self._save_step(trainer)
            if trainer.is_global_zero:
                logger.warning(
                    f"{signal.Signals(signum).name}: stopped after step {step}, which is saved. "
                    f"Go on with: musicgen-ft finetune --resume {self.folder.parent}"
                )
            leave(trainer, EXIT_PREEMPTED)
        if not self._validates(step) and (is_time or self._is_due(step)):
            self._save_step(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validates and saves once more, if there was a step since."""
        step = trainer.global_step
        if self.has_valid and self.validated_step != step:
            validate(trainer)
        if self._saved_step != step:
            self._save_step(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves ``best.ckpt`` if the validation loss is the lowest of all after a first step; the step if it is due."""
        step, ce = trainer.global_step, trainer.callback_metrics.get("valid/ce")
        if step == 0:
            return
        self.validated_step = step
        if ce is not None and float(ce) < self.best_ce:
            self.best_ce, self.best_step = float(ce), step
            save(trainer, self.folder / BEST, weights_only=True)
        (is_time,) = highest(trainer, int(self._is_time(trainer)))
        if self._saved_step != step and (is_time or self._is_due(step)):
            self._save_step(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What the best was, and up to where it is known, for the resumed run."""
        return {"best_ce": self.best_ce, "best_step": self.best_step, "validated_step": self.validated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up again."""
        self.best_ce, self.best_step = state_dict["best_ce"], state_dict["best_step"]
        self.validated_step = state_dict["validated_step"]

    def _validates(self, step: int) -> bool:
        return self.has_valid and (is_validated(step, self.config) or step == self.config.max_steps)

    def _is_due(self, step: int) -> bool:
        milestone = self.config.milestone_every_steps
        return step % self.config.save_every_steps == 0 or (milestone is not None and step % milestone == 0)

    def _is_time(self, trainer: lightning.Trainer) -> bool:
        """By the clock of rank zero: the others' may differ."""
        minutes = self.config.save_every_minutes
        age_s = time.monotonic() - self._saved_at
        return trainer.is_global_zero and minutes is not None and age_s >= 60 * minutes

    def _save_step(self, trainer: lightning.Trainer) -> None:
        step = trainer.global_step
        save(trainer, step_file(self.folder, step))
        if trainer.is_global_zero:
            config = self.config
            prune(self.folder, step, keep_last=config.keep_last, milestone_every_steps=config.milestone_every_steps)
        self._saved_step, self._saved_at = step, time.monotonic()


def is_validated(step: int, config: FinetuneConfig) -> bool:
    """Whether a validation follows a step of the schedule."""
    return step % min(config.valid_every_steps, config.max_steps) == 0


def validation_is_pending(state: dict[str, Any], step: int, config: FinetuneConfig, *, has_valid: bool) -> bool:
    """Whether a checkpoint was saved between a step and its validation.

    Args:
        state: of ``SaveCheckpoints.state_dict``.
        step: of the checkpoint.
        config: of the run.
        has_valid: whether there are tracks to validate on.
    """
    return has_valid and step > 0 and is_validated(step, config) and state["validated_step"] != step


def validate(trainer: lightning.Trainer) -> None:
    """A validation between two steps, besides those that Lightning makes by itself."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # else it believes that the checkpoint was saved within one
    trainer.validating = True
    loop.run()
    trainer.training = True


def save(trainer: lightning.Trainer, path: Path, *, weights_only: bool = False) -> None:
    """Saves on all ranks together; where the one that writes fails, none is left waiting.

    Raises:
        OSError: on rank zero, if it could not be written.
        UserError: on rank zero, if the machines share no disk for what every rank writes.
        SystemExit: on the others then, with status 2.
    """
    error: OSError | UserError | None = None
    try:
        trainer.save_checkpoint(path, weights_only=weights_only)
    except (OSError, UserError) as caught:
        error = caught
        trainer.strategy.barrier()  # the one in save_checkpoint, where the others are
    (failed,) = highest(trainer, int(error is not None))
    if error is not None:
        raise error
    if failed:
        leave(trainer, 2)


def highest(trainer: lightning.Trainer, *values: int) -> tuple[int, ...]:
    """The largest that any rank has, of each value."""
    if trainer.world_size == 1:
        return values
    tensor = torch.tensor(values, device=trainer.strategy.root_device)
    return tuple(trainer.strategy.reduce(tensor, reduce_op="max").tolist())
