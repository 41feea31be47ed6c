"""Measures a track's sound second by second, in one pass and little memory.

C channels, L samples, S seconds, H hops of 0.1 s, B frequency bands.
"""

import math
from array import array

import numpy as np
import numpy.typing as npt

from musicgen_ft.corpus.quality import MAX_WIDTH, MIN_DB, SILENCE_DB, Quality, Samples, Seconds, mean_square_db

MIN_SAMPLE_RATE = 4000
"""The K-weighting's shelf at 1.7 kHz wants more than twice that."""

MAX_SAMPLE = 1e4  # damaged float files hold anything up to 3e38, whose square is infinite
HOPS_PER_S = 10  # BS.1770's gating blocks of 0.4 s overlap by 75 %
BLOCKS_PER_HOP = 10  # head and tail are measured in blocks of 10 ms

# BS.1770-4's weights in FFmpeg's orders of 5.0 and 5.1 (front left, right, centre, (LFE,) surround left, right)
CHANNEL_WEIGHTS = {5: (1.0, 1.0, 1.0, 1.41, 1.41), 6: (1.0, 1.0, 1.0, 0.0, 1.41, 1.41)}
LOUDNESS_OFFSET = -0.691  # makes 997 Hz at full scale in one channel -3.01 LKFS
ABSOLUTE_GATE_LUFS = -70.0
RELATIVE_GATE_LU = -10.0
GATING_HOPS = 4

CLIP_TOLERANCE = 1e-4  # of the ceiling: 16 bits reach -1 but only 0.99997
CLIP_MIN_CEILING = 0.5  # of full scale: what is clipped and then turned down by more passes unseen
CLIP_MIN_RUN = 3
# The crest of a smooth wave is flat as well: at 30 Hz, 6 samples are within the tolerance. But its neighbours are then
# less than 4 tolerances below (a parabola), those of a clipped crest more.
CLIP_EDGE = 5 * CLIP_TOLERANCE

FADE_MIN_FALL_DB = 20.0
FADE_MIN_HOPS = 5  # the last hop of a track that ends at once is quieter too: the sound fills a part of it
FADE_PLATEAU_HOPS = 50
FADE_PLATEAU_DB = 0.5  # a linear fade of a minute begins by 0.7 dB in 5 s

SPECTRUM_WINDOW_S = 0.046  # 2048 samples at 44.1 kHz
SPECTRUM_KAISER_BETA = 16.0  # side lobes 120 dB down: a loud bass must not reach the floor's threshold far above it
BINS_PER_BAND = 4
WINDOW_QUANTILE = 0.75  # of the windows of a second: clicks are overlooked, cymbals in a quarter of it are not
SECOND_QUANTILE = 0.95  # of the seconds of a track
CONTENT_DB = 8.0  # above 16-bit dither; the quantiles of its noise reach 4 to 5 dB
MAX_CONTENT_DB = 255
CLIFF_DB = 20.0
CLIFF_MIN_KHZ = 4.0  # below, tones over cymbals look like one

DITHER_POWER = 2.0**-30 / 4  # mean square of triangular dither with rounding at 16 bits


