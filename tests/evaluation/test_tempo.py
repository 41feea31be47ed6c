"""Claims about tempo errors: relative, with and without octaves, and beside what chance would reach."""

import numpy as np
import numpy.typing as npt
import pytest

from musicgen_ft.corpus.auto_labels import RhythmAndKey
from musicgen_ft.evaluation.tempo import hear_clip, match_tempi, tempo_error, within_by_chance


def test_an_error_is_relative_and_forgives_octaves_where_asked() -> None:
    assert tempo_error(110, 100) == pytest.approx(0.1)
    assert tempo_error(90, 100) == pytest.approx(0.1)
    assert tempo_error(51, 100) == pytest.approx(0.49)
    assert tempo_error(51, 100, octaves=True) == pytest.approx(0.02)
    assert tempo_error(204, 100, octaves=True) == pytest.approx(0.02)
    assert tempo_error(300, 100, octaves=True) == pytest.approx(0.5)


def test_clips_without_a_beat_are_not_within_and_have_no_error() -> None:
    match = match_tempi([103, None, 201, 120], [100, 100, 100, 100])
    assert (match.clips, match.heard) == (4, 3)
    assert match.median_error == pytest.approx(0.2)
    assert match.within == 0.25
    assert match.within_octaves == 0.5
    nothing = match_tempi([None], [90])
    assert (nothing.median_error, nothing.within, nothing.within_octaves) == (None, 0, 0)


def test_chance_holds_every_clip_against_the_other_prompts_of_its_group() -> None:
    heard, asked = [100.0, 120.0, None, 60.0], [100.0, 102.0, 120.0, 100.0]
    # a: 100 against 102 (within) and 120; 120 against 100 and 120 (within); no beat against two; b has one clip only.
    assert within_by_chance(heard, asked, ["a", "a", "a", "b"]) == pytest.approx(2 / 6)
    assert within_by_chance([100.0], [100.0], ["a"]) is None


def clicks(rate: int = 8000) -> npt.NDArray[np.float32]:
    """120 a minute, [1, L]."""
    samples = np.zeros((1, 8 * rate), np.float32)
    click = np.random.default_rng(0).standard_normal(200).astype(np.float32) * np.exp(
        -np.arange(200, dtype=np.float32) / 40
    )
    for start in range(0, samples.shape[1] - 200, rate // 2):
        samples[0, start : start + 200] += click
    return samples


def test_clicks_are_heard_at_their_rate() -> None:
    assert hear_clip(clicks(), 8000).bpm == pytest.approx(120, rel=0.01)
    assert hear_clip(np.zeros((1, 64_000), np.float32), 8000).bpm is None


def test_faint_strokes_in_noise_are_heard_that_would_give_a_corpus_no_label_and_noise_alone_is_not() -> None:
    noise = np.random.default_rng(1).standard_normal((1, 64_000)).astype(np.float32)
    faint = (clicks() + 0.1 * noise).astype(np.float32)
    strict = RhythmAndKey(8000)
    strict.push(faint)
    assert strict.finish().bpm is None
    assert hear_clip(faint, 8000).bpm == pytest.approx(120, rel=0.01)
    assert hear_clip(noise, 8000).bpm is None
