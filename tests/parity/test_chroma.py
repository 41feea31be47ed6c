"""The melody's chroma is that of both peers: every frame of it, equal."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from audiocraft.modules.chroma import ChromaExtractor
from audiocraft.modules.conditioners import ChromaStemConditioner, WavCondition, WaveformConditioner
from transformers import MusicgenMelodyFeatureExtractor

from musicgen_ft.chroma import (
    DROPPED,
    ChromaSpec,
    chromagram,
    crop_chroma,
    filter_bank,
    generation_melody,
    training_melody,
    training_null,
)

SPEC = ChromaSpec()
RATE = SPEC.sample_rate
LENGTHS = (1, 100, 16383, 16384, 40960, 40961, 30 * RATE, 100 * RATE + 77)


@pytest.fixture(scope="module")
def extractor() -> Any:
    return ChromaExtractor(sample_rate=RATE, n_chroma=12, radix2_exp=14, argmax=True)


def music(num_samples: int) -> np.ndarray:
    """Tones that wander, under noise: every pitch class comes up, none wins everywhere."""
    rng = np.random.default_rng(num_samples)
    hertz = 110 * 2 ** (rng.integers(0, 48, size=num_samples // 9000 + 1) / 12)
    phase = 2 * np.pi * np.cumsum(np.repeat(hertz, 9000)[:num_samples] / RATE)
    return (0.5 * np.sin(phase) + 0.1 * rng.normal(size=num_samples)).astype(np.float32)


def test_the_filter_bank_is_that_of_both_peers(extractor: Any) -> None:
    assert torch.equal(filter_bank(SPEC), extractor.fbanks)  # librosa's
    assert torch.equal(filter_bank(SPEC), MusicgenMelodyFeatureExtractor().chroma_filters)


@pytest.mark.parametrize("num_samples", LENGTHS)
@pytest.mark.parametrize("signal", [music, np.zeros])
def test_chroma_equals_audiocrafts(extractor: Any, num_samples: int, signal: Any) -> None:
    samples = signal(num_samples).astype(np.float32)

    found = chromagram(samples, SPEC)

    expected = extractor(torch.from_numpy(samples)[None, None])[0]  # [F, C], one-hot
    np.testing.assert_array_equal(found, expected.argmax(-1).numpy())


@pytest.mark.parametrize("num_samples", LENGTHS[:-1])  # it cuts at 30 s
def test_chroma_equals_that_of_transformers(num_samples: int) -> None:
    samples = music(num_samples)

    found = chromagram(samples, SPEC)

    features = MusicgenMelodyFeatureExtractor()(samples, sampling_rate=RATE, return_tensors="pt")["input_features"]
    np.testing.assert_array_equal(found, features[0].argmax(-1).numpy())


def conditioner(extractor: Any) -> Any:
    """All that the methods under test ask of a ``ChromaStemConditioner``, without the demucs that it would fetch."""
    return SimpleNamespace(
        sample_rate=RATE, chroma=extractor, device="cpu", _downsampling_factor=lambda: extractor.winhop
    )


@pytest.mark.parametrize("start", [0, 1, 6, 7, 13, 500, 777, 1499])
@pytest.mark.parametrize("segment_frames", [50, 499, 1500])
def test_a_crop_of_chroma_is_audiocrafts_chunk_of_a_cached_chroma(
    extractor: Any, start: int, segment_frames: int
) -> None:
    chroma = chromagram(music(65 * RATE), SPEC)
    full = torch.nn.functional.one_hot(torch.from_numpy(chroma).long(), 12)
    wav = torch.zeros(1, 1, segment_frames * 640)
    x = WavCondition(wav, torch.tensor([wav.shape[-1]]), [RATE], [None], [start / 50])

    found = crop_chroma(
        chroma, SPEC, start=start, num_frames=segment_frames, segment_frames=segment_frames, hop_length=640
    )

    expected = ChromaStemConditioner._extract_chroma_chunk(conditioner(extractor), full, x, 0)
    assert (found >= 0).all()
    assert torch.equal(training_melody(found[None], SPEC).one_hot[0], expected)


class Conditioner(WaveformConditioner):
    """audiocraft's mask and projection around a chroma that is given."""

    def __init__(self, chroma: torch.Tensor, masks: bool) -> None:
        super().__init__(dim=12, output_dim=5, device="cpu")
        self._chroma, self._use_masking = chroma, masks

    def _get_wav_embedding(self, x: WavCondition) -> torch.Tensor:
        return self._chroma

    def _downsampling_factor(self) -> int:
        return SPEC.hop_length


def test_a_padded_crop_is_masked_as_audiocraft_masks_by_length() -> None:
    T, num_samples = 50, 21 * 640  # of 50 frames of codes 21 are audio: 3.3 chroma frames
    chroma = np.array([7, 3, 11, 2], np.uint8)
    found = crop_chroma(chroma, SPEC, start=0, num_frames=21, segment_frames=T, hop_length=640)
    states = training_melody(found[None], SPEC)

    peer = Conditioner(states.one_hot, masks=True)
    wav = torch.zeros(1, 1, T * 640)
    embedded, mask = peer(WavCondition(wav, torch.tensor([num_samples]), [RATE], [None], [0]))

    assert states.mask.int().tolist() == mask.tolist() == [[1, 1, 1, 1, 0, 0, 0]]
    assert torch.equal(peer.output_proj(states.one_hot) * states.mask[..., None], embedded)


def test_no_melody_in_training_is_audiocrafts_nullified_wav(extractor: Any) -> None:
    chroma = extractor(torch.zeros(1, 1, 1))  # nullify_wav: one sample, of which none counts
    peer = Conditioner(chroma, masks=True)
    embedded, mask = peer(WavCondition(torch.zeros(1, 1, 1), torch.tensor([0]), [RATE], [None], [None]))

    states = training_null(1, SPEC)

    assert torch.equal(states.one_hot, chroma)
    assert states.mask.int().tolist() == mask.tolist()
    assert not embedded.any()


@pytest.mark.parametrize("num_samples", [1, 7 * RATE, 30 * RATE, 40 * RATE])
def test_a_melody_in_generation_is_as_long_as_audiocraft_makes_it(extractor: Any, num_samples: int) -> None:
    samples = music(num_samples) if num_samples > 1 else np.zeros(1, np.float32)
    peer = conditioner(extractor)
    peer.training, peer.eval_wavs, peer.cache, peer.match_len_on_eval = False, None, None, True
    peer.chroma_len = extractor(torch.zeros(1, 30 * RATE)).shape[1]
    peer._compute_wav_embedding = lambda wav, rate: extractor(wav)
    x = WavCondition(torch.from_numpy(samples)[None, None], torch.tensor([num_samples]), [RATE], [None], [None])

    states = generation_melody(torch.from_numpy(chromagram(samples, SPEC))[None].long(), SPEC, duration_s=30.0)

    assert states.mask.all()
    assert torch.equal(states.one_hot, ChromaStemConditioner._get_wav_embedding(peer, x))


def test_a_dropped_melody_is_seen_as_zero() -> None:
    peer = torch.nn.Linear(12, 5)
    states = training_melody(torch.full((2, 9), DROPPED), SPEC)

    assert not (peer(states.one_hot) * states.mask[..., None]).any()
