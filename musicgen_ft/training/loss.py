"""The loss of MusicGen: cross-entropy of each codebook over its own valid frames.

B batch, K codebooks, T frames.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musicgen_ft.model.lm import States


class CodebookLoss(NamedTuple):
    """Cross-entropies in nats."""

    ce: Tensor
    """Scalar: the mean over codebooks."""
    ce_per_codebook: Tensor
    """float [K], detached."""


def codebook_sums(logits: Tensor, codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of cross-entropies and numbers of valid frames, each float32 [K]; see ``codebook_cross_entropy``."""
    if logits.shape[:3] != codes.shape or mask.shape != codes.shape:
        shapes = tuple(logits.shape), tuple(codes.shape), tuple(mask.shape)
        raise ValueError(f"logits {shapes[0]}, codes {shapes[1]} and mask {shapes[2]} do not fit one another")
    sums = []
    for k in range(codes.shape[1]):
        valid = mask[:, k]  # chosen first, so that neither NaN nor the special token reaches the loss
        sums.append(F.cross_entropy(logits[:, k][valid].float(), codes[:, k][valid], reduction="sum"))
    return torch.stack(sums), mask.sum((0, 2)).float()


def state_sums(
    states: States, heads: Iterable[nn.Module], codes: Tensor, mask: Tensor, *, chunk_frames: int = 4096
) -> tuple[Tensor, Tensor]:
    """As ``codebook_sums``, of the states before the heads; in training no more than a chunk's logits are ever held.

    Args:
        states: of ``LanguageModel.states``.
        heads: K of them, from D to card.
        codes: int64 [B, K, T].
        mask: bool [B, K, T].
        chunk_frames: frames whose logits are computed at a time, and again in the backward pass.
    """
    sums = []
    for k, head in enumerate(heads):
        valid = mask[:, k]
        hidden, targets = states.hidden[:, states.steps[k]][valid], codes[:, k][valid]  # [N, D], [N]
        chunks = zip(hidden.split(chunk_frames), targets.split(chunk_frames), strict=True)
        of_chunks = [_chunk_sum(head, *chunk) for chunk in chunks]
        sums.append(torch.stack(of_chunks).sum())
    return torch.stack(sums), mask.sum((0, 2)).float()


def _chunk_sum(head: nn.Module, hidden: Tensor, codes: Tensor) -> Tensor:
    def compute(hidden: Tensor) -> Tensor:
        return F.cross_entropy(head(hidden).float(), codes, reduction="sum")

    summed = checkpoint(compute, hidden, use_reentrant=False) if torch.is_grad_enabled() else compute(hidden)
    assert isinstance(summed, Tensor)
    return summed


def mean_loss(sums: Tensor, counts: Tensor) -> CodebookLoss:
    """The mean over codebooks, each averaged over its own valid frames; one without any counts as 0.

    Args:
        sums: float32 [K], cross-entropies of a micro-batch.
        counts: float32 [K], frames that they are divided by: those of the micro-batch, or its share of a step's.
    """
    ce_per_codebook = sums / counts.where(counts > 0, 1)
    return CodebookLoss(ce_per_codebook.mean(), ce_per_codebook.detach())


def codebook_cross_entropy(logits: Tensor, codes: Tensor, mask: Tensor) -> CodebookLoss:
    """Mean cross-entropy over codebooks, each averaged over its own valid frames.

    Args:
        logits: float [B, K, T, card], aligned with ``codes``; NaN where the delay pattern is invalid.
        codes: int64 [B, K, T], values in [0, card) where the mask is true.
        mask: bool [B, K, T], true where a frame counts: it is no padding, and the pattern predicts it.

    Returns:
        The loss; a codebook without a valid frame counts as 0.

    Raises:
        ValueError: if shapes disagree.

    Source: MusicGen (arXiv:2306.05284); the weighting of audiocraft's ``MusicGenSolver._compute_cross_entropy``.
    """
    return mean_loss(*codebook_sums(logits, codes, mask))
