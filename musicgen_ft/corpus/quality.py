"""What is measured of a track's sound: for the track, and for each of its seconds.

C channels, L samples, S seconds, H hops of 0.1 s, B frequency bands.
"""

import base64
import binascii
import io
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

SECOND_FIGURES = ("level_db", "clipped_share", "bandwidth_khz", "codec_snr_db")
"""The rows of ``Seconds``, in order."""

Seconds = npt.NDArray[np.float16]
"""float16 [len(SECOND_FIGURES), S]: the figures of each second; the last second may be a part of one. NaN where a
figure was not measured: ``codec_snr_db`` before the codec has run, and in silent seconds."""

SILENCE_DB = -60.0
"""Below this RMS level, over all channels, there is silence."""
MIN_DB = -120.0
"""Level given to digital silence and to all that is below."""
MAX_WIDTH = 100.0
"""Greatest stereo width: that of a side signal without mid, too."""
CODEC_SNR_RANGE_DB = (-20.0, 60.0)
"""Codec SNRs are clipped to this range."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures of one track, measured on the file's own samples. Levels are relative to full scale (dBFS)."""

    source_sample_rate: int
    """Samples per second of the file."""
    source_channels: int
    """Channels of the file."""
    duration_s: float
    """Seconds of the file."""
    loudness_lufs: float | None
    """Integrated loudness, BS.1770-4; None where it has none (shorter than 0.4 s, or all of it gated)."""
    peak_db: float
    """Highest sample; -120 at the least."""
    silent_share: float
    """Share of the seconds whose level is below SILENCE_DB, in [0, 1]."""
    head_silence_s: float
    """Seconds before the first sound above SILENCE_DB, in steps of 10 ms; all of them where there is none."""
    tail_silence_s: float
    """Seconds after the last sound above SILENCE_DB, in steps of 10 ms; 0 where there is none, so that head and tail
    never add up to more than the track."""
    fade_out_s: float
    """Seconds over which the end falls away by 20 dB or more, before the tail's silence; 0 where it ends at once or in
    a steady quiet passage. The last chord's own decay counts too."""
    clipped_share: float
    """Share of the samples in runs of three or more at the track's full scale, in [0, 1].

    It is 0 where the full scale is below 0.5, and where a lossy codec or a resampler came after the clipping (the runs
    are then no longer flat). False alarms: bare square waves are nothing but such runs, with a share near 1; the crests
    of loud 8-bit files are flat as well. So a high share is a doubt, not a proof."""
    dc_offset: float
    """Mean of the samples, the channel farthest from 0, with its sign; full scale is 1."""
    bandwidth_khz: float
    """Frequency above which there is nothing but noise: about 16 for a 128 kb/s MP3 whatever its container says.

    Noise is what is within 8 dB of 16-bit dither, and what lies beyond a cliff of 20 dB within 1 kHz. Half the sample
    rate for full-band music, the highest overtone for a dull synth, 0 for silence; steps of about 0.1 kHz. What is
    heard in less than a twentieth of the seconds does not count. Heavy clipping after a lossy codec (0.4 % of the
    samples of one track) hides its cliff, lighter clipping does not; lone lines above the music, such as a 15.6 kHz
    whistle, count as content."""
    stereo_width: float | None
    """RMS of the side over that of the mid signal, at most MAX_WIDTH; 0 is mono in two channels; None for a file of
    one channel. Of more than two channels, the first two count."""
    codec_snr_db: float | None = None
    """How well the codec carries it: signal over the codec's error; None before the codec has run."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value; ``from_dict`` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Quality":
        """Figures from what ``to_dict`` gave.

        Raises:
            ValueError: if a figure is missing or unknown, or is no finite number of its type.
        """
        kinds = {field.name: field.type for field in fields(cls)}
        if set(values) != set(kinds):
            missing, unknown = sorted(set(kinds) - set(values)), sorted(set(values) - set(kinds))
            raise ValueError(f"quality figures: missing {missing}, unknown {unknown}")
        found: dict[str, Any] = {name: _figure(name, values[name], kind) for name, kind in kinds.items()}
        return cls(**found)


def codec_snr(original: Samples, decoded: Samples, sample_rate: int) -> tuple[float, Samples]:
    """How much louder the original is than the codec's error, 10 log10(sum x^2 / sum (x - y)^2).

    Args:
        original: float32 [C, L], what was encoded.
        decoded: float32 [C, L], what came back, sample by sample.
        sample_rate: samples per second.

    Returns:
        dB for the track, and float32 [S] for each of its seconds, clipped to CODEC_SNR_RANGE_DB; NaN where the
        original is silence (below SILENCE_DB).

    Raises:
        ValueError: if the shapes disagree or hold no samples.
    """
    if original.ndim != 2 or original.shape != decoded.shape or not original.size:
        raise ValueError(
            f"original {list(original.shape)} and decoded {list(decoded.shape)}: expected two equal [C, L]"
        )
    C, L = original.shape
    starts = np.arange(0, L, sample_rate)
    signal = np.add.reduceat(np.square(original, dtype=np.float64).sum(axis=0), starts)  # [S]
    error = np.add.reduceat(np.square(original.astype(np.float64) - decoded).sum(axis=0), starts)
    sizes = np.diff(starts, append=L) * C
    per_second = [_snr_db(*values) for values in zip(signal, error, sizes, strict=True)]
    return _snr_db(signal.sum(), error.sum(), L * C), np.array(per_second, np.float32)


def with_codec_snr(
    quality: Quality, seconds: Seconds, snr_db: float, per_second: Samples, start_s: float = 0.0
) -> tuple[Quality, Seconds]:
    """The figures with the codec's, as ``codec_snr`` gave them.

    Args:
        quality: figures of the track.
        seconds: figures of its S seconds.
        snr_db: of the encoded part; NaN (silence) is None in ``Quality``.
        per_second: float [any], of each second of the encoded part.
        start_s: where in the track the encoded part begins; its seconds go to the nearest whole ones of the track,
            half a second off at most, and what lies beyond the track's end is left out.

    Returns:
        New figures; seconds outside the encoded part have NaN.
    """
    if not (per_second.ndim == 1 and start_s >= 0):
        raise ValueError(f"per_second {list(per_second.shape)} from {start_s} s: expected [S] from 0 s or later")
    start = min(round(start_s), seconds.shape[1])
    found = per_second[: seconds.shape[1] - start]
    with_snr = seconds.copy()
    row = with_snr[SECOND_FIGURES.index("codec_snr_db")]
    row[:] = np.nan
    row[start : start + len(found)] = found
    return replace(quality, codec_snr_db=None if math.isnan(snr_db) else float(snr_db)), with_snr


def encode_seconds(seconds: Seconds) -> bytes:
    """The bytes of ``seconds`` as npy version 1.0, little-endian, in C order."""
    buffer = io.BytesIO()
    little_endian = np.ascontiguousarray(_checked(seconds), dtype="<f2")
    np.lib.format.write_array(buffer, little_endian, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_seconds(data: bytes) -> Seconds:
    """The inverse of ``encode_seconds``; nothing is ever unpickled.

    Raises:
        ValueError: if the bytes are no npy file of float16 [len(SECOND_FIGURES), S].
    """
    return _checked(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))


def seconds_to_text(seconds: Seconds) -> str:
    """``seconds`` for JSON: its float16, little-endian, row by row, in base64. 11 characters per second of audio."""
    return base64.b64encode(np.ascontiguousarray(_checked(seconds), dtype="<f2").tobytes()).decode("ascii")


def seconds_from_text(text: str) -> Seconds:
    """The inverse of ``seconds_to_text``.

    Raises:
        ValueError: if the text is no base64, or not of a whole number of seconds.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"figures of seconds: no base64 ({error})") from error
    if len(data) % (2 * len(SECOND_FIGURES)):
        raise ValueError(f"figures of seconds: {len(data)} bytes, expected {2 * len(SECOND_FIGURES)} for each second")
    return np.frombuffer(data, "<f2").reshape(len(SECOND_FIGURES), -1).astype(np.float16)


