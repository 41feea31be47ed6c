"""The loss of each codebook with the right caption, with another's, and with none: whether captions tell the model.

B batch, K codebooks, T frames, N clips.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.training.loss import mean_loss, state_sums


@torch.no_grad()
def caption_loss(
    lm: LanguageModel,
    text_encoder: TextEncoder,
    codes: Sequence[Tensor],
    captions: Sequence[str | None],
    *,
    batch_size: int = 8,
) -> list[float]:
    """Cross-entropy of each codebook in nats, [K], over all frames that the pattern predicts.

    Args:
        lm: the language model, in ``eval()``; none that takes melodies.
        text_encoder: its T5.
        codes: int64 [K, T] of each clip, all of one length.
        captions: of each clip; None is the null condition.
        batch_size: clips at once.
    """
    device = lm.out_norm.weight.device
    total = torch.zeros(2, lm.config.n_q, dtype=torch.float64, device=device)
    for start in range(0, len(codes), batch_size):
        batch = torch.stack(list(codes[start : start + batch_size])).to(device)  # [B, K, T]
        states = lm.states(batch, text_encoder.encode(captions[start : start + batch_size]))
        mask = states.mask.expand_as(batch)
        total += torch.stack(state_sums(states, lm.heads, batch, mask))
    return [float(value) for value in mean_loss(total[0], total[1]).ce_per_codebook]
