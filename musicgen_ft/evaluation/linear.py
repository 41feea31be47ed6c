"""Linear classifiers over the features of clips: fitted in a second, the same each time, and stored in a small file.

N clips.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_ft.errors import UserError
from musicgen_ft.evaluation.clip_features import Floats
from musicgen_ft.files import atomic_path

STRENGTH = 0.1
"""Of the weights against their regularisation (scikit-learn's C): far fewer clips than features are known."""


class LinearClassifier:
    """Logistic regression over standardised features."""

    def __init__(self, features: Floats, labels: Sequence[str]) -> None:
        """Fits.

        Args:
            features: float64 [N, features].
            labels: N of them, at least two different ones.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        pipeline: Any = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=2000))
        pipeline.fit(features, np.array(labels))
        scaler, regression = pipeline[0], pipeline[1]
        weights, bias = regression.coef_ / scaler.scale_, regression.intercept_
        bias = bias - weights @ scaler.mean_
        if len(regression.classes_) == 2:  # which has one row, for the second of them
            weights, bias = np.concatenate([0 * weights, weights]), np.concatenate([0 * bias, bias])
        self._weights: Floats = weights
        self._bias: Floats = bias
        self.classes: tuple[str, ...] = tuple(str(name) for name in regression.classes_)
        """The labels, by the alphabet."""

    @classmethod
    def load(cls, path: Path) -> "LinearClassifier":
        """What ``save`` wrote.

        Raises:
            UserError: if the file is none.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                weights, bias, classes = (file[name] for name in ("weights", "bias", "classes"))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: found no classifier in it ({error}). Make it again.") from error
        found = cls.__new__(cls)
        found._weights, found._bias, found.classes = weights, bias, tuple(map(str, classes))
        return found

    def save(self, path: Path) -> None:
        """Writes weights, bias and labels as numpy's .npz, without a pickle."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, weights=self._weights, bias=self._bias, classes=np.array(self.classes))

    @property
    def num_features(self) -> int:
        """Features of a clip that it takes."""
        return int(self._weights.shape[1])

    def probabilities(self, features: Floats) -> Floats:
        """Of each class for each clip, float64 [N, classes], of features float64 [N, features]."""
        scores = features @ self._weights.T + self._bias
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))

    def predict(self, features: Floats) -> list[str]:
        """The most probable label of each clip, of features float64 [N, features]."""
        return [self.classes[place] for place in self.probabilities(features).argmax(axis=1)]
