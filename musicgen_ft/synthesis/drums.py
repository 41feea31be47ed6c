"""Drum kits: every piece of a kit is made from a few numbers. L is samples."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np

from musicgen_ft.synthesis.dsp import FloatArray, decay, envelope, noise_band, normalise, phase, seconds

Piece: TypeAlias = Callable[[int, np.random.Generator], FloatArray]
"""Sample rate in Hz, random numbers -> float32 [L], peak 1."""

VELOCITIES = {"X": 1.0, "x": 0.72, "o": 0.35}
"""Loudness of the symbols of a groove."""

LEVELS_DB = {"clap": -4.0, "snare": -3.0, "rim": -5.0, "hat": -13.0, "open hat": -13.0, "ride": -14.0, "crash": -12.0}
LEVELS_DB |= {"shaker": -14.0, "tambourine": -9.0, "tom": -3.0}
"""Loudness of a piece against the kick."""

PAN = {"hat": 0.25, "open hat": 0.25, "ride": -0.3, "shaker": -0.4, "tambourine": 0.4, "tom": -0.25, "rim": 0.1}
"""Place of a piece between left (-1) and right (1); the others stand in the middle."""


def drum(
    sample_rate: int,
    rng: np.random.Generator,
    *,
    start_hz: float,
    end_hz: float,
    sweep_s: float,
    decay_s: float,
    click: float = 0.1,
    drive: float = 1.0,
) -> FloatArray:
    """A kick or a tom: a sine that falls from ``start_hz`` to ``end_hz``, behind a click; float32 [L]."""
    length = int(6 * decay_s * sample_rate)
    time_s = seconds(length, sample_rate)
    cycles = end_hz * time_s + (start_hz - end_hz) * sweep_s * (1 - decay(time_s, sweep_s))
    body = np.sin(np.float32(2 * math.pi) * cycles) * decay(time_s, decay_s)
    body = np.tanh(np.float32(drive) * body)
    noise = noise_band(rng, length, sample_rate, 1000.0, 6000.0)[0] * decay(time_s, 0.003)
    shape = envelope(length, sample_rate, attack_s=0.001, release_s=decay_s)
    return normalise((body + np.float32(click) * noise) * shape)


def snare(
    sample_rate: int,
    rng: np.random.Generator,
    *,
    body_hz: float = 190.0,
    low_hz: float = 1200.0,
    high_hz: float = 9000.0,
    decay_s: float = 0.07,
    body: float = 0.6,
    attack_s: float = 0.001,
) -> FloatArray:
    """A snare: two tones of the head and the noise of the wires; float32 [L]."""
    length = int(7 * decay_s * sample_rate)
    time_s = seconds(length, sample_rate)
    low, high = (np.sin(phase(ratio * body_hz, length, sample_rate)) for ratio in (1.0, 1.72))
    head = (low + np.float32(0.6) * high) * decay(time_s, 0.6 * decay_s)
    wires = 0.5 * noise_band(rng, length, sample_rate, low_hz, high_hz)[0] * decay(time_s, decay_s)
    shape = envelope(length, sample_rate, attack_s=attack_s, release_s=decay_s)
    return normalise((np.float32(body) * head + wires) * shape)


def clap(sample_rate: int, rng: np.random.Generator) -> FloatArray:
    """Hands that do not clap quite together: three short bursts and a tail; float32 [L]."""
    length = int(0.35 * sample_rate)
    time_s = seconds(length, sample_rate)
    shape = 0.7 * decay(time_s, 0.07)
    for start_s in (0.0, 0.011, 0.023):
        late = np.maximum(time_s - np.float32(start_s), 0)
        shape = np.maximum(shape * (time_s >= start_s), decay(late, 0.005) * (time_s >= start_s))
    return normalise(noise_band(rng, length, sample_rate, 900.0, 3200.0)[0] * shape)


def noise(
    sample_rate: int,
    rng: np.random.Generator,
    *,
    low_hz: float = 7000.0,
    high_hz: float = 13_000.0,
    decay_s: float = 0.03,
    attack_s: float = 0.001,
) -> FloatArray:
    """Hats, shakers and brushes: a band of noise that decays; float32 [L]."""
    length = int((6 * decay_s + attack_s) * sample_rate)
    shape = decay(seconds(length, sample_rate), decay_s)
    shape *= envelope(length, sample_rate, attack_s=attack_s, release_s=decay_s)
    return normalise(noise_band(rng, length, sample_rate, low_hz, high_hz)[0] * shape)


def metal(
    sample_rate: int,
    rng: np.random.Generator,
    *,
    low_hz: float = 2500.0,
    high_hz: float = 9500.0,
    decay_s: float = 0.35,
    hiss: float = 0.6,
) -> FloatArray:
    """Cymbals and tambourines: a cluster of high tones in no relation, and noise; float32 [L]."""
    length = int(5 * decay_s * sample_rate)
    time_s = seconds(length, sample_rate)
    wave = np.float32(3 * hiss) * noise_band(rng, length, sample_rate, low_hz, high_hz)[0] * decay(time_s, decay_s / 2)
    for frequency_hz in rng.uniform(low_hz, min(high_hz, 0.45 * sample_rate), 24):
        ring = decay(time_s, 0.6 * decay_s * low_hz / frequency_hz)
        wave += np.float32(0.6) * np.sin(phase(frequency_hz, length, sample_rate)) * ring
    return normalise(wave * envelope(length, sample_rate, attack_s=0.001, release_s=decay_s))


def rim(sample_rate: int, rng: np.random.Generator, *, body_hz: float = 820.0) -> FloatArray:
    """A stick across the rim; float32 [L]."""
    length = int(0.12 * sample_rate)
    time_s = seconds(length, sample_rate)
    low, high = (np.sin(phase(ratio * body_hz, length, sample_rate)) for ratio in (1.0, 2.31))
    wood = low * decay(time_s, 0.014) + high * decay(time_s, 0.008)
    return normalise(wood + 0.15 * noise_band(rng, length, sample_rate, 1500.0, 8000.0)[0] * decay(time_s, 0.006))


_CYMBALS: dict[str, Piece] = {
    "hat": partial(noise, decay_s=0.025),
    "open hat": partial(noise, low_hz=6000.0, decay_s=0.12),
    "ride": partial(metal, low_hz=3200.0),
    "crash": partial(metal, low_hz=2000.0, high_hz=12_000.0, decay_s=0.7, hiss=1.2),
}
_ROOM_TOM = partial(drum, start_hz=170.0, end_hz=105.0, sweep_s=0.05, decay_s=0.14, click=0.05)

KITS: dict[str, Mapping[str, Piece]] = {
    "drum machine": _CYMBALS
    | {
        "kick": partial(drum, start_hz=260.0, end_hz=50.0, sweep_s=0.03, decay_s=0.14, drive=2.2),
        "snare": partial(snare, body_hz=200.0, decay_s=0.06),
        "clap": clap,
        "rim": rim,
        "shaker": partial(noise, low_hz=5000.0, attack_s=0.012, decay_s=0.03),
        "tom": partial(drum, start_hz=220.0, end_hz=110.0, sweep_s=0.06, decay_s=0.12, click=0.02),
    },
    "breakbeat drums": _CYMBALS
    | {
        "kick": partial(drum, start_hz=190.0, end_hz=58.0, sweep_s=0.02, decay_s=0.08, click=0.2, drive=1.8),
        "snare": partial(snare, body_hz=230.0, low_hz=900.0, high_hz=11_000.0, decay_s=0.075, body=0.8),
    },
    "boom bap drums": _CYMBALS
    | {
        "kick": partial(drum, start_hz=130.0, end_hz=56.0, sweep_s=0.025, decay_s=0.12, click=0.05, drive=2.0),
        "snare": partial(snare, body_hz=175.0, low_hz=700.0, high_hz=4500.0, decay_s=0.09),
        "hat": partial(noise, low_hz=4500.0, high_hz=8000.0, decay_s=0.03),
        "open hat": partial(noise, low_hz=4000.0, high_hz=7000.0, decay_s=0.12),
    },
    "acoustic drum kit": _CYMBALS
    | {
        "kick": partial(drum, start_hz=140.0, end_hz=62.0, sweep_s=0.02, decay_s=0.09, click=0.25),
        "snare": partial(snare, body_hz=195.0, low_hz=800.0, decay_s=0.1, body=0.7),
        "rim": rim,
        "tom": _ROOM_TOM,
    },
    "brushed drum kit": {
        "kick": partial(drum, start_hz=110.0, end_hz=60.0, sweep_s=0.02, decay_s=0.07, click=0.03),
        "snare": partial(snare, body_hz=180.0, low_hz=900.0, high_hz=7000.0, decay_s=0.1, body=0.15, attack_s=0.02),
        "hat": partial(noise, decay_s=0.018),
        "ride": partial(metal, low_hz=3200.0, decay_s=0.45, hiss=0.3),
    },
    "8-bit drums": {
        "kick": partial(drum, start_hz=400.0, end_hz=60.0, sweep_s=0.025, decay_s=0.06, click=0.0),
        "snare": partial(snare, body_hz=300.0, low_hz=300.0, high_hz=7000.0, decay_s=0.05, body=0.1),
        "hat": partial(noise, low_hz=3500.0, decay_s=0.012),
    },
    "hand percussion": {
        "kick": partial(drum, start_hz=105.0, end_hz=78.0, sweep_s=0.03, decay_s=0.1, click=0.06),
        "rim": partial(rim, body_hz=560.0),
        "shaker": partial(noise, low_hz=4500.0, attack_s=0.02, decay_s=0.03),
        "tambourine": partial(metal, low_hz=5500.0, high_hz=12_000.0, decay_s=0.1, hiss=0.8),
    },
}
"""Kit, by the name that captions use -> piece -> how it sounds."""
