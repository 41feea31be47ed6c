"""Fingerprints of recordings: what near duplicates are found by.

A fingerprint is a set of landmarks, as in Wang's "An Industrial-Strength Audio Search Algorithm" (ISMIR 2003), but of
three peaks of the spectrogram instead of two: a hash of their frequencies and of the times between them, and the time
of the first. Three peaks survive less often than two, and coincide by chance so much less often that different pieces
of the same rules, tempo and key stay apart. The hashes do not depend on level, start or channels, and only where a
codec or an equalizer moves peaks on the spectrogram from 0.16 to 2.7 kHz.

C channels, L samples.
"""

import base64
import binascii
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

FRAME_S = 0.024
"""Seconds of one frame, the unit of ``Fingerprint.times``."""

HASHES_PER_S = 4.5
"""Hashes kept of each second of a long track, at most."""

MIN_HASHES = 256
"""Hashes kept of a short track, if it has them: a jingle is to be found too."""

Samples = npt.NDArray[np.float32]

_RATE = 8_000
_HOP = 192  # FRAME_S
_WINDOW = 1_536  # 0.19 s: long, so that a tone stands out of a codec's noise
_BATCH = 512  # frames transformed at once, always the same ones: results do not depend on how blocks are cut
_FIRST_BIN, _END_BIN = 30, 512  # 0.16 to 2.7 kHz: what codecs at 64 kb/s keep; a bin is 5.2 Hz
_RADIUS_FRAMES, _RADIUS_BINS = 10, 28  # a peak is the highest within 0.24 s and 146 Hz
_REACH_FRAMES = 40  # within about 1 s and e^5 (43 dB) of the loudest
_REACH = 5.0
_FLOOR = np.float32(np.log(_WINDOW / 4 * 1e-4))  # a sine of -80 dB
_TARGET_FRAMES = (2, 43)  # from a landmark's first peak to the others: 0.05 to 1 s
_TARGET_BINS = 100  # and at most 0.5 kHz away
_BIN_STEP, _FRAME_STEP = 1.5, 4.0  # how finely a hash knows frequencies and times
_CONTEXT = _RADIUS_FRAMES + _REACH_FRAMES  # frames on either side on which a peak depends


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Hashes of a recording and where they are in it.

    The hashes are the smallest that the recording has, as many as its length allows: so two copies keep the same ones.
    """

    hashes: npt.NDArray[np.uint32]
    """uint32 [n]."""
    times: npt.NDArray[np.int32]
    """int32 [n]: frames of ``FRAME_S`` from the start, ascending."""

    def to_text(self) -> str:
        """As a line of ASCII, about 7 characters a hash: base64 of zlib of little-endian hashes and time steps."""
        steps = np.diff(self.times, prepend=np.int32(0))
        content = self.hashes.astype("<u4").tobytes() + steps.astype("<u4").tobytes()
        return base64.b64encode(zlib.compress(content, 1)).decode("ascii")

    @classmethod
    def from_text(cls, text: str) -> "Fingerprint":
        """Reads what ``to_text`` wrote.

        Raises:
            ValueError: if it is something else.
        """
        try:
            numbers = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<u4").reshape(2, -1)
        except (binascii.Error, zlib.error, ValueError) as error:
            raise ValueError(f"not a fingerprint: {text[:20]!r}...") from error
        return cls(numbers[0].astype(np.uint32), np.cumsum(numbers[1], dtype=np.int32))


class FingerprintStream:
    """Makes the fingerprint of a recording from its blocks; how they are cut does not matter."""

    def __init__(self, sample_rate: int) -> None:
        """Of a recording of ``sample_rate`` samples per second."""
        self._resampler = soxr.ResampleStream(sample_rate, _RATE, 1, dtype="float32", quality="HQ")
        self._window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
        self._pending: list[Samples] = []  # resampled, [L]; whose first sample is the first of the next frame
        self._num_pending = 0
        self._spectra = np.full((_CONTEXT, _END_BIN), -np.inf, np.float32)  # log magnitudes; from frame _next_peak on
        self._next_peak = 0  # frame whose peaks come next; _spectra begins _CONTEXT before it
        self._peaks = np.zeros((2, 0))  # frames and bins, ascending in time, which may become landmarks still
        self._next_landmark = 0  # frame whose landmarks come next
        self._hashes = np.zeros(0, np.uint32)
        self._times = np.zeros(0, np.int32)

    def push(self, samples: Samples) -> None:
        """Takes the next block, float32 [C, L]; channels are averaged."""
        mono = np.ascontiguousarray(samples.mean(axis=0, dtype=np.float32))
        self._take(self._resampler.resample_chunk(mono))

    def finish(self) -> Fingerprint:
        """The fingerprint; the stream takes nothing after it."""
        self._take(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        self._transform(np.concatenate([*self._pending, np.zeros(_WINDOW, np.float32)]))
        end = np.full((_CONTEXT, _END_BIN), -np.inf, np.float32)
        self._advance(end, is_last=True)
        self._keep(1)
        order = np.lexsort((self._hashes, self._times))
        return Fingerprint(self._hashes[order], self._times[order])

    def _take(self, mono: Samples) -> None:
        self._pending.append(mono)
        self._num_pending += len(mono)
        needed = (_BATCH - 1) * _HOP + _WINDOW
        if self._num_pending < needed:
            return
        samples = np.concatenate(self._pending)
        while len(samples) >= needed:
            self._transform(samples[:needed])
            samples = samples[_BATCH * _HOP :]
        self._pending, self._num_pending = [samples], len(samples)

    def _transform(self, samples: Samples) -> None:
        """Goes on with the log magnitudes of all whole frames of some samples [L]."""
        frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP] * self._window
        spectra = np.fft.rfft(frames)[:, :_END_BIN]
        power = spectra.real**2 + spectra.imag**2
        self._advance((np.log(np.maximum(power, np.float32(1e-8))) / 2).astype(np.float32, copy=False))

    def _advance(self, spectra: Samples, *, is_last: bool = False) -> None:
        """Finds the peaks that more frames [T, bins] decide, then the landmarks that those decide."""
        self._spectra = np.concatenate([self._spectra, spectra])
        num_decided = len(self._spectra) - 2 * _CONTEXT
        if num_decided > 0:
            frames, bins = _find_peaks(self._spectra)
            self._peaks = np.concatenate([self._peaks, np.stack([frames + self._next_peak, bins])], axis=1)
            self._spectra = self._spectra[num_decided:].copy()
            self._next_peak += num_decided
        # Interpolation moves a peak by half a frame: what is certain ends a frame before the last decided one.
        end = self._next_peak if is_last else self._next_peak - _TARGET_FRAMES[1] - 1
        if end > self._next_landmark:
            hashes, times = _landmarks(self._peaks[0], self._peaks[1], self._next_landmark, end)
            self._hashes = np.concatenate([self._hashes, hashes])
            self._times = np.concatenate([self._times, times])
            self._peaks = self._peaks[:, self._peaks[0] >= end]
            self._next_landmark = end
            # Four times too many: what comes may have fewer, and the final choice is one for the whole track.
            self._keep(4)

    def _keep(self, times_too_many: int) -> None:
        """Keeps the smallest hashes, as many as the length so far allows."""
        budget = times_too_many * max(MIN_HASHES, round(HASHES_PER_S * FRAME_S * self._next_peak))
        if len(self._hashes) > budget:
            limit = np.partition(self._hashes, budget - 1)[budget - 1]
            kept = self._hashes <= limit
            self._hashes, self._times = self._hashes[kept], self._times[kept]


def _find_peaks(spectra: Samples) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Frames and bins of the peaks of log magnitudes [T, bins], to a fraction of a frame and of a bin.

    Without those of the first and last ``_CONTEXT`` frames; frame 0 is the one after the first of these.
    """
    radius, reach = _RADIUS_FRAMES, _REACH_FRAMES
    inner = slice(_CONTEXT, -_CONTEXT)
    near = spectra[reach:-reach]  # what the neighbourhoods of the inner frames cover
    highest = _sliding_max(_sliding_max(_pad_bins(near).T, _RADIUS_BINS).T, radius)
    loudest = _sliding_max(spectra.max(axis=1), _CONTEXT)[:, None]
    values = spectra[inner]
    is_peak = (values == highest) & (values > np.maximum(loudest - _REACH, _FLOOR))
    is_peak[:, :_FIRST_BIN] = is_peak[:, -1] = False
    frames, bins = np.nonzero(is_peak)
    at = frames + _CONTEXT
    tops = spectra[at, bins]
    in_time = _vertex(spectra[at - 1, bins], tops, spectra[at + 1, bins])
    in_frequency = _vertex(spectra[at, bins - 1], tops, spectra[at, bins + 1])
    return frames + in_time, bins + in_frequency


