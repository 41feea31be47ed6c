"""Linear classifiers: equal to scikit-learn's own pipeline, before and after they are stored."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from musicgen_ft.errors import UserError
from musicgen_ft.evaluation.linear import STRENGTH, LinearClassifier


@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c", "d")])
def test_probabilities_are_scikit_learns_also_when_read_from_a_file(tmp_path: Path, labels: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    given = [labels[place % len(labels)] for place in range(40)]
    features = rng.normal(3.0, 2.0, (40, 7)) + [[labels.index(label) for _ in range(7)] for label in given]
    features[:, 2] = 5.0  # tells nothing
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=2000)).fit(features, given)
    found = LinearClassifier(features, given)
    found.save(tmp_path / "file.npz")
    read = LinearClassifier.load(tmp_path / "file.npz")

    unseen = rng.normal(4.0, 3.0, (11, 7))
    for classifier in (found, read):
        assert classifier.classes == labels
        assert classifier.num_features == 7
        np.testing.assert_allclose(classifier.probabilities(unseen), reference.predict_proba(unseen), atol=1e-9)
        assert classifier.predict(unseen) == list(reference.predict(unseen))


@pytest.mark.parametrize("content", ["text", "pickle", "other"])
def test_what_is_no_classifier_is_refused_and_never_unpickled(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file.npz"
    if content == "text":
        path.write_text("no archive")
    elif content == "pickle":
        np.savez(path, weights=np.array([{}], dtype=object), bias=np.zeros(1), classes=np.array(["a"]))
    else:
        np.savez(path, weights=np.zeros((2, 3)))
    with pytest.raises(UserError, match=r"file\.npz: found no classifier in it"):
        LinearClassifier.load(path)
