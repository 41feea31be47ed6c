"""Training checkpoints: written whole or not at all, best and last."""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from musicgen_ft.files import atomic_path
from musicgen_ft.weights import read_pickle

BEST = "best.ckpt"
LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, renames; reads without unpickling.

    Lightning's own goes through ``$TMPDIR``: killed during the move between two filesystems it leaves a cut file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves a Lightning checkpoint."""
        with atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a Lightning checkpoint of tensors and plain values onto the CPU."""
        return read_pickle(Path(path))


class BestAndLast(lightning.Callback):
    """``last.ckpt`` every so many steps and at the end, to resume; ``best.ckpt`` by validation loss, to export.

    ``best.ckpt`` holds the weights and their average without the optimizer's state. It is saved after validation, when
    the module has its raw weights back.
    """

    def __init__(self, folder: Path, *, every_steps: int) -> None:
        self.folder = folder
        self.every_steps = every_steps
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
        if stepped and step % self.every_steps == 0 and step != self._saved_step:
            self._save_last(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves ``last.ckpt`` once more, if there was a step since."""
        if trainer.global_step != self._saved_step and not trainer.interrupted:
            self._save_last(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves ``best.ckpt`` if the validation loss is the lowest of all after a first step."""
        ce = trainer.callback_metrics.get("valid/ce")
        if ce is None or trainer.global_step == 0 or not float(ce) < self.best_ce:
            return
        self.best_ce, self.best_step = float(ce), trainer.global_step
        trainer.save_checkpoint(self.folder / BEST, weights_only=True)

    def state_dict(self) -> dict[str, Any]:
        """What the best was, for the resumed run."""
        return {"best_ce": self.best_ce, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up again."""
        self.best_ce, self.best_step = state_dict["best_ce"], state_dict["best_step"]

    def _save_last(self, trainer: lightning.Trainer) -> None:
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.folder / LAST)
