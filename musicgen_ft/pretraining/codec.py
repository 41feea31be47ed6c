"""Trains an EnCodec from nothing: reconstruction at several spectral windows, no discriminator.

B batch, L samples, T frames, D latent dims.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicgen_ft.audio import read
from musicgen_ft.pretraining.quantizer import QuantizerTraining
from musicgen_ft.pretraining.spectral import MelLoss

_QUIET = 1e-3
"""Mean magnitude below which a clip counts as silence."""


@dataclass(frozen=True, kw_only=True)
class CodecTraining:
    """How the codec is trained."""

    max_steps: int
    """Optimizer steps."""
    batch_size: int = 8
    """Clips of a step."""
    clip_s: float = 1.0
    """Seconds of a clip."""
    lr: float = 1e-3
    """Highest learning rate; after a warmup it falls to 1 % as a cosine."""
    warmup_steps: int = 100
    """Steps of linear warmup."""
    continuous_share: float = 0.1
    """Of the steps, the first: without quantization. Latents that tell nothing yet would share a few entries."""
    waveform_weight: float = 3.0
    """Of the L1 distance between waveforms, as a share of the clip's own L1 norm."""
    spectral_weight: float = 0.3
    """Of the spectral distance. At 1 it came first in tries, and phases, so pitches, were learned much later."""
    commitment_weight: float = 0.25
    """Of the distance between latents and their codebook entries."""
    gain_db: tuple[float, float] = (-12.0, 3.0)
    """Loudness of clips is changed by as much, so that quiet music is coded too."""


class Clips:
    """Random mono clips of audio files that lie in memory as 16-bit samples."""

    def __init__(self, files: Sequence[Path], *, sample_rate: int, progress: Callable[[], object]) -> None:
        """Reads all files, mixed to mono at ``sample_rate`` in Hz; calls ``progress`` after each."""
        self._tracks: list[NDArray[np.int16]] = []
        for path in files:
            samples = read(path, sample_rate=sample_rate, channels=1)[0]
            self._tracks.append(np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16))
            progress()

    def draw(self, rng: np.random.Generator, num_clips: int, length: int) -> Tensor:
        """Clips float32 [num_clips, length] from random places."""
        chosen = []
        for number in rng.integers(len(self._tracks), size=num_clips):
            track = self._tracks[number]
            start = int(rng.integers(max(1, len(track) - length)))
            clip = track[start : start + length]
            chosen.append(np.pad(clip, (0, length - len(clip))))
        return torch.from_numpy(np.stack(chosen).astype(np.float32) / 32767)


def train_codec(
    model: Any, clips: Clips, how: CodecTraining, *, seed: int, report: Callable[[int, dict[str, float]], object]
) -> None:
    """Trains ``model`` in place and rounds it to half precision, as which it is stored.

    Args:
        model: transformers' ``EncodecModel``, mono.
        clips: what it learns from.
        how: the numbers.
        seed: of clips and of entries that are replaced.
        report: called after each step with its number, from 1, and its losses.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model.train().requires_grad_(True)
    quantize = QuantizerTraining(model.quantizer)
    distance = MelLoss(model.config.sampling_rate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=how.lr, betas=(0.8, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, how))
    length = round(how.clip_s * model.config.sampling_rate)
    for step in range(1, how.max_steps + 1):
        gains = torch.from_numpy(10 ** (rng.uniform(*how.gain_db, size=(how.batch_size, 1)) / 20)).float()
        waveform = clips.draw(rng, how.batch_size, length) * gains
        latents = model.encoder(waveform[:, None])
        quantized, commitment = latents, latents.new_zeros(())
        codes: list[Tensor] = []
        if step > how.continuous_share * how.max_steps:
            quantized, commitment, codes = quantize(latents)
        decoded = model.decoder(quantized)[:, 0, :length]
        spectral = distance(decoded, waveform)
        samples = relative_l1(decoded, waveform)
        loss = how.spectral_weight * spectral + how.waveform_weight * samples + how.commitment_weight * commitment
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses = {"spectral": spectral, "waveform": samples, "commitment": commitment}
        values = {name: float(value.detach()) for name, value in losses.items()}
        report(step, values | {f"entries_q{k + 1}": float(len(row.unique())) for k, row in enumerate(codes)})
    model.eval().requires_grad_(False)
    round_to_half(model)


def relative_l1(waveform: Tensor, reference: Tensor) -> Tensor:
    """L1 distance of float32 [B, L], as a share of each reference's L1 norm, mean over clips: 1 for silence.

    So that quiet clips count like loud ones.
    """
    norm = reference.abs().mean(1) + _QUIET
    return ((waveform - reference).abs().mean(1) / norm).mean()


@torch.no_grad()
def round_to_half(model: torch.nn.Module) -> None:
    """Rounds all numbers to those that fp16 holds; they stay fp32, and a file in fp16 loses nothing."""
    for value in (*model.parameters(), *model.buffers()):
        if value.is_floating_point():
            value.copy_(value.half())


def _lr_factor(step: int, how: CodecTraining) -> float:
    if step < how.warmup_steps:
        return (step + 1) / how.warmup_steps
    done = (step - how.warmup_steps) / max(1, how.max_steps - how.warmup_steps)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
