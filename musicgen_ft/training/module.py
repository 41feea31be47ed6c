"""The Lightning module that fine-tunes a MusicGen language model.

B batch, K codebooks, T frames.
"""

import logging
import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from musicgen_ft.chroma import MelodyStates, training_melody
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.model.conditioning import TextEncoder, TextStates
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.shards.batch import Batch
from musicgen_ft.shards.datamodule import ShardDataModule
from musicgen_ft.training.ema import EMA, trainable
from musicgen_ft.training.flops import model_flops_per_frame
from musicgen_ft.training.forgetting import ForgettingProbe
from musicgen_ft.training.fsdp import ShardedRanks, clip_grad_norm
from musicgen_ft.training.loss import CodebookLoss, mean_loss, state_sums
from musicgen_ft.training.matrix_rate import matrix_rate
from musicgen_ft.training.optim import build_optimizer, warmup_cosine
from musicgen_ft.training.throughput import Throughput

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
        # Of a model that is to be shared out, configure_model makes it afterwards.
        self.ema = EMA(lm, config.ema_decay) if config.ema_decay > 0 and config.strategy != "fsdp" else None
        self._text_encoder = text_encoder
        self.latest: dict[str, float] = {}
        """Every metric's newest value, on rank zero and all others."""
        self._micro: list[Tensor] = []
        self._keys: list[str] = []
        self._step_counts = -1, torch.zeros(0)
        self._skipped = 0
        self._valid: Tensor | None = None
        self._base_ce: float | None = None
        self.forgetting: ForgettingProbe | None = None
        self.throughput = Throughput()

    # ---- training ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch: its sums over its share of the whole step's frames.

        So the mean of these losses, and of their gradients, is the loss of the step's clips together, however they are
        dealt to micro-batches and ranks; a mean over each micro-batch's own frames would weigh short clips more.
        """
        num_shares = self.trainer.accumulate_grad_batches * self.trainer.world_size
        loss = self.loss(batch, self._frames_of_step() / num_shares)
        self._micro.append(torch.cat([loss.ce.detach()[None], loss.ce_per_codebook]))
        self._keys += batch.keys
        self.throughput.count(*batch.mask.shape)
        return loss.ce

    def loss(self, batch: Batch, counts: Tensor | None = None) -> CodebookLoss:
        """The loss of a batch, over its own frames or, of each codebook, over ``counts``: float32 [K]."""
        sums, own = self._sums(batch, self._text_encoder.encode(batch.descriptions))
        return mean_loss(sums, own if counts is None else counts)

    def _sums(self, batch: Batch, text: TextStates) -> tuple[Tensor, Tensor]:
        """Sums of cross-entropies and numbers of frames, of each codebook: float32 [K] both."""
        states = self.lm.states(batch.codes, text, self._melody(batch))
        mask = batch.mask[:, None] & states.mask
        return state_sums(states, self.lm.heads, batch.codes, mask, chunk_frames=self.config.loss_chunk_frames)

    def _frames_of_step(self) -> Tensor:
        """Frames that count in this step, of each codebook, over all its micro-batches and ranks: float32 [K]."""
        step, counts = self._step_counts
        if step != self.global_step:
            data: ShardDataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
            num_frames = torch.from_numpy(data.num_frames_of_step(self.global_step))
            up_to = self.lm.pattern.frame_mask(data.segment_frames).cumsum(1)  # [K, T]
            counts = up_to[:, num_frames - 1].sum(1).float().to(self.device)
            self._step_counts = self.global_step, counts
        return counts

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
        self._grad_norm = clip_grad_norm(self.lm.parameters(), self.config.max_grad_norm)
        if self.config.on_nonfinite == "skip" and not self._grad_norm.isfinite():
            for parameter in self.lm.parameters():  # the same on all ranks, whose gradients are one mean
                parameter.grad = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step; the average takes the new weights in before any checkpoint can be saved."""
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        super().optimizer_step(*args, **kwargs)
        self.trainer.optimizers[0].zero_grad()  # Lightning would keep them through the next forward pass
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
        metrics = {"train/ce": ce} | {f"train/ce_q{k + 1}": value for k, value in enumerate(per_codebook)}
        metrics |= {"train/grad_norm": grad_norm, "train/lr": lr}
        trainer: Any = self.trainer
        metrics |= self.throughput.step(
            trainer.strategy, world=trainer.world_size, waited_s=trainer.datamodule.waited_s
        )
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
        if self.has_average:
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
        if self.forgetting is not None:
            metrics |= self.forgetting.metrics(self._loss_of(self.forgetting.batch), is_base=self.global_step == 0)
        if self.global_step == 0:
            self._base_ce = metrics["valid/ce"]
        self._report(metrics, self.global_step)
        self.log("valid/ce", ce.float(), logger=False)  # for callbacks that monitor it
        if self.has_average:
            assert self.ema is not None
            self.ema.swap(self.lm)
        self.throughput.pause()

    def _loss_of(self, batch: Batch) -> float:
        """The loss of a batch outside of Lightning's steps, in their precision."""
        with self.trainer.precision_plugin.val_step_context():
            return mean_loss(*self._sums(batch, self._text_encoder.encode(batch.descriptions))).ce.item()

    @property
    def has_average(self) -> bool:
        """Whether there is an average, and a step in it."""
        return self.ema is not None and self.ema.count > 0

    def averaged(self) -> AbstractContextManager[None]:
        """Averaged weights in the model, where there is an average, while the block lasts."""
        return self.ema.applied(self.lm) if self.ema is not None and self.has_average else nullcontext()

    # ---- set-up and checkpoints --------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine, moved on at every step."""
        config = self.config
        optimizer = build_optimizer(self.lm, config, is_scaled=self.trainer.precision == "16-mixed")

        def share(step: int) -> float:
            return warmup_cosine(
                step, warmup_steps=config.warmup_steps, max_steps=config.max_steps, min_ratio=config.lr_min_ratio
            )

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_model(self) -> None:
        """Shares the model out where the strategy does; so that the average is shared out too, it is made then."""
        strategy, config = self.trainer.strategy, self.config
        if isinstance(strategy, ShardedRanks):
            # Adapters are small, and exact in fp32; the frozen matrices around them are in bf16 anyway. On a CPU no
            # norm takes narrow weights.
            is_bf16 = self.trainer.precision == "bf16-mixed" and strategy.root_device.type == "cuda"
            strategy.shard(self, self.lm, "_sums", bf16=is_bf16 and config.method == "full")
        if self.ema is None and config.ema_decay > 0:
            self.ema = EMA(self.lm, config.ema_decay)
            self.ema.to(strategy.root_device)

    def setup(self, stage: str) -> None:
        """Brings what is no submodule to the device of this rank."""
        device = self.trainer.strategy.root_device
        self._text_encoder.to(device)
        if self.ema is not None:
            self.ema.to(device)
        if self.forgetting is None and self.config.out is not None:
            self.forgetting = ForgettingProbe.of_run(self.config.out, chroma=self.lm.config.chroma, device=device)

    def on_train_start(self) -> None:
        """Measures what the device could do."""
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.trainer.precision, torch.float32)
        rate = matrix_rate(self.trainer.strategy.root_device, dtype)
        self.throughput.begin(flops_per_frame=partial(model_flops_per_frame, self.lm), matrix_rate=rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what is trained; adds the average, and the losses that a model card tells."""
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name, _ in trainable(self)}
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()
        probe, latest = self.forgetting, self.latest
        checkpoint["musicgen_ft"] = {
            "valid_ce": latest.get("valid/ce"),
            "base_ce": self._base_ce,
            "forgetting_ce": latest.get("valid/forgetting_ce"),
            "base_forgetting_ce": None if probe is None else probe.base_ce,
        }

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
        if self.forgetting is not None and losses.get("base_forgetting_ce") is not None:
            self.latest |= self.forgetting.taken_up(losses["base_forgetting_ce"], losses["forgetting_ce"])

    def standing(self) -> str:
        """The newest validation beside the base's: whether the loss is as it should be, in a few words."""
        latest, parts = self.latest, list[str]()
        if "valid/ce" in latest:
            of_base = "" if self._base_ce is None else f" (base {self._base_ce:.3f})"
            parts.append(f"validation loss {latest['valid/ce']:.3f}{of_base}")
        if "valid/forgetting_delta" in latest:
            parts.append(f"forgetting {latest['valid/forgetting_delta']:+.3f}")
        return ", ".join(parts)
