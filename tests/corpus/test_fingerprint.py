import itertools
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
import soxr

from musicgen_ft.corpus.fingerprint import (
    FRAME_S,
    HASHES_PER_S,
    MIN_HASHES,
    Fingerprint,
    FingerprintStream,
)

Samples = npt.NDArray[np.float32]


def melody(seed: int, *, duration_s: float, rate: int = 22_050, channels: int = 1) -> Samples:
    """Random notes of two voices with harmonics, over a little noise, float32 [C, L]."""
    generator = np.random.default_rng(seed)
    length = round(duration_s * rate)
    samples = generator.normal(0, 1e-3, (channels, length))
    for voice, note_s in ((57, 0.21), (72, 0.34)):
        for start in np.arange(0, duration_s, note_s):
            time_s = np.arange(round(min(0.6, duration_s - start) * rate)) / rate
            frequency = 440 * 2 ** ((voice + generator.integers(12) - 69) / 12)
            note = sum(np.sin(2 * np.pi * frequency * k * time_s) / k for k in range(1, 5)) * np.exp(-5 * time_s)
            begin = round(start * rate)
            samples[:, begin : begin + len(note)] += 0.1 * note[: length - begin]
    return samples.astype(np.float32)


def fingerprint(samples: Samples, rate: int = 22_050, *, cuts: list[int] | None = None) -> Fingerprint:
    stream = FingerprintStream(rate)
    for begin, end in itertools.pairwise([0, *(cuts or []), samples.shape[1]]):
        stream.push(samples[:, begin:end])
    return stream.finish()


def landmarks(print_: Fingerprint, *, shift: int = 0) -> set[tuple[int, int]]:
    return set(zip(print_.hashes.tolist(), (print_.times + shift).tolist(), strict=True))


def test_how_the_blocks_are_cut_does_not_matter() -> None:
    samples = melody(0, duration_s=31.3, rate=44_100, channels=2)
    whole = fingerprint(samples, 44_100)
    cuts = sorted(np.random.default_rng(1).integers(0, samples.shape[1], 40).tolist())
    for other in (sorted([*cuts, cuts[3], cuts[5] + 1, cuts[5] + 2]), list(range(100_000, samples.shape[1], 100_000))):
        pieces = fingerprint(samples, 44_100, cuts=other)
        np.testing.assert_array_equal(pieces.hashes, whole.hashes)
        np.testing.assert_array_equal(pieces.times, whole.times)
    assert len(whole.hashes) == MIN_HASHES


def test_a_fingerprint_is_small_and_in_order_of_time() -> None:
    duration_s = 121.0
    found = fingerprint(melody(2, duration_s=duration_s))
    assert found.hashes.dtype == np.uint32 and found.times.dtype == np.int32
    assert len(found.hashes) == pytest.approx(HASHES_PER_S * duration_s, rel=0.02)
    assert (np.diff(found.times) >= 0).all()
    assert found.times[0] >= 0 and found.times[-1] < duration_s / FRAME_S
    assert len(found.to_text()) < 40 * duration_s
    # Every part of the track has its share of them.
    per_part, _ = np.histogram(found.times, bins=6, range=(0, duration_s / FRAME_S))
    assert per_part.min() > 0.4 * per_part.mean()


def test_a_longer_track_keeps_what_its_part_keeps() -> None:
    """Both keep their smallest hashes: the choice does not depend on what else there is."""
    samples = melody(3, duration_s=130)
    whole, part = fingerprint(samples), fingerprint(samples[:, : 65 * 22_050])
    limit = min(whole.hashes.max(), part.hashes.max())
    mine = {mark for mark in landmarks(part) if mark[0] <= limit and mark[1] < 60 / FRAME_S}
    theirs = {mark for mark in landmarks(whole) if mark[0] <= limit and mark[1] < 60 / FRAME_S}
    assert len(mine) > 250
    assert mine == theirs


def test_neither_the_level_nor_equal_channels_change_it() -> None:
    samples = melody(4, duration_s=20)
    reference = landmarks(fingerprint(samples))
    quiet = fingerprint(samples * np.float32(0.1))
    assert len(landmarks(quiet) & reference) > 0.98 * len(reference)
    assert landmarks(fingerprint(np.repeat(samples, 2, axis=0))) == reference


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 48_000])
def test_another_sample_rate_gives_the_same_landmarks(rate: int) -> None:
    samples = melody(5, duration_s=20)
    reference = landmarks(fingerprint(samples))
    resampled = soxr.resample(samples.T, 22_050, rate).T
    assert len(landmarks(fingerprint(resampled, rate)) & reference) > 0.9 * len(reference)


def test_a_later_start_moves_the_times() -> None:
    samples = melody(6, duration_s=30)
    frames = 25.5
    moved = fingerprint(samples[:, round(frames * FRAME_S * 22_050) :])
    reference = landmarks(fingerprint(samples))
    aligned = landmarks(moved, shift=25) | landmarks(moved, shift=26)
    assert len(aligned & reference) > 0.5 * len(reference)
    assert len(landmarks(moved) & reference) < 0.02 * len(reference)


def test_different_pieces_share_next_to_nothing_at_one_distance() -> None:
    """The same notes in another order, in the same tempo: what they share is here and there."""
    prints = [fingerprint(melody(seed, duration_s=30)) for seed in range(10, 14)]
    for one, other in itertools.combinations(prints, 2):
        same, other_same = np.nonzero(one.hashes[:, None] == other.hashes)
        distances = Counter((one.times[same] - other.times[other_same]).tolist())
        assert distances.most_common(1)[0][1] < 0.03 * MIN_HASHES


@pytest.mark.parametrize("length", [0, 1, 700, 22_050])
def test_silence_and_next_to_nothing_have_an_empty_fingerprint(length: int) -> None:
    found = fingerprint(np.zeros((2, length), np.float32))
    assert len(found.hashes) == len(found.times) == 0
    assert len(Fingerprint.from_text(found.to_text()).hashes) == 0


def test_text_gives_the_fingerprint_back() -> None:
    times = np.array([0, 0, 3, 70_000, 2_000_000_000], np.int32)
    hashes = np.array([2**32 - 1, 0, 7, 2**31, 5], np.uint32)
    text = Fingerprint(hashes, times).to_text()
    assert text.isascii() and text.isprintable() and "\n" not in text
    back = Fingerprint.from_text(text)
    np.testing.assert_array_equal(back.hashes, hashes)
    np.testing.assert_array_equal(back.times, times)
    assert back.hashes.dtype == np.uint32 and back.times.dtype == np.int32


@pytest.mark.parametrize("text", ["", "?", "AAAA", "eJxjAAAAAQAB", "größer"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a fingerprint"):
        Fingerprint.from_text(text)
