"""Audio files: decode, resample, mix channels, set the loudness, write.

C channels, L samples. Decoding, mixing and resampling run block by block: memory does not grow with the track. torch
is imported by the functions that take tensors only, so that a process that decodes stays small.
"""

import itertools
import logging
import math
import wave
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt
import soxr
from av.error import ExitError, FFmpegError, InvalidDataError

from musicgen_ft.containers import lacks_its_end, promised_s
from musicgen_ft.files import atomic_path

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from torch import Tensor

logger = logging.getLogger(__name__)

Samples = npt.NDArray[np.float32]

TIMEOUT_S = (5.0, 5.0)  # to open, to read: a WAV whose 32-bit size wrapped kept FFmpeg scanning for 9 minutes
WAV_PROBE_BYTES = "65536"  # its header tells all; FFmpeg would read 5 MB of samples in 20 ms, to look for DTS in them
MAX_BAD_PACKETS = 0.1  # of all packets; above it a "track" is mostly not music (random bytes do decode here and there)
LOUDNESS_BLOCK_S = 0.4  # gating block of BS.1770: shorter audio has no loudness
FULL_SCALE = {"u1": 2**7, "i2": 2**15, "i4": 2**31, "f4": 1, "f8": 1}  # by dtype; 24 bits come in the upper part of i4
ENERGY_FLOOR = 2e-3  # RMS; audiocraft leaves quieter audio as it is


class AudioError(Exception):
    """A file that gives no usable audio; the message names the file and the reason. The caller skips the file."""


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """What the header of an audio file tells."""

    sample_rate: int
    """Samples per second."""
    channels: int
    """Channels of the first audio stream."""
    duration_s: float | None
    """Seconds; None where the header has none, or only a guess from the bit rate (AAC, MP3 without a Xing frame)."""
    tags: dict[str, str]
    """Embedded tags, names in lower case."""


def probe(path: Path) -> AudioInfo:
    """Reads the header of an audio file, and decodes nothing.

    Raises:
        AudioError: if the file cannot be opened or has no audio stream.
    """
    with _open(path) as (container, stream):
        tags = {
            **container.metadata,
            **stream.metadata,
        }  # Ogg keeps its tags in the stream, the others in the container
        return AudioInfo(
            sample_rate=stream.rate or 0,
            channels=stream.channels,
            duration_s=promised_s(path, container, stream),
            tags={name.lower(): value for name, value in tags.items()},
        )


