"""Voices: strings, winds, synthesizers and bells, band-limited, so that nothing folds back below Nyquist.

C channels (1 or 2), L samples, R table rows, H harmonics.
"""

import math
from dataclasses import dataclass

import numpy as np

from musicgen_ft.synthesis.dsp import FloatArray, decay, envelope, noise_band, phase, seconds
from musicgen_ft.synthesis.tones import BANDWIDTH, Cue, Partials, tone, waveform


@dataclass(frozen=True)
class LowPass:
    """A low-pass of 12 dB an octave that moves after the attack."""

    cutoff_hz: float
    """Where it comes to rest."""
    sweep_octaves: float = 0.0
    """How far above ``cutoff_hz`` (below, if negative) it starts."""
    sweep_s: float = 0.15
    """Time constant of the movement."""
    resonance: float = 0.0
    """Height of the peak at the cutoff."""

    def response(self, time_s: FloatArray, partials_hz: FloatArray) -> FloatArray:
        """Gain of each partial [1, H] over time [R, 1]: [R, H], or [1, H] if it does not move.

        The fundamental always passes.
        """
        moving = decay(time_s if self.sweep_octaves else time_s[:1], self.sweep_s)
        cutoff_hz = np.maximum(self.cutoff_hz, partials_hz[0, 0]) * np.exp2(np.float32(self.sweep_octaves) * moving)
        ratio = partials_hz / cutoff_hz
        peak = np.float32(self.resonance) * np.exp(-((np.log2(ratio) / np.float32(0.2)) ** 2))
        return np.asarray((1 + peak) / np.sqrt(1 + ratio**4), np.float32)


_OPEN = LowPass(20_000.0)


def synth(
    cue: Cue,
    *,
    partials: Partials = "saw",
    low_pass: LowPass = _OPEN,
    attack_s: float = 0.006,
    decay_s: float | None = None,
    sustain: float = 0.6,
    release_s: float = 0.06,
    spread_cents: float = 0.0,
    vibrato_cents: float = 0.0,
    breath: float = 0.0,
) -> FloatArray:
    """A waveform through a low-pass: synthesizers, organs, winds and bows; float32 [C, L].

    Args:
        cue: the note.
        partials: the waveform.
        low_pass: what becomes of it.
        attack_s: rise time.
        decay_s: time constant of the fall to ``sustain``; None holds.
        sustain: level after the decay.
        release_s: fall time.
        spread_cents: detuning between left and right; 0 gives one channel.
        vibrato_cents: depth of the vibrato.
        breath: level of the noise of the air.
    """

    def spectrum(time_s: FloatArray, harmonics: FloatArray) -> FloatArray:
        return waveform(partials, harmonics) * low_pass.response(time_s, harmonics * np.float32(cue.frequency_hz))

    length = cue.length(release_s)
    tones = []
    for cents in (-spread_cents / 2, spread_cents / 2) if spread_cents else (0.0,):
        detuned_hz = cue.frequency_hz * 2 ** (cents / 1200)
        phase = float(cue.rng.random()) if spread_cents else 0.0
        tones.append(tone(detuned_hz, length, cue.sample_rate, spectrum, phase=phase, vibrato_cents=vibrato_cents))
    wave = np.stack(tones)  # [C, L]
    if breath:
        air = noise_band(cue.rng, length, cue.sample_rate, cue.frequency_hz, 4 * cue.frequency_hz)
        wave += np.float32(breath) * air
    wave *= envelope(length, cue.sample_rate, attack_s=attack_s, release_s=release_s, decay_s=decay_s, sustain=sustain)
    return wave


