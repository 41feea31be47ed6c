"""Captions say what is true, in English."""

import numpy as np
import pytest

from musicgen_ft.synthesis.arrange import compose
from musicgen_ft.synthesis.captions import describe, pace
from musicgen_ft.synthesis.genres import GENRES

EVERY_GENRE = pytest.mark.parametrize("genre", GENRES)


@EVERY_GENRE
@pytest.mark.parametrize("seed", range(8))
def test_a_caption_states_tempo_key_instruments_moods_and_genre(genre: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = compose(GENRES[genre], rng, 10.0)
    labels = describe(score, rng)
    said = labels.description.lower()
    assert f"{score.bpm} bpm" in said
    assert score.key.name in labels.description
    for word in (*score.instruments, *score.moods, score.genre.noun):
        assert word in said
    assert "{" not in said
    assert said.endswith(".")


@EVERY_GENRE
def test_labels_repeat_the_score(genre: str) -> None:
    score = compose(GENRES[genre], np.random.default_rng(0), 10.0)
    labels = describe(score, np.random.default_rng(0))
    assert (labels.genre, labels.bpm, labels.key, labels.moods) == (genre, score.bpm, score.key.name, score.moods)
    assert labels.instrument == ", ".join(score.instruments)
    assert pace(score.bpm) in labels.keywords


def test_captions_vary() -> None:
    score = compose(GENRES["house"], np.random.default_rng(0), 10.0)
    assert len({describe(score, np.random.default_rng(seed)).description for seed in range(40)}) >= 5


def test_a_vowel_takes_an() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        said = describe(compose(GENRES["waltz"], rng, 1.0), rng).description
        assert " a elegant" not in said
        assert not said.startswith("A elegant")
