"""Whether an exported folder plays what was trained: opened by its readers' own loaders, compared on real codes."""

import gc
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from musicgen_ft.checkpoint import audiocraft_format, transformers_format
from musicgen_ft.checkpoint.base import stream_lm
from musicgen_ft.chroma import generation_melody
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LMConfig
from musicgen_ft.peers import audiocraft, transformers
from musicgen_ft.weights import from_files, like_of

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of any logit in fp32; as a share of the largest logit where that is above 1, as rounding is."""


@torch.no_grad()
def check_export(
    folder: Path,
    state: Mapping[str, Tensor],
    config: LMConfig,
    text_encoder: TextEncoder,
    codes: Tensor,
    description: str,
    *,
    formats: Collection[str],
    chroma: Tensor | None = None,
) -> dict[str, float]:
    """Compares the folder with the trained model: its tensors, and its logits by each reader that it is made for.

    The logits are computed in fp32, whatever the dtype of the files, by one model after the other, each of which has
    one layer in memory at a time.

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
        Reader -> largest absolute difference of a logit.

    Raises:
        RuntimeError: if one exceeds what ``TOLERANCE`` allows, or a tensor was not written as it is.
    """
    T = codes.shape[2]
    melody = None
    if config.chroma is not None:
        chroma = torch.zeros(1, 1, dtype=torch.int64) if chroma is None else chroma  # the null condition
        melody = generation_melody(chroma, config.chroma, duration_s=config.max_duration_s)
    lm = stream_lm(config, state, where="the export")
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
            generator = audiocraft.open_generator(folder, text_encoder, mapped=True)
            found, _ = audiocraft.logits(generator, codes, [description], chroma)
        else:
            generator = transformers.open_generator(folder, layers_dtype=_dtype_of(state))
            found = pattern.align_logits(transformers.logits(generator, sequence, [description], chroma))
        del generator
        gc.collect()  # transformers' models refer to themselves
        differences[reader] = float((found - expected)[:, mask].abs().max())
        most = TOLERANCE * max(1.0, float(expected[:, mask].abs().max()))
        if not differences[reader] <= most:
            raise RuntimeError(
                f"{reader} opens the export, but its logits differ from the trained model's by "
                f"{differences[reader]:.2e}, expected at most {most:.2e}. Nothing was kept."
            )
    for format in formats:
        _check_tensors(folder, state, config, format)
    return differences


def _check_tensors(folder: Path, state: Mapping[str, Tensor], config: LMConfig, format: str) -> None:
    """Reads back what was written, bit by bit: fifty frames of codes touch few rows of the embeddings."""

    def read() -> Mapping[str, Tensor]:
        if format == "transformers":
            return transformers_format.read_lm(folder, config)
        return audiocraft_format.read_lm(audiocraft_format.Package(folder / audiocraft_format.LM_FILE), config)

    written = from_files(read)
    for name in state:
        found, expected = written[name], state[name]
        if found.dtype != expected.dtype or not torch.equal(_bits(found), _bits(expected)):
            raise RuntimeError(f"the export for {format} does not hold {name} as it is. Nothing was kept.")


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, so that what is not a number equals itself."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of all tensors; fp32 where they differ, which holds them all."""
    dtypes = {value.dtype for value in like_of(state).values()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32
