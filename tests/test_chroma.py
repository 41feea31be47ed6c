from typing import Any

import numpy as np
import pytest
import torch

from musicgen_ft.chroma import (
    DROPPED,
    ChromaSpec,
    ChromaStream,
    chromagram,
    crop_chroma,
    filter_bank,
    generation_melody,
    generation_null,
    training_melody,
    training_null,
)

RELEASED = ChromaSpec()
SMALL = ChromaSpec(sample_rate=800, n_chroma=7, n_fft=64, hop_length=16)


def noise(num_samples: int) -> np.ndarray:
    return np.random.default_rng(num_samples).normal(size=num_samples).astype(np.float32)


@pytest.mark.parametrize(
    ("hertz", "pitch_class"), [(261.63, 0), (293.66, 2), (440.0, 9), (880.0, 9), (493.88, 11), (554.37, 1)]
)
def test_a_tone_is_its_pitch_class_counted_from_c(hertz: float, pitch_class: int) -> None:
    tone = np.sin(2 * np.pi * hertz * np.arange(40_000) / RELEASED.sample_rate).astype(np.float32)

    assert chromagram(tone, RELEASED).tolist() == [pitch_class] * 10


def test_silence_is_pitch_class_0() -> None:
    assert chromagram(np.zeros(333, np.float32), SMALL).tolist() == [0] * 21


@pytest.mark.parametrize(("num_samples", "num_frames"), [(0, 5), (1, 5), (63, 5), (64, 5), (79, 5), (80, 6), (999, 63)])
def test_there_is_a_frame_every_hop_and_a_window_at_least(num_samples: int, num_frames: int) -> None:
    found = chromagram(noise(num_samples), SMALL)

    assert found.dtype == np.uint8
    assert found.shape == (num_frames,)
    assert SMALL.num_frames(num_samples) == num_frames


def test_thirty_seconds_are_235_frames() -> None:
    assert RELEASED.num_frames(30 * 32000) == 235


@pytest.mark.parametrize("size", [1, 17, 64, 1000, 7001])
def test_the_sizes_of_the_pieces_change_no_frame(size: int) -> None:
    samples = noise(7000)  # 438 frames: six groups of 64 and a rest
    stream = ChromaStream(SMALL)

    for start in range(0, len(samples), size):
        stream.push(samples[start : start + size])

    np.testing.assert_array_equal(stream.finish(), chromagram(samples, SMALL))


def test_a_stream_equals_one_spectrum_of_the_whole_track() -> None:
    samples = noise(7000)
    window = torch.hann_window(64)
    spectrum = torch.stft(torch.from_numpy(samples), 64, 16, window=window, return_complex=True).abs().square()

    np.testing.assert_array_equal(chromagram(samples, SMALL), (filter_bank(SMALL) @ spectrum).argmax(0).numpy())


def test_what_a_stream_holds_does_not_grow_with_the_track() -> None:
    stream = ChromaStream(SMALL)
    held = 0

    for _ in range(300):
        stream.push(noise(200))
        held = max(held, stream._num_pending, sum(len(part) for part in stream._pending))

    assert held < 64 + 64 * 16 + 200  # a window, a group of frames, a piece


def test_blocks_are_watched_in_mono_and_passed_on() -> None:
    blocks = [noise(600).reshape(2, 300), noise(202).reshape(2, 101)]
    stream = ChromaStream(SMALL)

    passed = list(stream.watch(blocks))

    assert all(np.array_equal(*pair) for pair in zip(passed, blocks, strict=True))
    np.testing.assert_array_equal(stream.finish(), chromagram(np.concatenate(blocks, axis=1).mean(axis=0), SMALL))


@pytest.mark.parametrize("wrong", [{"n_fft": 65}, {"hop_length": 32}, {"hop_length": 0}, {"n_chroma": 256}])
def test_numbers_that_cannot_be_computed_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected an even n_fft above twice the hop_length"):
        ChromaSpec(**{"sample_rate": 800, "n_chroma": 7, "n_fft": 64, "hop_length": 16, **wrong})


def crop(**changed: Any) -> list[int]:
    settings: dict[str, Any] = {"start": 0, "num_frames": 9, "segment_frames": 9, "hop_length": 10} | changed
    return crop_chroma(np.arange(40, dtype=np.uint8), SMALL, **settings).tolist()


def test_a_crop_begins_at_the_chroma_frame_that_its_first_sample_lies_in() -> None:
    # Frames of codes have 10 samples, those of chroma 16: 9 frames of codes are 5.6 of chroma.
    assert crop() == [0, 1, 2, 3, 4]
    assert crop(start=1) == [0, 1, 2, 3, 4]
    assert crop(start=2) == [1, 2, 3, 4, 5]
    assert crop(start=8) == [5, 6, 7, 8, 9]


def test_padding_of_a_crop_has_no_melody() -> None:
    # 4 frames of codes are 2.5 of chroma: what is begun counts.
    assert crop(start=8, num_frames=4) == [5, 6, 7, DROPPED, DROPPED]
    assert crop(num_frames=1, segment_frames=20) == [0] + [DROPPED] * 11


def test_frames_beyond_the_track_have_no_melody() -> None:
    found = crop_chroma(np.array([3, 4], np.uint8), SMALL, start=0, num_frames=9, segment_frames=9, hop_length=10)

    assert found.tolist() == [3, 4, DROPPED, DROPPED, DROPPED]


def test_thirty_seconds_of_codes_carry_234_chroma_frames() -> None:
    chroma = np.zeros(500, np.uint8)

    found = crop_chroma(chroma, RELEASED, start=77, num_frames=1500, segment_frames=1500, hop_length=640)

    assert found.tolist() == [0] * 234


def test_in_training_a_dropped_frame_is_masked() -> None:
    states = training_melody(torch.tensor([[2, 6, 0], [1, DROPPED, DROPPED]]), SMALL)

    assert states.one_hot.shape == (2, 3, 7)
    assert states.one_hot.dtype == torch.float32
    assert states.one_hot.sum(-1).eq(1).all()
    assert states.one_hot[0].argmax(-1).tolist() == [2, 6, 0]
    assert states.mask.tolist() == [[True] * 3, [True, False, False]]


def test_no_melody_in_training_is_a_window_of_masked_frames() -> None:
    states = training_null(2, RELEASED)

    assert states.one_hot.shape == (2, 5, 12)
    assert states.one_hot.argmax(-1).eq(0).all()
    assert not states.mask.any()


def test_in_generation_a_melody_is_repeated_or_cut_to_the_trained_length() -> None:
    melody = torch.tensor([[5, 6, 1], [4, 2, DROPPED]])

    longer = generation_melody(melody, SMALL, duration_s=0.15)  # 120 samples: 8 frames
    shorter = generation_melody(melody.repeat(1, 3), SMALL, duration_s=0.08)  # 64 samples: 5 frames

    assert longer.one_hot.argmax(-1).tolist() == [[5, 6, 1, 5, 6, 1, 5, 6], [4, 2, 0, 4, 2, 0, 4, 2]]
    assert shorter.one_hot.argmax(-1).tolist() == [[5, 6, 1, 5, 6], [4, 2, 0, 4, 2]]
    assert longer.mask.all()
    assert shorter.mask.all()


def test_no_melody_in_generation_is_pitch_class_0_unmasked() -> None:
    states = generation_null(2, RELEASED, duration_s=30.0)

    assert states.one_hot.shape == (2, 235, 12)
    assert states.one_hot.argmax(-1).eq(0).all()
    assert states.mask.all()
