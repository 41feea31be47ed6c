"""Claims about players: what is in the page is what was given, and it plays."""

import base64
import io
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from musicgen_ft.report.players import MAX_S, mp3_uri, player


def decode(uri: str) -> tuple[npt.NDArray[np.float32], int]:
    head, _, body = uri.partition(",")
    assert head == "data:audio/mpeg;base64"
    with av.open(io.BytesIO(base64.b64decode(body, validate=True)), "r") as container:
        frames = list(container.decode(audio=0))
    samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    return samples.astype(np.float32), frames[0].sample_rate


def tone(sample_rate: int, duration_s: float, *gains: float) -> npt.NDArray[np.float32]:
    time = np.arange(round(sample_rate * duration_s)) / sample_rate
    return np.outer(gains, np.sin(2 * np.pi * 440 * time)).astype(np.float32)


@pytest.mark.parametrize(
    ("sample_rate", "heard_rate", "gains"),
    [(32000, 32000, [0.5]), (44100, 44100, [0.5, 0.25]), (16000, 32000, [0.5]), (96000, 48000, [0.25, 0.5])],
)
def test_an_mp3_holds_the_excerpt(sample_rate: int, heard_rate: int, gains: list[float]) -> None:
    heard, rate = decode(mp3_uri(tone(sample_rate, 2.5, *gains), sample_rate))

    assert rate == heard_rate
    assert heard.shape[0] == len(gains)
    assert heard.shape[1] / rate == pytest.approx(2.5, abs=0.08)  # the encoder's delay and padding
    middle = heard[:, rate // 2 : rate]
    np.testing.assert_allclose(np.sqrt(np.square(middle).mean(axis=1)), np.array(gains) / np.sqrt(2), rtol=0.1)
    assert np.abs(np.fft.rfft(middle[0])).argmax() == 440 * (rate - rate // 2) // rate


def test_an_excerpt_is_faded_in_and_out() -> None:
    heard, rate = decode(mp3_uri(np.full((1, 64000), 0.5, np.float32) * tone(32000, 2, 1.0), 32000))

    assert np.abs(heard[0, :30]).max() < 0.05
    assert np.abs(heard[0, 63900:]).max() < 0.05
    assert np.abs(heard[0, rate // 10 : rate]).max() > 0.4


def test_an_mp3_takes_8_kilobytes_a_second() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, (2, 5 * 44100)).astype(np.float32)
    assert len(mp3_uri(noise, 44100)) == pytest.approx(5 * 8000 * 4 / 3, rel=0.05)


@pytest.mark.parametrize("L", [1, 7, 2000])
def test_the_shortest_excerpt_can_be_played(L: int, read_page: Any) -> None:
    page = read_page(player(title="short", samples=np.ones((1, L), np.float32), sample_rate=32000))
    assert decode(page.all("audio")[0]["src"] or "")[0].size > 0


def test_a_player_shows_and_plays_no_more_than_a_page_carries(read_page: Any) -> None:
    samples = np.zeros((6, round(MAX_S + 15) * 8000), np.float32)
    samples[0, 5], samples[1, 6] = np.nan, np.inf
    heard, rate = decode(read_page(player(title="long", samples=samples, sample_rate=8000)).all("audio")[0]["src"])

    assert heard.shape[0] == 2
    assert heard.shape[1] / rate == pytest.approx(MAX_S, abs=0.1)


def test_a_player_loads_on_demand_is_named_and_escaped(read_page: Any) -> None:
    evil = '"><script>alert(1)</script>'
    card = player(
        title=evil, samples=tone(32000, 0.5, 0.5), sample_rate=32000, facts=evil, badge=evil, notes=[("trim", evil)]
    )
    page = read_page(card)
    [audio] = page.all("audio")

    assert "controls" in audio
    assert audio["preload"] == "none"
    assert audio["aria-label"] == f"Play {evil}"
    assert page.all("script") == []
    assert page.text.count(evil) == 4
    assert [image["alt"] for image in page.all("img")] == ["Spectrogram of the excerpt"]