def _figure(name: str, value: object, kind: object) -> int | float | None:
    """A figure of the kind that its field declares; whole numbers are taken for floats, as JSON writers do."""
    if value is None and kind == float | None:
        return None
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise ValueError(f"quality figure {name} is {value!r}, expected {getattr(kind, '__name__', kind)}")
    if not math.isfinite(value):
        raise ValueError(f"quality figure {name} is {value!r}, expected a finite number")
    return value if kind is int else float(value)


def _checked(seconds: npt.NDArray[Any]) -> Seconds:
    if seconds.dtype != np.float16 or seconds.ndim != 2 or len(seconds) != len(SECOND_FIGURES):
        found = f"{seconds.dtype} {list(seconds.shape)}"
        raise ValueError(f"figures of seconds: {found}, expected float16 [{len(SECOND_FIGURES)}, S]")
    return seconds


def mean_square_db(mean_square: float) -> float:
    """A level, at least MIN_DB."""
    return 10 * math.log10(max(mean_square, 10 ** (MIN_DB / 10)))


def _snr_db(signal: float, error: float, size: int) -> float:
    """dB from the energies of ``size`` samples."""
    low, high = CODEC_SNR_RANGE_DB
    if mean_square_db(signal / size) < SILENCE_DB:
        return math.nan
    return min(high, max(low, 10 * math.log10(signal / error))) if error > 0 else high
