"""A judge of genres for a corpus of the user's: it learns from labelled audio, as it is and as the codec gives it back.

C channels, L samples.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from musicgen_ft.audio import read
from musicgen_ft.codec import Codec, CodecSpec
from musicgen_ft.corpus.scan import scan_corpus
from musicgen_ft.errors import UserError
from musicgen_ft.evaluation.genres import GenreClassifier, train_genre_classifier

CLIPS_OF_A_TRACK = 3
"""At most: more of one track tell little that is new."""
MIN_CLIP_S = 1.0
"""Less tells no genre."""


@dataclass(frozen=True)
class LabelledClip:
    """A clip that the judge learns from."""

    waveform: npt.NDArray[np.float32]
    """float32 [C, L]."""
    genre: str
    """As the corpus says."""


def labelled_clips(corpus: Path, spec: CodecSpec, *, clip_s: float) -> list[LabelledClip]:
    """Clips of the tracks of a corpus that have a genre, one after the other from each track's beginning.

    Args:
        corpus: a labelled folder or a manifest, as ``prepare`` takes it.
        spec: whose sample rate and channels they get.
        clip_s: seconds of each; a shorter track of a second or more is one clip.

    Raises:
        UserError: if the corpus cannot be read, or has clips of fewer than two genres.
    """
    rate = spec.sample_rate
    length = round(max(clip_s, MIN_CLIP_S) * rate)
    found = []
    for record in scan_corpus(corpus):
        if record.problem is not None or record.labels.genre is None:
            continue
        samples = read(record.path, sample_rate=rate, channels=spec.channels)
        starts = range(0, max(1, samples.shape[1] - length + 1), length)
        clips = [samples[:, start : start + length] for start in starts[:CLIPS_OF_A_TRACK]]
        found += [LabelledClip(clip, record.labels.genre) for clip in clips if clip.shape[1] >= MIN_CLIP_S * rate]
    genres = Counter(clip.genre for clip in found)
    if len(genres) < 2:
        told = ", ".join(f"{genre} ({number} clips)" for genre, number in genres.items()) or "none"
        raise UserError(
            f"--judge {corpus}: found {told}, expected tracks of two genres or more. Label them, or leave it out."
        )
    return found


def train_judge(
    clips: Sequence[LabelledClip], codec: Codec, *, progress: Callable[[], object] = lambda: None
) -> GenreClassifier:
    """A judge that has heard each clip twice: models speak through the codec, and the codec's sound is no genre.

    Args:
        clips: of two genres or more.
        codec: that of the models.
        progress: called after each clip.
    """
    waveforms, genres = [], []
    for clip in clips:
        length = clip.waveform.shape[1]
        codes = codec.encode(torch.from_numpy(clip.waveform)[None])
        waveforms += [clip.waveform, codec.decode(codes)[0, :, :length].cpu().numpy()]
        genres += [clip.genre, clip.genre]
        progress()
    return train_genre_classifier(waveforms, genres, sample_rate=codec.spec.sample_rate)
