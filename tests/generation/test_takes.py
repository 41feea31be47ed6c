"""Pieces that collapsed, played again: which, how often, with which seeds, and which take is kept."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from musicgen_ft.generation.collapse import Collapse
from musicgen_ft.generation.takes import SEED_STEP, Take, best_take, play_takes


def take(seed: int, *, ends_silent_s: float) -> Take:
    collapse = Collapse(duration_s=9.0, loops=(), silent_share=0.0, ends_silent_s=ends_silent_s, is_silent=False)
    return Take(seed, torch.full((1, 3), float(seed)), collapse)


class Player:
    """Plays pieces that are silent in the end for so many seconds at each go."""

    def __init__(self, silence: dict[int, list[float]]) -> None:
        self.silence = {piece: iter(of_piece) for piece, of_piece in silence.items()}
        self.asked: list[tuple[list[int], list[int]]] = []
        self.are_last: list[bool] = []

    def __call__(self, pieces: Sequence[int], seeds: Sequence[int], *, is_last: bool) -> list[Take]:
        self.asked.append((list(pieces), list(seeds)))
        self.are_last.append(is_last)
        return [take(s, ends_silent_s=next(self.silence[p])) for p, s in zip(pieces, seeds, strict=True)]


def test_only_what_collapsed_is_played_again_and_only_as_often_as_allowed() -> None:
    player = Player({4: [0.0], 5: [6.0, 0.5], 6: [7.0, 5.0, 8.0]})
    takes = play_takes(player, {4: 40, 5: 50, 6: 60}, retries=2)

    assert player.asked == [
        ([4, 5, 6], [40, 50, 60]),
        ([5, 6], [50 + SEED_STEP, 60 + SEED_STEP]),
        ([6], [60 + 2 * SEED_STEP]),
    ]
    assert player.are_last == [False, False, True]
    assert {piece: [t.seed for t in of_piece] for piece, of_piece in takes.items()} == {
        4: [40],
        5: [50, 50 + SEED_STEP],
        6: [60, 60 + SEED_STEP, 60 + 2 * SEED_STEP],
    }
    best = {piece: best_take(of_piece) for piece, of_piece in takes.items()}
    assert [t.seed for t in best.values()] == [40, 50 + SEED_STEP, 60 + SEED_STEP]
    assert best[6].collapse.ends_silent_s == 5.0


def test_without_retries_every_piece_is_played_once() -> None:
    player = Player({0: [9.0], 1: [0.0]})
    takes = play_takes(player, {0: 7, 1: 8})
    assert player.asked == [([0, 1], [7, 8])]
    assert [len(of_piece) for of_piece in takes.values()] == [1, 1]
    assert player.are_last == [True]


def test_what_has_not_collapsed_is_better_than_what_has_lost_less() -> None:
    pauses = Collapse(duration_s=9.0, loops=(), silent_share=0.5, ends_silent_s=1.0, is_silent=False)
    whole = Take(2, torch.zeros(1, 3), pauses)
    lost = take(1, ends_silent_s=3.0)
    assert whole.collapse.lost_s > lost.collapse.lost_s
    assert best_take([lost, whole]) is whole
    assert best_take([lost, take(5, ends_silent_s=3.0)]) is lost


def test_what_was_broken_off_has_failed_and_is_worse_than_what_was_played_to_its_end() -> None:
    broken = replace(take(1, ends_silent_s=0.0), broken_off_s=3.0)
    assert not broken.collapse.is_found
    assert broken.has_failed
    whole = take(2, ends_silent_s=8.0)
    assert best_take([broken, whole]) is whole
    assert (str(whole), str(broken)) == (
        "falls silent after 1.0 s of 9 s",
        "has not collapsed; broken off after 3.0 s",
    )
