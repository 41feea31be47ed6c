"""Which instrument carries the melody of a clip, among those that its genre may choose: whether captions steer it.

A genre's drums and bass are the same in all its tracks, so that hearing them would only tell the genre once more; the
lead is drawn anew for each track, and is named first in its caption.

N clips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from musicgen_ft.evaluation.clip_features import Floats
from musicgen_ft.evaluation.linear import LinearClassifier


@dataclass(frozen=True, kw_only=True)
class LeadMatch:
    """How often the lead is the instrument that was asked for."""

    clips: int
    """Clips of genres with a choice."""
    accuracy: float | None
    """Share whose lead is heard as asked for; None where there is no clip."""
    chance: float | None
    """What a draw among the instruments of each genre would reach."""


class LeadClassifier:
    """One classifier for each genre that has a choice of leads."""

    def __init__(self, features: Floats, genres: Sequence[str], leads: Sequence[str | None]) -> None:
        """Fits.

        Args:
            features: of clips (``clip_features``), float64 [N, features].
            genres: of the clips.
            leads: their leads; clips without one are passed over.
        """
        places: dict[str, list[int]] = {}
        for place, (genre, lead) in enumerate(zip(genres, leads, strict=True)):
            if lead is not None:
                places.setdefault(genre, []).append(place)
        self._of_genre: Mapping[str, LinearClassifier] = {
            genre: LinearClassifier(features[found], [leads[place] or "" for place in found])
            for genre, found in places.items()
            if len({leads[place] for place in found}) > 1
        }

    def match(self, features: Floats, genres: Sequence[str], leads: Sequence[str | None]) -> LeadMatch:
        """Compares the leads that are heard with those that were asked for; arguments as above."""
        hits, chances = [], []
        for row, genre, lead in zip(features, genres, leads, strict=True):
            if lead is None or genre not in self._of_genre:
                continue
            classifier = self._of_genre[genre]
            hits.append(classifier.predict(row[None])[0] == lead)
            chances.append(1 / len(classifier.classes))
        return LeadMatch(
            clips=len(hits),
            accuracy=float(np.mean(hits)) if hits else None,
            chance=float(np.mean(chances)) if chances else None,
        )
