"""The data of a training run, as Lightning asks for it."""

import hashlib
import signal
from collections.abc import Iterable
from functools import partial
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from musicgen_ft.errors import UserError
from musicgen_ft.shards.batch import Crop, collate
from musicgen_ft.shards.crops import CaptionPolicy, CfgDropoutScope, CropDataset, ValidDataset
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.order import PositionBatchSampler, valid_batches


class ShardDataModule(lightning.LightningDataModule):
    """Crops of a shards folder for a run of ``num_steps`` optimizer steps, which is one Lightning epoch.

    The trainer needs ``use_distributed_sampler=False``, ``max_steps=num_steps`` and ``accumulate_grad_batches`` of
    ``micro_batches_per_step``. Lightning counts ``val_check_interval`` in micro-batches: multiply by that, too.
    """

    def __init__(
        self,
        *,
        index: ShardIndex,
        segment_frames: int,
        global_batch: int,
        micro_batch: int,
        num_steps: int,
        seed: int,
        captions: CaptionPolicy,
        cfg_dropout: float = 0.0,
        cfg_dropout_scope: CfgDropoutScope = "sample",
        melody_dropout: float = 0.5,
        num_workers: int = 0,
        valid_max_crops: int = 256,
        margin_frames: int | None = None,
    ) -> None:
        """The data of one run.

        Args:
            index: the shards.
            segment_frames: frames of a crop.
            global_batch: samples of one optimizer step over all processes.
            micro_batch: samples of one forward pass of one process.
            num_steps: optimizer steps of the whole run, with those before a resume.
            seed: of the order, the crops, the texts and the dropout.
            captions: makes the texts.
            cfg_dropout: probability that a text is dropped in training, and the melody with it.
            cfg_dropout_scope: one draw for each sample, or for each optimizer step.
            melody_dropout: probability that the melody is dropped where the text is kept; 0.5 in audiocraft's recipe.
            num_workers: processes that read training crops ahead.
            valid_max_crops: crops of one validation over all processes, at most.
            margin_frames: see ``collate``.
        """
        super().__init__()
        self.index = index
        self._global_batch, self._micro_batch, self._num_steps = global_batch, micro_batch, num_steps
        self._num_workers, self._margin_frames = num_workers, margin_frames
        self.segment_frames = segment_frames
        card = index.manifest.codec.card
        self.train_crops = CropDataset(
            index.split("train"),
            segment_frames=segment_frames,
            card=card,
            captions=captions,
            seed=seed,
            global_batch=global_batch,
            cfg_dropout=cfg_dropout,
            cfg_dropout_scope=cfg_dropout_scope,
            melody_dropout=melody_dropout,
        )
        self.valid_crops = ValidDataset(
            index.split("valid"), segment_frames=segment_frames, card=card, captions=captions, max_crops=valid_max_crops
        )

    def train_dataloader(self) -> DataLoader[Crop]:
        """The micro-batches of this process from the trainer's ``global_step`` on."""
        rank, world = self._place()
        sampler = PositionBatchSampler(
            global_batch=self._global_batch,
            micro_batch=self._micro_batch,
            rank=rank,
            world=world,
            start_step=self.trainer.global_step if self.trainer else 0,
            num_steps=self._num_steps,
            num_frames=self.train_crops.num_frames,
        )
        return self._loader(self.train_crops, sampler, num_workers=self._num_workers)

    def num_frames_of_step(self, step: int) -> npt.NDArray[np.int64]:
        """Frames of audio of all crops of an optimizer step, over all its micro-batches and processes: int64 [G]."""
        return self.train_crops.num_frames(range(step * self._global_batch, (step + 1) * self._global_batch))

    def val_dataloader(self) -> DataLoader[Crop] | list[DataLoader[Crop]]:
        """This process's share of the validation crops; an empty list where no track is for validation."""
        if len(self.valid_crops) == 0:
            return []
        rank, world = self._place()
        batches = valid_batches(num_crops=len(self.valid_crops), batch=self._micro_batch, rank=rank, world=world)
        return self._loader(self.valid_crops, batches, num_workers=0)  # few and cheap: workers would cost more to start

    def state_dict(self) -> dict[str, Any]:
        """What the order of samples depends on; Lightning keeps it in the training checkpoint."""
        digest = hashlib.sha256("".join(shard.sha256 for shard in self.index.manifest.of("train")).encode()).hexdigest()
        return {
            "shards": digest,
            "seed": self.train_crops.order.seed,
            "global batch": self._global_batch,
            "crops per epoch": self.train_crops.num_slots,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses to go on with another order than the checkpoint's.

        Raises:
            UserError: if the shards, the seed, the global batch or the segment length changed.
        """
        now = self.state_dict()
        changed = [f"{name} is {now.get(name)}, was {was}" for name, was in state_dict.items() if now.get(name) != was]
        if changed:
            raise UserError(
                f"the data of the run to resume has changed: {'; '.join(changed)}. "
                "Resume with the shards and settings it began with, or start a new run with its export as --base."
            )

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, crops: Dataset[Crop], batches: Iterable[list[int]], *, num_workers: int) -> DataLoader[Crop]:
        return DataLoader(
            crops,
            batch_sampler=batches,
            collate_fn=partial(collate, margin_frames=self._margin_frames),
            num_workers=num_workers,
            worker_init_fn=_outlive_signals if num_workers else None,
            pin_memory=torch.cuda.is_available(),
        )


def _outlive_signals(worker: int) -> None:
    """A launcher tells a whole job to stop, workers too; the trainer still needs them, and ends them itself."""
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
