"""What is written: melody and bass follow the harmony, motifs come back, drums play their groove."""

import dataclasses

import numpy as np
import pytest

from musicgen_ft.synthesis.arrange import GRID_S, Note, Score, compose
from musicgen_ft.synthesis.genres import GENRES
from musicgen_ft.synthesis.style import Drums, Genre, Part

BEAT_S = 0.48
BAR_S = 4 * BEAT_S
PLAIN = Genre(
    name="plain",
    noun="plain tune",
    tempo_bpm=(125, 125),
    progressions={"major": ("I IV V vi",)},
    moods={"major": ("plain", "even")},
    parts=(
        Part(role="lead", instruments=("flute",), patterns=("x-x-x-x-x---x---",), centre=72, gain_db=-6),
        Part(role="chords", instruments=("piano",), patterns=("x---------------",), centre=60, gain_db=-6),
        Part(role="bass", instruments=("sub bass",), patterns=("0---2---0---a---",), centre=38, gain_db=-6),
    ),
    drums=Drums(kit="drum machine", grooves=({"kick": "X...X...X...X..."},)),
    looseness_s=0.0,
)
ROOTS = {"I": 0, "IV": 5, "V": 7, "vi": 9}
CHORDS = {0: {0, 4, 7}, 5: {5, 9, 0}, 7: {7, 11, 2}, 9: {9, 0, 4}}


def write(genre: Genre = PLAIN, seed: int = 0, duration_s: float = 4 * BAR_S) -> Score:
    return compose(genre, np.random.default_rng(seed), duration_s)


def notes_of(score: Score, role: str) -> tuple[Note, ...]:
    return next(layer.notes for layer in score.layers if layer.part.role == role)


def root_at(score: Score, start_s: float) -> int:
    """Root of the chord that sounds at a time, in semitones above the tonic."""
    return list(ROOTS.values())[int(start_s / BAR_S + 1e-6) % 4]


@pytest.mark.parametrize("seed", range(5))
def test_melody_notes_on_a_beat_are_tones_of_the_chord(seed: int) -> None:
    score = write(seed=seed)
    on_beat = [note for note in notes_of(score, "lead") if abs(note.start_s / BEAT_S % 1) < 1e-6]
    assert len(on_beat) > 8
    for note in on_beat:
        assert (note.midi - score.key.tonic) % 12 in CHORDS[root_at(score, note.start_s)]


@pytest.mark.parametrize("genre", GENRES)
@pytest.mark.parametrize("seed", range(3))
def test_a_melody_stays_in_its_register_and_moves(genre: str, seed: int) -> None:
    for layer in write(GENRES[genre], seed, 30.0).layers:
        if layer.part.role == "lead":
            pitches = [note.midi for note in layer.notes]
            assert max(abs(pitch - layer.part.centre) for pitch in pitches) <= 18
            assert len(set(pitches)) >= 3


@pytest.mark.parametrize("seed", range(5))
def test_the_bass_plays_the_root_on_the_one_and_leads_into_the_next(seed: int) -> None:
    score = write(seed=seed)
    bass = notes_of(score, "bass")
    for bar in range(4):
        one, two, _, four = bass[4 * bar : 4 * bar + 4]
        assert (one.midi - score.key.tonic) % 12 == root_at(score, one.start_s)
        assert (two.midi - one.midi) == 7
        if bar < 3:
            assert four.midi + 1 == bass[4 * bar + 4].midi


def test_sections_of_one_letter_repeat_their_melody() -> None:
    lead = notes_of(write(duration_s=9 * BAR_S), "lead")
    intro_bars = int(lead[0].start_s / BAR_S)
    first, second = (
        [
            note.midi
            for note in lead
            if (intro_bars + start) * BAR_S - 0.1 < note.start_s < (intro_bars + start + 1) * BAR_S - 0.1
        ]
        for start in (0, 4)
    )
    assert first == second


def test_kicks_fall_on_the_beat() -> None:
    kicks = write().strokes["kick"]
    np.testing.assert_allclose([note.start_s for note in kicks], np.arange(16) * BEAT_S, atol=1e-9)


def test_swing_delays_every_second_eighth() -> None:
    swung = Genre(**{**vars(PLAIN), "swing": (2, 1 / 3)})
    starts_s = [note.start_s for note in notes_of(write(swung), "lead")][:4]
    np.testing.assert_allclose(starts_s, [0, BEAT_S * 2 / 3, BEAT_S, BEAT_S * 5 / 3], atol=1e-9)


@pytest.mark.parametrize("genre", GENRES)
def test_every_instrument_of_a_score_plays(genre: str) -> None:
    score = write(GENRES[genre], duration_s=10.0)
    assert all(layer.notes for layer in score.layers)
    assert len(set(score.instruments)) == len(score.layers) + (score.genre.drums is not None)


@pytest.mark.parametrize("genre", GENRES)
def test_parts_of_a_beat_are_whole_numbers_of_frames_within_the_genres_tempi(genre: str) -> None:
    slowest, fastest = GENRES[genre].tempo_bpm
    beats_s = np.array([write(GENRES[genre], seed).beat_s for seed in range(12)])
    parts = beats_s / GENRES[genre].parts_per_beat / GRID_S
    assert np.allclose(np.round(parts), parts)
    assert np.all((slowest <= 60 / beats_s + 1e-9) & (60 / beats_s - 1e-9 <= fastest))


def test_there_are_few_tempi_and_more_than_one_for_most_genres() -> None:
    tempi = {name: {write(genre, seed).bpm for seed in range(16)} for name, genre in GENRES.items()}
    assert 8 <= len(set().union(*tempi.values())) <= 16
    assert [name for name, found in tempi.items() if len(found) == 1] == ["house", "drum and bass"]


@pytest.mark.parametrize("genre", [name for name, genre in GENRES.items() if genre.swing != (1, 0.0)])
def test_a_swung_step_comes_late_by_whole_frames(genre: str) -> None:
    score = write(dataclasses.replace(GENRES[genre], looseness_s=0.0))
    starts_s = np.array([note.start_s for strokes in score.strokes.values() for note in strokes])
    assert np.allclose(np.round(starts_s / GRID_S), starts_s / GRID_S, atol=1e-6)
    assert not np.allclose(np.round(starts_s / score.step_s), starts_s / score.step_s)


def test_players_are_loose_in_the_same_way_whenever_a_section_comes_back() -> None:
    genre = dataclasses.replace(PLAIN, looseness_s=0.01)
    score = write(genre, duration_s=18 * BAR_S)
    kicks = np.array([(note.start_s, note.velocity) for note in score.strokes["kick"]]).reshape(
        -1, 4, 2
    )  # [bars, 4, 2]
    kicks[:, :, 0] -= BAR_S * np.arange(len(kicks))[:, None]
    assert np.allclose(kicks[2], kicks[3])  # bars of the first section, after an intro of two at most
    assert np.abs(kicks[3, :, 0] - BEAT_S * np.arange(4)).max() > 1e-3
    bass = [note.start_s % BAR_S for note in notes_of(score, "bass")]
    assert not np.allclose(bass[12], kicks[3, 0, 0])  # another player
