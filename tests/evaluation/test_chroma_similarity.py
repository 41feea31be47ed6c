"""Chroma similarity on tunes whose pitch classes are known; equality with audiocraft's metric is in tests/parity."""

import numpy as np
import numpy.typing as npt
import pytest

from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.evaluation.chroma_similarity import chroma_similarity

SPEC = ChromaSpec(sample_rate=16_000, n_fft=4096, hop_length=1024)


def tune(*notes: int, seconds: float = 1.0) -> npt.NDArray[np.float32]:
    """Pure tones, one after the other, as MIDI notes."""
    times = np.arange(round(seconds * SPEC.sample_rate)) / SPEC.sample_rate
    tones = [np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * times) for note in notes]
    return np.concatenate(tones).astype(np.float32)


def test_a_tune_follows_itself_at_any_level_and_in_any_octave() -> None:
    assert chroma_similarity(tune(60, 64), tune(60, 64), SPEC) == 1
    assert chroma_similarity(0.1 * tune(60, 64), tune(60, 64), SPEC) == 1
    assert chroma_similarity(tune(72, 64), tune(60, 76), SPEC) == 1


def test_another_tune_shares_no_pitch_class() -> None:
    assert chroma_similarity(tune(60, 64), tune(61, 65), SPEC) == 0


def test_half_of_a_tune_is_half_of_its_frames() -> None:
    found = chroma_similarity(tune(60, 64), tune(60, 65), SPEC)
    assert found == pytest.approx(0.5, abs=1 / 32)  # 32 frames, one of which lies across both notes


def test_only_frames_within_the_clip_count() -> None:
    """The chromagram has one more, centred behind the end; audiocraft leaves it out."""
    one, other = tune(60, seconds=4096 / 16_000), tune(60, seconds=4096 / 16_000)
    other[:512] = tune(66)[:512]
    found = chroma_similarity(one, other, SPEC)
    assert round(4 * found, 9) == round(4 * found)


@pytest.mark.parametrize(("one", "other"), [(tune(60)[:-1], tune(60)), (tune(60)[:0], tune(60)[:0])])
def test_lengths_that_disagree_are_refused(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="expected equal"):
        chroma_similarity(one, other, SPEC)