class AudioReader:
    """Reads one audio file as float32 blocks of a given rate and number of channels, or of its own.

    Mono is the mean of all channels, as in audiocraft (FFmpeg's own down-mix is 3 dB louder). Stereo is the first two
    channels of the source, or its only one twice. Resampled by soxr HQ. The attributes are final once ``blocks`` is
    exhausted.

    Attributes:
        source_sample_rate: samples per second of the file.
        source_channels: channels of the file.
        num_samples: samples given out, per channel.
        expected_s: duration by the header; None where the header does not know it.
        num_bad_packets: damaged packets that were skipped.
        is_truncated: true if the file ends before its container says it does.
    """

    def __init__(self, path: Path, *, sample_rate: int | None, channels: int | None, block_s: float = 10.0) -> None:
        """Opens nothing yet; None is the file's own sample rate, or all of its channels."""
        if channels not in (None, 1, 2):
            raise ValueError(f"channels is {channels}, expected 1 (mono) or 2 (stereo), or None for the file's own")
        self.path = path
        self.sample_rate = sample_rate
        self.channels = channels
        self.block_s = block_s
        self._reset()

    def blocks(self) -> Iterator[Samples]:
        """Yields [C, L] blocks of ``block_s`` seconds; the last one may be shorter.

        Raises:
            AudioError: if the file cannot be opened or decoded, has no audio, or is mostly damaged. It can come after
                some blocks: what was read so far is then of no use.
        """
        self._reset()
        frames = self._frames()
        first = next(frames, None)
        if first is None or first.sample_rate <= 0:
            raise AudioError(f"{self.path}: {'no samples' if first is None else 'its sample rate is 0'}")
        self.source_sample_rate = rate = first.sample_rate
        self.source_channels = len(first.layout.channels)
        mixed = self._mix(itertools.chain([first], frames), rate=rate)
        resampled = self._resample(_regroup(mixed, rate), rate=rate)
        for block in _regroup(resampled, max(1, round(self.block_s * (self.sample_rate or rate)))):
            self.num_samples += block.shape[1]
            yield block
        self._judge(rate)

    def _reset(self) -> None:
        self.source_sample_rate = self.source_channels = 0
        self.num_samples = 0
        self.expected_s: float | None = None
        self.num_bad_packets = 0
        self.is_truncated = False
        self._num_packets = 0
        self._num_source_samples = 0

    def _frames(self) -> Iterator[av.AudioFrame]:
        with _open(self.path) as (container, stream):
            self.expected_s = promised_s(self.path, container, stream)
            for packet in container.demux(stream):
                self._num_packets += 1
                try:
                    frames = stream.decode(packet)
                except InvalidDataError:  # players skip it too; often the torn last packet
                    self.num_bad_packets += 1
                    continue
                yield from (frame for frame in frames if frame.samples)

    def _mix(self, frames: Iterable[av.AudioFrame], *, rate: int) -> Iterator[Samples]:
        for frame in frames:
            if frame.sample_rate != rate:
                raise AudioError(
                    f"{self.path}: its sample rate changes from {rate} to {frame.sample_rate} Hz on the way"
                )
            try:
                samples = _to_float(frame)
            except ValueError as error:  # a format that PyAV cannot hand to numpy: 64-bit integers
                raise AudioError(f"{self.path}: samples of format {frame.format.name} are not supported") from error
            if not np.isfinite(samples).all():
                raise AudioError(f"{self.path}: it holds samples that are NaN or infinite")
            self._num_source_samples += samples.shape[1]
            if self.channels is None:
                if len(samples) != self.source_channels:
                    raise AudioError(
                        f"{self.path}: its channels change from {self.source_channels} to {len(samples)} on the way"
                    )
                yield samples
            elif self.channels == 1:
                yield samples.mean(axis=0, keepdims=True)
            else:
                yield samples[:2] if len(samples) > 1 else samples.repeat(2, axis=0)

    def _resample(self, chunks: Iterable[Samples], *, rate: int) -> Iterator[Samples]:
        if self.sample_rate in (None, rate):
            yield from chunks
            return
        assert self.channels is not None, "resampling wants a number of channels"
        stream = soxr.ResampleStream(rate, self.sample_rate, self.channels, dtype="float32", quality="HQ")
        for chunk in chunks:
            yield stream.resample_chunk(np.ascontiguousarray(chunk.T)).T
        yield stream.resample_chunk(np.zeros((0, self.channels), np.float32), last=True).T

    def _judge(self, rate: int) -> None:
        if self.num_samples == 0:
            raise AudioError(f"{self.path}: no samples")
        if self.num_bad_packets > MAX_BAD_PACKETS * self._num_packets:
            raise AudioError(f"{self.path}: {self.num_bad_packets} of its {self._num_packets} packets are damaged")
        if self.num_bad_packets:
            logger.warning("%s: skipped %d damaged packets", self.path, self.num_bad_packets)
        decoded_s = self._num_source_samples / rate
        # One second or 2 %: encoder delay, padding and edit lists make a whole file up to 0.1 s shorter than promised.
        is_short = self.expected_s is not None and self.expected_s - decoded_s > max(1.0, 0.02 * self.expected_s)
        self.is_truncated = is_short or lacks_its_end(self.path)
        if self.is_truncated:
            promise = f"its header promises {self.expected_s:.1f} s" if is_short else "its container has no end"
            logger.warning("%s: truncated: %.1f s decoded, but %s", self.path, decoded_s, promise)


