"""How much of other music a model has lost: its loss on what its base plays to captions of common genres.

As ``finetune`` watches it (training/forgetting.py); here also of a generator whose run is gone.
"""

from pathlib import Path

import torch

from musicgen_ft.codec import Codec
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.evaluation.likelihood import batch_sums
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.training.forgetting import FORGETTING_FILE, ForgettingProbe, sample_base
from musicgen_ft.training.listening import as_generator
from musicgen_ft.training.loss import mean_loss


def let_base_play(
    lm: LanguageModel, codec: Codec, text_encoder: TextEncoder, folder: Path, config: FinetuneConfig
) -> None:
    """Writes the probe's clips into a folder, unless the config wants none; ``lm`` is afterwards as it was."""
    longest_s = min(config.forgetting_s, config.segment_s, lm.config.max_duration_s)
    num_frames = max(1, int(longest_s * codec.spec.frame_rate))
    if config.forgetting_clips == 0:
        return
    with as_generator(lm, codec, text_encoder, lm.out_norm.weight.device) as generator:
        sample_base(generator, folder / FORGETTING_FILE, num_clips=config.forgetting_clips, num_frames=num_frames)


def forgetting_ce(
    lm: LanguageModel, text_encoder: TextEncoder, folder: Path, *, dtype: torch.dtype | None = None
) -> float | None:
    """Mean cross-entropy of the clips in a folder, in nats; None where there are none.

    Args:
        lm: on the device that computes.
        text_encoder: its T5, there too.
        folder: a run's, or one that ``let_base_play`` has written into.
        dtype: of matrix products; None is the weights' own.
    """
    device = lm.out_norm.weight.device
    probe = ForgettingProbe.of_run(folder, chroma=lm.config.chroma, device=device)
    return None if probe is None else mean_loss(*batch_sums(lm, text_encoder, probe.batch, dtype=dtype)).ce.item()
