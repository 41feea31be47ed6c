"""Numbers that tell how a clip sounds: timbre, harmony, onsets and pulse. No network is behind them.

They are made for a comparison of clips that went through a narrow codec with clips that did not: the level is taken
away, silence has a floor, and all is averaged over seconds.

C channels, L samples, F frames, M mel bands, P pulse rates.
"""

import math
from functools import cache

import librosa
import numpy as np
import numpy.typing as npt
import scipy.fft
import soxr

from musicgen_ft.errors import UserError

Floats = npt.NDArray[np.float64]

RATE = 16_000
"""Every clip is heard at this rate, in Hz: what lies above half of it is not measured."""
WINDOW, HOP = 1024, 256
"""Samples; 64 ms and 16 ms."""
MEL_BANDS = 48
MEL_RANGE_HZ = (40.0, 7_600.0)
NUM_CEPSTRA = 20
FLOOR_DB = -70.0
"""Of a band, against the clip's loudest: below it a codec writes what it likes."""
PULSE_BPM = 45.0 * 2.0 ** (np.arange(37) / 12)
"""Rates at which onsets may repeat: 45 to 360 a minute by semitones."""
CHROMA_RANGE_HZ = (130.0, 2_000.0)
MIN_S = 1.0
"""Seconds of the shortest clip."""
_SILENCE = 1e-7


def clip_features(waveform: npt.NDArray[np.float32], sample_rate: int) -> Floats:
    """What a clip sounds like, float64 [features]: the same numbers at every level; all 0 for silence.

    Args:
        waveform: float32 [L] or [C, L]; channels are averaged.
        sample_rate: in Hz.

    Raises:
        UserError: if the clip is shorter than MIN_S or not finite.
    """
    mono = heard(waveform, sample_rate)
    level = math.sqrt(float(np.mean(mono**2)))
    if level < _SILENCE:
        return np.zeros(num_features())
    spectrum = _power(mono / level)  # [F, bins]
    mel = np.maximum(spectrum @ _mel_bank().T, 1e-12)  # [F, M]
    db = 10 * np.log10(mel)
    db = np.maximum(db, db.max() + FLOOR_DB)
    return np.concatenate([_timbre(db), _shape(spectrum), _contrast(db), _harmony(spectrum), _pulse(db)])


@cache
def num_features() -> int:
    """How many there are."""
    noise = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    return len(clip_features(noise, RATE))


def heard(waveform: npt.NDArray[np.float32], sample_rate: int) -> Floats:
    """A clip in mono at ``RATE``, float64 [L].

    Raises:
        UserError: if it is shorter than MIN_S or not finite.
    """
    mono = waveform.mean(axis=0, dtype=np.float64) if waveform.ndim == 2 else waveform.astype(np.float64)
    if not np.isfinite(mono).all():
        raise UserError("a clip holds values that are not finite: it cannot be judged.")
    if len(mono) < MIN_S * sample_rate:
        raise UserError(f"found a clip of {len(mono) / sample_rate:.2f} s, expected {MIN_S:g} s or more to judge it.")
    if sample_rate != RATE:
        mono = soxr.resample(mono, sample_rate, RATE, quality="HQ")
    return np.asarray(mono, np.float64)


def _power(mono: Floats) -> Floats:
    """Power spectrum [F, WINDOW / 2 + 1]."""
    frames = np.lib.stride_tricks.sliding_window_view(mono, WINDOW)[::HOP] * np.hanning(WINDOW)
    return np.asarray(np.abs(np.fft.rfft(frames, axis=1)) ** 2 / WINDOW, np.float64)


def _timbre(db: Floats) -> Floats:
    """Mean, spread and change of the cepstrum of the mel bands (MFCC)."""
    cepstra: Floats = np.asarray(scipy.fft.dct(db, norm="ortho"), np.float64)[:, :NUM_CEPSTRA]
    steps = np.abs(np.diff(cepstra, axis=0))
    return np.concatenate([cepstra[:, 1:].mean(axis=0), cepstra.std(axis=0), steps.mean(axis=0)])


