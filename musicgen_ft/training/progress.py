"""What a run says on the terminal."""

import sys
from typing import Any

import lightning
from tqdm import tqdm

from musicgen_ft.training.module import FinetuneModule


class ProgressBar(lightning.Callback):
    """One bar over the optimizer steps: loss, validation loss, frames per second, time left.

    Where the output is no terminal it prints a line every ``every_steps`` steps instead of drawing.
    """

    def __init__(self, max_steps: int, *, every_steps: int) -> None:
        self._max_steps = max_steps
        self._every_steps = every_steps
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Opens the bar at the step that the run goes on from."""
        if trainer.is_global_zero:
            draws = sys.stderr.isatty()
            self._bar = tqdm(
                total=self._max_steps,
                initial=trainer.global_step,
                desc="finetune",
                unit="step",
                dynamic_ncols=True,
                disable=not draws,
            )

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Moves the bar on after a step."""
        step = trainer.global_step
        assert isinstance(pl_module, FinetuneModule)
        if self._bar is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if not self._bar.disable:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(_summary(pl_module), refresh=False)
        elif step % self._every_steps == 0 or step == self._max_steps:
            print(f"step {step}/{self._max_steps}  {_summary(pl_module)}", file=sys.stderr, flush=True)  # noqa: T201

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leaves the finished bar on the screen."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Leaves the terminal in order."""
        if self._bar is not None:
            self._bar.close()


def _summary(module: FinetuneModule) -> str:
    latest = module.latest
    parts = [f"ce {latest['train/ce']:.3f}"] if "train/ce" in latest else []
    parts += [module.standing()] if "valid/ce" in latest else []
    if "perf/frames_per_s" in latest:
        parts.append(f"{latest['perf/frames_per_s']:.0f} frames/s")
    return "  ".join(parts)
