"""Which genre a clip is of, by a judge that has nothing to do with the model: features and logistic regression.

C channels, L samples, N clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from musicgen_ft.errors import UserError
from musicgen_ft.evaluation.clip_features import Floats, clip_features, num_features
from musicgen_ft.evaluation.linear import LinearClassifier


class GenreClassifier:
    """Tells the genre of a clip among those that it was trained on."""

    def __init__(self, features: Floats, genres: Sequence[str]) -> None:
        """Fits.

        Args:
            features: of clips (``clip_features``), float64 [N, features].
            genres: of the clips, at least two different ones.

        Raises:
            UserError: if there is only one genre.
        """
        if len(set(genres)) < 2:
            raise UserError(f"found clips of {len(set(genres))} genre, expected two or more to tell them apart.")
        self._linear = LinearClassifier(features, genres)

    @classmethod
    def load(cls, path: Path) -> "GenreClassifier":
        """What ``save`` wrote.

        Raises:
            UserError: if the file is none, or of other features than are heard here.
        """
        found = cls.__new__(cls)
        found._linear = LinearClassifier.load(path)
        if found._linear.num_features != num_features():
            raise UserError(
                f"{path}: found a judge of {found._linear.num_features} features, expected one of {num_features()}. It "
                "was made by another version; make it again."
            )
        return found

    def save(self, path: Path) -> None:
        """Writes it into one small file."""
        self._linear.save(path)

    @property
    def classes(self) -> tuple[str, ...]:
        """The genres, by the alphabet."""
        return self._linear.classes

    def probabilities(self, waveform: npt.NDArray[np.float32], sample_rate: int) -> Floats:
        """How probable each genre is, float64 [classes], of a clip float32 [L] or [C, L] of 1 s or more."""
        return np.asarray(self._linear.probabilities(clip_features(waveform, sample_rate)[None])[0])

    def predict(self, waveform: npt.NDArray[np.float32], sample_rate: int) -> str:
        """The most probable genre of a clip."""
        return self.classes[int(self.probabilities(waveform, sample_rate).argmax())]

    def predict_features(self, features: Floats) -> list[str]:
        """The most probable genre of each clip, of features float64 [N, features]."""
        return self._linear.predict(features)


@dataclass(frozen=True, kw_only=True)
class GenreMatch:
    """How often clips are heard as the genre that was asked for."""

    clips: int
    """How many."""
    accuracy: float
    """Share that is heard as the genre asked for."""
    per_genre: dict[str, float]
    """The same, of the clips of each genre that was asked for."""
    confusion: dict[str, dict[str, int]]
    """Genre asked for -> genre heard -> clips; what never happened is left out."""


def match_genres(asked: Sequence[str], heard: Sequence[str]) -> GenreMatch:
    """Compares the genres of N prompts with those that were heard, N at least 1; genres keep their first order."""
    confusion: dict[str, dict[str, int]] = {}
    for wanted, found in zip(asked, heard, strict=True):
        row = confusion.setdefault(wanted, {})
        row[found] = row.get(found, 0) + 1
    hits = {genre: row.get(genre, 0) for genre, row in confusion.items()}
    return GenreMatch(
        clips=len(asked),
        accuracy=sum(hits.values()) / len(asked),
        per_genre={genre: hits[genre] / sum(row.values()) for genre, row in confusion.items()},
        confusion=confusion,
    )
