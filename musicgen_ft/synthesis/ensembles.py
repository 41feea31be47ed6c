"""Voices made in the spectrum of a whole note: wide ensembles and overdriven guitars. C channels, L samples."""

import math

import numpy as np

from musicgen_ft.synthesis.dsp import FloatArray, envelope, fast_length, normalise_power
from musicgen_ft.synthesis.tones import BANDWIDTH, Cue, tone


def pad(
    cue: Cue,
    *,
    slope: float = 1.2,
    cutoff_hz: float = 4000.0,
    bandwidth_cents: float = 35.0,
    formants: tuple[tuple[float, float], ...] = (),
    attack_s: float = 0.25,
    release_s: float = 0.5,
) -> FloatArray:
    """A wide ensemble (pads, string sections, choirs), float32 [2, L].

    Each harmonic is a narrow band of the spectrum with random phases, brought to time by one inverse transform, as
    in Paul Nasca's PADsynth: many players for the price of one, and each channel hears others.

    Args:
        cue: the note.
        slope: harmonic k has amplitude ``k ** -slope``.
        cutoff_hz: low-pass of 12 dB an octave.
        bandwidth_cents: how far the players are apart.
        formants: frequencies and heights of the resonances of a body or a mouth.
        attack_s: rise time.
        release_s: fall time.
    """
    length = cue.length(release_s)
    padded = fast_length(length)
    frequencies = np.fft.rfftfreq(padded, 1 / cue.sample_rate).astype(np.float32)
    harmonics = np.maximum(np.rint(frequencies / np.float32(cue.frequency_hz)), 1)
    spread_hz = np.maximum(harmonics * np.float32(cue.frequency_hz * (2 ** (bandwidth_cents / 1200) - 1) / 2), 0.5)
    amplitude = np.exp(-(((frequencies - harmonics * np.float32(cue.frequency_hz)) / spread_hz) ** 2))
    amplitude /= np.sqrt(spread_hz) * harmonics ** np.float32(slope) * (1 + (frequencies / np.float32(cutoff_hz)) ** 2)
    for centre_hz, height in formants:
        amplitude *= 1 + np.float32(height) * np.exp(-(((frequencies - centre_hz) / np.float32(0.15 * centre_hz)) ** 2))
    amplitude[frequencies > BANDWIDTH * cue.sample_rate] = 0
    angles = np.float32(2 * math.pi) * cue.rng.random((2, len(frequencies)), dtype=np.float32)
    wave = np.fft.irfft(amplitude * np.exp(1j * angles), n=padded)[:, :length].astype(np.float32)
    return normalise_power(wave) * envelope(length, cue.sample_rate, attack_s=attack_s, release_s=release_s)


def driven(
    cue: Cue,
    *,
    intervals: tuple[int, ...] = (0,),
    gain: float = 6.0,
    cabinet_hz: float = 4200.0,
    vibrato_cents: float = 0.0,
    release_s: float = 0.06,
) -> FloatArray:
    """A guitar through an overdriven amplifier, float32 [1, L]; the distortion runs at four times the sample rate.

    Args:
        cue: the note.
        intervals: semitones of the strings that sound together (a power chord: 0, 7, 12).
        gain: how hard the amplifier is driven.
        cabinet_hz: low-pass of the loudspeaker.
        vibrato_cents: depth of the vibrato.
        release_s: fall time.
    """
    oversampling = 4
    length = cue.length(release_s)
    padded = fast_length(length)

    def spectrum(time_s: FloatArray, harmonics: FloatArray) -> FloatArray:
        audible = harmonics * np.float32(cue.frequency_hz) < 6000
        rate = np.float32(0.3) + np.float32(0.05) * harmonics
        return np.asarray(audible / harmonics * np.exp(-time_s * rate), np.float32)

    strings = sum(
        tone(
            cue.frequency_hz * 2 ** (interval / 12),
            padded * oversampling,
            cue.sample_rate * oversampling,
            spectrum,
            phase=float(cue.rng.random()),
            vibrato_cents=vibrato_cents,
        )
        for interval in intervals
    )
    spectrum_hz = np.fft.rfftfreq(padded, 1 / cue.sample_rate).astype(np.float32)
    cabinet = spectrum_hz**2 / (spectrum_hz**2 + 90.0**2) / np.sqrt(1 + (spectrum_hz / np.float32(cabinet_hz)) ** 6)
    driven_spectrum = np.fft.rfft(np.tanh(np.float32(gain) * np.asarray(strings, np.float32)))[: len(spectrum_hz)]
    wave = np.fft.irfft(driven_spectrum * cabinet, n=padded)[:length].astype(np.float32) / np.float32(oversampling)
    wave *= envelope(length, cue.sample_rate, attack_s=0.004, release_s=release_s)
    return wave[None]
