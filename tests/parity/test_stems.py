"""The melody's stems against the real audiocraft's ``ChromaStemConditioner``, on one tiny demucs for both."""

import random
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from audiocraft.modules.conditioners import ChromaStemConditioner
from demucs import pretrained
from demucs.audio import convert_audio
from demucs.htdemucs import HTDemucs

from musicgen_ft.audio import Samples
from musicgen_ft.chroma import ChromaSpec, ChromaStream
from musicgen_ft.stems import Separator, converted

RATE = 32000  # of the codec and the chroma
SPEC = ChromaSpec(sample_rate=RATE, n_chroma=12, n_fft=2048, hop_length=512)


class PassingDemucs(HTDemucs):
    """Its stems are parts of the mix, as those of a trained one; what its untrained layers make is added."""

    def forward(self, mix: torch.Tensor) -> torch.Tensor:
        untrained: Any = super().forward
        parts: torch.Tensor = untrained(mix) + mix[:, None] * torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None]
        return parts


@pytest.fixture(scope="module")
def demucs() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "channels": 8,
            "depth": 2,
            "nfft": 512,
            "t_layers": 1,
            "t_heads": 2,
            "segment": Fraction(2, 5),
        }
        sources = ["drums", "bass", "other", "vocals"]
        return PassingDemucs(sources, bottom_channels=8, **sizes).eval()


@pytest.fixture
def conditioner(demucs: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(pretrained, "get_model", lambda name: demucs)
    return ChromaStemConditioner(
        output_dim=5,
        sample_rate=RATE,
        n_chroma=12,
        radix2_exp=11,
        winhop=SPEC.hop_length,
        argmax=True,
        duration=1.7,
        device="cpu",
    )


@pytest.fixture
def unshifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """audiocraft lets demucs shift the track by a random part of half a second; this draws the shift that is none."""
    monkeypatch.setattr(random, "randint", lambda low, high: high)


def mix(seconds: float, channels: int = 1) -> Samples:
    """Notes that change four times a second, and noise."""
    generator = np.random.default_rng(9)
    num_samples = int(seconds * RATE)
    notes = generator.integers(0, 24, size=num_samples // 8000 + 1)
    hertz = np.repeat(220 * 2 ** (notes / 12), 8000)[:num_samples]
    tune = np.sin(2 * np.pi * np.cumsum(hertz) / RATE)
    return np.asarray(0.4 * tune + 0.02 * generator.standard_normal((channels, num_samples)), dtype=np.float32)


def at_the_models_rate(samples: Samples, demucs: Any) -> Samples:
    """As audiocraft brings it there: by julius, where the toolkit's own reader takes soxr."""
    wav: Samples = convert_audio(torch.from_numpy(samples), RATE, demucs.samplerate, demucs.audio_channels).numpy()
    return wav


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seconds", [0.3, 1.7])
@pytest.mark.usefixtures("unshifted")
def test_the_melody_stems_are_those_of_audiocraft(conditioner: Any, demucs: Any, seconds: float, channels: int) -> None:
    """The same samples to the last bit, from 1.7 s in pieces of 0.1 s through windows of 0.4 s."""
    samples = mix(seconds, channels)
    expected = conditioner._get_stemmed_wav(torch.from_numpy(samples)[None], RATE)[0]

    blocks = np.array_split(at_the_models_rate(samples, demucs), max(1, int(10 * seconds)), axis=1)
    found = np.concatenate(list(Separator(demucs).melody(blocks)), axis=1)

    assert expected.std() > 0.01
    assert torch.equal(convert_audio(torch.from_numpy(found), demucs.samplerate, RATE, 1), expected)


def test_audiocrafts_own_stems_differ_from_run_to_run(conditioner: Any) -> None:
    """By more than the tolerances here: why equality is held for the shift that is none."""
    wav = torch.from_numpy(mix(1.7))[None]
    random.seed(0)
    first, second = (conditioner._get_stemmed_wav(wav, RATE) for _ in range(2))
    assert (first - second).abs().max() > 0.01


@pytest.mark.usefixtures("unshifted")
def test_with_soxr_on_both_sides_the_stems_stay_close_and_the_chroma_the_same(conditioner: Any, demucs: Any) -> None:
    """The way that a track goes in ``prepare``: 44.1 kHz, stems, mono at the codec's rate, chroma."""
    samples = mix(1.7)
    wav = torch.from_numpy(samples)[None]
    expected = conditioner._get_stemmed_wav(wav, RATE)[0, 0].numpy()
    separator, stream = Separator(demucs), ChromaStream(SPEC)

    read = converted(np.array_split(samples, 9, axis=1), from_rate=RATE, to_rate=separator.sample_rate, channels=2)
    melody = converted(separator.melody(read), from_rate=separator.sample_rate, to_rate=RATE, channels=1)
    found = np.concatenate(list(stream.watch(melody)), axis=1)[0]

    assert abs(len(found) - len(expected)) <= 1
    inner = slice(2000, len(expected) - 2000)  # the two resamplers differ in what they take to lie beyond the ends
    assert np.abs(found[inner] - expected[inner]).max() < 0.03 * np.abs(expected).max()
    theirs = conditioner._extract_chroma(torch.from_numpy(expected)[None])[0].argmax(-1).numpy()
    chroma = stream.finish()
    assert len(set(theirs.tolist())) > 3
    agree = [ours == other for ours, other in zip(chroma[4:-4], theirs[4:-4], strict=False)]
    assert np.mean(agree) > 0.97


@pytest.mark.usefixtures("unshifted")
def test_the_melody_of_thirty_seconds_is_what_audiocraft_hears_of_them(conditioner: Any, demucs: Any) -> None:
    """In generation it is cut or repeated to the length of training, after the stems: the track is separated whole."""
    short = torch.from_numpy(mix(0.9))[None]
    assert conditioner.match_len_on_eval
    from audiocraft.modules.conditioners import WavCondition

    found = conditioner._get_wav_embedding(WavCondition(short, torch.tensor([short.shape[-1]]), [RATE], [None], [0.0]))

    once = conditioner._extract_chroma(conditioner._get_stemmed_wav(short, RATE))
    length = SPEC.num_frames(int(1.7 * RATE))
    assert found.shape[1] == length > once.shape[1]
    assert torch.equal(found, torch.cat([once, once], dim=1)[:, :length])
