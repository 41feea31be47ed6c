"""The table of genres keeps its own rules."""

import pytest

from musicgen_ft.errors import UserError
from musicgen_ft.synthesis.drums import KITS
from musicgen_ft.synthesis.genres import GENRES, find_genre
from musicgen_ft.synthesis.instruments import INSTRUMENTS
from musicgen_ft.synthesis.style import Genre, parse_pattern
from musicgen_ft.synthesis.theory import Key

EVERY_GENRE = pytest.mark.parametrize("genre", GENRES.values(), ids=lambda genre: genre.name)


def patterns(genre: Genre) -> list[str]:
    drums = [] if genre.drums is None else [*genre.drums.grooves, genre.drums.fill]
    played = [pattern for part in genre.parts for pattern in part.patterns]
    return played + [pattern for groove in drums for pattern in groove.values()]


def test_there_are_at_least_eight_genres() -> None:
    assert len(GENRES) >= 8


@EVERY_GENRE
def test_every_pattern_fills_one_bar(genre: Genre) -> None:
    for pattern in patterns(genre):
        assert len(pattern) == genre.steps_per_bar, pattern
        assert parse_pattern(pattern)


@EVERY_GENRE
def test_every_instrument_and_piece_is_known(genre: Genre) -> None:
    assert {name for part in genre.parts for name in part.instruments} <= INSTRUMENTS.keys()
    if genre.drums is not None:
        struck = {piece for groove in (*genre.drums.grooves, genre.drums.fill) for piece in groove}
        assert struck <= KITS[genre.drums.kit].keys()


@EVERY_GENRE
def test_every_mode_has_progressions_of_four_chords_and_two_moods_to_take(genre: Genre) -> None:
    assert genre.progressions.keys() == genre.moods.keys()
    for mode, progressions in genre.progressions.items():
        for progression in progressions:
            numerals = progression.split()
            assert len(numerals) == 4
            assert all(Key(0, mode).chord(numeral) for numeral in numerals)
        assert len(set(genre.moods[mode])) >= 2


def test_a_part_can_always_find_an_instrument_of_its_own() -> None:
    for genre in GENRES.values():
        for index, part in enumerate(genre.parts):
            assert len(set(part.instruments)) > sum(
                bool(set(part.instruments) & set(other.instruments)) for other in genre.parts[:index]
            )


def test_an_unknown_genre_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"genre 'polka' is not known, expected one of: techno, .*lullaby"):
        find_genre("polka")
