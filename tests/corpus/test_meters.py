"""The meters of a track's sound, each on sounds whose figure is known."""

import io
import itertools
import math
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import soxr
import torch
import torchaudio

from musicgen_ft.corpus.meters import QualityMeter, _k_weighting
from musicgen_ft.corpus.quality import (
    MAX_WIDTH,
    SECOND_FIGURES,
    Quality,
    Samples,
    Seconds,
)

RATE = 44100


def measured(samples: npt.ArrayLike, rate: int = RATE) -> tuple[Quality, Seconds]:
    samples = np.atleast_2d(np.asarray(samples, np.float32))
    meter = QualityMeter(rate, len(samples))
    meter.push(samples)
    return meter.finish()


def quality_of(samples: npt.ArrayLike, rate: int = RATE) -> Quality:
    return measured(samples, rate)[0]


def row(seconds: Seconds, name: str) -> list[float]:
    return seconds[SECOND_FIGURES.index(name)].astype(float).tolist()  # type: ignore[no-any-return]


def sine(hz: float, duration_s: float, amplitude: float = 1.0, rate: int = RATE) -> npt.NDArray[np.float64]:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate)) / rate)


def noise(duration_s: float, level: float = 0.1, channels: int = 1, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((channels, round(duration_s * RATE))) * level


def pink(duration_s: float, channels: int = 2) -> npt.NDArray[np.float64]:
    """Noise that falls by 3 dB an octave, as music does."""
    spectrum = np.fft.rfft(noise(duration_s, channels=channels))
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(spectrum.shape[1]) / 500, 1)), axis=1)


def pcm16(samples: npt.ArrayLike, *, dither_seed: int | None = None) -> Samples:
    scaled = np.asarray(samples, np.float64) * 32768
    if dither_seed is not None:
        random = np.random.default_rng(dither_seed)
        scaled = scaled + random.random(scaled.shape) - random.random(scaled.shape)
    return (np.clip(np.rint(scaled), -32768, 32767) / 32768).astype(np.float32)


def through_mp3(samples: npt.ArrayLike, kbit_per_s: int) -> Samples:
    planar = np.ascontiguousarray(samples, dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(planar, format="fltp", layout="stereo")
    frame.sample_rate, frame.pts = RATE, 0
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream: Any = container.add_stream("libmp3lame", rate=RATE, layout="stereo", format="fltp")
        stream.bit_rate = kbit_per_s * 1000
        for piece in (frame, None):
            container.mux(stream.encode(piece))
    file.seek(0)
    with av.open(file, "r") as decoded:
        return np.concatenate([frame.to_ndarray() for frame in decoded.decode(audio=0)], axis=1).astype(np.float32)


# ---- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "rate"), [(2, 44100), (3, 11025)])
def test_no_bit_depends_on_how_the_blocks_are_cut(channels: int, rate: int) -> None:
    random = np.random.default_rng(5)
    samples = (random.standard_normal((channels, round(4.37 * rate))) * np.linspace(0.5, 0, round(4.37 * rate))).clip(
        -0.8, 0.8
    )
    whole, whole_seconds = measured(samples, rate)
    for number_of_cuts in (1, 7, 300):
        cuts = np.sort(random.integers(0, samples.shape[1], number_of_cuts))
        meter = QualityMeter(rate, channels)
        for start, stop in itertools.pairwise([0, *cuts, samples.shape[1]]):  # some of them empty
            meter.push(samples[:, start:stop].astype(np.float32))
        quality, seconds = meter.finish()
        assert quality == whole and seconds.tobytes() == whole_seconds.tobytes()
    assert whole.clipped_share > 0 and whole_seconds.shape == (4, 5)


def test_it_keeps_a_few_hundred_bytes_per_second() -> None:
    meter = QualityMeter(4000, 1)
    minute = (np.random.default_rng(0).standard_normal((1, 60 * 4000)) * 0.1).astype(np.float32)

    def kept() -> int:
        parts = (meter, meter._levels, meter._loudness, meter._clipping, meter._bandwidth)
        values = itertools.chain.from_iterable(vars(part).values() for part in parts)
        return sum(value.nbytes if isinstance(value, np.ndarray) else value.__sizeof__() for value in values)

    meter.push(minute)
    before = kept()
    for _ in range(10):
        meter.push(minute)
    assert (kept() - before) / 600 < 250


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="0 channels at 44100 Hz"):
        QualityMeter(44100, 0)
    with pytest.raises(ValueError, match="1 channels at 3999 Hz"):
        QualityMeter(3999, 1)
    meter = QualityMeter(RATE, 2)
    with pytest.raises(ValueError, match=r"shape \[3, 5\], expected \[2, L\]"):
        meter.push(np.zeros((3, 5), np.float32))
    with pytest.raises(ValueError, match="no samples"):
        meter.finish()
    for value in (np.nan, np.inf, -np.inf):
        meter = QualityMeter(RATE, 2)
        with pytest.raises(ValueError, match="NaN or infinite"):
            meter.push(np.full((2, RATE), value, np.float32))