class QualityMeter:
    """Measures a track block by block, in one pass; how the blocks are cut makes no difference to any bit.

    Everything is measured on whole seconds from the track's start, of which only figures are kept: some 200 bytes.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        if sample_rate < MIN_SAMPLE_RATE or channels < 1:
            raise ValueError(
                f"{channels} channels at {sample_rate} Hz: expected at least one, at {MIN_SAMPLE_RATE} Hz or more"
            )
        self._rate, self._channels = sample_rate, channels
        self._pending: Samples = np.empty((channels, sample_rate), np.float32)
        self._filled = 0
        self._num_samples = 0
        self._peak = 0.0
        self._sums = np.zeros(channels)
        self._mid_energy = self._side_energy = 0.0
        self._levels = _Levels(sample_rate)
        self._loudness = _Loudness(sample_rate, channels)
        self._clipping = _Clipping()
        self._bandwidth = _Bandwidth(sample_rate)

    def push(self, samples: Samples) -> None:
        """Takes the next float32 [C, L]; full scale is 1.

        Raises:
            ValueError: if its channels are not C, or samples are NaN or infinite.
        """
        if samples.ndim != 2 or len(samples) != self._channels:
            raise ValueError(f"samples of shape {list(samples.shape)}, expected [{self._channels}, L]")
        start, length = 0, samples.shape[1]
        while start < length:
            count = min(self._rate - self._filled, length - start)
            self._pending[:, self._filled : self._filled + count] = samples[:, start : start + count]
            start, self._filled = start + count, self._filled + count
            if self._filled == self._rate:
                self._measure(self._pending)
                self._filled = 0

    def finish(self) -> tuple[Quality, Seconds]:
        """The figures of all that was pushed; called once, at the end.

        Raises:
            ValueError: if nothing was pushed, or as in ``push``.
        """
        if self._filled:
            self._measure(np.ascontiguousarray(self._pending[:, : self._filled]))
            self._filled = 0
        if not self._num_samples:
            raise ValueError("no samples to measure")
        duration_s = self._num_samples / self._rate
        level_db = self._levels.seconds_db()
        clipped = self._clipping.seconds()
        head_s, tail_s = self._levels.silence_s(duration_s)
        quality = Quality(
            source_sample_rate=self._rate,
            source_channels=self._channels,
            duration_s=duration_s,
            loudness_lufs=self._loudness.integrated(),
            peak_db=mean_square_db(self._peak**2),
            silent_share=float(np.mean(level_db < SILENCE_DB)),
            head_silence_s=head_s,
            tail_silence_s=tail_s,
            fade_out_s=_fade_out_s(self._levels.hops_db()),
            clipped_share=int(clipped.sum()) / (self._num_samples * self._channels),
            dc_offset=float(max(self._sums / self._num_samples, key=abs)),
            bandwidth_khz=self._bandwidth.track_khz(),
            stereo_width=self._stereo_width(),
        )
        sizes = np.full(len(level_db), self._rate * self._channels)
        sizes[-1] -= (-self._num_samples % self._rate) * self._channels
        unmeasured = np.full(len(level_db), np.nan)
        rows = (level_db, clipped / sizes, self._bandwidth.seconds_khz(), unmeasured)
        return quality, np.stack(rows).astype(np.float16)

    def _measure(self, samples: Samples) -> None:
        """Takes float32 [C, L], one second or the track's last part of one."""
        peak = float(max(samples.max(), -samples.min()))
        if not math.isfinite(peak):
            raise ValueError("samples that are NaN or infinite")
        if peak > MAX_SAMPLE:
            samples, peak = samples.clip(-MAX_SAMPLE, MAX_SAMPLE), MAX_SAMPLE
        self._num_samples += samples.shape[1]
        self._peak = max(self._peak, peak)
        self._sums += samples.sum(axis=1, dtype=np.float64)
        if self._channels > 1:
            mid, side = samples[0] + samples[1], samples[0] - samples[1]
            self._mid_energy += float(mid @ mid)
            self._side_energy += float(side @ side)
        level_db = self._levels.push(samples)
        self._loudness.push(samples)
        self._clipping.push(samples, peak)
        self._bandwidth.push(samples, is_silent=level_db < SILENCE_DB)

    def _stereo_width(self) -> float | None:
        if self._channels == 1:
            return None
        if self._side_energy == 0:
            return 0.0
        if self._side_energy >= self._mid_energy * MAX_WIDTH**2:
            return MAX_WIDTH
        return math.sqrt(self._side_energy / self._mid_energy)


class _Levels:
    """RMS levels over all channels: of seconds, of whole hops of 0.1 s, and where the sound begins and ends."""

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._block_edges = _edges(sample_rate, HOPS_PER_S * BLOCKS_PER_HOP)
        self._seconds, self._hops = array("d"), array("f")
        self._sound_start: int | None = None
        self._sound_stop = 0

    def push(self, samples: Samples) -> float:
        """Takes the next second, float32 [C, L]; gives its level."""
        C, L = samples.shape
        edges = self._block_edges[self._block_edges < L]
        blocks = np.add.reduceat(np.einsum("cl,cl->l", samples, samples), edges).astype(np.float64)  # energies
        stops = np.append(edges[1:], L)
        loud = np.flatnonzero(blocks >= 10 ** (SILENCE_DB / 10) * C * (stops - edges))
        if len(loud):
            offset = len(self._seconds) * self._rate
            if self._sound_start is None:
                self._sound_start = offset + int(edges[loud[0]])
            self._sound_stop = offset + int(stops[loud[-1]])
        num_hops = L * HOPS_PER_S // self._rate
        hops = blocks[: num_hops * BLOCKS_PER_HOP].reshape(num_hops, BLOCKS_PER_HOP).sum(axis=1)
        self._hops.extend(hops * HOPS_PER_S / (C * self._rate))
        self._seconds.append(mean_square_db(blocks.sum() / (C * L)))
        return self._seconds[-1]

    def seconds_db(self) -> npt.NDArray[np.float64]:
        """[S]."""
        return np.array(self._seconds)

    def hops_db(self) -> npt.NDArray[np.float64]:
        """[H], without the track's last part of a hop."""
        return 10 * np.log10(np.maximum(np.array(self._hops, np.float64), 10 ** (MIN_DB / 10)))

    def silence_s(self, duration_s: float) -> tuple[float, float]:
        """Seconds of silence at the head and at the tail."""
        if self._sound_start is None:
            return duration_s, 0.0
        return self._sound_start / self._rate, max(0.0, duration_s - self._sound_stop / self._rate)


