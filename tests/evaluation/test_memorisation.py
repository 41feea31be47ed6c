"""The longest shared run is that of an obvious search, in any codes; whatever is copied is found, where it lies."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_ft.evaluation import memorisation
from musicgen_ft.evaluation.memorisation import NOTHING_SHARED, SharedRuns

Codes = npt.NDArray[Any]


def random_codes(seed: int, K: int, T: int, card: int = 2048) -> Codes:
    return np.random.default_rng(seed).integers(0, card, (K, T))


def longest(piece: Codes, track: Codes) -> int:
    """By looking at every pair of starts."""
    best = 0
    for i in range(piece.shape[1]):
        for j in range(track.shape[1]):
            length = 0
            while (
                i + length < piece.shape[1]
                and j + length < track.shape[1]
                and (piece[:, i + length] == track[:, j + length]).all()
            ):
                length += 1
            best = max(best, length)
    return best


def runs(pieces: list[Codes], tracks: dict[str, Codes]) -> SharedRuns:
    found = SharedRuns(pieces)
    for key, codes in tracks.items():
        found.add(key, codes)
    return found


@st.composite
def codes(draw: Any) -> tuple[list[Codes], list[Codes]]:
    """Pieces and tracks of few different codes, so that they share runs of all lengths."""
    K, card = draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def some() -> Codes:
        T = draw(st.integers(0, 14))
        return np.array(draw(st.lists(st.integers(0, card - 1), min_size=K * T, max_size=K * T)), np.int64).reshape(
            K, T
        )

    return [some() for _ in range(draw(st.integers(1, 2)))], [some() for _ in range(draw(st.integers(0, 3)))]


@given(codes())
@settings(max_examples=150, deadline=None)
def test_it_is_what_an_obvious_search_finds(drawn: tuple[list[Codes], list[Codes]]) -> None:
    pieces, tracks = drawn
    found = runs(pieces, {str(number): codes for number, codes in enumerate(tracks)}).found
    for piece, run in zip(pieces, found, strict=True):
        assert run.num_frames == max((longest(piece, track) for track in tracks), default=0)
        if run.num_frames:
            track = tracks[int(run.track)]
            heard = piece[:, run.start : run.start + run.num_frames]
            np.testing.assert_array_equal(heard, track[:, run.track_start : run.track_start + run.num_frames])
            assert run.distinct_frames == len({tuple(frame) for frame in heard.T})


def test_a_copied_stretch_is_found_with_its_places() -> None:
    piece, tracks = random_codes(1, 4, 120), {f"track-{n}": random_codes(10 + n, 4, 900) for n in range(5)}
    tracks["track-3"][:, 500:537] = piece[:, 60:97]
    tracks["track-4"][:, 100:120] = piece[:, 10:30]
    (run,) = runs([piece], tracks).found
    assert (run.num_frames, run.start, run.track, run.track_start) == (37, 60, "track-3", 500)
    assert run.distinct_frames == 37
    assert run.to_dict(50)["duration_s"] == 0.74
    assert run.to_dict(50)["track_start_s"] == 10.0


def test_each_piece_has_its_own_run_and_the_first_of_equals() -> None:
    pieces = [random_codes(seed, 4, 50) for seed in (1, 2, 3)]
    tracks = {"a": random_codes(10, 4, 80), "b": random_codes(11, 4, 80)}
    for key in tracks:
        tracks[key][:, 3:12] = pieces[1][:, 20:29]
    tracks["b"][:, 40:45] = pieces[2][:, :5]
    first, second, third = runs(pieces, tracks).found
    assert first == NOTHING_SHARED
    assert (second.num_frames, second.track) == (9, "a")
    assert (third.num_frames, third.track) == (5, "b")


def test_one_codebook_alone_is_one_row() -> None:
    piece, track = random_codes(1, 4, 50), random_codes(2, 4, 50)
    track[0, 5:25] = piece[0, 15:35]
    assert runs([piece], {"a": track}).found == [NOTHING_SHARED]
    (run,) = runs([piece[0]], {"a": track[0]}).found
    assert (run.num_frames, run.start, run.track_start) == (20, 15, 5)


def test_shards_unsigned_codes_and_the_decoders_long_ones_compare() -> None:
    piece = random_codes(1, 4, 30)
    (run,) = runs([piece], {"a": piece.astype(np.uint16)}).found
    assert run.num_frames == 30


def test_silence_that_both_hold_has_one_distinct_frame() -> None:
    piece, track = (np.zeros((4, T), np.int64) for T in (400, 3000))
    (run,) = runs([piece], {"quiet": track}).found
    assert (run.num_frames, run.distinct_frames) == (400, 1)


def test_windows_with_one_hash_by_chance_are_compared_code_by_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(frames: Codes) -> npt.NDArray[np.uint64]:
        return np.ones(len(frames), np.uint64)

    monkeypatch.setattr(memorisation, "_mixed", same)
    piece, track = random_codes(1, 2, 12, card=3), random_codes(2, 2, 17, card=3)
    (run,) = runs([piece], {"a": track}).found
    assert run.num_frames == longest(piece, track)
