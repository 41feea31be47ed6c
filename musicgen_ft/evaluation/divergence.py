"""How differently a classifier hears two sets of clips: Kullback-Leibler divergence of its probabilities.

N clips, C classes.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to what a logarithm is taken of, as audiocraft does: a class that is never heard costs 14 nats, not all."""


class Classifier(Protocol):
    """Whatever tells how probable each class is."""

    @property
    def classes(self) -> tuple[str, ...]:
        """C names."""
        ...

    def probabilities(self, waveform: npt.NDArray[np.float32], sample_rate: int) -> npt.NDArray[np.float64]:
        """Of each class, float64 [C], at least 0 and 1 in sum; of a waveform float32 [channels, samples]."""
        ...


@dataclass(frozen=True, kw_only=True)
class PairwiseKL:
    """Means over pairs of clips, in nats; at least 0 but for EPSILON."""

    from_reference: float
    """KL(reference || generated), which audiocraft calls ``kld``: what of the reference is missed."""
    from_generated: float
    """KL(generated || reference), its ``kld_qp``: what was not asked for."""

    @property
    def both(self) -> float:
        """Their sum, its ``kld_both``."""
        return self.from_reference + self.from_generated


def kl_divergence(generated: Tensor, reference: Tensor) -> Tensor:
    """KL(reference || generated) of each pair, in nats.

    Args:
        generated: float [N, C], probabilities.
        reference: float [N, C], probabilities.

    Returns:
        float64 [N].

    Raises:
        ValueError: if shapes disagree.

    Source: audiocraft's ``metrics.kld.kl_divergence``: ``torch.nn.functional.kl_div(log(generated + 1e-6),
    reference)``, summed over the classes; a class of probability 0 in the reference counts 0.
    """
    if generated.shape != reference.shape or generated.ndim != 2:
        raise ValueError(f"probabilities {tuple(generated.shape)} and {tuple(reference.shape)}: expected equal [N, C]")
    p, q = reference.double(), generated.double()
    return (torch.xlogy(p, p) - p * (q + EPSILON).log()).sum(1)


def pairwise_kl(generated: Tensor, reference: Tensor) -> PairwiseKL:
    """Both directions, means over N pairs of float [N, C]; N at least 1."""
    return PairwiseKL(
        from_reference=kl_divergence(generated, reference).mean().item(),
        from_generated=kl_divergence(reference, generated).mean().item(),
    )
