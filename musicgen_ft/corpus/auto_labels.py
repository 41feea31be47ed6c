"""Labels that are heard in the audio: tempo and key, for tracks of which nobody wrote them down.

C channels, L samples, W windows, N frames of the onset envelope, F frames of the spectrogram.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from musicgen_ft.corpus.labels import Labels

Floats = npt.NDArray[Any]

RATE = 22_050  # Hz; what librosa's figures are made for, and enough for both
INTRO_S, EXCERPT_S = 15.0, 120.0  # an intro often lacks the beat; two minutes tell the rest
MIN_S = 5.0
SILENCE = 1e-3  # peak; -60 dB

# Tempo.
ONSET_HOP = 256  # samples; 12 ms
WINDOW_S = 10.0  # of one autocorrelation: eight beats at 48 bpm, and short enough for a drummer who drifts
BPM_GRID = 55 * 2 ** (np.arange(round(120 * np.log2(200 / 55)) + 1) / 120)  # 55 to 200 by 0.6 %
PRIOR_BPM, PRIOR_OCTAVES = 120.0, 1.0  # log-normal, as librosa's own
MIN_ONSET = 0.4  # standard deviation of the onset envelope, in dB; pads and held chords have less, beats above 1
MIN_BPM_CONFIDENCE = 0.2  # noise and speech stay below 0.15, music with a beat comes above 0.35

# Key.
CQT_HOP = 2048
BINS_PER_SEMITONE = 3
LOWEST_MIDI, OCTAVES = 48, 4  # C3 to B6: below are kick drums, above are harmonics and cymbals
FULL_CONTRAST = 0.4  # of the twelve pitch classes: music has more, speech up to 0.2, noise under 0.1
MIN_KEY_CONFIDENCE = 0.5
TONICS = {
    "major": ("c", "db", "d", "eb", "e", "f", "f#", "g", "ab", "a", "bb", "b"),
    "minor": ("c", "c#", "d", "eb", "e", "f", "f#", "g", "g#", "a", "bb", "b"),
}
PROFILES = {  # how often each degree sounds: Albrecht and Shanahan, Music Perception 31 (2013)
    "major": (0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081),
    "minor": (0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052),
}


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What was heard in a track."""

    bpm: float | None
    """Beats per minute, in [55, 200]; None where there is no steady beat."""
    bpm_confidence: float
    """How alike the track is to itself a beat later, in [0, 1]."""
    key: str | None
    """"a minor"; None where there is no clear one."""
    key_confidence: float
    """How well the pitch classes fit the key, and how far they stand out, in [0, 1]."""


NOTHING = Heard(bpm=None, bpm_confidence=0.0, key=None, key_confidence=0.0)


class RhythmAndKey:
    """Hears tempo and key in a stream of samples, of which it keeps two minutes: 12 MB.

    Of a long track it listens to seconds 15 to 135, of a shorter one to all.
    """

    def __init__(self, sample_rate: int, *, min_onset: float = MIN_ONSET) -> None:
        """Samples come at ``sample_rate`` in Hz; where onsets vary by less than ``min_onset`` there is no beat."""
        self._min_onset = min_onset
        self._stream = soxr.ResampleStream(sample_rate, RATE, 1, dtype="float32", quality="MQ")
        self._kept: list[Floats] = []
        self._room = round((INTRO_S + EXCERPT_S) * RATE)
        self._is_finished = False

    def push(self, samples: Floats) -> None:
        """Takes the next samples, float32 [C, L]."""
        self._push(samples.mean(axis=0, dtype=np.float32), last=False)

    def finish(self) -> Heard:
        """What was heard, once all samples are pushed."""
        self._push(np.zeros(0, np.float32), last=True)
        samples = np.concatenate(self._kept)
        self._kept = []
        intro = round(INTRO_S * RATE)
        if len(samples) >= intro + round(EXCERPT_S * RATE) // 2:
            samples = samples[intro:]
        return hear(samples, min_onset=self._min_onset)

    def _push(self, mono: Floats, *, last: bool) -> None:
        if self._is_finished:
            raise ValueError("RhythmAndKey has finished; make another one for the next track")
        self._is_finished = last
        if self._room > 0:
            kept = self._stream.resample_chunk(np.ascontiguousarray(mono), last=last)[: self._room]
            self._kept.append(kept)
            self._room -= len(kept)


def hear(samples: Floats, *, min_onset: float = MIN_ONSET) -> Heard:
    """Tempo and key of mono samples, float32 [L] at ``RATE``; nothing of silence and of less than 5 seconds."""
    if len(samples) < MIN_S * RATE or np.abs(samples).max() < SILENCE:
        return NOTHING
    bpm, bpm_confidence = _tempo(samples, min_onset)
    key, key_confidence = _key(samples)
    # Rounded: matrix products differ in their last digits with the number of threads.
    bpm_confidence, key_confidence = round(bpm_confidence, 3), round(key_confidence, 3)
    return Heard(
        bpm=bpm if bpm_confidence >= MIN_BPM_CONFIDENCE else None,
        bpm_confidence=bpm_confidence,
        key=key if key_confidence >= MIN_KEY_CONFIDENCE else None,
        key_confidence=key_confidence,
    )


def fill_missing(labels: Labels, heard: Heard) -> Labels:
    """The labels with the tempo (to the whole beat per minute) and the key that were heard, where they have none.

    What is filled in is named in ``computed``.
    """
    bpm = None if heard.bpm is None else float(round(heard.bpm))
    found = {"bpm": bpm, "key": heard.key}
    filled: dict[str, Any] = {
        name: value for name, value in found.items() if value is not None and not getattr(labels, name)
    }
    kept = [name for name in labels.computed if name not in filled]
    return replace(labels, **filled, computed=(*kept, *filled))