def test_damaged_samples_beyond_any_scale_give_finite_figures() -> None:
    quality, seconds = measured(np.array([[3e38, -3e38] * 30000]))
    assert all(value is None or math.isfinite(value) for value in quality.to_dict().values())
    assert quality.peak_db == 80 and np.isfinite(seconds[:3]).all()


# ---- loudness --------------------------------------------------------------------------------------------------------


def test_k_weighting_is_the_table_of_bs1770_at_48_khz() -> None:
    shelf, high_pass = _k_weighting(48000)
    assert shelf == pytest.approx(
        [1.53512485958697, -2.69169618940638, 1.19839281085285, 1, -1.69065929318241, 0.73248077421585], abs=1e-12
    )
    assert high_pass == pytest.approx([1, -2, 1, 1, -1.99004745483398, 0.99007225036621], abs=1e-12)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_full_scale_at_997_hz_in_one_channel_is_3_01_lufs_below(rate: int) -> None:
    tone = sine(997, 3, rate=rate)
    # 0.05: at 8 kHz the shelf's transition is squeezed by the bilinear transform
    assert quality_of(tone, rate).loudness_lufs == pytest.approx(-3.01, abs=0.05)
    assert quality_of(np.stack([tone, 0 * tone]), rate).loudness_lufs == pytest.approx(-3.01, abs=0.05)
    assert quality_of(np.stack([tone, tone]), rate).loudness_lufs == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize(("channels", "rate"), [(1, 44100), (2, 48000), (5, 22050)])
def test_loudness_agrees_with_torchaudio(channels: int, rate: int) -> None:
    random = np.random.default_rng(channels)
    steps = np.repeat([0.1, 0.001, 0.05, 0.00001, 0.08], round(1.3 * rate))  # some for each gate; torchaudio clips at 1
    samples = (random.standard_normal((channels, len(steps))) * steps).astype(np.float32)
    reference = torchaudio.functional.loudness(torch.from_numpy(samples), rate).item()
    # torchaudio's filters are 0.04 LU (44.1 kHz) to 0.09 LU (22 kHz) lower than BS.1770's
    assert quality_of(samples, rate).loudness_lufs == pytest.approx(reference, abs=0.12)


def test_loudness_leaves_out_pauses_and_low_frequency_effects() -> None:
    tone = sine(997, 4, 0.5)
    pause = np.concatenate([tone, np.zeros(6 * RATE), tone])
    # 8.6 s would be -0.3: the gate lets the blocks pass that are half in the pause
    assert quality_of(pause).loudness_lufs == pytest.approx(-9.03, abs=0.2)
    surround = np.zeros((6, len(tone)))
    surround[3] = tone
    assert quality_of(surround).loudness_lufs is None
    surround[4] = tone
    assert quality_of(surround).loudness_lufs == pytest.approx(-9.03 + 1.49, abs=0.02)  # 1.41 is 1.49 dB


def test_no_loudness_under_a_gating_block_or_of_near_silence() -> None:
    assert quality_of(sine(997, 0.39)).loudness_lufs is None
    assert quality_of(sine(997, 0.41)).loudness_lufs is not None
    assert quality_of(sine(997, 2, 1e-4)).loudness_lufs is None


