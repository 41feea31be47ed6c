"""Small pieces of signal processing that voices, drums and the mix share. L is samples."""

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]


def fast_length(length: int) -> int:
    """The next length, at most an eighth longer, whose Fourier transform is fast."""
    unit = 1 << max(0, length.bit_length() - 4)
    return -(-length // unit) * unit


def seconds(length: int, sample_rate: int) -> FloatArray:
    """Time of each sample, float32 [L], in seconds."""
    return np.arange(length, dtype=np.float32) / np.float32(sample_rate)


def phase(frequency_hz: float, length: int, sample_rate: int) -> FloatArray:
    """Angle of a sine at each sample, float32 [L], in radians from 0 to one turn.

    It is wrapped before it becomes float32: unwrapped, a note of 4 s at 3 kHz would carry noise at -45 dB.
    """
    cycles = np.arange(length) * (frequency_hz / sample_rate)
    return np.asarray((cycles - np.floor(cycles)) * (2 * math.pi), np.float32)


def decay(time_s: FloatArray, time_constant_s: float) -> FloatArray:
    """Exponential decay from 1, falling by 1/e in each ``time_constant_s``; same shape as ``time_s``."""
    return np.asarray(np.exp(time_s * np.float32(-1 / time_constant_s)), np.float32)


def envelope(
    length: int,
    sample_rate: int,
    *,
    attack_s: float,
    release_s: float,
    decay_s: float | None = None,
    sustain: float = 1.0,
) -> FloatArray:
    """Loudness of one note over time, float32 [L], between 0 and 1.

    Args:
        length: samples of the note, its release included.
        sample_rate: in Hz.
        attack_s: rise from silence.
        release_s: fall to silence, the last ``release_s`` of ``length``.
        decay_s: time constant of the fall from 1 to ``sustain``; None holds 1.
        sustain: level that the decay approaches.
    """
    time_s = seconds(length, sample_rate)
    shape = np.ones(length, np.float32)
    if decay_s is not None:
        shape = np.float32(sustain) + np.float32(1 - sustain) * decay(time_s, decay_s)
    rise = min(length, max(2, int(attack_s * sample_rate)))
    fall = min(length, max(2, int(release_s * sample_rate)))
    shape[:rise] *= np.sin(np.linspace(0, np.pi / 2, rise, dtype=np.float32)) ** 2
    shape[-fall:] *= np.linspace(1, 0, fall, dtype=np.float32) ** 2
    return shape


def noise_band(
    rng: np.random.Generator, length: int, sample_rate: int, low_hz: float, high_hz: float, channels: int = 1
) -> FloatArray:
    """Gaussian noise between two frequencies with slopes of 12 dB an octave, float32 [C, L], RMS 1."""
    padded = fast_length(length)
    spectrum = np.fft.rfft(rng.standard_normal((channels, padded), dtype=np.float32))
    frequencies = np.fft.rfftfreq(padded, 1 / sample_rate).astype(np.float32)
    response = frequencies**2 / (frequencies**2 + low_hz**2) / (1 + (frequencies / high_hz) ** 2)
    noise = np.fft.irfft(spectrum * response.astype(np.float32), n=padded)[:, :length].astype(np.float32)
    return normalise_power(noise)


def normalise_power(wave: FloatArray) -> FloatArray:
    """The wave with an RMS of 1; silence stays silence."""
    return wave / np.float32(math.sqrt(float(np.mean(wave**2))) + 1e-9)


def normalise(wave: FloatArray) -> FloatArray:
    """The wave with a peak of 1; silence stays silence."""
    return wave / np.float32(float(np.abs(wave).max()) + 1e-9)


def db_to_gain(db: float) -> np.float32:
    """Amplitude factor of a level in decibels."""
    return np.float32(10 ** (db / 20))
