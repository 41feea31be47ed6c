"""Whether an exported folder plays what was trained: opened by its readers' own loaders, compared on real codes."""

import gc
import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.peers import audiocraft, transformers

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of any logit, in fp32."""


@torch.no_grad()
def check_export(
    folder: Path,
    lm: LanguageModel,
    text_encoder: TextEncoder,
    codes: Tensor,
    description: str,
    *,
    formats: Iterable[str],
) -> dict[str, float]:
    """Compares the folder's logits with the trained model's, by each reader that it is made for.

    Args:
        folder: the exported folder.
        lm: the trained model, in fp32 and ``eval()``.
        text_encoder: its text encoder.
        codes: int64 [1, K, T] of real audio.
        description: its text.
        formats: of ``audiocraft`` and ``transformers``. audiocraft is passed over, aloud, where it is not installed.

    Returns:
        Reader -> largest absolute difference.

    Raises:
        RuntimeError: if one exceeds ``TOLERANCE``.
    """
    T = codes.shape[2]
    expected, mask = lm.predict(codes, text_encoder.encode([description]))
    differences: dict[str, float] = {}
    for reader in formats:
        if reader == "audiocraft" and not audiocraft.is_installed():
            logger.warning(f"audiocraft is not installed: its files were written, but not opened. {audiocraft.INSTALL}")
            continue
        if reader == "audiocraft":
            found, _ = audiocraft.logits(audiocraft.open_generator(folder, text_encoder), codes, [description])
        else:
            sequence = lm.pattern.interleave(codes, lm.config.special_token_id)[:, :, :T]
            opened = transformers.open_generator(folder)
            found = lm.pattern.align_logits(transformers.logits(opened, sequence, [description]))
            del opened
        gc.collect()  # two full-size models need not stand in memory at once
        differences[reader] = float((found - expected)[:, mask].abs().max())
        if not differences[reader] <= TOLERANCE:
            raise RuntimeError(
                f"{reader} opens the export, but its logits differ from the trained model's by "
                f"{differences[reader]:.2e}, expected at most {TOLERANCE:.0e}. Nothing was kept."
            )
    return differences
