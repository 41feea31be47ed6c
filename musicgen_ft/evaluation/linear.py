"""Linear classifiers over the features of clips: fitted in a second, the same each time, with nothing to store.

N clips.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from musicgen_ft.evaluation.clip_features import Floats

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

        self._pipeline: Any = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=2000))
        self._pipeline.fit(features, np.array(labels))
        self.classes: tuple[str, ...] = tuple(str(name) for name in self._pipeline.classes_)
        """The labels, by the alphabet."""

    def probabilities(self, features: Floats) -> Floats:
        """Of each class for each clip, float64 [N, classes], of features float64 [N, features]."""
        return np.asarray(self._pipeline.predict_proba(features), np.float64)

    def predict(self, features: Floats) -> list[str]:
        """The most probable label of each clip, of features float64 [N, features]."""
        return [self.classes[place] for place in self.probabilities(features).argmax(axis=1)]
