"""How well a model predicts music that it has not made: cross-entropy and perplexity of each codebook.

The figures are those that ``finetune`` logs as ``valid/ce``: the same clips, the same sums.

K codebooks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from musicgen_ft.chroma import training_melody
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.corpus.captions import caption_policy
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.shards.batch import Batch, collate
from musicgen_ft.shards.crops import ValidDataset
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.order import valid_batches
from musicgen_ft.training.loss import state_sums

Told = Callable[[int, int], None]
"""Told how many clips are done, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Of some clips."""

    ce_per_codebook: tuple[float, ...]
    """K means over frames, in nats."""
    num_clips: int
    """Clips."""
    num_frames: int
    """Frames of audio in them."""

    @property
    def ce(self) -> float:
        """Mean over the codebooks, in nats for each code."""
        return math.fsum(self.ce_per_codebook) / len(self.ce_per_codebook)

    @property
    def ppl(self) -> float:
        """Perplexity, the exponential of ``ce``: 1 is certainty, the size of a codebook is knowing nothing."""
        return math.exp(self.ce)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            "ce": self.ce,
            "ppl": self.ppl,
            "ce_per_codebook": list(self.ce_per_codebook),
            "ppl_per_codebook": [math.exp(ce) for ce in self.ce_per_codebook],
            "num_clips": self.num_clips,
            "num_frames": self.num_frames,
        }


def clips_of(index: ShardIndex, split: Split, config: FinetuneConfig) -> ValidDataset:
    """The clips that a run with this config validates on, or as many of another split, spread evenly over it."""
    codec = index.manifest.codec
    return ValidDataset(
        index.split(split),
        segment_frames=max(1, round(config.segment_s * codec.frame_rate)),
        card=codec.card,
        captions=caption_policy(config),
        max_crops=config.valid_max_clips,
    )


def likelihood(
    lm: LanguageModel,
    text_encoder: TextEncoder,
    clips: ValidDataset,
    *,
    batch_size: int,
    dtype: torch.dtype | None = None,
    told: Told | None = None,
) -> Likelihood:
    """Of clips, one pass over them.

    Args:
        lm: on the device that computes, with the ``text_padding`` that it was trained with.
        text_encoder: its T5, on the same device.
        clips: at least one.
        batch_size: clips at once.
        dtype: of matrix products (``training_dtype``); None is the weights' own.
        told: hears of the progress.
    """
    device = lm.out_norm.weight.device
    margin = lm.pattern.num_margin_frames
    sums = torch.zeros(2, lm.config.n_q, dtype=torch.float64)
    num_done, num_frames = 0, 0
    for numbers in valid_batches(num_crops=len(clips), batch=batch_size, rank=0, world=1):
        batch = collate([clips[number] for number in numbers], margin_frames=margin)
        num_frames += int(batch.mask.sum())
        sums += torch.stack(batch_sums(lm, text_encoder, batch.to(device), dtype=dtype)).double().cpu()
        num_done += len(numbers)
        if told is not None:
            told(num_done, len(clips))
    per_codebook = sums[0] / sums[1].clamp(min=1)
    return Likelihood(ce_per_codebook=tuple(per_codebook.tolist()), num_clips=len(clips), num_frames=num_frames)


@torch.no_grad()
def batch_sums(
    lm: LanguageModel, text_encoder: TextEncoder, batch: Batch, *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Sums of cross-entropies and numbers of frames of each codebook, float32 [K] both, as a validation step's."""
    with torch.autocast(batch.codes.device.type, dtype=dtype, enabled=dtype is not None):
        text = text_encoder.encode(batch.descriptions)
        spec = lm.config.chroma
        melody = None if spec is None or batch.chroma is None else training_melody(batch.chroma, spec)
        states = lm.states(batch.codes, text, melody)
        return state_sums(states, lm.heads, batch.codes, batch.mask[:, None] & states.mask)


def training_dtype(config: FinetuneConfig, device: torch.device) -> torch.dtype | None:
    """The half precision that a run with this config validates in on such a device; None where it does not."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
