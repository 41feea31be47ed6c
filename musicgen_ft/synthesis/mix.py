"""From parts to a finished mix: echo, reverb, ducking, loudness and limiting. C is 2 channels, L samples."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicgen_ft.synthesis.dsp import FloatArray, db_to_gain, decay, fast_length, noise_band, seconds

CEILING_DB = -1.0
"""Highest sample of a finished mix, in dB below full scale."""

LOUDNESS_LUFS = (-16.0, -14.0)
"""Quietest and loudest finished mix."""

_BLOCK = 64  # samples that share one gain of compressor and limiter


def echo(bus: FloatArray, delay_s: float, feedback: float, sample_rate: int) -> FloatArray:
    """The bus with echoes that change sides, float32 [C, L]; ``feedback`` is the loudness from one to the next."""
    shift = round(delay_s * sample_rate)
    echoed = bus.copy()
    gain = feedback
    for repeat in range(1, 6):
        if repeat * shift >= bus.shape[1] or gain < 0.03:
            break
        source = bus[::-1] if repeat % 2 else bus
        echoed[:, repeat * shift :] += np.float32(gain) * source[:, : -repeat * shift]
        gain *= feedback
    return echoed


def reverb(send: FloatArray, room_s: float, sample_rate: int, rng: np.random.Generator) -> FloatArray:
    """The sound of a room, float32 [C, L], from a mono send [L].

    Args:
        send: what is heard in the room.
        room_s: reverberation time: until the tail has fallen by 60 dB.
        sample_rate: in Hz.
        rng: for the reflections, drawn anew for each channel.
    """
    length = len(send)
    tail = int(room_s * sample_rate)
    time_s = seconds(tail, sample_rate)
    bright = noise_band(rng, tail, sample_rate, 1500.0, 6000.0, channels=2) * decay(time_s, room_s / 14)
    response = noise_band(rng, tail, sample_rate, 180.0, 2200.0, channels=2) * decay(time_s, room_s / 6.9) + bright
    response /= np.sqrt(np.sum(response**2, axis=1, keepdims=True))
    padded = fast_length(length + tail)
    pre_delay = int(0.012 * sample_rate)
    wet = np.fft.irfft(np.fft.rfft(send, n=padded) * np.fft.rfft(response, n=padded), n=padded)
    room = np.zeros((2, length), np.float32)
    room[:, pre_delay:] = wet[:, : length - pre_delay]
    return room


def duck(length: int, sample_rate: int, kicks_s: Sequence[float], depth_db: float) -> FloatArray:
    """Gain that falls by ``depth_db`` at each kick and comes back within 0.2 s, float32 [L]."""
    dip = np.float32(1 - db_to_gain(-depth_db)) * decay(seconds(int(0.4 * sample_rate), sample_rate), 0.08)
    dip[: int(0.005 * sample_rate)] *= np.linspace(0, 1, int(0.005 * sample_rate), dtype=np.float32)
    pressed = np.zeros(length, np.float32)
    for start in (round(kick_s * sample_rate) for kick_s in kicks_s):
        window = pressed[start : start + len(dip)]
        np.maximum(window, dip[: len(window)], out=window)
    return 1 - pressed


def active_rms(bus: FloatArray, sample_rate: int) -> float:
    """RMS of a bus [C, L] while it sounds: of the blocks of 50 ms within 26 dB of the loudest."""
    block = max(1, sample_rate // 20)
    usable = bus.shape[1] // block * block
    if usable == 0:
        return float(np.sqrt(np.mean(bus**2)))
    power = np.mean(bus[:, :usable].reshape(2, -1, block) ** 2, axis=(0, 2))
    return float(np.sqrt(np.mean(power[power >= power.max() / 400])))


def loudness_lufs(mix: FloatArray, sample_rate: int) -> float:
    """Integrated loudness after ITU-R BS.1770, its K-weighting applied to the spectra of blocks of 0.4 s.

    Args:
        mix: float32 [C, L]; shorter than one block is taken as one.
        sample_rate: in Hz.
    """
    block = min(mix.shape[1], int(0.4 * sample_rate))
    usable = mix.shape[1] // block * block
    blocks = mix[:, :usable].reshape(2, -1, block)
    weights = _k_weighting(np.fft.rfftfreq(block, 1 / sample_rate))
    spectra = np.fft.rfft(blocks)
    power = 2 * np.sum((spectra.real**2 + spectra.imag**2) * weights, axis=2).sum(axis=0) / block**2
    level = -0.691 + 10 * np.log10(power + 1e-12)
    heard = power[level > -70]
    if len(heard) == 0:
        return -70.0
    gate = -0.691 + 10 * math.log10(float(np.mean(heard))) - 10
    return -0.691 + 10 * math.log10(float(np.mean(power[level > max(gate, -70)])))


def _k_weighting(frequencies_hz: NDArray[Any]) -> FloatArray:
    """Power response of the K-weighting: a shelf for the head, then a high-pass."""
    s = 1j * frequencies_hz
    shelf_hz, shelf_q, gain = 1681.97, 0.70718, 10 ** (3.99984 / 20)
    shelf = (gain * s**2 + gain**0.49967 * shelf_hz / shelf_q * s + shelf_hz**2) / (
        s**2 + shelf_hz / shelf_q * s + shelf_hz**2
    )
    pass_hz, pass_q = 38.135, 0.50033
    high_pass = s**2 / (s**2 + pass_hz / pass_q * s + pass_hz**2)
    return np.asarray(np.abs(shelf * high_pass) ** 2, np.float32)


def master(mix: FloatArray, sample_rate: int) -> FloatArray:
    """The finished mix, float32 [C, L]: no DC, gently compressed, in the loudness window, peak at the ceiling."""
    mix = mix - mix.mean(axis=1, keepdims=True)
    mix = mix * db_to_gain(LOUDNESS_LUFS[0] - loudness_lufs(mix, sample_rate))
    mix = _compress(mix, sample_rate, threshold_db=LOUDNESS_LUFS[0] + 2, ratio=2.5)
    to_ceiling = CEILING_DB - 20 * math.log10(float(np.abs(mix).max()) + 1e-9)
    quietest, loudest = (target - loudness_lufs(mix, sample_rate) for target in LOUDNESS_LUFS)
    return _limit(mix * db_to_gain(min(max(to_ceiling, quietest), loudest)))


def _compress(mix: FloatArray, sample_rate: int, *, threshold_db: float, ratio: float) -> FloatArray:
    """Lowers what lies above the threshold (RMS over 80 ms) by ``1 - 1 / ratio`` of the excess."""
    power = _smooth(np.mean(_blocks(mix) ** 2, axis=(0, 2)), max(1, int(0.04 * sample_rate / _BLOCK)))
    excess_db = np.maximum(10 * np.log10(power + 1e-9) - threshold_db, 0)
    gain = 10 ** (-(1 - 1 / ratio) * excess_db / 20)
    return mix * _gain_curve(gain.astype(np.float32), mix.shape[1])


def _limit(mix: FloatArray) -> FloatArray:
    """Keeps every sample below the ceiling with a gain that foresees the peaks."""
    reach = 12
    ceiling = db_to_gain(CEILING_DB)
    peaks = np.abs(_blocks(mix)).max(axis=(0, 2))
    allowed = np.minimum(1, ceiling / np.maximum(peaks, 1e-9))
    padded = np.pad(allowed, reach + 1, mode="edge")
    lowest = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 3).min(axis=1)
    return mix * _gain_curve(_smooth(lowest, reach), mix.shape[1])


def _blocks(mix: FloatArray) -> FloatArray:
    """The mix in blocks, float32 [C, blocks, _BLOCK], the last one filled with silence."""
    return np.pad(mix, ((0, 0), (0, -mix.shape[1] % _BLOCK))).reshape(2, -1, _BLOCK)


def _smooth(values: FloatArray, reach: int) -> FloatArray:
    """Mean over a raised cosine of ``2 * reach + 1`` values, same shape."""
    window = np.hanning(2 * reach + 3)[1:-1]
    return np.convolve(np.pad(values, reach, mode="edge"), window / window.sum(), mode="valid").astype(np.float32)


def _gain_curve(gain: FloatArray, length: int) -> FloatArray:
    """Gains of blocks as gains of samples, float32 [L], in straight lines between the middles of the blocks."""
    middles = (np.arange(len(gain)) + 0.5) * _BLOCK
    return np.interp(np.arange(length), middles, gain).astype(np.float32)
