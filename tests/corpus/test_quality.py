"""The figures of a track: the codec's, and how all of them are stored."""

import io
import json
import math
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from musicgen_ft.corpus.meters import QualityMeter
from musicgen_ft.corpus.quality import (
    SECOND_FIGURES,
    Quality,
    Seconds,
    codec_snr,
    decode_seconds,
    encode_seconds,
    seconds_from_text,
    seconds_to_text,
    with_codec_snr,
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


# ---- codec -----------------------------------------------------------------------------------------------------------


def test_codec_snr_of_the_track_and_of_each_second() -> None:
    original = np.stack([sine(100, 3.5, 0.5), sine(300, 3.5, 0.3)]).astype(np.float32)
    original[:, RATE : 2 * RATE] = 0
    decoded = original.copy()
    decoded[:, :RATE] *= 0.9  # an error 20 dB down
    decoded[:, RATE : 2 * RATE] = 0.01
    decoded[:, 3 * RATE :] *= -30
    snr_db, per_second = codec_snr(original, decoded, RATE)
    assert per_second.dtype == np.float32
    assert per_second == pytest.approx([20, np.nan, 60, -20], abs=1e-3, nan_ok=True)
    signal, error = np.square(original, dtype=np.float64).sum(), np.square(original - decoded, dtype=np.float64).sum()
    assert snr_db == pytest.approx(max(-20.0, 10 * math.log10(signal / error)), abs=1e-4)
    assert codec_snr(original[:, :RATE], decoded[:, :RATE], RATE)[0] == pytest.approx(20, abs=1e-3)
    assert math.isnan(codec_snr(original[:, RATE : 2 * RATE], decoded[:, RATE : 2 * RATE], RATE)[0])
    with pytest.raises(ValueError, match=r"original \[2, 154350\] and decoded \[2, 100\]"):
        codec_snr(original, decoded[:, :100], RATE)


def test_codec_snr_is_put_where_the_encoded_part_is() -> None:
    quality, seconds = measured(noise(4.5))
    with_snr, new = with_codec_snr(quality, seconds, 12.5, np.array([11, 12, 13], np.float32), start_s=0.9)
    assert with_snr.codec_snr_db == 12.5 and with_snr.duration_s == quality.duration_s
    assert row(new, "codec_snr_db") == pytest.approx([np.nan, 11, 12, 13, np.nan], nan_ok=True)
    assert np.array_equal(new[:3], seconds[:3]) and np.isnan(seconds[3]).all()
    _, cut = with_codec_snr(quality, new, 12.5, np.array([1, 2, 3], np.float32), start_s=3.2)
    assert row(cut, "codec_snr_db") == pytest.approx([np.nan, np.nan, np.nan, 1, 2], nan_ok=True)
    assert with_codec_snr(quality, seconds, math.nan, np.zeros(0, np.float32))[0].codec_snr_db is None
    with pytest.raises(ValueError, match="expected"):
        with_codec_snr(quality, seconds, 1.0, np.zeros(2, np.float32), start_s=-1)


# ---- stored ----------------------------------------------------------------------------------------------------------


def test_seconds_come_back_from_bytes_and_from_text() -> None:
    _, seconds = measured(noise(6.5))
    data, text = encode_seconds(seconds), seconds_to_text(seconds)
    assert data[:6] == b"\x93NUMPY" and len(data) == 128 + 2 * 4 * 7
    assert json.loads(json.dumps(text)) == text and len(text) == 76
    for back in (decode_seconds(data), seconds_from_text(text)):
        assert back.dtype == np.float16 and np.array_equal(back, seconds, equal_nan=True)
    assert seconds_from_text("").shape == (4, 0)


def test_foreign_bytes_and_texts_are_refused() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        decode_seconds(file.getvalue())
    np.savez(file := io.BytesIO(), seconds=np.zeros((4, 5), np.float16))
    for foreign in (b"", file.getvalue(), encode_seconds(np.zeros((4, 5), np.float16))[:-1]):
        with pytest.raises(ValueError, match=r"magic string|array data|cannot reshape"):
            decode_seconds(foreign)
    file = io.BytesIO()
    np.save(file, np.zeros((3, 5), np.float16))
    with pytest.raises(ValueError, match=r"float16 \[3, 5\], expected float16 \[4, S\]"):
        decode_seconds(file.getvalue())
    wrong: Any = np.zeros((4, 5), np.float32)
    with pytest.raises(ValueError, match=r"float32 \[4, 5\]"):
        encode_seconds(wrong)
    with pytest.raises(ValueError, match="no base64"):
        seconds_from_text("a,b")
    with pytest.raises(ValueError, match="6 bytes, expected 8 for each second"):
        seconds_from_text("AAAAAAAA")


def test_quality_comes_back_from_json() -> None:
    for samples in (noise(2, channels=2), np.zeros(RATE)):
        quality = quality_of(samples)
        assert Quality.from_dict(json.loads(json.dumps(quality.to_dict(), allow_nan=False))) == quality


def test_from_dict_is_strict() -> None:
    values = quality_of(noise(1)).to_dict()
    assert set(values) == {field.name for field in fields(Quality)}
    whole = Quality.from_dict({**values, "peak_db": -3})
    assert whole.peak_db == -3 and isinstance(whole.peak_db, float)
    for wrong, message in (
        ({"peak": 1.0}, r"missing \[\], unknown \['peak'\]"),
        ({"peak_db": None}, "peak_db is None"),
        ({"peak_db": "-3"}, "peak_db is '-3', expected float"),
        ({"source_channels": 2.0}, "source_channels is 2.0, expected int"),
        ({"silent_share": True}, "silent_share is True"),
        ({"loudness_lufs": math.nan}, "loudness_lufs is nan, expected a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            Quality.from_dict({**values, **wrong})
    del values["codec_snr_db"]
    with pytest.raises(ValueError, match=r"missing \['codec_snr_db'\]"):
        Quality.from_dict(values)