def _shape(spectrum: Floats) -> Floats:
    """Centroid, bandwidth, roll-off and flatness, in octaves and nepers: mean and spread."""
    bins = _frequencies()
    total = spectrum.sum(axis=1)
    loud = total > total.max() * 1e-5
    spectrum, total = spectrum[loud], total[loud]
    shares = spectrum / total[:, None]
    octaves = np.log2(np.maximum(bins, bins[1]))
    centroid = shares @ octaves
    width = np.sqrt(np.maximum(shares @ octaves**2 - centroid**2, 0))
    summed = np.cumsum(shares, axis=1)
    rolloffs = [octaves[np.argmax(summed >= share, axis=1)] for share in (0.25, 0.85, 0.95)]
    floored = np.maximum(spectrum, 1e-6 * total[:, None] / spectrum.shape[1])
    flatness = np.log(floored).mean(axis=1) - np.log(floored.mean(axis=1))
    curves = np.stack([centroid, width, *rolloffs, flatness])
    return np.concatenate([curves.mean(axis=1), curves.std(axis=1)])


def _contrast(db: Floats) -> Floats:
    """Peaks over valleys in time, of eight groups of bands: how far drums stand out, and how dense the music is."""
    groups = np.stack([group.mean(axis=1) for group in np.array_split(db, 8, axis=1)], axis=1)  # [F, 8]
    low, middle, high = np.percentile(groups, [10, 50, 95], axis=0)
    return np.concatenate([high - low, high - middle])


def _harmony(spectrum: Floats) -> Floats:
    """How many pitch classes sound and how fast they change; the key itself makes no difference."""
    chroma = np.sqrt(spectrum) @ _chroma_bank().T  # [F, 12]
    chroma /= np.linalg.norm(chroma, axis=1, keepdims=True) + 1e-9
    mean = chroma.mean(axis=0)
    share = mean / max(float(mean.sum()), 1e-9)
    entropy = -float(np.sum(share * np.log(share + 1e-9)))
    blocks = np.stack([block.mean(axis=0) for block in np.array_split(chroma, max(2, len(chroma) // 16))])
    blocks /= np.linalg.norm(blocks, axis=1, keepdims=True) + 1e-9
    change = 1 - np.sum(blocks[1:] * blocks[:-1], axis=1)
    return np.concatenate([np.sort(mean)[::-1], [entropy, float(change.mean()), float(change.std())]])


def _pulse(db: Floats) -> Floats:
    """How strong onsets are in low, middle and high bands, how uneven, and at which rates they repeat."""
    rises = np.maximum(np.diff(db, axis=0), 0)  # [F - 1, M]
    found = []
    for band in (rises[:, :6], rises[:, 6:24], rises[:, 24:], rises):
        onsets = band.mean(axis=1)
        mean, spread = float(onsets.mean()), float(onsets.std())
        skewness = float(np.mean(((onsets - mean) / (spread + 1e-9)) ** 3))
        found.append(np.array([mean, spread, skewness, float(np.percentile(onsets, 95))]))
        found.append(_repetition(onsets))
    return np.concatenate(found)


def _repetition(onsets: Floats) -> Floats:
    """Autocorrelation at the rates of ``PULSE_BPM``, [P]; 0 where the clip is too short to tell."""
    length = len(onsets)
    centred = onsets - onsets.mean()
    power = np.abs(np.fft.rfft(centred, 2 * length)) ** 2
    similarity = np.fft.irfft(power)[:length]
    similarity = similarity / max(float(similarity[0]), 1e-9)
    lags = 60 * RATE / HOP / PULSE_BPM
    fall = np.maximum(1 - lags / length, 0.25)  # fewer frames overlap at longer lags
    return np.asarray(np.interp(lags, np.arange(length), similarity, right=0.0) / fall, np.float64)


@cache
def _frequencies() -> Floats:
    return np.asarray(np.fft.rfftfreq(WINDOW, 1 / RATE), np.float64)


@cache
def _mel_bank() -> Floats:
    """Triangles over the HTK mel scale whose bins sum to 1, [M, bins]."""
    low, high = MEL_RANGE_HZ
    bank = librosa.filters.mel(
        sr=RATE, n_fft=WINDOW, n_mels=MEL_BANDS, fmin=low, fmax=high, htk=True, norm=1, dtype=np.float64
    )
    return np.asarray(bank)


@cache
def _chroma_bank() -> Floats:
    """Which pitch class each bin belongs to, [12, bins]; low and high bins belong to none."""
    hz = _frequencies()
    is_tone = (hz >= CHROMA_RANGE_HZ[0]) & (hz <= CHROMA_RANGE_HZ[1])
    pitch = np.zeros(len(hz))
    pitch[is_tone] = librosa.hz_to_midi(hz[is_tone])
    distance = np.abs((pitch[None] - np.arange(12)[:, None] + 6) % 12 - 6)
    return np.where(is_tone[None], np.maximum(0, 1 - distance), 0.0)
