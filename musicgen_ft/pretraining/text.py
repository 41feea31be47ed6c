"""Trains a T5 encoder from nothing: its states must tell what a caption says of a track.

B batch, N text tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicgen_ft.corpus.captions import CaptionPolicy
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.pretraining.codec import round_to_half


@dataclass(frozen=True, kw_only=True)
class TextTraining:
    """How the text encoder is trained."""

    max_steps: int
    """Optimizer steps."""
    batch_size: int = 64
    """Captions of a step."""
    lr: float = 2e-3
    """Highest learning rate; it falls to zero as a line."""


class _Readout(nn.Module):
    """What is read from the mean of a caption's states: genre, key, tempo, instruments and moods."""

    def __init__(self, dim: int, labels: Sequence[Labels]) -> None:
        super().__init__()
        self._genres = _places(label.genre or "" for label in labels)
        self._keys = _places(label.key or "" for label in labels)
        self._words = _places(word for label in labels for word in _words(label))
        self.genre = nn.Linear(dim, len(self._genres))
        self.key = nn.Linear(dim, len(self._keys))
        self.words = nn.Linear(dim, max(1, len(self._words)))
        self.tempo = nn.Linear(dim, 1)

    def forward(self, means: Tensor, labels: Sequence[Labels]) -> Tensor:
        """The loss, a scalar, of float32 [B, D]."""
        genre = torch.tensor([self._genres[label.genre or ""] for label in labels])
        key = torch.tensor([self._keys[label.key or ""] for label in labels])
        tempo = torch.tensor([float(np.log2((label.bpm or 120) / 100)) for label in labels])
        words = torch.zeros(len(labels), self.words.out_features)
        for row, label in enumerate(labels):
            words[row, [self._words[word] for word in _words(label)]] = 1
        return (
            F.cross_entropy(self.genre(means), genre)
            + F.cross_entropy(self.key(means), key)
            + 10 * F.mse_loss(self.tempo(means)[:, 0], tempo)
            + 5 * F.binary_cross_entropy_with_logits(self.words(means), words)
        )


def train_text_encoder(
    text: TextEncoder,
    labels: Sequence[Labels],
    policy: CaptionPolicy,
    how: TextTraining,
    *,
    seed: int,
    report: Callable[[int, dict[str, float]], object],
) -> None:
    """Trains the encoder of ``text`` in place and rounds it to half precision, as which it is stored.

    Args:
        text: with an untrained encoder.
        labels: of tracks, each with a description.
        policy: how captions are drawn from them.
        how: the numbers.
        seed: of captions and readout.
        report: called after each step with its number, from 1, and its loss.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    encoder: Any = text.encoder
    encoder.train().requires_grad_(True)
    readout = _Readout(text.dim, labels)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *readout.parameters()], lr=how.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1 - step / how.max_steps)
    )
    for step in range(1, how.max_steps + 1):
        drawn = [labels[number] for number in rng.integers(len(labels), size=how.batch_size)]
        ids, mask = text.tokenize([policy.describe(label, rng) for label in drawn])
        states = encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # [B, N, D]
        weights = mask.float()[..., None]
        loss = readout((states * weights).sum(1) / weights.sum(1).clamp(min=1), drawn)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step, {"text": float(loss.detach())})
    encoder.eval().requires_grad_(False)
    round_to_half(encoder)


def _words(label: Labels) -> list[str]:
    instruments = [name.strip() for name in (label.instrument or "").split(",")]
    return [word for word in (*instruments, *label.moods) if word]


def _places(names: Any) -> dict[str, int]:
    return {name: place for place, name in enumerate(sorted(set(names)))}
