"""Pieces that are played again where they collapsed, with other seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from musicgen_ft.generation.collapse import Collapse

SEED_STEP = 1_000_000
"""From a take's seed to the next one's: farther than the seeds of neighbouring pieces and windows are apart."""


@dataclass(frozen=True)
class Take:
    """One go at a piece."""

    seed: int
    """That it was drawn with; the n-th repeat of a piece has its first seed + n * SEED_STEP."""
    waveform: Tensor
    """float32 [C, L]."""
    collapse: Collapse
    """What went wrong in it."""
    broken_off_s: float | None = None
    """Seconds after which it was broken off, since nothing could save it; None for one that was played to its end."""

    @property
    def has_failed(self) -> bool:
        """Whether it has collapsed, or was broken off because it would."""
        return self.collapse.is_found or self.broken_off_s is not None

    def __str__(self) -> str:
        """What went wrong in it, for a terminal."""
        end = "" if self.broken_off_s is None else f"; broken off after {self.broken_off_s:.1f} s"
        return f"{self.collapse}{end}"


class Play(Protocol):
    """Plays pieces."""

    def __call__(self, pieces: Sequence[int], seeds: Sequence[int], *, is_last: bool) -> Sequence[Take]:
        """One take of each of the pieces of these numbers, with these seeds.

        The last take of a piece is played to its end, whatever it sounds like; others may be broken off.
        """
        ...


def play_takes(play: Play, first_seeds: Mapping[int, int], *, retries: int = 0) -> dict[int, list[Take]]:
    """All takes of each piece: it is played again, at most ``retries`` times, until it has not collapsed.

    Args:
        play: gives one take for each piece that it is asked for.
        first_seeds: number of a piece -> seed of its first take.
        retries: 0 plays each piece once.

    Returns:
        Number of a piece -> its takes, in the order in which they were played.
    """
    takes: dict[int, list[Take]] = {piece: [] for piece in first_seeds}
    for n in range(retries + 1):
        pieces = [piece for piece, so_far in takes.items() if not so_far or so_far[-1].has_failed]
        if not pieces:
            break
        played = play(pieces, [first_seeds[piece] + n * SEED_STEP for piece in pieces], is_last=n == retries)
        for piece, take in zip(pieces, played, strict=True):
            takes[piece].append(take)
    return takes


def best_take(takes: Sequence[Take]) -> Take:
    """The one that has not collapsed; where all have, the one with the fewest seconds lost, of equal ones the first.

    What was broken off is worse than what was played to its end.
    """
    return min(takes, key=lambda take: (take.has_failed, take.broken_off_s is not None, take.collapse.lost_s))
