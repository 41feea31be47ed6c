"""Whether an exported folder plays what was trained: opened by its readers' own loaders, compared on real codes."""

import gc
import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from musicgen_ft.checkpoint.base import build_lm
from musicgen_ft.checkpoint.names import State
from musicgen_ft.chroma import generation_melody
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LMConfig
from musicgen_ft.peers import audiocraft, transformers

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of any logit, in fp32."""


@torch.no_grad()
def check_export(
    folder: Path,
    state: State,
    config: LMConfig,
    text_encoder: TextEncoder,
    codes: Tensor,
    description: str,
    *,
    formats: Iterable[str],
    chroma: Tensor | None = None,
) -> dict[str, float]:
    """Compares the folder's logits with the trained model's, by each reader that it is made for.

    The models are opened one after the other, so that memory holds one of them beside ``state``.

    Args:
        folder: the exported folder.
        state: the trained tensors, as they were written.
        config: their numbers.
        text_encoder: its text encoder.
        codes: int64 [1, K, T] of real audio.
        description: its text.
        formats: of ``audiocraft`` and ``transformers``. audiocraft is passed over, aloud, where it is not installed.
        chroma: int64 [1, F], its melody, for a model that takes one; None is no melody.

    Returns:
        Reader -> largest absolute difference.

    Raises:
        RuntimeError: if one exceeds ``TOLERANCE``.
    """
    T = codes.shape[2]
    melody = None
    if config.chroma is not None:
        chroma = torch.zeros(1, 1, dtype=torch.int64) if chroma is None else chroma  # the null condition
        melody = generation_melody(chroma, config.chroma, duration_s=config.max_duration_s)
    lm = build_lm(config, state, where="the export").eval()
    expected, mask = lm.predict(codes, text_encoder.encode([description]), melody)
    pattern = lm.pattern
    sequence = pattern.interleave(codes, config.special_token_id)[:, :, :T]
    del lm
    differences: dict[str, float] = {}
    for reader in formats:
        if reader == "audiocraft" and not audiocraft.is_installed():
            logger.warning(f"audiocraft is not installed: its files were written, but not opened. {audiocraft.INSTALL}")
            continue
        if reader == "audiocraft":
            found, _ = audiocraft.logits(audiocraft.open_generator(folder, text_encoder), codes, [description], chroma)
        else:
            found = pattern.align_logits(
                transformers.logits(transformers.open_generator(folder), sequence, [description], chroma)
            )
        gc.collect()  # transformers' models refer to themselves
        differences[reader] = float((found - expected)[:, mask].abs().max())
        if not differences[reader] <= TOLERANCE:
            raise RuntimeError(
                f"{reader} opens the export, but its logits differ from the trained model's by "
                f"{differences[reader]:.2e}, expected at most {TOLERANCE:.0e}. Nothing was kept."
            )
    return differences
