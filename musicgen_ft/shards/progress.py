"""Lightning's count of micro-batches, made to fit the run that takes a checkpoint up."""

from typing import Any

import lightning


class MicroBatchProgress(lightning.Callback):
    """Lets a run go on with another number of micro-batches per step: on more or fewer processes, say.

    Lightning 2.6 counts micro-batches and believes the checkpoint's count. Taken up with twice the accumulation, it
    would read half a step too little or too much, and validate at other steps. The optimizer's own count is in steps,
    and right: the others are derived from it.
    """

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Rewrites the loop state that Lightning is about to restore."""
        align_progress(checkpoint, micro_batches=trainer.accumulate_grad_batches)


def align_progress(checkpoint: dict[str, Any], *, micro_batches: int) -> None:
    """Rewrites the batch counts of a Lightning checkpoint that was saved between two optimizer steps.

    Args:
        checkpoint: as Lightning loads it; changed in place.
        micro_batches: micro-batches per step of the run that goes on.
    """
    done = checkpoint["global_step"] * micro_batches
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for count in (progress["total"], progress["current"]):
        lag = count["ready"] - count["completed"]  # 1 when saved in on_train_batch_end, which comes before the count
        count.update(ready=done, started=done, processed=done, completed=done - lag)
