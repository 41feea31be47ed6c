"""How the next codes are drawn from the model's logits.

B batch, K codebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The rule of drawing, as audiocraft's ``set_generation_params`` has it (spec 6)."""

    top_k: int = 250
    """Only the k most likely codes; 0 takes all."""
    top_p: float = 0.0
    """Only the most likely codes whose mass before them is at most p; above 0 it replaces ``top_k``."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely code always (greedy)."""

    def __post_init__(self) -> None:
        if self.top_k < 0 or not 0.0 <= self.top_p <= 1.0 or self.temperature < 0:
            raise ValueError(f"{self}: expected top_k >= 0, top_p in [0, 1], temperature >= 0")


class SeededNoise:
    """Exponential noise, one stream for each row: a row's draws do not depend on the batch that it stands in."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def exponential(self, num_codebooks: int, card: int) -> Tensor:
        """float32 [B, K, card], on the CPU, so that a seed means the same on every device."""
        return torch.stack([torch.empty(num_codebooks, card).exponential_(generator=g) for g in self._generators])


def draw(logits: Tensor, sampling: Sampling, noise: SeededNoise) -> Tensor:
    """Draws one code for each row and codebook.

    Args:
        logits: float [B, K, card].
        sampling: the rule.
        noise: of B rows; untouched where the rule is greedy.

    Returns:
        int64 [B, K].
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p > 0:
        probabilities = _keep_top_p(probabilities, sampling.top_p)
    elif sampling.top_k > 0:
        probabilities = _keep_top_k(probabilities, sampling.top_k)
    # argmax(p / e) with e exponential is a draw from p; dividing by the sum first would change nothing.
    e = noise.exponential(*logits.shape[1:]).to(logits.device)
    return (probabilities / e).argmax(-1)


def _keep_top_k(probabilities: Tensor, k: int) -> Tensor:
    """Zero below the k-th largest; equal values are kept, as in audiocraft's ``sample_top_k``."""
    threshold = probabilities.topk(min(k, probabilities.shape[-1]), dim=-1).values[..., -1:]
    return probabilities.where(probabilities >= threshold, 0.0)


def _keep_top_p(probabilities: Tensor, p: float) -> Tensor:
    """Zero where the mass before a code exceeds p; the code that crosses p is kept, as in ``sample_top_p``."""
    ordered, indices = probabilities.sort(dim=-1, descending=True)
    ordered = ordered.where(ordered.cumsum(-1) - ordered <= p, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, indices, ordered)
