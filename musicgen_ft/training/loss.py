"""The loss of MusicGen: cross-entropy of each codebook over its own valid frames.

B batch, K codebooks, T frames.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
    """As ``codebook_sums``, of the states before the heads; no more than a chunk's logits are ever held.

    Args:
        states: of ``LanguageModel.states``.
        heads: K of them, from D to card.
        codes: int64 [B, K, T].
        mask: bool [B, K, T].
        chunk_frames: frames whose logits are computed at a time.
    """
    S = states.hidden.shape[1]
    firsts = S * torch.arange(len(codes), device=codes.device)[:, None]  # [B, 1]
    rows_of_hidden = states.hidden.flatten(0, 1)  # [B, S, D] -> [B S, D]
    sums = []
    for k, head in enumerate(heads):
        valid = mask[:, k]
        rows = (firsts + states.steps[k])[valid]  # [N]
        hidden, targets = rows_of_hidden.index_select(0, rows), codes[:, k][valid]  # [N, D], [N]
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        if torch.is_grad_enabled() and (hidden.requires_grad or trained):
            summed: Tensor = _SumWithGradients.apply(head, targets, chunk_frames, hidden, *trained)  # type: ignore[no-untyped-call]
            sums.append(summed)
        else:
            chunks = zip(hidden.split(chunk_frames), targets.split(chunk_frames), strict=True)
            sums.append(torch.stack([_head_sum(head, *chunk) for chunk in chunks]).sum())
    return torch.stack(sums), mask.sum((0, 2)).float()


def _head_sum(head: nn.Module, hidden: Tensor, codes: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float(), codes, reduction="sum")


class _SumWithGradients(torch.autograd.Function):
    """The sum of a head's cross-entropies, its gradients made at once: no logits wait for the backward pass.

    The backward pass then only scales them. It holds what recomputing would hold, and saves its second product with
    the head. In fp16 these gradients are those of an unscaled sum: at most 1 for each frame and entry, at most
    ``chunk_frames`` times a state for a weight, both within its range.
    """

    @staticmethod
    def forward(
        ctx: Any, head: nn.Module, codes: Tensor, chunk_frames: int, hidden: Tensor, *trained: Tensor
    ) -> Tensor:
        wants_hidden = ctx.needs_input_grad[3]
        of_hidden: list[Tensor] = []
        of_trained: list[Tensor] = []
        sums = []
        for part, targets in zip(hidden.split(chunk_frames), codes.split(chunk_frames), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_(wants_hidden)
                summed = _head_sum(head, part, targets)
            sums.append(summed.detach())
            wanted = ([part] if wants_hidden else []) + list(trained)
            found = list(torch.autograd.grad(summed, wanted))
            if wants_hidden:
                of_hidden.append(found.pop(0))
            of_trained = [a.add_(b) for a, b in zip(of_trained, found, strict=True)] if of_trained else found
        ctx.save_for_backward(torch.cat(of_hidden) if wants_hidden else None, *of_trained)
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = ctx.saved_tensors
        return (None, None, None, *(None if found is None else found * grad_outputs[0] for found in gradients))


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