# ---- levels and silence ----------------------------------------------------------------------------------------------


def test_levels_peak_and_dc_offset() -> None:
    stereo = np.stack([sine(100, 1.5, 0.5) - 0.02, sine(100, 1.5, 0.25) + 0.01])
    stereo[:, RATE:] *= 0.1
    quality, seconds = measured(stereo)
    power = (0.5**2 / 2 + 0.25**2 / 2 + 0.02**2 + 0.01**2) / 2
    assert row(seconds, "level_db") == pytest.approx([10 * math.log10(power), 10 * math.log10(power) - 20], abs=0.02)
    assert quality.peak_db == pytest.approx(20 * math.log10(0.52), abs=0.001)
    assert quality.dc_offset == pytest.approx(-0.02 * (1 + 0.05) / 1.5, abs=1e-4)
    assert (quality.duration_s, quality.source_sample_rate, quality.source_channels) == (1.5, RATE, 2)


def test_silence_at_head_and_tail_is_found_to_10_ms() -> None:
    track = np.concatenate([np.zeros(round(1.234 * RATE)), sine(440, 2.5, 0.3), np.zeros(round(0.777 * RATE))])
    quality, seconds = measured(track)
    assert quality.head_silence_s == pytest.approx(1.234, abs=0.01)
    assert quality.tail_silence_s == pytest.approx(0.777, abs=0.01)
    assert quality.silent_share == pytest.approx(2 / 5) and row(seconds, "level_db")[0] == -120


def test_silence_begins_60_db_under_full_scale() -> None:
    for level_db, is_silent in ((-60.5, True), (-59.5, False)):
        tone = sine(440, 2, 10 ** (level_db / 20) * math.sqrt(2))
        quality = quality_of(tone)
        assert quality.silent_share == is_silent
        assert quality.head_silence_s == (2 if is_silent else 0) and quality.tail_silence_s == 0


def test_digital_silence() -> None:
    quality, seconds = measured(np.zeros((2, 3 * RATE)))
    assert quality.peak_db == -120 and quality.silent_share == 1 and quality.loudness_lufs is None
    assert (quality.head_silence_s, quality.tail_silence_s, quality.fade_out_s) == (3, 0, 0)
    assert (quality.bandwidth_khz, quality.clipped_share, quality.stereo_width) == (0, 0, 0)
    assert row(seconds, "bandwidth_khz") == [0, 0, 0] and np.isnan(row(seconds, "codec_snr_db")).all()


# ---- fade-out --------------------------------------------------------------------------------------------------------


def beats(duration_s: float) -> npt.NDArray[np.float64]:
    """Noise in decaying strokes, two a second, 22 dB from crest to trough."""
    time_s = np.arange(round(duration_s * RATE)) / RATE
    return np.asarray(noise(duration_s, 0.3)[0] * np.exp(-5 * (time_s % 0.5)))


@pytest.mark.parametrize("fade_s", [2.0, 8.0, 25.0])
@pytest.mark.parametrize("shape", ["linear", "exponential"])
@pytest.mark.parametrize("music", ["steady", "beats"])
def test_a_fade_out_is_measured(music: str, shape: str, fade_s: float) -> None:
    body = noise(40, 0.2)[0] if music == "steady" else beats(40)
    fall = np.linspace(1, 0, round(fade_s * RATE))
    body[-len(fall) :] *= fall if shape == "linear" else 10 ** ((fall - 1) * 50 / 20)
    track = np.concatenate([body, np.zeros(2 * RATE)])
    assert quality_of(track).fade_out_s == pytest.approx(fade_s, rel=0.2, abs=0.6)


def test_a_fade_that_is_most_of_a_short_track_is_measured_whole() -> None:
    track = noise(20, 0.2)[0]
    track[5 * RATE :] *= np.linspace(1, 0, 15 * RATE)
    assert quality_of(track).fade_out_s == pytest.approx(15, rel=0.15)


