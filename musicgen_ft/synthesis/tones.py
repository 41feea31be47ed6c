"""Harmonic tones: one period in a table, its spectrum moving in time. L samples, R table rows, H harmonics."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from musicgen_ft.synthesis.dsp import FloatArray


@dataclass(frozen=True)
class Cue:
    """What a voice is asked to play."""

    frequency_hz: float
    """The fundamental."""
    duration_s: float
    """Until the note is let go; its release follows."""
    sample_rate: int
    """In Hz."""
    rng: np.random.Generator
    """For phases and noise."""

    def length(self, release_s: float) -> int:
        """Samples of the note with its release."""
        return int((self.duration_s + release_s) * self.sample_rate)


Spectrum: TypeAlias = Callable[[FloatArray, FloatArray], FloatArray]
"""Time in seconds [R, 1] and harmonic numbers [1, H] -> amplitudes [R, H], or [1, H] where they do not move."""

Partials: TypeAlias = Literal["saw", "square", "pulse", "triangle"] | tuple[float, ...]
"""A named waveform, or the amplitudes of the first harmonics."""

_MAX_HARMONICS = 128
_ROW_S = 0.006  # a spectrum may move this often; rows change at a zero of every harmonic, so without a click
BANDWIDTH = 0.45
"""Highest frequency of any partial as a share of the sample rate: leaves room for vibrato and detuning."""


def tone(
    frequency_hz: float,
    length: int,
    sample_rate: int,
    spectrum: Spectrum,
    *,
    phase: float = 0.0,
    vibrato_cents: float = 0.0,
) -> FloatArray:
    """A harmonic tone whose spectrum moves in time, float32 [L], read from tables of one period.

    Args:
        frequency_hz: fundamental.
        length: samples.
        sample_rate: in Hz.
        spectrum: amplitudes of the harmonics; those above the bandwidth are left out.
        phase: where the first period starts, in cycles.
        vibrato_cents: depth of a vibrato of 5.5 Hz that sets in after a moment.
    """
    num_harmonics = max(1, min(_MAX_HARMONICS, int(BANDWIDTH * sample_rate / frequency_hz)))
    table_size = 1 << max(9, math.ceil(math.log2(8 * num_harmonics)))  # between its points lines are straight
    time_s = np.arange(length) / sample_rate
    cycles = phase + frequency_hz * time_s
    if vibrato_cents:
        depth = frequency_hz * (2 ** (vibrato_cents / 1200) - 1) / (2 * math.pi * 5.5)
        cycles += depth * np.minimum(time_s / 0.4, 1) * np.sin(2 * math.pi * 5.5 * time_s)

    cycles_per_row = max(1, round(frequency_hz * _ROW_S))
    row_s = np.arange(int(cycles[-1] / cycles_per_row) + 2, dtype=np.float32) * (cycles_per_row / frequency_hz)
    amplitudes = spectrum(row_s[:, None], np.arange(1, num_harmonics + 1, dtype=np.float32)[None])  # [R, H]
    coefficients = np.zeros((len(amplitudes), table_size // 2 + 1), np.complex64)
    coefficients[:, 1 : num_harmonics + 1] = -0.5j * table_size * amplitudes  # sines: zero where a period starts
    tables = np.empty((len(amplitudes), table_size + 1), np.float32)
    tables[:, :-1] = np.fft.irfft(coefficients, n=table_size)
    tables[:, -1] = tables[:, 0]

    whole = cycles.astype(np.int32)
    position = ((cycles - whole) * table_size).astype(np.float32)
    index = np.minimum(position.astype(np.int32), table_size - 1)  # float32 may round up to a whole period
    position -= index
    if len(tables) > 1:
        index += whole // cycles_per_row * (table_size + 1)
    left = tables.ravel().take(index)
    right = tables.ravel()[1:].take(index)
    return np.asarray(left + (right - left) * position, np.float32)


def waveform(partials: Partials, harmonics: FloatArray) -> FloatArray:
    """Amplitudes of a waveform's harmonics, same shape as ``harmonics``."""
    if isinstance(partials, tuple):
        table = np.zeros(_MAX_HARMONICS + 1, np.float32)
        table[1 : len(partials) + 1] = partials
        return table[harmonics.astype(np.int32)]
    odd = harmonics % 2
    amplitudes = {
        "saw": 1 / harmonics,
        "square": odd / harmonics,
        "pulse": np.abs(np.sin(harmonics * np.float32(math.pi / 4))) / harmonics,  # a quarter of the period high
        "triangle": odd / harmonics**2,
    }
    return np.asarray(amplitudes[partials], np.float32)
