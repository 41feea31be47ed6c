"""Claims about the judges of clips: features that know no level, a genre that is told, a lead that is told."""

from collections.abc import Sequence

import numpy as np
import pytest

from musicgen_ft.errors import UserError
from musicgen_ft.evaluation.clip_features import RATE, Floats, clip_features, num_features
from musicgen_ft.evaluation.genres import GenreClassifier, match_genres
from musicgen_ft.evaluation.held_out import Clip, render_clips
from musicgen_ft.evaluation.lead import LeadClassifier

GENRES = ("techno", "waltz", "reggae", "ambient")
SECONDS = 4.0


def clips_of(seed: int, count: int, genres: Sequence[str] = GENRES) -> list[Clip]:
    return render_clips(genres, seed=seed, clips=count, duration_s=SECONDS, sample_rate=RATE)


@pytest.fixture(scope="module")
def training() -> list[Clip]:
    return clips_of(900_100, 5)


@pytest.fixture(scope="module")
def unseen() -> list[Clip]:
    return clips_of(900_101, 3)


@pytest.fixture(scope="module")
def classifier(training: list[Clip]) -> GenreClassifier:
    return GenreClassifier(features_of(training), [clip.genre for clip in training])


def features_of(clips: list[Clip]) -> Floats:
    return np.stack([clip_features(clip.waveform, RATE) for clip in clips])


# ---- features --------------------------------------------------------------------------------------------------------


def test_features_know_no_level_and_average_the_channels(unseen: list[Clip]) -> None:
    waveform = unseen[0].waveform
    features = clip_features(waveform, RATE)
    assert features.shape == (num_features(),)
    assert np.isfinite(features).all()
    np.testing.assert_allclose(clip_features((waveform / 50).astype(np.float32), RATE), features, rtol=0, atol=1e-3)
    np.testing.assert_allclose(clip_features(np.concatenate([waveform, waveform]), RATE), features, atol=1e-6)
    np.testing.assert_allclose(clip_features(waveform[0], RATE), features, atol=1e-6)


def test_features_of_silence_are_0_and_of_noise_are_not() -> None:
    assert not clip_features(np.zeros(RATE, np.float32), RATE).any()
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    assert np.count_nonzero(clip_features(noise, RATE)) > 200


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(UserError, match=r"0\.50 s, expected 1 s or more"):
        clip_features(np.ones(RATE // 2, np.float32), RATE)
    with pytest.raises(UserError, match="not finite"):
        clip_features(np.full(RATE, np.nan, np.float32), RATE)


# ---- clips -----------------------------------------------------------------------------------------------------------


def test_clips_are_a_function_of_their_seed_and_number(unseen: list[Clip]) -> None:
    again = clips_of(900_101, 1)
    assert again[1].labels == unseen[3].labels
    np.testing.assert_array_equal(again[1].waveform, unseen[3].waveform)
    assert [clip.genre for clip in unseen] == [genre for genre in GENRES for _ in range(3)]
    assert {clip.waveform.shape for clip in unseen} == {(1, round(SECONDS * RATE))}
    assert len({clip.labels.description for clip in [*unseen, *clips_of(900_102, 3)]}) == 24


def test_clips_may_be_stereo() -> None:
    (clip,) = render_clips(("folk",), seed=900_103, clips=1, duration_s=1.5, sample_rate=8000, channels=2)
    assert clip.waveform.shape == (2, 12_000)
    assert not np.array_equal(*clip.waveform)


def test_the_lead_is_an_instrument_of_the_caption(unseen: list[Clip]) -> None:
    leads = {clip.genre: clip.lead for clip in unseen}
    assert leads["waltz"] in ("violin", "accordion", "clarinet")
    for clip in unseen:
        assert clip.lead is None or clip.lead in clip.labels.description.lower()


# ---- genres ----------------------------------------------------------------------------------------------------------


def test_genres_of_unseen_clips_are_told(classifier: GenreClassifier, unseen: list[Clip]) -> None:
    assert classifier.classes == tuple(sorted(GENRES))
    heard = [classifier.predict(clip.waveform, RATE) for clip in unseen]
    assert match_genres([clip.genre for clip in unseen], heard).accuracy >= 11 / 12


def test_probabilities_are_those_of_the_prediction(classifier: GenreClassifier, unseen: list[Clip]) -> None:
    probabilities = classifier.probabilities(unseen[0].waveform, RATE)
    assert probabilities.shape == (4,)
    assert probabilities.dtype == np.float64
    assert probabilities.sum() == pytest.approx(1)
    assert classifier.classes[int(probabilities.argmax())] == classifier.predict(unseen[0].waveform, RATE)
    features = np.stack([clip_features(clip.waveform, RATE) for clip in unseen[:2]])
    assert classifier.predict_features(features)[0] == classifier.predict(unseen[0].waveform, RATE)


def test_a_classifier_is_the_same_each_time(training: list[Clip], unseen: list[Clip]) -> None:
    features = np.stack([clip_features(clip.waveform, RATE) for clip in training])
    one, two = (GenreClassifier(features, [clip.genre for clip in training]) for _ in range(2))
    waveform = unseen[5].waveform
    np.testing.assert_array_equal(one.probabilities(waveform, RATE), two.probabilities(waveform, RATE))


def test_one_genre_is_refused(training: list[Clip]) -> None:
    with pytest.raises(UserError, match="found clips of 1 genre, expected two"):
        GenreClassifier(features_of(training[:2]), ["techno"] * 2)


def test_matches_are_counted_by_what_was_asked() -> None:
    match = match_genres(["b", "a", "b", "b"], ["b", "b", "a", "b"])
    assert match.clips == 4
    assert match.accuracy == 0.5
    assert match.per_genre == {"b": pytest.approx(2 / 3), "a": 0.0}
    assert match.confusion == {"b": {"b": 2, "a": 1}, "a": {"b": 1}}
    assert list(match.per_genre) == ["b", "a"]


# ---- leads -----------------------------------------------------------------------------------------------------------


def test_leads_are_told_within_their_genre_and_chance_is_one_of_its_choices() -> None:
    rng = np.random.default_rng(0)
    genres = ["x"] * 20 + ["y"] * 10 + ["z"] * 10
    leads = ["flute", "harp"] * 10 + ["organ"] * 10 + [None] * 10
    features = rng.standard_normal((40, 6))
    features[:20:2, 3] += 8  # the flute
    judge = LeadClassifier(features, genres, leads)

    asked = ["flute", "harp", "flute", "organ", None]
    seen = np.zeros((5, 6))
    seen[:, 3] = [8, 0, 0, 8, 8]
    match = judge.match(seen, ["x", "x", "x", "y", "z"], asked)
    assert match.clips == 3  # y leaves no choice, z has no lead
    assert match.accuracy == pytest.approx(2 / 3)
    assert match.chance == pytest.approx(1 / 2)
    nothing = judge.match(seen[3:], ["y", "z"], asked[3:])
    assert (nothing.clips, nothing.accuracy, nothing.chance) == (0, None, None)
