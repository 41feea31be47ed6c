"""Pictures of sound: spectrograms as PNG."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

WINDOW_S = 0.064
RANGE_DB = 75.0
QUIET_DB = -40.0  # what has no louder point, below -60 dBFS, stays dark: silence is not blown up to noise
MIN_HZ, MAX_HZ = 30.0, 16_000.0  # MusicGen's codec hears no more
ROWS, COLUMNS = 144, 560
_ANCHORS = (  # of the colour map magma, at even distances
    *("000004", "180f3d", "440f76", "721f81", "9e2f7f"),
    *("cd4071", "f1605d", "fd9668", "feca8d", "fcfdbf"),
)


def spectrogram_uri(samples: npt.NDArray[np.float32], sample_rate: int) -> str:
    """A spectrogram as a data URI; see ``spectrogram``."""
    file = io.BytesIO()
    spectrogram(samples, sample_rate).save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def spectrogram(samples: npt.NDArray[np.float32], sample_rate: int) -> Image.Image:
    """A spectrogram, COLUMNS x ROWS: time from left to right, mel from MIN_HZ to MAX_HZ upwards.

    Brightness is power in dB, from RANGE_DB below the loudest point to it. What lies above the file's own Nyquist
    frequency is black.

    Args:
        samples: float [C, L], L at least 1; its channels are averaged.
        sample_rate: samples per second.
    """
    power = _mel_power(samples.mean(axis=0, dtype=np.float64), sample_rate)
    db = 10 * np.log10(power + 1e-12)
    shade = np.clip(1 + (db - max(float(db.max()), QUIET_DB)) / RANGE_DB, 0, 1)
    image = Image.fromarray(np.rint(255 * shade[::-1]).astype(np.uint8))  # 8-bit grey, then coloured by a palette
    image.putpalette(_palette().tobytes())
    return image


def height_of(frequency_hz: float) -> float:
    """Where a frequency lies in the picture: 0 is its bottom, 1 its top."""
    low, high = _mel(np.array([MIN_HZ, MAX_HZ]))
    return float((_mel(np.array(frequency_hz)) - low) / (high - low))


def _mel_power(signal: npt.NDArray[np.float64], sample_rate: int) -> npt.NDArray[np.float64]:
    """Mean power in each band of each frame, [ROWS, COLUMNS]."""
    size = max(16, round(WINDOW_S * sample_rate))
    padded = np.pad(signal, size // 2)
    starts = np.linspace(0, max(len(padded) - size, 0), COLUMNS).astype(np.int64)
    padded = np.pad(padded, (0, max(0, size - len(padded))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[starts] * np.hanning(size)
    power = np.square(np.abs(np.fft.rfft(frames))) / size  # [COLUMNS, size // 2 + 1]
    # The power between two frequencies, from the running sum over bins: right for bands narrower than a bin, too.
    bins = np.arange(power.shape[1] + 1) - 0.5
    summed = np.concatenate([np.zeros((COLUMNS, 1)), np.cumsum(power, axis=1)], axis=1)
    low, high = _mel(np.array([MIN_HZ, MAX_HZ]))
    edges = _hz(np.linspace(low, high, ROWS + 1)) * size / sample_rate
    place = np.clip(edges, bins[0], bins[-1]) - bins[0]
    whole = np.minimum(place.astype(np.int64), power.shape[1] - 1)
    at_edges = summed[:, whole] + (place - whole) * power[:, whole]
    return np.asarray((np.diff(at_edges, axis=1) / np.diff(edges)).T, np.float64)


def _mel(hz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(2595 * np.log10(1 + hz / 700), np.float64)


def _hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(700 * (10 ** (mel / 2595) - 1), np.float64)


def _palette() -> npt.NDArray[np.uint8]:
    """256 colours, [256, 3]."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _ANCHORS])
    at = np.linspace(0, len(anchors) - 1, 256)
    colours = np.stack([np.interp(at, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)], axis=1)
    return np.asarray(np.rint(colours), np.uint8)
