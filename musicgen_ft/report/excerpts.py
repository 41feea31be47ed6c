"""Excerpts of tracks to listen to: of the audio file, or of what the codec makes of its codes."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from musicgen_ft.audio import AudioError, AudioReader
from musicgen_ft.errors import UserError
from musicgen_ft.report.corpus_figures import ReportTrack
from musicgen_ft.report.corpus_report import Excerpt
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.index import ShardIndex

if TYPE_CHECKING:
    from musicgen_ft.codec import Codec

logger = logging.getLogger(__name__)

Heard = tuple[npt.NDArray[np.float32], int] | None


def of_file(paths: Mapping[str, Path], *, duration_s: float) -> Excerpt:
    """Excerpts from the middle of audio files.

    Args:
        paths: file of each track, by its id.
        duration_s: seconds, at most.
    """

    def excerpt(track: ReportTrack) -> Heard:
        if track.quality is None:
            return None
        start_s = _start_s(track, duration_s)
        reader = AudioReader(paths[track.id], sample_rate=None, channels=None, block_s=1.0)
        blocks: list[npt.NDArray[np.float32]] = []
        try:
            for second, block in enumerate(reader.blocks()):
                if second >= start_s + duration_s:
                    break
                if second >= start_s:
                    blocks.append(block)
        except (AudioError, OSError):
            return None  # it went since it was measured, or ends badly: the page says what is wrong with it
        return (np.concatenate(blocks, axis=1), reader.source_sample_rate) if blocks else None

    return excerpt


def of_codes(index: ShardIndex, places: Mapping[str, tuple[Split, int]], *, duration_s: float) -> Excerpt:
    """Excerpts from the middle of tracks, decoded by the codec that encoded them; none where it cannot be opened.

    Args:
        index: of the shards.
        places: split and number of each track, by its id.
        duration_s: seconds, at most.
    """
    codecs: list[Codec | None] = []

    def excerpt(track: ReportTrack) -> Heard:
        if track.id not in places:
            return None
        if not codecs:
            codecs.append(_codec_of(index))
        if (codec := codecs[0]) is None:
            return None
        import torch

        split, i = places[track.id]
        tracks, frame_rate = index.split(split), codec.spec.frame_rate
        total = int(tracks.num_frames[i])
        length = min(total, round(duration_s * frame_rate))
        start = (total - length) // 2
        codes = torch.from_numpy(tracks.codes(i, start, start + length).astype(np.int64))
        samples: npt.NDArray[np.float32] = codec.decode(codes[None])[0].cpu().numpy()
        return samples, codec.spec.sample_rate

    return excerpt


def _start_s(track: ReportTrack, duration_s: float) -> int:
    assert track.quality is not None
    return track.verdict.start_s + int(max(0.0, track.verdict.duration_s(track.quality) - duration_s) / 2)


def _codec_of(index: ShardIndex) -> "Codec | None":
    from musicgen_ft.checkpoint.base import open_base

    try:
        return open_base(index.manifest.base, channels=index.manifest.codec.channels).codec()
    except UserError as error:
        logger.warning(f"the page has no players: {error}")
        return None