def pluck(
    cue: Cue,
    *,
    slope: float = 1.0,
    position: float = 0.2,
    ring_s: float = 1.2,
    damping: float = 0.06,
    release_s: float = 0.12,
    detune_cents: float = 0.0,
    knock: float = 0.0,
) -> FloatArray:
    """A string that is plucked or struck and rings out, float32 [1, L].

    This is the closed form of the Karplus-Strong string: each round trip multiplies the spectrum by the same
    low-pass, so harmonic k falls exponentially, the faster the higher it is. Unlike the delay line it is in tune.

    Args:
        cue: the note.
        slope: harmonic k starts at ``k ** -slope``: low is bright.
        position: where the string is plucked, as a share of its length.
        ring_s: time constant of the fundamental at 220 Hz; higher strings ring shorter.
        damping: how much faster each higher harmonic falls.
        release_s: fall time once it is damped.
        detune_cents: distance to a second string of the same note.
        knock: level of the noise of finger or hammer.
    """
    ring = ring_s * (220.0 / cue.frequency_hz) ** 0.5

    def spectrum(time_s: FloatArray, harmonics: FloatArray) -> FloatArray:
        start = np.abs(np.sin(harmonics * np.float32(math.pi * position))) / harmonics ** np.float32(slope)
        rate = (1 + np.float32(damping) * (harmonics**2 - 1) ** np.float32(0.75)) / np.float32(ring)
        return np.asarray(start * np.exp(-time_s * rate), np.float32)

    length = cue.length(release_s)
    wave = tone(cue.frequency_hz, length, cue.sample_rate, spectrum)
    if detune_cents:
        second_hz = cue.frequency_hz * 2 ** (detune_cents / 1200)
        wave += np.float32(0.6) * tone(second_hz, length, cue.sample_rate, spectrum)
    if knock:
        burst = min(length, int(0.03 * cue.sample_rate))
        noise = noise_band(cue.rng, burst, cue.sample_rate, 300.0, 3000.0)[0]
        wave[:burst] += np.float32(knock) * noise * decay(seconds(burst, cue.sample_rate), 0.006)
    return (wave * envelope(length, cue.sample_rate, attack_s=0.002, release_s=release_s))[None]


def bell(
    cue: Cue,
    *,
    modes: tuple[tuple[float, float, float], ...],
    release_s: float = 0.4,
    tremolo: float = 0.0,
) -> FloatArray:
    """A struck bar, tine or bell, float32 [1, L].

    Args:
        cue: the note.
        modes: of each mode, its frequency over the fundamental, its amplitude, and its time constant in seconds.
        release_s: fall time once it is damped.
        tremolo: depth of a tremolo of 5 Hz.
    """
    length = cue.length(release_s)
    time_s = seconds(length, cue.sample_rate)
    wave = np.zeros(length, np.float32)
    for ratio, amplitude, time_constant_s in modes:
        audible = min(length, int(8 * time_constant_s * cue.sample_rate))  # to -69 dB
        if cue.frequency_hz * ratio < BANDWIDTH * cue.sample_rate:
            mode = np.sin(phase(cue.frequency_hz * ratio, audible, cue.sample_rate))
            wave[:audible] += np.float32(amplitude) * mode * decay(time_s[:audible], time_constant_s)
    wave *= _tremolo(tremolo, length, cue.sample_rate)
    return (wave * envelope(length, cue.sample_rate, attack_s=0.001, release_s=release_s))[None]


def fm(
    cue: Cue,
    *,
    ratio: float = 1.0,
    index: float = 1.5,
    index_decay_s: float = 0.3,
    decay_s: float = 1.2,
    release_s: float = 0.15,
    tremolo: float = 0.0,
) -> FloatArray:
    """One sine that modulates the phase of another: electric pianos and glassy bells; float32 [1, L].

    Args:
        cue: the note.
        ratio: frequency of the modulator over the fundamental.
        index: depth of the modulation at the attack, in radians; lowered where it would pass Nyquist.
        index_decay_s: time constant by which the tone becomes pure.
        decay_s: time constant of the loudness.
        release_s: fall time.
        tremolo: depth of a tremolo of 5 Hz.
    """
    modulator_hz = cue.frequency_hz * ratio
    room = (BANDWIDTH * cue.sample_rate - cue.frequency_hz) / modulator_hz - 1  # Carson's rule
    depth = np.float32(max(0.0, min(index, room)))
    length = cue.length(release_s)
    time_s = seconds(length, cue.sample_rate)
    modulation = depth * decay(time_s, index_decay_s) * np.sin(phase(modulator_hz, length, cue.sample_rate))
    wave = np.sin(phase(cue.frequency_hz, length, cue.sample_rate) + modulation) * decay(time_s, decay_s)
    wave *= _tremolo(tremolo, length, cue.sample_rate)
    wave *= envelope(length, cue.sample_rate, attack_s=0.002, release_s=release_s)
    return np.asarray(wave[None], np.float32)


def _tremolo(depth: float, length: int, sample_rate: int) -> FloatArray:
    """Gain of a tremolo of 5 Hz, float32 [L]."""
    return 1 - np.float32(depth / 2) * (1 + np.sin(phase(5.0, length, sample_rate)))
