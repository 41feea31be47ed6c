"""What is heard: tempo, key and bass as the labels say, no clipping, no silence, no DC."""

import dataclasses
from functools import cache

import numpy as np
import pytest

from musicgen_ft.errors import UserError
from musicgen_ft.synthesis.arrange import GRID_S, compose
from musicgen_ft.synthesis.dsp import FloatArray
from musicgen_ft.synthesis.genres import GENRES
from musicgen_ft.synthesis.render import Track, play, render_track
from musicgen_ft.synthesis.theory import TONICS, Key, frequency_hz

SAMPLE_RATE = 16_000
DURATION_S = 12.0
WITH_DRUMS = [name for name, genre in GENRES.items() if genre.drums is not None and name != "folk"]
EVERY_GENRE = pytest.mark.parametrize("genre", GENRES)


@cache
def track(genre: str) -> Track:
    return render_track(1, 2, genre=genre, duration_s=DURATION_S, sample_rate=SAMPLE_RATE)


def spectrogram(wave: FloatArray, size: int, hop: int) -> FloatArray:
    """Magnitudes, float32 [frames, bins], of a mono wave [L]."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, size)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32))).astype(np.float32)


def measured_bpm(wave: FloatArray) -> float:
    """The tempo whose beats, and every second and fourth of them, best agree with the autocorrelation of the onsets."""
    hop = 80  # 5 ms
    level = np.log(spectrogram(wave, 512, hop) + 1e-2)
    onsets = np.maximum(np.diff(level, axis=0), 0).mean(axis=1)
    onsets -= onsets.mean()
    correlation = np.fft.irfft(np.abs(np.fft.rfft(onsets, 2 * len(onsets))) ** 2)
    candidates_bpm = np.geomspace(55, 220, 400)  # 0.35% apart
    lags = np.array([[1], [2], [4]]) * 60 / candidates_bpm * SAMPLE_RATE / hop
    strength = np.interp(lags, np.arange(len(correlation)), correlation).sum(axis=0)
    return float(candidates_bpm[np.argmax(strength)])


@pytest.mark.parametrize("genre", WITH_DRUMS)
def test_the_measured_tempo_is_the_labelled_one(genre: str) -> None:
    octaves = np.log2(measured_bpm(track(genre).waveform.mean(axis=0)) / track(genre).labels.bpm)
    assert abs(octaves - round(octaves)) < np.log2(1.02)


def chroma(wave: FloatArray) -> FloatArray:
    """Share of the energy of each pitch class between 60 and 1000 Hz, float32 [12]."""
    power = (spectrogram(wave, 8192, 4096) ** 2).mean(axis=0)
    frequencies = np.fft.rfftfreq(8192, 1 / SAMPLE_RATE)
    heard = (frequencies > 60) & (frequencies < 1000)
    pitch_class = np.rint(12 * np.log2(frequencies[heard] / 440) + 69).astype(int) % 12
    energy = np.bincount(pitch_class, power[heard], minlength=12)
    return np.asarray(energy / energy.sum(), np.float32)


@pytest.mark.parametrize("genre", [name for name, genre in GENRES.items() if genre.drums is None or name == "folk"])
def test_the_notes_that_sound_are_those_of_the_labelled_key(genre: str) -> None:
    tonic, mode = track(genre).labels.key.split()
    scale = Key(TONICS[mode].index(tonic), mode).pitch_classes
    share = float(chroma(track(genre).waveform.mean(axis=0))[sorted(scale)].sum())
    assert share > 0.85  # 7 of 12 by chance; the rest is borrowed chords, overtones and leakage


@pytest.mark.parametrize("genre", [name for name, genre in GENRES.items() if genre.parts[-1].role == "bass"])
def test_the_bass_sounds_at_the_pitch_that_is_written(genre: str) -> None:
    score = compose(GENRES[genre], np.random.default_rng(3), 4.0)
    bass = score.layers[-1]
    alone = dataclasses.replace(score, layers=(bass,), strokes={}, genre=dataclasses.replace(score.genre, drums=None))
    wave = play(alone, 4.0, SAMPLE_RATE).mean(axis=0)
    note = max(bass.notes[:4], key=lambda note: note.duration_s)
    start = int(note.start_s * SAMPLE_RATE)
    heard = wave[start : start + max(1600, int(note.duration_s * SAMPLE_RATE))]
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard)), n=4 * SAMPLE_RATE))
    written_hz = frequency_hz(note.midi)
    fundamental = spectrum[(4 * 25) : int(4 * 1.5 * written_hz)]
    assert (np.argmax(fundamental) / 4 + 25) == pytest.approx(written_hz, rel=0.05)


@EVERY_GENRE
def test_a_track_is_neither_clipped_nor_silent_nor_off_centre(genre: str) -> None:
    wave = track(genre).waveform
    assert wave.shape == (2, DURATION_S * SAMPLE_RATE)
    assert wave.dtype == np.float32
    assert 0.4 < np.abs(wave).max() < 0.9
    assert np.abs(wave.mean(axis=1)).max() < 1e-3
    block = SAMPLE_RATE // 2
    level = np.sqrt(np.mean(wave[:, : 10 * SAMPLE_RATE].reshape(2, -1, block) ** 2, axis=(0, 2)))
    assert level.min() > 0.003  # no half second is silent


@pytest.mark.parametrize("genre", [name for name, genre in GENRES.items() if genre.drums is not None])
def test_drums_that_come_back_are_the_same_to_the_sample(genre: str) -> None:
    """So that a codec whose frames divide the bar gives them the same codes."""
    rules = dataclasses.replace(GENRES[genre], room_s=0.2)
    score = compose(rules, np.random.default_rng(5), 40.0)
    bar = round(rules.beats_per_bar * score.beat_s * SAMPLE_RATE)
    assert bar % round(GRID_S * SAMPLE_RATE) == 0
    wave = play(dataclasses.replace(score, layers=()), 40.0, SAMPLE_RATE)
    third, fourth = (wave[:, number * bar : (number + 1) * bar] for number in (2, 3))  # no fill in them, nor before
    assert np.abs(third - fourth).max() < 0.02 * np.abs(third).max()


@EVERY_GENRE
@pytest.mark.parametrize("duration_s", [0.05, 1.3])
def test_a_very_short_track_is_rendered(genre: str, duration_s: float) -> None:
    wave = render_track(0, 0, genre=genre, duration_s=duration_s, sample_rate=SAMPLE_RATE).waveform
    assert wave.shape == (2, duration_s * SAMPLE_RATE)
    assert np.isfinite(wave).all()


def test_without_a_genre_the_number_chooses_it() -> None:
    names = [render_track(0, n, duration_s=0.1, sample_rate=8000).labels.genre for n in range(len(GENRES) + 1)]
    assert names == [*GENRES, next(iter(GENRES))]


def test_the_sample_rate_changes_nothing_of_what_is_said() -> None:
    low, high = (render_track(0, 5, duration_s=0.2, sample_rate=rate).labels for rate in (8_000, 48_000))
    assert low == high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed -1 and track number 0: expected 0 or more"),
        ({"duration_s": 0.0}, r"duration_s is 0\.0, expected a positive number"),
        ({"duration_s": float("nan")}, "duration_s is nan, expected a positive number"),
        ({"sample_rate": 100}, "sample_rate is 100 Hz, expected 8000 or more"),
        ({"genre": "polka"}, "genre 'polka' is not known"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, float | str], message: str) -> None:
    valid: dict[str, float | str] = {"seed": 0, "number": 0, "duration_s": 1.0, "sample_rate": 8000}
    with pytest.raises(UserError, match=message):
        render_track(**(valid | arguments))  # type: ignore[arg-type]  # that is what is tested
