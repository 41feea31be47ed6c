"""What a model plays by heart: the longest run of frames whose codes equal a run of a training track's.

K codebooks, T frames, N pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_ODD = 0x9E3779B97F4A7C15  # base of the polynomial below: odd, so that it has an inverse modulo 2^64


@dataclass(frozen=True, kw_only=True)
class SharedRun:
    """A stretch of a piece whose codes are those of a stretch of a track; exact."""

    num_frames: int
    """Its length; 0 where no frame is shared."""
    distinct_frames: int
    """Different frames in it: 1 is one sound held, or silence, which says nothing of memory."""
    start: int
    """Its first frame in the piece."""
    track: str
    """Key of the track."""
    track_start: int
    """Its first frame in the track."""

    def to_dict(self, frame_rate: float) -> dict[str, Any]:
        """Plain JSON value, with seconds."""
        return {
            "num_frames": self.num_frames,
            "duration_s": self.num_frames / frame_rate,
            "distinct_frames": self.distinct_frames,
            "start_s": self.start / frame_rate,
            "track": self.track,
            "track_start_s": self.track_start / frame_rate,
        }


NOTHING_SHARED = SharedRun(num_frames=0, distinct_frames=0, start=0, track="", track_start=0)


class SharedRuns:
    """Longest runs that pieces share with tracks, which are shown one after the other.

    Only what would beat a piece's longest run so far is looked for: all windows of one frame more than it has, of the
    piece and of the track, are hashed at once (a polynomial modulo 2^64, whose sums over windows are differences of one
    running sum), and those with equal hashes are compared code by code. Equal windows always have equal hashes, so
    nothing is missed. That is a few passes over each track for each piece, and memory for one track.
    """

    def __init__(self, pieces: Sequence[npt.NDArray[Any]]) -> None:
        """Of pieces of codes, integers [K, T], or [T] for one codebook."""
        self._pieces = [_Hashed(_frames(piece)) for piece in pieces]
        self.found: list[SharedRun] = [NOTHING_SHARED for _ in pieces]
        """N longest runs so far; of equally long ones the first."""

    def add(self, key: str, codes: npt.NDArray[Any]) -> None:
        """Compares the pieces with a track, integers of the pieces' shape but for its own T."""
        track = _Hashed(_frames(codes))
        for number, piece in enumerate(self._pieces):
            while (better := _longer_run(piece, track, self.found[number].num_frames + 1)) is not None:
                num_frames, start, track_start = better
                self.found[number] = SharedRun(
                    num_frames=num_frames,
                    distinct_frames=len(np.unique(piece.frames[start : start + num_frames], axis=0)),
                    start=start,
                    track=key,
                    track_start=track_start,
                )


class _Hashed:
    """Frames [T, K], and the sums that the hash of any of their windows comes from."""

    def __init__(self, frames: npt.NDArray[np.int64]) -> None:
        self.frames = frames
        T = len(frames)
        powers = np.full(T + 1, _ODD, np.uint64)
        powers[0] = 1
        inverse = np.full(T + 1, pow(_ODD, -1, 2**64), np.uint64)
        inverse[0] = 1
        self._inverse = np.multiply.accumulate(inverse)  # all of it wraps at 2^64
        terms = _mixed(frames) * np.multiply.accumulate(powers)[:T]
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.add.accumulate(terms)])

    def windows(self, length: int) -> Words:
        """The hash of every window of so many frames, uint64 [T - length + 1]; empty where T is less."""
        if length > len(self.frames):
            return np.zeros(0, np.uint64)
        hashes: Words = (self._sums[length:] - self._sums[:-length]) * self._inverse[: len(self._sums) - length]
        return hashes


def _longer_run(piece: _Hashed, track: _Hashed, least: int) -> tuple[int, int, int] | None:
    """Length and both starts of a shared run of at least so many frames; None where there is none."""
    of_piece, of_track = piece.windows(least), track.windows(least)
    for track_start in np.flatnonzero(np.isin(of_track, of_piece)).tolist():
        for start in np.flatnonzero(of_piece == of_track[track_start]).tolist():
            longest = min(len(piece.frames) - start, len(track.frames) - track_start)
            one = piece.frames[start : start + longest]
            other = track.frames[track_start : track_start + longest]
            differs = (one != other).any(axis=1)
            num_frames = int(differs.argmax()) if differs.any() else longest
            if num_frames >= least:  # else two windows have one hash by chance
                return num_frames, start, track_start
    return None


def _frames(codes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """[K, T] or [T] -> [T, K]."""
    return np.ascontiguousarray(np.atleast_2d(codes).T.astype(np.int64))


def _mixed(frames: npt.NDArray[np.int64]) -> Words:
    """A word for each frame, of all its codes: uint64 [T]."""
    words = np.zeros(len(frames), np.uint64)
    for codes in frames.T:  # splitmix64's finish, after each codebook
        words = (words ^ codes.astype(np.uint64)) + np.uint64(_ODD)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words ^= words >> np.uint64(31)
    return words