class _Loudness:
    """Integrated loudness, BS.1770-4. Keeps the weighted energy of each hop of 0.1 s, a quarter of a gating block."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._rate = sample_rate
        self._edges = _edges(sample_rate, HOPS_PER_S)
        self._weights = np.array(CHANNEL_WEIGHTS.get(channels, (1.0,) * channels))
        self._sections = _k_weighting(sample_rate)
        self._state = np.zeros((len(self._sections), channels, 2))
        self._hops = array("d")

    def push(self, samples: Samples) -> None:
        """Takes the next second, float32 [C, L]; what is left after its last whole hop does not count."""
        # Here, since it takes 0.7 s to import; ignored, since scipy has no types
        from scipy.signal import sosfilt

        # In float64: the high-pass at 38 Hz has poles at 0.995, whose float32 rounding is heard in quiet blocks
        weighted, self._state = sosfilt(self._sections, samples.astype(np.float64), zi=self._state)
        self._state[np.abs(self._state) < 1e-30] = 0  # what decays in silence would end as slow denormal numbers
        edges = self._edges[self._edges < samples.shape[1]]
        energies = np.add.reduceat(np.square(weighted, out=weighted), edges, axis=1)  # [C, hops]
        num_hops = samples.shape[1] * HOPS_PER_S // self._rate
        self._hops.extend(self._weights @ energies[:, :num_hops])

    def integrated(self) -> float | None:
        """LUFS; None where no gating block is left."""
        hops = np.array(self._hops)
        if len(hops) < GATING_HOPS:
            return None
        blocks = np.convolve(hops, np.ones(GATING_HOPS), "valid") * HOPS_PER_S / (GATING_HOPS * self._rate)
        blocks = blocks[blocks > _power(ABSOLUTE_GATE_LUFS)]
        if not len(blocks):
            return None
        blocks = blocks[blocks > blocks.mean() * 10 ** (RELATIVE_GATE_LU / 10)]
        return LOUDNESS_OFFSET + 10 * math.log10(blocks.mean())


class _Clipping:
    """Counts the samples in flat runs at the highest absolute value so far; a higher one makes all counts before it 0.

    Seconds are looked at one by one: of a run that crosses their border, a part of one or two samples is not counted.
    """

    def __init__(self) -> None:
        self._ceiling = 0.0
        self._first_second = 0  # counts of the seconds before it are of a lower ceiling
        self._counts = array("q")

    def push(self, samples: Samples, peak: float) -> None:
        """Takes the next second, float32 [C, L], and its highest absolute value."""
        if peak > self._ceiling * (1 + CLIP_TOLERANCE):
            self._ceiling, self._first_second = peak, len(self._counts)
        reaches = self._ceiling >= CLIP_MIN_CEILING and peak >= self._ceiling * (1 - CLIP_TOLERANCE)
        self._counts.append(sum(_num_clipped(channel, self._ceiling) for channel in samples) if reaches else 0)

    def seconds(self) -> npt.NDArray[np.int64]:
        """[S], samples of all channels."""
        counts = np.array(self._counts, np.int64)
        counts[: self._first_second] = 0
        return counts


class _Bandwidth:
    """Highest frequency with content: of each second, and of the spectrum that only 5 % of the seconds exceed.

    Keeps a histogram of the seconds' levels in each frequency band, in steps of 1 dB: its size does not grow.
    """

    def __init__(self, sample_rate: int) -> None:
        self._size = size = 2 ** round(math.log2(sample_rate * SPECTRUM_WINDOW_S))
        self._window = np.kaiser(size, SPECTRUM_KAISER_BETA).astype(np.float32)
        self._band_khz = BINS_PER_BAND * sample_rate / size / 1000
        self._num_bands = size // 2 // BINS_PER_BAND
        self._histogram = np.zeros((self._num_bands, MAX_CONTENT_DB + 1), np.int32)
        self._seconds = array("f")

    def push(self, samples: Samples, *, is_silent: bool) -> None:
        """Takes the next second, float32 [C, L]; silent ones have no bandwidth and do not count for the track."""
        if is_silent:
            self._seconds.append(0)
            return
        bands_db = self._bands_db(samples)
        steps = np.rint(bands_db).clip(0, MAX_CONTENT_DB).astype(np.int64)
        self._histogram[np.arange(self._num_bands), steps] += 1
        self._seconds.append(_bandwidth_khz(bands_db, self._band_khz))

    def seconds_khz(self) -> npt.NDArray[np.float64]:
        """[S]."""
        return np.array(self._seconds, np.float64)

    def track_khz(self) -> float:
        """0 where all seconds are silent."""
        num_seconds = int(self._histogram[0].sum())
        if not num_seconds:
            return 0.0
        num_above = num_seconds - np.cumsum(self._histogram, axis=1)  # [B, steps]: seconds that exceed the step
        bands_db = np.argmax(num_above <= (1 - SECOND_QUANTILE) * num_seconds, axis=1).astype(np.float64)
        return _bandwidth_khz(bands_db, self._band_khz)

    def _bands_db(self, samples: Samples) -> npt.NDArray[np.float64]:
        """[B], the level of each band above that of 16-bit dither, from windows of float32 [C, L]."""
        size, window = self._size, self._window
        if samples.shape[1] < size:  # the last part of a second: its own short window, and zeros
            window = np.zeros(size, np.float32)
            window[: samples.shape[1]] = np.kaiser(samples.shape[1], SPECTRUM_KAISER_BETA)
            samples = np.pad(samples, ((0, 0), (0, size - samples.shape[1])))
        windows = np.lib.stride_tricks.sliding_window_view(samples, size, axis=1)[:, :: size // 2]  # [C, W, size]
        bins = np.fft.rfft(windows * window)[..., 1:].view(np.float32)  # [C, W, size]: real, imaginary; no constant
        bins = bins.reshape(*bins.shape[:2], self._num_bands, 2 * BINS_PER_BAND)
        bands = np.einsum("cwbk,cwbk->wb", bins, bins).astype(np.float64) / (len(bins) * BINS_PER_BAND)  # [W, B]
        rank = math.ceil(WINDOW_QUANTILE * len(bands)) - 1
        dither = DITHER_POWER * float(np.sum(np.square(window, dtype=np.float64)))
        return 10 * np.log10(np.maximum(np.partition(bands, rank, axis=0)[rank] / dither, 1e-9))  # type: ignore[no-any-return]


def _edges(sample_rate: int, parts: int) -> npt.NDArray[np.int64]:
    """[parts], where the parts of a second begin; they differ by one sample where the rate is no multiple of them."""
    return np.rint(np.arange(parts) * sample_rate / parts).astype(np.int64)


def _power(lufs: float) -> float:
    """Weighted mean square of a loudness."""
    return float(10 ** ((lufs - LOUDNESS_OFFSET) / 10))


def _k_weighting(sample_rate: int) -> npt.NDArray[np.float64]:
    """[2, 6] second-order sections: a shelf for the head, then a high-pass, for any sample rate.

    BS.1770-4 tabulates them for 48 kHz only; these are the analogue filters behind its tables, by the bilinear
    transform (B. De Man, "Evaluation of implementations of the EBU R128 loudness measurement", 2018).
    """
    tan = math.tan(math.pi * 1681.974450955533 / sample_rate)
    Q, high = 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    a0 = 1 + tan / Q + tan**2
    shelf_b = (high + band * tan / Q + tan**2, 2 * (tan**2 - high), high - band * tan / Q + tan**2)
    shelf = [*(b / a0 for b in shelf_b), 1.0, 2 * (tan**2 - 1) / a0, (1 - tan / Q + tan**2) / a0]
    tan, Q = math.tan(math.pi * 38.13547087602444 / sample_rate), 0.5003270373238773
    a0 = 1 + tan / Q + tan**2
    return np.array([shelf, [1.0, -2.0, 1.0, 1.0, 2 * (tan**2 - 1) / a0, (1 - tan / Q + tan**2) / a0]])


def _num_clipped(samples: Samples, ceiling: float) -> int:
    """Of float32 [L], the samples in flat runs at the ceiling, each run with an edge on at least one side."""
    at = np.flatnonzero(np.abs(samples) >= ceiling * (1 - CLIP_TOLERANCE))
    if len(at) < CLIP_MIN_RUN:
        return 0
    signs = np.sign(samples[at])
    breaks = np.flatnonzero((np.diff(at) > 1) | (np.diff(signs) != 0))
    firsts = np.concatenate([at[:1], at[breaks + 1]])
    lasts = np.concatenate([at[breaks], at[-1:]])
    signs = np.sign(samples[firsts])
    edge = ceiling * (1 - CLIP_EDGE)
    # Beyond the second's ends nothing is known: a run's own sample stands in, which is no edge.
    before = signs * samples[np.maximum(firsts - 1, 0)]
    after = signs * samples[np.minimum(lasts + 1, len(samples) - 1)]
    lengths = lasts - firsts + 1
    return int(lengths[(lengths >= CLIP_MIN_RUN) & (np.minimum(before, after) < edge)].sum())


def _fade_out_s(hops_db: npt.NDArray[np.float64]) -> float:
    """Seconds of the fade at the end of [H] levels; 0 where there is none.

    Seen from the end of the sound, the loudest level so far (which beats and pauses do not disturb) rises towards the
    track's start. The fade begins where that has reached the level of the body, or stays within FADE_PLATEAU_DB for
    FADE_PLATEAU_HOPS. It counts if it is FADE_MIN_FALL_DB deep and its first quarter is not most of that: a step down
    to a short quiet coda is no fade.
    """
    sound = np.flatnonzero(hops_db >= SILENCE_DB)
    if len(sound) <= FADE_MIN_HOPS:
        return 0.0
    levels = hops_db[sound[0] : sound[-1] + 1]
    envelope = np.maximum.accumulate(levels[::-1])
    seconds = np.maximum.reduceat(levels, np.arange(0, len(levels), HOPS_PER_S))
    # Not the median: in a short track the fade may be the greater part
    body = float(np.quantile(seconds[seconds >= SILENCE_DB], 0.75)) - 1
    earlier = np.append(envelope[FADE_PLATEAU_HOPS:], np.full(FADE_PLATEAU_HOPS, envelope[-1]))[: len(envelope)]
    num_hops = int(np.argmax((envelope >= body) | (earlier - envelope < FADE_PLATEAU_DB)))
    fall = envelope[num_hops] - envelope[0]
    first_quarter = envelope[num_hops] - envelope[num_hops - max(1, num_hops // 4)]
    if num_hops < FADE_MIN_HOPS or fall < FADE_MIN_FALL_DB or first_quarter > fall / 2:
        return 0.0
    return num_hops / HOPS_PER_S


def _bandwidth_khz(bands_db: npt.NDArray[np.float64], band_khz: float) -> float:
    """The upper edge of the highest band with content, or of the last before a cliff.

    Args:
        bands_db: [B], levels above 16-bit dither.
        band_khz: width of a band.
    """
    content = np.flatnonzero(bands_db > CONTENT_DB)
    if not len(content):
        return 0.0
    top = int(content[-1]) + 1
    per_khz = round(1 / band_khz)
    cliff = _cliff(bands_db, per_khz=per_khz, first=math.ceil(CLIFF_MIN_KHZ / band_khz))
    if cliff is not None and cliff < top - per_khz // 2:
        return cliff * band_khz
    return top * band_khz


def _cliff(bands_db: npt.NDArray[np.float64], *, per_khz: int, first: int) -> int | None:
    """The lowest band, from ``first`` on, where the spectrum falls by CLIFF_DB for good; None if there is none.

    What is beyond is an aliasing image of a bad resampler, or the distortion of an MP3 that was clipped when decoded.
    """
    gap = per_khz // 2
    num_bands = len(bands_db)
    # Beyond half the sample rate there is nothing: a cliff close to it is seen from both sides too
    bands_db = np.append(np.maximum(bands_db, CONTENT_DB), np.full(2 * per_khz, CONTENT_DB))
    loudest_from = np.maximum.accumulate(bands_db[::-1])[::-1]
    # [n], of the kHz before band per_khz + n; the median, since the overtones of a tone are cliffs with valleys between
    before = np.median(np.lib.stride_tricks.sliding_window_view(bands_db, per_khz), axis=1)
    bands = np.arange(max(first, per_khz), num_bands + gap)
    is_cliff = before[bands - per_khz] - loudest_from[bands + gap] >= CLIFF_DB
    if not is_cliff.any():
        return None
    start = int(np.argmax(is_cliff))
    length = int(np.argmin(np.append(is_cliff[start:], False)))
    # Half a kHz to both sides the cliff is seen too: the middle is where it is
    return int(bands[start]) + (length - 1) // 2
