"""A run that learns nothing more ends before its last step, if that is asked for."""

from typing import Any

import lightning

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.training.checkpoints import highest


class EarlyStop(lightning.Callback):
    """Ends the run when the validation loss has not fallen for so many validations, the base's own being the first.

    Stands before ``SaveCheckpoints``: the checkpoint of a validated step knows what the validation has said.
    """

    def __init__(self, validations: int | None) -> None:
        """Counts from the base on; None only counts."""
        self._validations = validations
        self.best_ce, self.best_step = float("inf"), 0
        self.worse = 0
        """Validations since the best."""
        self.stopped = False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Counts; says stop on all ranks, or on none."""
        ce, step = float(trainer.callback_metrics.get("valid/ce", float("nan"))), trainer.global_step
        if ce < self.best_ce:
            self.best_ce, self.best_step, self.worse = ce, step, 0
        elif step > 0:
            self.worse += 1
        is_worn = self._validations is not None and self.worse >= self._validations
        (is_over,) = highest(trainer, int(is_worn))
        if is_over and step != trainer.max_steps:
            self.stopped = trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """For the resumed run."""
        names = ("best_ce", "best_step", "worse", "stopped")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up again."""
        self.best_ce, self.best_step = state_dict["best_ce"], state_dict["best_step"]
        self.worse, self.stopped = state_dict["worse"], state_dict["stopped"]


def reason(state: dict[str, Any]) -> str:
    """Why a run has stopped, by the state of its ``EarlyStop``, for the last line."""
    return (
        f"stopped early: the validation loss has not fallen for {state['worse']} validations "
        f"(best {state['best_ce']:.3f} at step {state['best_step']})"
    )


def stopped_early(trainer: lightning.Trainer) -> list[str]:
    """The reason, if this run has just stopped for it."""
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    return [reason(found.state_dict()) for found in callbacks if isinstance(found, EarlyStop) and found.stopped]


def check_early_stop(config: FinetuneConfig, *, has_valid: bool) -> None:
    """Refuses to wait for validations that never come.

    Raises:
        UserError: if there is no held-out track.
    """
    if config.early_stop_validations is not None and not has_valid:
        raise UserError(
            "--early_stop_validations needs a validation loss, found no held-out track in the shards. "
            "Prepare them with --valid_fraction 0.1, or leave it out."
        )
