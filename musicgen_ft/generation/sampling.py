"""How the next codes are drawn from the model's logits.

B batch, K codebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musicgen_ft.model.lm import usual_top_k


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The rule of drawing, as audiocraft's ``set_generation_params`` has it (spec 6)."""

    top_k: int | None = None
    """Only the k most likely codes; 0 takes all; None takes 250 of 2048, and that share of other codebooks."""
    top_p: float = 0.0
    """Only the most likely codes whose mass before them is at most p; above 0 it replaces ``top_k``."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely code always (greedy)."""

    def __post_init__(self) -> None:
        if (self.top_k or 0) < 0 or not 0.0 <= self.top_p <= 1.0 or self.temperature < 0:
            raise ValueError(f"{self}: expected top_k >= 0, top_p in [0, 1], temperature >= 0")

    def k_of(self, card: int) -> int:
        """``top_k`` for codebooks of so many entries; 0 takes all."""
        return usual_top_k(card) if self.top_k is None else self.top_k


class SeededNoise:
    """Exponential noise, one stream for each row: a row's draws do not depend on the batch that it stands in.

    It is made on the CPU, step by step, so that a seed means the same on every device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def exponential(self, num_codebooks: int, card: int) -> Tensor:
        """The next step of all rows: float32 [B, K, card]."""
        noise = torch.empty(len(self._generators), num_codebooks, card)
        self.fill(noise, [True] * len(noise))
        return noise

    def fill(self, noise: Tensor, draws: Sequence[bool]) -> None:
        """Writes the next step into float32 [B, K, card] for the rows that draw; the others' streams stand still.

        Torch's block of several steps would hold other numbers than the steps one by one.
        """
        for row, generator, is_drawn in zip(noise, self._generators, draws, strict=True):
            if is_drawn:
                row.exponential_(generator=generator)


class Rules:
    """The rules of the rows of a batch as tensors on the device, so that rows with other rules are drawn at once."""

    def __init__(self, samplings: Sequence[Sampling], card: int, device: torch.device | str = "cpu") -> None:
        self.greedy = [sampling.temperature == 0 for sampling in samplings]
        self.is_greedy = torch.tensor(self.greedy, device=device)[:, None]  # [B, 1]
        self.temperature = _column([sampling.temperature or 1.0 for sampling in samplings], device)
        self.top_p = _column([sampling.top_p for sampling in samplings], device)
        takes_k = [sampling.k_of(card) if not sampling.top_p else 0 for sampling in samplings]
        self.top_k = _column(takes_k, device)
        self.max_k = max(takes_k)
        self.has_top_p = any(sampling.top_p for sampling in samplings)

    @property
    def needs_noise(self) -> bool:
        """Whether any row is not greedy."""
        return not all(self.greedy)

    def copy_(self, other: "Rules") -> None:
        """Takes the numbers of other rules of the same ``kind`` into these tensors."""
        for name in ("is_greedy", "temperature", "top_p", "top_k"):
            getattr(self, name).copy_(getattr(other, name))
        self.greedy = other.greedy

    @property
    def kind(self) -> tuple[object, ...]:
        """What a recorded step depends on beside the numbers."""
        return (len(self.greedy), any(self.greedy), all(self.greedy), self.max_k, self.has_top_p)

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Draws one code for each row and codebook.

        Args:
            logits: float [B, K, card].
            noise: float32 [B, K, card], exponential; not read where all rows are greedy.

        Returns:
            int64 [B, K].
        """
        if all(self.greedy):
            return logits.argmax(-1)
        probabilities = torch.softmax(logits.float() / self.temperature, dim=-1)
        kept = probabilities
        if self.max_k:
            kept = _keep_top_k(probabilities, self.top_k, self.max_k)
        if self.has_top_p:
            kept = torch.where(self.top_p > 0, _keep_top_p(probabilities, self.top_p), kept)
        # argmax(p / e) with e exponential is a draw from p; dividing by the sum first would change nothing.
        drawn = (kept / noise).argmax(-1)
        return drawn if not any(self.greedy) else torch.where(self.is_greedy, logits.argmax(-1), drawn)


def _column(values: Sequence[float], device: torch.device | str) -> Tensor:
    return torch.tensor(values, device=device)[:, None, None]  # [B, 1, 1]


def _keep_top_k(probabilities: Tensor, k: Tensor, max_k: int) -> Tensor:
    """Zero below the k-th largest; equal values are kept, as in audiocraft's ``sample_top_k``.

    ``k`` is int64 [B, 1, 1], 0 for a row that keeps all.
    """
    B, K, card = probabilities.shape
    ordered = probabilities.topk(min(max_k, card), dim=-1).values
    threshold = ordered.gather(-1, (k - 1).clamp(0, min(max_k, card) - 1).expand(B, K, 1))
    return probabilities.where((k == 0) | (probabilities >= threshold), 0.0)


def _keep_top_p(probabilities: Tensor, p: Tensor | float) -> Tensor:
    """Zero where the mass before a code exceeds p; the code that crosses p is kept, as in ``sample_top_p``."""
    ordered, indices = probabilities.sort(dim=-1, descending=True)
    ordered = ordered.where(ordered.cumsum(-1) - ordered <= p, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, indices, ordered)
