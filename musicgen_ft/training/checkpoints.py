"""Training checkpoints: written whole or not at all, best and last."""

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.plugins.io import TorchCheckpointIO

from musicgen_ft.files import atomic_path
from musicgen_ft.weights import read_pickle, write_pickle

BEST = "best.ckpt"
LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, renames; reads without unpickling.

    Lightning's own goes through ``$TMPDIR``: killed during the move between two filesystems it leaves a cut file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves a Lightning checkpoint."""
        with atomic_path(Path(path)) as temporary:
            write_pickle(temporary, checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a Lightning checkpoint of tensors and plain values onto the CPU."""
        return read_pickle(Path(path))


class BestAndLast(lightning.Callback):
    """``last.ckpt`` every so many steps and at the end, to resume; ``best.ckpt`` by validation loss, to export.

    ``best.ckpt`` holds the weights and their average without the optimizer's state. It is saved after validation, when
    the module has its raw weights back. Where both are due ``last.ckpt`` waits for the validation: saved before it, a
    resumed run would know nothing of it, and could take a worse one for the best.
    """

    def __init__(self, folder: Path, *, every_steps: int, valid_every_steps: int | None) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.valid_every_steps = valid_every_steps
        self.best_ce = float("inf")
        self.best_step = -1
        self._saved_step = -1

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves ``last.ckpt`` when a step that is due has been made."""
        step = trainer.global_step
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0  # else gradients are half gathered
        validates = self.valid_every_steps is not None and step % self.valid_every_steps == 0
        if stepped and not validates and self._is_due(step):
            self._save_last(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves ``last.ckpt`` once more, if there was a step since."""
        if trainer.global_step != self._saved_step and not trainer.interrupted:
            self._save_last(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves ``best.ckpt`` if the validation loss is the lowest of all after a first step; ``last.ckpt`` if due."""
        step, ce = trainer.global_step, trainer.callback_metrics.get("valid/ce")
        if ce is not None and step > 0 and float(ce) < self.best_ce:
            self.best_ce, self.best_step = float(ce), step
            trainer.save_checkpoint(self.folder / BEST, weights_only=True)
        if self._is_due(step):
            self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What the best was, for the resumed run."""
        return {"best_ce": self.best_ce, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up again."""
        self.best_ce, self.best_step = state_dict["best_ce"], state_dict["best_step"]

    def _is_due(self, step: int) -> bool:
        return step > 0 and step % self.every_steps == 0 and step != self._saved_step

    def _save_last(self, trainer: lightning.Trainer) -> None:
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.folder / LAST)