def test_an_abrupt_end_is_no_fade() -> None:
    for duration_s in (0.3, 3.0, 20.01):
        assert quality_of(noise(duration_s)).fade_out_s == 0
        assert quality_of(np.concatenate([beats(duration_s), np.zeros(RATE)])).fade_out_s == 0


@pytest.mark.parametrize("coda_s", [3.0, 12.0])
def test_a_quiet_steady_passage_at_the_end_is_no_fade(coda_s: float) -> None:
    assert quality_of(np.concatenate([beats(20), beats(coda_s) * 0.05])).fade_out_s == 0


def test_a_fall_of_less_than_20_db_is_no_fade() -> None:
    track = noise(30)[0]
    track[15 * RATE :] *= 10 ** (np.linspace(0, -15, 15 * RATE) / 20)
    assert quality_of(track).fade_out_s == 0


# ---- clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [30, 100, 997, 7000])
def test_a_sine_at_full_scale_is_not_clipped(hz: float) -> None:
    tone = sine(hz, 3)
    assert quality_of(tone).clipped_share == 0
    assert quality_of(pcm16(tone)).clipped_share == 0


@pytest.mark.parametrize("gain", [1.05, 1.5, 3.0])
@pytest.mark.parametrize("ceiling", [1.0, 0.6])
def test_clipped_music_is_counted(gain: float, ceiling: float) -> None:
    wave = np.stack([sine(60, 2.5), sine(97, 2.5)]) * gain
    clipped = wave.clip(-1, 1) * ceiling
    share = np.mean(np.abs(wave) >= 1)
    quality, seconds = measured(pcm16(clipped))
    # At a gain of 1.05 a few crests are left so slowly that they have no edge
    assert quality.clipped_share == pytest.approx(share, rel=0.04)
    assert row(seconds, "clipped_share") == pytest.approx([share] * 3, rel=0.08)


def test_the_clipped_second_is_named() -> None:
    tone = sine(97, 4, 0.9)
    tone[RATE : 2 * RATE] = (tone[RATE : 2 * RATE] * 2).clip(-1, 1)
    assert [share > 0 for share in row(measured(tone)[1], "clipped_share")] == [False, True, False, False]


def test_only_the_highest_ceiling_of_the_track_counts() -> None:
    low, high = sine(97, 2, 2.0).clip(-0.7, 0.7), sine(97, 2, 2.0).clip(-0.9, 0.9)
    shares = row(measured(np.concatenate([low, high, low]))[1], "clipped_share")
    assert [share > 0 for share in shares] == [False, False, True, True, False, False]


def test_flat_tops_below_half_of_full_scale_and_single_peaks_are_not_clipping() -> None:
    assert quality_of(sine(97, 2, 2.0).clip(-0.49, 0.49)).clipped_share == 0
    limited = noise(2, 0.2)[0].clip(-0.6, 0.6)
    at = np.flatnonzero(np.abs(limited) == np.float64(0.6))
    assert len(at) > 100 and quality_of(limited).clipped_share < 1e-4


def test_square_waves_are_a_known_false_alarm() -> None:
    assert quality_of(np.sign(sine(110.3, 2)) * 0.8).clipped_share > 0.99


# ---- bandwidth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_noise_fills_the_whole_band(rate: int) -> None:
    quality, seconds = measured(noise(2.5), rate)
    assert quality.bandwidth_khz == pytest.approx(rate / 2000)
    assert row(seconds, "bandwidth_khz") == pytest.approx([rate / 2000] * seconds.shape[1], abs=0.1)