def _pad_bins(spectra: Samples) -> Samples:
    return np.pad(spectra, ((0, 0), (_RADIUS_BINS, _RADIUS_BINS)), constant_values=-np.inf)


def _sliding_max(values: Samples, radius: int) -> Samples:
    """Highest of each ``2 * radius + 1`` rows in turn; ``2 * radius`` rows shorter."""
    width = 1
    size = 2 * radius + 1
    while 2 * width <= size:
        values = np.maximum(values[:-width], values[width:])
        width *= 2
    return values if width == size else np.maximum(values[: width - size], values[size - width :])


def _vertex(before: Samples, top: Samples, after: Samples) -> npt.NDArray[np.float64]:
    """Where the parabola through three values has its vertex, in [-0.5, 0.5] from the middle one."""
    with np.errstate(invalid="ignore"):  # beside the first and the last frame there is -inf
        bend = before.astype(np.float64) - 2.0 * top + after
        shift = 0.5 * (before.astype(np.float64) - after) / np.where(bend < 0, bend, -1.0)
    return np.where(np.isfinite(shift), np.clip(shift, -0.5, 0.5), 0.0)


def _landmarks(
    frames: npt.NDArray[np.float64], bins: npt.NDArray[np.float64], begin: int, end: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int32]]:
    """Hashes and times of the landmarks whose first peak is in the frames from ``begin`` to before ``end``."""
    order = np.argsort(frames, kind="stable")
    frames, bins = frames[order], bins[order]
    nearest, farthest = (np.searchsorted(frames, frames + distance) for distance in _TARGET_FRAMES)
    first, second = _spans(nearest, np.where((frames >= begin) & (frames < end), farthest, nearest))
    is_near = np.abs(bins[first] - bins[second]) <= _TARGET_BINS
    first, second = first[is_near], second[is_near]
    # Two pairs with the same first peak make a landmark of three.
    one, other = _spans(np.arange(len(first)) + 1, np.searchsorted(first, first, side="right"))
    first, low, high = first[one], second[one], second[other]
    low, high = np.where(bins[low] <= bins[high], low, high), np.where(bins[low] <= bins[high], high, low)
    code = np.zeros(len(first), np.uint64)
    for number, size in (
        *((np.rint(bins[peak] / _BIN_STEP), 1 << 10) for peak in (first, low, high)),
        *((np.rint((frames[peak] - frames[first]) / _FRAME_STEP), 1 << 6) for peak in (low, high)),
    ):
        code = code * np.uint64(size) + number.astype(np.uint64)
    return _mix(code), np.rint(frames[first]).astype(np.int32)


def _spans(
    starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """For each i, the numbers from ``starts[i]`` to before ``ends[i]``: (i repeated, the numbers)."""
    counts = np.maximum(ends - starts, 0)
    owners = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owners, starts[owners] + within


def _mix(code: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """Spreads codes evenly over 32 bits, so that a choice by size is a fair one. Source: the end of MurmurHash3."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        code = (code ^ (code >> np.uint64(33))) * np.uint64(factor)
    return (code >> np.uint64(32)).astype(np.uint32)
