"""Claims about spectrograms: a picture of the right size, bright where the sound is."""

import base64
import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from musicgen_ft.pictures import COLUMNS, ROWS, height_of, spectrogram_uri


def brightness(samples: npt.NDArray[np.float32], sample_rate: int) -> npt.NDArray[np.float64]:
    """[ROWS, COLUMNS], lowest frequency first."""
    head, _, body = spectrogram_uri(samples, sample_rate).partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(body, validate=True))) as image:
        assert (image.format, image.size) == ("PNG", (COLUMNS, ROWS))
        return np.asarray(np.asarray(image.convert("RGB"), np.float64).sum(axis=2)[::-1], np.float64)


def sine(frequency: float, sample_rate: int, duration_s: float) -> npt.NDArray[np.float32]:
    time = np.arange(round(sample_rate * duration_s)) / sample_rate
    return np.sin(2 * np.pi * frequency * time)[None].astype(np.float32)


@pytest.mark.parametrize(("frequency", "sample_rate"), [(110.0, 32000), (1000.0, 44100), (9000.0, 48000)])
def test_a_tone_is_a_line_at_its_height(frequency: float, sample_rate: int) -> None:
    picture = brightness(sine(frequency, sample_rate, 1.5), sample_rate)
    middle = picture[:, COLUMNS // 4 : -COLUMNS // 4].mean(axis=1)

    assert middle.argmax() == pytest.approx(height_of(frequency) * ROWS, abs=1.0)
    assert middle.max() > 600
    assert np.median(middle) < 60


def test_time_goes_to_the_right() -> None:
    picture = brightness(np.concatenate([np.zeros((1, 32000), np.float32), sine(500, 32000, 1.0)], axis=1), 32000)
    assert picture[:, : COLUMNS // 3].max() < 60 < 500 < picture[:, -COLUMNS // 3 :].max()


def test_above_the_nyquist_frequency_it_is_dark() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 8000)).astype(np.float32)
    picture = brightness(noise, 8000)
    top = int(height_of(4000) * ROWS) + 2

    assert picture[top:].max() == picture[top:].min() < 30
    assert np.median(picture[5 : top - 5]) > 300


@pytest.mark.parametrize("samples", [np.zeros((1, 1)), np.zeros((2, 50000)), np.ones((1, 300))])
def test_any_sound_gives_a_picture(samples: npt.NDArray[np.float64]) -> None:
    assert brightness(samples.astype(np.float32), 32000).shape == (ROWS, COLUMNS)


def test_silence_is_dark() -> None:
    assert brightness(np.zeros((1, 32000), np.float32), 32000).max() < 30