def test_music_like_noise_and_cymbals_reach_the_whole_band() -> None:
    assert quality_of(pcm16(pink(3) * 0.1)).bandwidth_khz == pytest.approx(22.05)
    strokes = beats(6) * (np.arange(6 * RATE) % (2 * RATE) < RATE // 2)  # in the half of a second, every two seconds
    assert quality_of(pcm16(sine(80, 6, 0.5) + 0.05 * strokes)).bandwidth_khz == pytest.approx(22.05, abs=0.3)


@pytest.mark.parametrize(("kbit_per_s", "low_khz", "high_khz"), [(64, 10, 11.6), (128, 15.8, 17.3), (192, 18, 19.5)])
def test_an_mp3_in_a_wav_shows_its_cliff(kbit_per_s: int, low_khz: float, high_khz: float) -> None:
    # LAME's low-pass: 11, 17 and 19 kHz
    decoded = through_mp3(pink(4), kbit_per_s)
    assert low_khz < quality_of(decoded).bandwidth_khz < high_khz
    quality, seconds = measured(pcm16(decoded, dither_seed=1))
    assert low_khz < quality.bandwidth_khz < high_khz
    assert low_khz - 1 < min(row(seconds, "bandwidth_khz")[:4]) <= max(row(seconds, "bandwidth_khz")) < high_khz


def test_the_distortion_of_a_clipped_mp3_does_not_hide_its_cliff() -> None:
    decoded = through_mp3(pink(4), 128)
    clipped = pcm16(decoded / np.quantile(np.abs(decoded), 0.9995))
    assert np.mean(np.abs(clipped) > 0.9999) > 4e-4
    assert 15.8 < quality_of(clipped).bandwidth_khz < 17.3


def test_upsampling_adds_no_bandwidth() -> None:
    low = soxr.resample(noise(4, channels=2).T, 44100, 22050)
    high = soxr.resample(low, 22050, 44100).T
    assert 10 < quality_of(high).bandwidth_khz < 11.2
    assert 10 < quality_of(pcm16(high, dither_seed=2)).bandwidth_khz < 11.2


def test_images_of_a_poor_resampler_are_beyond_the_cliff() -> None:
    low = soxr.resample(noise(3)[0], 44100, 22050)
    high = soxr.resample(low, 22050, 44100)
    images = high + 0.02 * noise(3)[0]  # 34 dB down, up to half the sample rate
    assert 10 < quality_of(images).bandwidth_khz < 11.2


def test_a_dull_synth_has_the_bandwidth_of_its_highest_overtone() -> None:
    organ = np.sum([sine(220 * k, 3, 0.3 / k) for k in range(1, 9)], axis=0)
    assert quality_of(pcm16(organ, dither_seed=3)).bandwidth_khz == pytest.approx(1.76, abs=0.2)
    assert quality_of(sine(9000, 3, 0.9)).bandwidth_khz == pytest.approx(9, abs=0.2)
    assert quality_of(sine(60, 3, 0.9)).bandwidth_khz < 0.3


def test_dither_is_no_content() -> None:
    tone = sine(440, 4, 0.1)
    assert quality_of(pcm16(np.zeros((2, 4 * RATE)), dither_seed=4)).bandwidth_khz == 0
    assert quality_of(pcm16(np.stack([tone, tone]), dither_seed=4)).bandwidth_khz == pytest.approx(0.44, abs=0.2)


def test_bandwidth_of_seconds_and_clicks() -> None:
    dull, bright = sine(1000, 2, 0.3), noise(2)[0]
    quality, seconds = measured(np.concatenate([dull, np.zeros(RATE), bright, dull[: RATE // 50]]))
    assert row(seconds, "bandwidth_khz")[:5] == pytest.approx([1, 1, 0, 22.05, 22.05], abs=0.2)
    assert row(seconds, "bandwidth_khz")[5] < 2  # 20 ms: shorter than a window
    assert quality.bandwidth_khz == pytest.approx(22.05)
    clicks = sine(1000, 6, 0.3)
    clicks[:: 2 * RATE] += 0.5
    assert quality_of(clicks).bandwidth_khz < 1.5


# ---- stereo ----------------------------------------------------------------------------------------------------------


def test_stereo_width() -> None:
    left, right = noise(2, channels=2)
    assert quality_of(left).stereo_width is None
    assert quality_of(np.stack([left, left])).stereo_width == 0
    assert quality_of(np.stack([left, left, right])).stereo_width == 0
    assert quality_of(np.stack([left, right])).stereo_width == pytest.approx(1, abs=0.02)
    assert quality_of(np.stack([left, 0.5 * left])).stereo_width == pytest.approx(0.5 / 1.5, rel=1e-3)
    assert quality_of(np.stack([left, -left])).stereo_width == MAX_WIDTH