def _tempo(samples: Floats, min_onset: float) -> tuple[float, float]:
    """Beats per minute, and the confidence in them.

    At the right tempo the onsets are alike a half, one, two and four beats later (autocorrelation), and come at the
    rate of the beat, its half and its quarter (Fourier). The one alone is fooled by slower tempi, the other by faster
    ones; their product by few. Source: Peeters, "Template-based estimation of time-varying tempo" (2007), for the
    product; librosa for the prior, which decides between octaves.
    """
    import librosa

    onsets = librosa.onset.onset_strength(y=samples, sr=RATE, hop_length=ONSET_HOP)  # [N]
    if onsets.std() < min_onset:
        return PRIOR_BPM, 0.0
    rate = RATE / ONSET_HOP
    length = min(len(onsets), round(WINDOW_S * rate))
    taper = np.hanning(length)
    windows = np.lib.stride_tricks.sliding_window_view(onsets, length)[:: max(1, length // 2)]  # [W, length]
    windows = (windows - windows.mean(axis=1, keepdims=True)) * taper

    fall = np.maximum(_autocorrelation(taper[None])[0], 0.05)  # of the taper's own similarity
    similarity = _autocorrelation(windows).mean(axis=0) / fall
    swing = np.abs(np.fft.rfft(windows, 16 * length)).mean(axis=0)  # 16: to interpolate between its bins
    swing_bpm = 60 * rate * np.arange(len(swing)) / (16 * length)

    def similar(bpm: Floats, *beats: float) -> Floats:
        lags = 60 * rate / bpm
        found = [np.interp(lags * times, np.arange(length), similarity, right=0) for times in beats]
        return np.asarray(np.mean(found, axis=0))

    alike = np.maximum(similar(BPM_GRID, 0.5, 1, 2, 4), 0)
    swings = np.sum([np.interp(BPM_GRID * times, swing_bpm, swing) for times in (1, 2, 4)], axis=0)
    prior = np.exp(-0.5 * (np.log2(BPM_GRID / PRIOR_BPM) / PRIOR_OCTAVES) ** 2)
    best = int(np.argmax(alike * swings * prior))
    nearby = BPM_GRID[best] * np.linspace(0.99, 1.01, 81)
    bpm = nearby[int(np.argmax(similar(nearby, 1, 2, 4, 8)))]  # eight beats tell it to a quarter of a percent
    return float(bpm), float(min(1, alike[best]))


def _autocorrelation(windows: Floats) -> Floats:
    """Of each row, float [W, length], 1 at lag 0."""
    length = windows.shape[1]
    power = np.abs(np.fft.rfft(windows, 2 * length)) ** 2
    found = np.fft.irfft(power)[:, :length]
    return np.asarray(found / np.maximum(found[:, :1], 1e-12))


def _key(samples: Floats) -> tuple[str, float]:
    """The key, and the confidence in it.

    Only peaks of the spectrum count, so that drums and noise, which fill all pitch classes, do not.
    """
    import librosa

    middle = len(samples) // 2
    excerpt = samples[max(0, middle - 15 * RATE) : middle + 15 * RATE]  # half a minute tells the tuning
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Trying to estimate tuning from empty")  # then it is 0
        tuning = librosa.estimate_tuning(y=excerpt, sr=RATE, n_fft=4096, bins_per_octave=12)
    spectrum = np.abs(
        librosa.cqt(
            samples,
            sr=RATE,
            hop_length=CQT_HOP,
            fmin=librosa.midi_to_hz(LOWEST_MIDI - 1),  # a semitone more at both ends, to tell a peak there
            n_bins=BINS_PER_SEMITONE * (12 * OCTAVES + 2),
            bins_per_octave=12 * BINS_PER_SEMITONE,
            tuning=tuning,
        )
    )  # [bins, F]
    classes = _pitch_classes(spectrum)
    spread = classes - classes.mean()
    contrast = float(np.linalg.norm(spread) / max(float(np.linalg.norm(classes)), 1e-12))
    fits = {
        f"{TONICS[mode][tonic]} {mode}": float(np.corrcoef(spread, np.roll(profile, tonic))[0, 1])
        for mode, profile in PROFILES.items()
        for tonic in range(12)
        if contrast > 0
    }
    key = max(fits, key=lambda name: fits[name], default="c major")
    return key, max(0.0, fits.get(key, 0.0)) * min(1.0, contrast / FULL_CONTRAST)


def _pitch_classes(spectrum: Floats) -> Floats:
    """How much each pitch class sounds, float [12] from C, of a magnitude spectrum [bins, F] from B upwards."""
    peaks = np.where(
        (spectrum[1:-1] >= spectrum[:-2]) & (spectrum[1:-1] >= spectrum[2:]), np.sqrt(spectrum[1:-1]), 0
    )  # bin i of peaks is bin i + 1 of the spectrum
    first = BINS_PER_SEMITONE - 2  # the bin below C: bin 3 of the spectrum is C itself, 2 and 4 are beside it
    peaks = peaks[first : first + 12 * OCTAVES * BINS_PER_SEMITONE]
    semitones = np.tensordot((0.5, 1, 0.5), peaks.reshape(12 * OCTAVES, BINS_PER_SEMITONE, -1), axes=(0, 1))
    classes = semitones.reshape(OCTAVES, 12, -1).sum(axis=0)  # [12, F]
    levels = np.linalg.norm(classes, axis=0)
    return np.asarray((classes / (levels + 0.1 * np.percentile(levels, 95) + 1e-9)).mean(axis=1))
