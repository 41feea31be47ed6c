"""Every instrument: in tune, band-limited, finite, and it ends in silence."""

import numpy as np
import pytest

from musicgen_ft.synthesis.dsp import FloatArray
from musicgen_ft.synthesis.instruments import INSTRUMENTS
from musicgen_ft.synthesis.theory import frequency_hz
from musicgen_ft.synthesis.tones import Cue

SAMPLE_RATE = 32_000


def play(instrument: str, midi: int, duration_s: float = 1.0) -> FloatArray:
    cue = Cue(frequency_hz(midi), duration_s, SAMPLE_RATE, np.random.default_rng(0))
    return INSTRUMENTS[instrument](cue)


def power_spectrum(wave: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Frequencies in Hz and power, both [bins], of the mean of the channels."""
    mono = wave.mean(axis=0)
    power = np.abs(np.fft.rfft(mono * np.blackman(len(mono)))) ** 2
    return np.fft.rfftfreq(len(mono), 1 / SAMPLE_RATE).astype(np.float32), power.astype(np.float32)


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_a_note_is_finite_and_fades_to_silence(instrument: str) -> None:
    wave = play(instrument, 60, 0.4)
    channels, length = wave.shape
    assert wave.dtype == np.float32
    assert channels in (1, 2)
    assert length >= 0.4 * SAMPLE_RATE
    assert np.isfinite(wave).all()
    assert np.abs(wave[:, -8:]).max() < 1e-3 * np.abs(wave).max()


@pytest.mark.parametrize("instrument", INSTRUMENTS)
@pytest.mark.parametrize("midi", [45, 69])
def test_a_note_is_in_tune(instrument: str, midi: int) -> None:
    frequencies, power = power_spectrum(play(instrument, midi))
    cents = 1200 * np.log2(np.maximum(frequencies, 1) / frequency_hz(midi))
    near = np.abs(cents) < 70
    centre = np.sum(frequencies[near] * power[near]) / np.sum(power[near])
    assert abs(1200 * np.log2(centre / frequency_hz(midi))) < 8  # chorus, vibrato and the spectral leakage of 1 s


@pytest.mark.parametrize("instrument", ["pulse lead", "square lead", "synth lead", "accordion", "harp", "glass bells"])
def test_a_high_note_does_not_fold_back_below_its_fundamental(instrument: str) -> None:
    frequencies, power = power_spectrum(play(instrument, 96))
    below = power[frequencies < 0.9 * frequency_hz(96)]
    assert below.max() < 1e-5 * power.max()  # -50 dB; aliases of a naive sawtooth stand at -24 dB


def test_an_instrument_has_the_same_samples_each_time() -> None:
    np.testing.assert_array_equal(play("choir", 60), play("choir", 60))
