"""Whether a clip has the tempo and the key that its prompt asks for, nearly as ``corpus/auto_labels.py`` hears them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from musicgen_ft.corpus.auto_labels import Heard, RhythmAndKey

TOLERANCE = 0.04
"""Relative: what the literature on tempo estimation counts as right."""
MIN_ONSET = 0.1
"""A codec of few bits fills the gaps between strokes: onsets vary by a third of what they did, too little for the label
of a corpus. Here the confidence alone tells a beat from none."""
_OCTAVES = (0.5, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class TempoMatch:
    """How near the heard tempi are to those asked for."""

    clips: int
    """All of them."""
    heard: int
    """Those in which a steady beat is heard."""
    median_error: float | None
    """Of their relative errors, at the octave that is heard; None where nothing is heard."""
    within: float
    """Share of all clips that are within TOLERANCE; one without a beat is not."""
    within_octaves: float
    """The same where half and double the tempo count as right."""


def hear_clip(waveform: npt.NDArray[np.float32], sample_rate: int) -> Heard:
    """Tempo and key of a clip, float32 [C, L]; nothing of silence and of less than 5 s."""
    listener = RhythmAndKey(sample_rate, min_onset=MIN_ONSET)
    listener.push(waveform)
    return listener.finish()


def tempo_error(heard_bpm: float, asked_bpm: float, *, octaves: bool = False) -> float:
    """Relative error of a tempo; with ``octaves`` the smallest of those against half, whole and double."""
    factors = _OCTAVES if octaves else (1.0,)
    return min(abs(heard_bpm / (factor * asked_bpm) - 1) for factor in factors)


def match_tempi(heard: Sequence[float | None], asked: Sequence[float]) -> TempoMatch:
    """Compares N heard tempi with N that were asked for, N at least 1, in beats per minute; None is no beat."""
    pairs = [(found, wanted) for found, wanted in zip(heard, asked, strict=True) if found is not None]
    errors = [tempo_error(*pair) for pair in pairs]
    with_octaves = [tempo_error(*pair, octaves=True) for pair in pairs]
    return TempoMatch(
        clips=len(asked),
        heard=len(pairs),
        median_error=float(np.median(errors)) if errors else None,
        within=sum(error <= TOLERANCE for error in errors) / len(asked),
        within_octaves=sum(error <= TOLERANCE for error in with_octaves) / len(asked),
    )


def within_by_chance(heard: Sequence[float | None], asked: Sequence[float], groups: Sequence[str]) -> float | None:
    """Share that would be within TOLERANCE, allowing octaves, had each clip been played to another prompt of its group.

    Every heard tempo is held against all other prompts of the same group (genre): a model that knows the tempi of a
    genre but does not read the number comes so far. None where no group has two prompts.
    """
    hits = pairs = 0
    for place, found in enumerate(heard):
        others = [asked[other] for other in range(len(asked)) if other != place and groups[other] == groups[place]]
        pairs += len(others)
        if found is not None:
            hits += sum(tempo_error(found, wanted, octaves=True) <= TOLERANCE for wanted in others)
    return hits / pairs if pairs else None
