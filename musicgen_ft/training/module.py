"""The Lightning module that fine-tunes a MusicGen language model.

B batch, K codebooks, T frames.
"""

import logging
import math
import time
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from musicgen_ft.chroma import MelodyStates, training_melody
from musicgen_ft.config import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.model.conditioning import TextEncoder, TextStates
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.shards.batch import Batch
from musicgen_ft.training.ema import EMA, trainable
from musicgen_ft.training.loss import mean_loss, state_sums
from musicgen_ft.training.optim import adamw, warmup_cosine

logger = logging.getLogger(__name__)


class FinetuneModule(lightning.LightningModule):
    """Trains ``lm`` on batches of codes, descriptions and, where it takes them, melodies.

    Only the language model is a submodule: codec and T5 are frozen and in no checkpoint. Everything that is validated
    and exported by default are the averaged weights, where there is an average.
    """

    def __init__(self, lm: LanguageModel, text_encoder: TextEncoder, config: FinetuneConfig) -> None:
        super().__init__()
        self.strict_loading = False  # what is frozen is in no checkpoint: on_load_checkpoint looks for all others
        self.lm = lm
        assert config.recompute != "auto", "resolve the config first"
        lm.set_recompute(config.recompute)
        self.config = config
        self.ema = EMA(lm, config.ema_decay) if config.ema_decay > 0 else None
        self._text_encoder = text_encoder
        self.latest: dict[str, float] = {}
        """Every metric's newest value, on rank zero and all others."""
        self._micro: list[Tensor] = []
        self._keys: list[str] = []
        self._skipped = 0
        self._valid: Tensor | None = None
        self._base_ce: float | None = None
        self._frames, self._since = 0, 0.0

    # ---- training ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch."""
        text = self._text_encoder.encode(batch.descriptions)
        loss = mean_loss(*self._sums(batch, text))
        self._micro.append(torch.cat([loss.ce.detach()[None], loss.ce_per_codebook]))
        self._keys += batch.keys
        self._frames += batch.mask.numel()
        return loss.ce

    def _sums(self, batch: Batch, text: TextStates) -> tuple[Tensor, Tensor]:
        """Sums of cross-entropies and numbers of frames, of each codebook: float32 [K] both."""
        states = self.lm.states(batch.codes, text, self._melody(batch))
        mask = batch.mask[:, None] & states.mask
        return state_sums(states, self.lm.heads, batch.codes, mask, chunk_frames=self.config.loss_chunk_frames)

    def _melody(self, batch: Batch) -> MelodyStates | None:
        """The melodies of a batch, zero where they are dropped; None where the model takes none."""
        if self.lm.config.chroma is None:
            return None
        assert batch.chroma is not None, "a melody model needs shards with chroma"
        return training_melody(batch.chroma, self.lm.config.chroma)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout by the step and the place in its batch, so that a resumed run draws what an unbroken one would.

        With micro-batches of the same size also on another number of devices.
        """
        micro = batch_idx % self.trainer.accumulate_grad_batches
        words = [self.config.seed, self.global_step, micro * self.trainer.world_size + self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]))

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clips, and keeps the norm before clipping."""
        self._grad_norm = torch.nn.utils.clip_grad_norm_(self.lm.parameters(), self.config.max_grad_norm)
        if self.config.on_nonfinite == "skip" and not self._grad_norm.isfinite():
            for parameter in self.lm.parameters():  # the same on all ranks, whose gradients are one mean
                parameter.grad = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step; the average takes the new weights in before any checkpoint can be saved."""
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        super().optimizer_step(*args, **kwargs)
        step = self.global_step + 1  # Lightning counts it afterwards
        if self.ema is not None and step % self.config.ema_every_steps == 0:
            self.ema.update(self.lm)
        self._report_step(step, lr)

    def _report_step(self, step: int, lr: float) -> None:
        """Metrics of the whole step: means over its micro-batches and all ranks."""
        means = torch.stack([*torch.stack(self._micro).mean(0), self._grad_norm.detach()])
        self._micro.clear()
        ce, *per_codebook, grad_norm = self.trainer.strategy.reduce(means, reduce_op="mean").tolist()
        keys, self._keys = self._keys, []
        if not math.isfinite(ce + (0.0 if self.config.precision == "fp16" else grad_norm)):  # fp16 scales by itself
            self._tell_nonfinite(step, ce, grad_norm, keys)
            return
        now = time.perf_counter()
        metrics = {"train/ce": ce} | {f"train/ce_q{k + 1}": value for k, value in enumerate(per_codebook)}
        metrics |= {"train/grad_norm": grad_norm, "train/lr": lr}
        if self._since:  # unknown for the first step of a stretch, which pays for starting up
            metrics["perf/frames_per_s"] = self._frames * self.trainer.world_size / (now - self._since)
        self._frames, self._since = 0, now
        self.latest |= metrics
        if step % self.config.log_every_steps == 0:
            self._report(metrics, step)

    def _tell_nonfinite(self, step: int, ce: float, grad_norm: float, keys: list[str]) -> None:
        """Names the tracks of a step that has no finite loss or gradient.

        Raises:
            UserError: unless such steps are to be skipped.
        """
        found = f"step {step}: the loss is {ce:g}, the gradient's norm {grad_norm:g}"
        tracks = f"this process's tracks were {', '.join(dict.fromkeys(keys))}"
        if self.config.on_nonfinite == "skip":
            self._skipped += 1
            logger.warning(f"{found}: skipped, the {self._skipped}. of this run; {tracks}")
            self._report({"train/skipped": self._skipped}, step)
            return
        raise UserError(
            f"{found}; {tracks}. Lower --lr, train with --precision fp32, or skip such steps with --on_nonfinite skip; "
            f"the last save is {(step - 1) // self.config.save_every_steps * self.config.save_every_steps}."
        )

    def _report(self, metrics: dict[str, float], step: int) -> None:
        # Not self.log: Lightning's counts micro-batches and would log the last one of a step for the whole step.
        self.latest |= metrics
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)

    # ---- validation --------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Averaged weights in."""
        if self._averages():
            assert self.ema is not None
            self.ema.swap(self.lm)
        self._valid = torch.zeros(2, self.lm.config.n_q, device=self.device, dtype=torch.float64)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch's cross-entropies and frames to the sums."""
        assert self._valid is not None
        text = self._text_encoder.encode(batch.descriptions)
        self._valid += torch.stack(self._sums(batch, text))

    def on_validation_epoch_end(self) -> None:
        """Logs the loss over all frames of all ranks; averaged weights out."""
        assert self._valid is not None
        sums, counts = self.trainer.strategy.reduce(self._valid, reduce_op="sum")
        per_codebook = sums / counts.clamp(min=1)
        ce = per_codebook.mean()
        metrics = {"valid/ce": ce.item(), "valid/ppl": ce.exp().item()}
        metrics |= {f"valid/ce_q{k + 1}": value for k, value in enumerate(per_codebook.tolist())}
        self._report(metrics, self.global_step)
        if self.global_step == 0:
            self._base_ce = metrics["valid/ce"]
        self.log("valid/ce", ce.float(), logger=False)  # for callbacks that monitor it
        if self._averages():
            assert self.ema is not None
            self.ema.swap(self.lm)
        self._since = 0.0  # time spent here is no training time

    def _averages(self) -> bool:
        return self.ema is not None and self.ema.count > 0

    # ---- set-up and checkpoints --------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine, moved on at every step."""
        config = self.config
        optimizer = adamw(
            self.lm.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay
        )

        def share(step: int) -> float:
            return warmup_cosine(
                step, warmup_steps=config.warmup_steps, max_steps=config.max_steps, min_ratio=config.lr_min_ratio
            )

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def setup(self, stage: str) -> None:
        """Brings what is no submodule to the device of this rank."""
        device = self.trainer.strategy.root_device
        self._text_encoder.to(device)
        if self.ema is not None:
            self.ema.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what is trained; adds the average, and the losses that a model card tells."""
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name, _ in trainable(self)}
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()
        checkpoint["musicgen_ft"] = {"valid_ce": self.latest.get("valid/ce"), "base_ce": self._base_ce}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the average up again.

        Raises:
            UserError: if the run had one and this configuration does not, or the other way round; if it trained other
                parameters.
        """
        expected, found = {name for name, _ in trainable(self)}, set(checkpoint["state_dict"])
        if expected != found:
            raise UserError(
                f"the checkpoint holds {len(found)} trained tensors, {len(found - expected)} of them unknown here, and "
                f"{len(expected - found)} are missing. Resume with the run's own config."
            )
        if (self.ema is None) != ("ema" not in checkpoint):
            raise UserError("the checkpoint and the config disagree on ema_decay. Resume with the run's own config.")
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint["ema"])
        losses = checkpoint["musicgen_ft"]
        self._base_ce = losses["base_ce"]
        if losses["valid_ce"] is not None:
            self.latest["valid/ce"] = losses["valid_ce"]
