"""Clips of the synthesized corpus that no training has seen: other seeds, the same rules.

C channels, L samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from musicgen_ft.synthesis.arrange import GRID_S
from musicgen_ft.synthesis.captions import TrackLabels
from musicgen_ft.synthesis.render import render_track

RENDER_RATE = 44_100
"""Hz; as ``synthesize`` writes its files."""
LEAD_IN = 0.5
"""A clip begins within this share of its length from the track's beginning, on the grid of codes, as crops of longer
tracks do: intros and middles. Of tracks as long as a segment, training has the beginning alone."""
_TRACKS_OF_A_GENRE = 10_000


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip, and what is true of its track."""

    waveform: npt.NDArray[np.float32]
    """float32 [C, L]."""
    labels: TrackLabels
    """Of the whole track; ``description`` is its caption."""

    lead: str | None
    """The instrument of its melody, if it has any."""

    @property
    def genre(self) -> str:
        """Its genre."""
        return self.labels.genre


def render_clips(
    genres: Sequence[str],
    *,
    seed: int,
    clips: int,
    duration_s: float,
    sample_rate: int,
    channels: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> list[Clip]:
    """Clips of as many tracks: genre after genre, the same at every call.

    Args:
        genres: names in ``GENRES``.
        seed: of the corpus that they are of.
        clips: of each genre.
        duration_s: of each clip.
        sample_rate: in Hz; the tracks are made at RENDER_RATE and resampled, as files of a corpus are.
        channels: 1 or 2.
        progress: called after each clip.
    """
    found = []
    for place, genre in enumerate(genres):
        for number in range(clips):
            found.append(_render(genre, seed, place * _TRACKS_OF_A_GENRE + number, duration_s, sample_rate, channels))
            progress()
    return found


def _render(genre: str, seed: int, number: int, duration_s: float, sample_rate: int, channels: int) -> Clip:
    track = render_track(seed, number, genre=genre, duration_s=(1 + LEAD_IN) * duration_s, sample_rate=RENDER_RATE)
    samples = track.waveform.mean(axis=0, keepdims=True) if channels == 1 else track.waveform
    resampled = soxr.resample(samples.T, RENDER_RATE, sample_rate, quality="HQ").T  # [C, L]
    length = round(duration_s * sample_rate)
    frame = round(GRID_S * sample_rate)
    start = frame * int(np.random.default_rng((seed, number)).integers((resampled.shape[1] - length) // frame + 1))
    waveform = np.ascontiguousarray(resampled[:, start : start + length], np.float32)
    lead = next((layer.instrument for layer in track.score.layers if layer.part.role == "lead"), None)
    return Clip(waveform=waveform, labels=track.labels, lead=lead)
