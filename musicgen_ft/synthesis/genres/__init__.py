"""The genres: one entry each, all that tells them apart."""

from collections.abc import Collection

from musicgen_ft.errors import UserError
from musicgen_ft.synthesis.genres.acoustic import AMBIENT, FOLK, LULLABY, WALTZ
from musicgen_ft.synthesis.genres.bands import HIP_HOP, REGGAE, ROCK, SWING_JAZZ
from musicgen_ft.synthesis.genres.electronic import CHIPTUNE, DRUM_AND_BASS, HOUSE, TECHNO
from musicgen_ft.synthesis.style import Genre

_TABLE = (TECHNO, HOUSE, DRUM_AND_BASS, HIP_HOP, REGGAE, ROCK, SWING_JAZZ, FOLK, WALTZ, CHIPTUNE, AMBIENT, LULLABY)

GENRES: dict[str, Genre] = {genre.name: genre for genre in _TABLE}
"""Every genre by its name, in the order in which a corpus goes round them."""


def genres_but(held_out: Collection[str]) -> tuple[str, ...]:
    """The names of all genres but some.

    Raises:
        UserError: if one of those is not known, or none is left.
    """
    for name in held_out:
        find_genre(name)
    left = tuple(name for name in GENRES if name not in held_out)
    if not left:
        raise UserError("held_out names every genre: nothing is left. Leave some out.")
    return left


def find_genre(name: str) -> Genre:
    """The genre of that name.

    Raises:
        UserError: if there is none, with the names that there are.
    """
    if name not in GENRES:
        raise UserError(f"genre {name!r} is not known, expected one of: {', '.join(GENRES)}.")
    return GENRES[name]
