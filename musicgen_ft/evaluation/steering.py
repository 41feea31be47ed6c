"""Whether clips are what their captions say, and whether they have collapsed: all judges together.

C channels, L samples, K codebooks, T frames, N clips.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from musicgen_ft.codec import CodecSpec
from musicgen_ft.evaluation.clip_features import clip_features
from musicgen_ft.evaluation.genres import GenreClassifier, match_genres
from musicgen_ft.evaluation.held_out import Clip
from musicgen_ft.evaluation.lead import LeadClassifier
from musicgen_ft.evaluation.tempo import hear_clip, match_tempi, within_by_chance
from musicgen_ft.generation.collapse import find_loops, measure

CHANCE_OF_KEY = 1 / 24


@dataclass(frozen=True)
class Played:
    """A clip that is to be judged."""

    waveform: npt.NDArray[np.float32]
    """float32 [C, L], at the codec's rate and level."""
    codes: Tensor | None
    """int64 [K, T]; None where it has none: then nothing is said of loops."""


def steering(
    asked: Sequence[Clip], played: Sequence[Played], genres: GenreClassifier, leads: LeadClassifier, spec: CodecSpec
) -> dict[str, Any]:
    """Compares N clips with the captions that they were made for, N at least 1.

    Args:
        asked: whose captions they are.
        played: what was made of them: generated, or the clips themselves.
        genres: the judge of genres.
        leads: the judge of leads.
        spec: of the codec.

    Returns:
        ``genres`` (GenreMatch), ``tempo`` (TempoMatch), ``tempo_of_others`` (see ``within_by_chance``), ``key`` (share
        as asked for), ``lead`` (LeadMatch), ``silent`` and ``looping`` (shares; None without codes), as plain values.
    """
    features = np.stack([clip_features(each.waveform, spec.sample_rate) for each in played])
    heard = [hear_clip(each.waveform, spec.sample_rate) for each in played]
    wanted = [clip.genre for clip in asked]
    tempi, wanted_tempi = [found.bpm for found in heard], [float(clip.labels.bpm) for clip in asked]
    is_key = [found.key == clip.labels.key.lower() for found, clip in zip(heard, asked, strict=True)]
    return {
        "genres": asdict(match_genres(wanted, genres.predict_features(features))),
        "tempo": asdict(match_tempi(tempi, wanted_tempi)),
        "tempo_of_others": within_by_chance(tempi, wanted_tempi, wanted),
        "key": float(np.mean(is_key)),
        "lead": asdict(leads.match(features, wanted, [clip.lead for clip in asked])),
        **_collapse(played, spec),
    }


def _collapse(played: Sequence[Played], spec: CodecSpec) -> dict[str, float | None]:
    """Shares that fall silent, and that repeat their codes exactly."""
    silent, looping = [], []
    for each in played:
        loops = () if each.codes is None else find_loops(each.codes, spec.frame_rate)
        found = measure(each.waveform, spec.sample_rate, loops=loops)
        silent.append(replace(found, loops=()).is_found)
        looping.append(bool(loops))
    has_codes = all(each.codes is not None for each in played)
    return {"silent": float(np.mean(silent)), "looping": float(np.mean(looping)) if has_codes else None}