def read(path: Path, *, sample_rate: int, channels: int) -> Samples:
    """The whole file as float32 [C, L]; see ``AudioReader`` for the rules and the errors."""
    return np.concatenate(list(AudioReader(path, sample_rate=sample_rate, channels=channels).blocks()), axis=1)


def normalize_loudness(waveform: "Tensor", sample_rate: int, *, lufs: float = -14.0) -> "Tensor":
    """Brings a waveform to a loudness by one gain, and clips it to [-1, 1].

    Audio without a loudness (under 0.4 s, near silence, or nothing but frequencies that BS.1770 does not hear) keeps
    its level.

    Args:
        waveform: float [C, L].
        sample_rate: samples per second.
        lufs: integrated loudness to reach, BS.1770.

    Returns:
        float [C, L]; a peak above 1 is clipped, so a waveform of few loud peaks ends up quieter than ``lufs``.

    Source: audiocraft's ``audio_write(strategy="loudness", loudness_headroom_db=14)``.
    """
    import torchaudio

    is_long_enough = waveform.shape[-1] >= round(LOUDNESS_BLOCK_S * sample_rate)
    if is_long_enough and waveform.square().mean().sqrt().item() >= ENERGY_FLOOR:
        loudness = torchaudio.functional.loudness(waveform, sample_rate).item()
        if math.isfinite(loudness):
            waveform = waveform * 10 ** ((lufs - loudness) / 20)
    return waveform.clamp(-1, 1)


def write_wav(path: Path, waveform: "Tensor", sample_rate: int) -> None:
    """Writes a float [C, L] waveform as 16-bit PCM, whole or not at all; values beyond [-1, 1] are clipped.

    Scaled by 32768 as FFmpeg does, so that reading the file gives equal samples back.

    Raises:
        ValueError: if the waveform is not [C, L], or holds NaN or infinity.
    """
    samples = waveform.detach().float().cpu().numpy()
    if samples.ndim != 2 or not np.isfinite(samples).all():
        raise ValueError(f"waveform of shape {list(samples.shape)}: expected finite [C, L]")
    pcm = np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2")
    with atomic_path(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(pcm.shape[0])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(pcm.T.tobytes())


@contextmanager
def _open(path: Path) -> Iterator[tuple["InputContainer", "AudioStream"]]:
    try:
        options = {"probesize": WAV_PROBE_BYTES} if path.suffix.lower() == ".wav" else {}
        with av.open(str(path), timeout=TIMEOUT_S, metadata_errors="replace", options=options) as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: no audio stream")
            stream: AudioStream = container.streams.audio[0]
            if stream.codec_context is None:  # a damaged header names a codec that nobody knows
                raise AudioError(f"{path}: its codec is not known")
            yield container, stream
    except ExitError as error:
        raise AudioError(
            f"{path}: no answer within {TIMEOUT_S[1]:g} s: a damaged header, or a disk that stalls"
        ) from error
    except FFmpegError as error:
        raise AudioError(f"{path}: {error.strerror}") from error


def _to_float(frame: av.AudioFrame) -> Samples:
    """The samples of a frame as float32 [C, L], full scale at 1; FLAC and WAV give packed integers."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T  # [1, L * C] -> [C, L]
    scale = np.float32(FULL_SCALE[samples.dtype.str[1:]])
    with np.errstate(over="ignore", invalid="ignore"):  # damaged floats; the caller looks for what is not finite
        unscaled = samples.astype(np.float32)
        return (unscaled - scale if samples.dtype == np.uint8 else unscaled) / scale


def _regroup(chunks: Iterable[Samples], size: int) -> Iterator[Samples]:
    """The same samples in pieces of ``size``; the last one may be shorter."""
    pending: list[Samples] = []
    length = 0
    for chunk in chunks:
        pending.append(chunk)
        length += chunk.shape[1]
        if length >= size:
            joined = np.concatenate(pending, axis=1)
            whole = length - length % size
            for start in range(0, whole, size):
                yield joined[:, start : start + size]
            pending, length = [joined[:, whole:]], length - whole
    if length:
        yield np.concatenate(pending, axis=1)
