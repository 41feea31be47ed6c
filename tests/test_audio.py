"""Claims about decoding, resampling, loudness and writing; every file is made here, by PyAV."""

import logging
import shutil
import struct
import tracemalloc
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soxr
import torch
import torchaudio

from musicgen_ft.audio import AudioError, AudioReader, Samples, normalize_loudness, probe, read, write_wav

CODECS = {".flac": "flac", ".mp3": "libmp3lame", ".ogg": "libopus", ".opus": "libopus", ".m4a": "aac", ".aac": "aac"}


def encode(path: Path, waveform: Samples, rate: int, *, codec: str = "", mux: Any = None, **options: str) -> Path:
    """Writes [C, L] float audio as what the suffix says; ``mux`` goes to the container, ``options`` to the codec."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(waveform)]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform, np.float32), format="fltp", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    with av.open(str(path), "w", options=mux or {}) as container:
        stream: Any = container.add_stream(codec or CODECS.get(path.suffix, "pcm_s16le"), rate=rate, layout=layout)
        stream.codec_context.options = options
        stream.codec_context.open()
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate, frame_size=size)
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(piece))
    return path


def sine(frequency: float, rate: int, duration_s: float, *gains: float) -> Samples:
    """One channel per gain."""
    time = np.arange(round(rate * duration_s)) / rate
    return np.outer(gains or [0.5], np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def level_db(samples: Samples) -> float:
    """RMS in dB, without the edges, where a filter rings."""
    middle = samples[..., samples.shape[-1] // 4 : -samples.shape[-1] // 4]
    return float(10 * np.log10(np.square(middle.astype(np.float64)).mean()))


def cut(path: Path, part: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: round(part * len(content))])
    return path


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"])
@pytest.mark.parametrize(("rate", "channels"), [(48000, 1), (48000, 2), (24000, 2)])
def test_every_format_gives_the_same_tone_at_32_khz(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    source = sine(440, rate, 1.5, *[0.5] * channels)
    track = read(encode(tmp_path / f"a{suffix}", source, rate), sample_rate=32000, channels=1)
    assert track.dtype == np.float32
    assert track.shape[0] == 1
    assert track.shape[1] == pytest.approx(48000, abs=0.1 * 32000)  # AAC and MP3 pad their first and last frame
    # libmp3lame lowers the level by 0.45 dB, and nothing else here does by more than 0.1; FFmpeg's down-mix adds 3
    assert level_db(track) == pytest.approx(level_db(source), abs=0.5)
    spectrum = np.abs(np.fft.rfft(track[0, 8000:40000]))
    assert int(spectrum.argmax()) == 440


@pytest.mark.parametrize(
    ("codec", "step"),
    [("pcm_u8", 2**-7), ("pcm_s16le", 2**-15), ("pcm_s24le", 2**-23), ("pcm_s32le", 2**-23), ("pcm_f64le", 2**-23)],
)
def test_integers_and_floats_are_read_at_the_same_scale(tmp_path: Path, codec: str, step: float) -> None:
    source = sine(100, 32000, 0.2, 0.9, -0.3)
    track = read(encode(tmp_path / "a.wav", source, 32000, codec=codec), sample_rate=32000, channels=2)
    np.testing.assert_allclose(track, source, atol=step, rtol=0)


def test_mono_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.wav", sine(100, 32000, 0.2, 0.8, -0.2), 32000, codec="pcm_f32le")
    np.testing.assert_allclose(read(path, sample_rate=32000, channels=1), sine(100, 32000, 0.2, 0.3), atol=1e-6, rtol=0)


def test_mono_of_surround_is_the_mean_of_all_six(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.wav", sine(100, 32000, 0.2, 0.6, 0, 0, 0, 0, 0), 32000, codec="pcm_f32le")
    np.testing.assert_allclose(read(path, sample_rate=32000, channels=1), sine(100, 32000, 0.2, 0.1), atol=1e-6, rtol=0)


def test_stereo_of_surround_is_front_left_and_right(tmp_path: Path) -> None:
    source = sine(100, 32000, 0.2, 0.6, -0.5, 0.4, 0.3, 0.2, 0.1)
    path = encode(tmp_path / "a.wav", source, 32000, codec="pcm_f32le")
    np.testing.assert_array_equal(read(path, sample_rate=32000, channels=2), source[:2])


def test_stereo_of_mono_is_the_channel_twice(tmp_path: Path) -> None:
    source = sine(100, 32000, 0.2, 0.6)
    path = encode(tmp_path / "a.wav", source, 32000, codec="pcm_f32le")
    np.testing.assert_array_equal(read(path, sample_rate=32000, channels=2), source.repeat(2, axis=0))


def test_three_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"channels is 3, expected 1 \(mono\) or 2 \(stereo\)"):
        AudioReader(tmp_path / "a.wav", sample_rate=32000, channels=3)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2), (48000, 6)])
def test_a_file_is_read_as_it_is_where_nothing_is_asked_for(tmp_path: Path, rate: int, channels: int) -> None:
    waveform = sine(441, rate, 1.3, *(0.1 * (1 + channel) for channel in range(channels)))
    path = encode(tmp_path / "a.wav", waveform, rate, codec="pcm_f32le")

    reader = AudioReader(path, sample_rate=None, channels=None, block_s=0.5)
    blocks = list(reader.blocks())

    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), waveform)
    assert [block.shape[1] for block in blocks[:-1]] == [round(0.5 * rate)] * 2
    assert (reader.source_sample_rate, reader.source_channels) == (rate, channels)
    assert reader.num_samples == waveform.shape[1]


def test_blocks_joined_equal_the_whole_track_resampled_at_once(tmp_path: Path) -> None:
    source = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 44100 * 3)).astype(np.float32)
    path = encode(tmp_path / "a.wav", source, 44100, codec="pcm_f32le")
    reader = AudioReader(path, sample_rate=32000, channels=2, block_s=0.7)
    blocks = list(reader.blocks())
    assert [block.shape for block in blocks] == [(2, 22400)] * 4 + [(2, 96000 - 4 * 22400)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), soxr.resample(source.T, 44100, 32000, "HQ").T)
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), read(path, sample_rate=32000, channels=2))
    assert reader.num_samples == 96000


def test_blocks_can_be_read_again(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.wav", sine(100, 32000, 0.5), 32000)
    reader = AudioReader(path, sample_rate=32000, channels=1)
    first, second = list(reader.blocks()), list(reader.blocks())
    np.testing.assert_array_equal(first, second)
    assert reader.num_samples == 16000


def test_a_tone_above_the_new_nyquist_is_suppressed(tmp_path: Path) -> None:
    above = encode(tmp_path / "above.wav", sine(17500, 48000, 1.0), 48000, codec="pcm_f32le")
    below = encode(tmp_path / "below.wav", sine(14000, 48000, 1.0), 48000, codec="pcm_f32le")
    assert level_db(read(above, sample_rate=32000, channels=1)) < -110  # torchaudio's default resampler leaves -22
    assert level_db(read(below, sample_rate=32000, channels=1)) == pytest.approx(-9.03, abs=0.01)


def test_memory_does_not_grow_with_the_track(tmp_path: Path) -> None:
    def peak(duration_s: float) -> int:
        path = encode(tmp_path / f"{duration_s}.wav", sine(100, 16000, duration_s), 16000)
        tracemalloc.start()
        for _ in AudioReader(path, sample_rate=32000, channels=1, block_s=1.0).blocks():
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(5)  # imports
    assert peak(60) < 1.2 * peak(5)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
def test_a_truncated_file_is_noticed_and_read_as_far_as_it_goes(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 48000 * 6)).astype(np.float32)
    path = encode(tmp_path / f"a{suffix}", noise, 48000)
    reader = AudioReader(path, sample_rate=32000, channels=1)
    assert sum(block.shape[1] for block in reader.blocks()) == pytest.approx(6 * 32000, abs=3200)
    assert not reader.is_truncated
    assert not caplog.records
    cut(path)
    assert sum(block.shape[1] for block in reader.blocks()) == pytest.approx(3 * 32000, abs=36000)  # Ogg: pages of 1 s
    assert reader.is_truncated
    assert f"{path}: truncated" in caplog.text


def test_a_good_mp3_whose_duration_ffmpeg_guesses_too_long_is_not_truncated(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 44100 * 5)).astype(np.float32)
    waveform = np.concatenate([np.zeros_like(noise), noise], axis=1)  # few bits, then many
    quality = {"flags": "+qscale", "global_quality": "472"}  # variable bit rate
    path = encode(tmp_path / "a.mp3", waveform, 44100, mux={"write_xing": "0"}, **quality)
    with av.open(str(path)) as container:
        assert (container.duration or 0) / av.time_base > 13
    reader = AudioReader(path, sample_rate=32000, channels=1)
    assert sum(block.shape[1] for block in reader.blocks()) == pytest.approx(320000, abs=3200)
    assert reader.expected_s is None
    assert not reader.is_truncated


def test_damaged_packets_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = encode(tmp_path / "a.mp3", sine(440, 44100, 6), 44100)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1000] = np.random.default_rng(0).bytes(1000)
    path.write_bytes(content)
    reader = AudioReader(path, sample_rate=32000, channels=1)
    assert sum(block.shape[1] for block in reader.blocks()) == pytest.approx(6 * 32000, abs=12000)  # frames of 836
    assert 1 <= reader.num_bad_packets <= 10
    assert not reader.is_truncated
    assert "damaged packets" in caplog.text


def test_a_mostly_damaged_file_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", sine(440, 44100, 6, 0.5, 0.4), 44100)
    content = bytearray(path.read_bytes())
    start, middle = content.index(b"mdat") + 4, len(content) // 2
    content[start:middle] = np.random.default_rng(0).bytes(middle - start)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="packets are damaged"):
        read(path, sample_rate=32000, channels=1)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".m4a"])
@pytest.mark.parametrize(
    "content", [b"", b"no music here\n" * 99, bytes(9999), np.random.default_rng(0).bytes(9999)], ids=len
)
def test_what_is_no_audio_raises_audio_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=rf"a\{suffix}: "):
        read(path, sample_rate=32000, channels=1)


def test_a_missing_file_raises_audio_error(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"a\.wav: No such file"):
        read(tmp_path / "a.wav", sample_rate=32000, channels=1)


def test_a_file_without_an_audio_stream_raises_audio_error(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25, width=32, height=16, pix_fmt="yuv420p")
        for frame in (av.VideoFrame(32, 16, "yuv420p"), None):
            container.mux(stream.encode(frame))
    with pytest.raises(AudioError, match=r"a\.mp4: no audio stream"):
        read(tmp_path / "a.mp4", sample_rate=32000, channels=1)
    with pytest.raises(AudioError, match=r"a\.mp4: no audio stream"):
        probe(tmp_path / "a.mp4")


def test_a_file_of_no_samples_raises_audio_error(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", torch.zeros(1, 0), 32000)
    with pytest.raises(AudioError, match=r"a\.wav: no samples"):
        read(tmp_path / "a.wav", sample_rate=32000, channels=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_raise_audio_error(tmp_path: Path, value: float) -> None:
    source = sine(100, 32000, 0.2)
    source[0, 1234] = value
    encode(tmp_path / "a.wav", source, 32000, codec="pcm_f32le")
    with pytest.raises(AudioError, match="NaN or infinite"):
        read(tmp_path / "a.wav", sample_rate=32000, channels=1)


def test_64_bit_integers_raise_audio_error(tmp_path: Path) -> None:
    encode(tmp_path / "a.wav", sine(100, 32000, 0.2), 32000, codec="pcm_s64le")
    with pytest.raises(AudioError, match="samples of format s64 are not supported"):
        read(tmp_path / "a.wav", sample_rate=32000, channels=1)


def test_a_sample_rate_that_changes_raises_audio_error(tmp_path: Path) -> None:
    parts = [encode(tmp_path / f"{rate}.mp3", sine(440, rate, 1), rate).read_bytes() for rate in (44100, 48000)]
    (tmp_path / "a.mp3").write_bytes(b"".join(parts))
    with pytest.raises(AudioError, match=r"a\.mp3: its sample rate changes from \d+ to \d+ Hz"):
        read(tmp_path / "a.mp3", sample_rate=32000, channels=1)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".m4a"])
def test_probe_reads_the_header(tmp_path: Path, suffix: str) -> None:
    info = probe(encode(tmp_path / f"a{suffix}", sine(440, 44100, 2, 0.5, 0.4), 44100))
    assert (info.sample_rate, info.channels) == (44100, 2)
    assert info.duration_s == pytest.approx(2, abs=0.05)


def test_a_wav_is_read_whatever_stands_before_its_samples_or_is_called_one(tmp_path: Path) -> None:
    """Little of it is probed: megabytes of other chunks come first, or it is an MP3 by another name."""
    samples = (1000 * sine(440, 8000, 1.0)[0]).astype("<i2").tobytes()
    chunks = {b"JUNK": bytes(3_000_000), b"fmt ": struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16), b"data": samples}
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(chunk)) + chunk for name, chunk in chunks.items())
    (tmp_path / "late.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    mp3 = encode(tmp_path / "a.mp3", sine(440, 48000, 1.0), 48000)
    shutil.copy(mp3, tmp_path / "named.wav")

    assert probe(tmp_path / "late.wav").duration_s == 1.0
    late = read(tmp_path / "late.wav", sample_rate=8000, channels=1)
    assert np.array_equal(late[0] * 2**15, np.frombuffer(samples, "<i2"))
    by_name, as_wav = (read(path, sample_rate=48000, channels=1) for path in (mp3, tmp_path / "named.wav"))
    assert np.array_equal(by_name, as_wav)


@pytest.mark.parametrize("lufs", [-14.0, -23.0])
def test_loudness_is_brought_to_the_target(lufs: float) -> None:
    waveform = 0.05 * torch.randn(2, 32000, generator=torch.Generator().manual_seed(0))
    normalized = normalize_loudness(waveform, 32000, lufs=lufs)
    assert torchaudio.functional.loudness(normalized, 32000).item() == pytest.approx(lufs, abs=0.01)


def test_loud_peaks_are_clipped_to_one() -> None:
    waveform = 0.001 * torch.randn(1, 32000, generator=torch.Generator().manual_seed(0))
    waveform[0, 16000:16010] = 0.5
    assert normalize_loudness(waveform, 32000).abs().max().item() == 1


@pytest.mark.parametrize(
    "waveform",
    [
        pytest.param(1e-3 * torch.ones(1, 32000), id="near silence"),
        pytest.param(torch.zeros(2, 32000), id="silence"),
        pytest.param(0.1 * torch.sin(torch.arange(12799.0))[None], id="under 0.4 s"),
        pytest.param(torch.zeros(1, 0), id="nothing"),
        pytest.param(0.01 * torch.sin(2 * torch.pi / 32000 * torch.arange(64000.0))[None], id="1 Hz"),
    ],
)
def test_audio_without_a_loudness_keeps_its_level(waveform: torch.Tensor) -> None:
    assert torch.equal(normalize_loudness(waveform, 32000), waveform)


def test_write_wav_then_read_gives_equal_samples(tmp_path: Path) -> None:
    waveform = torch.tensor([[-1.0, -0.5, 0.0, 0.25], [32767 / 32768, 1 / 32768, -1 / 32768, 0.5]])
    write_wav(tmp_path / "a.wav", waveform, 32000)
    np.testing.assert_array_equal(read(tmp_path / "a.wav", sample_rate=32000, channels=2), waveform.numpy())


def test_write_wav_rounds_to_the_nearest_and_clips(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", torch.tensor([[1.6 / 32768, -1.6 / 32768, 1.0, 7.0, -7.0]]), 24000)
    with wave.open(str(tmp_path / "a.wav"), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24000)
        assert np.frombuffer(file.readframes(9), "<i2").tolist() == [2, -2, 32767, 32767, -32768]


@pytest.mark.parametrize("waveform", [torch.tensor([[0.0, torch.nan]]), torch.zeros(5)])
def test_write_wav_refuses_what_is_no_waveform_and_keeps_the_earlier_file(
    tmp_path: Path, waveform: torch.Tensor
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"earlier")
    with pytest.raises(ValueError, match=r"expected finite \[C, L\]"):
        write_wav(path, waveform, 32000)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"earlier"]


def test_nothing_is_logged_for_a_good_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        read(encode(tmp_path / "a.opus", sine(440, 48000, 2), 48000), sample_rate=32000, channels=1)
    assert not caplog.records
