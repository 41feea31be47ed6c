"""Near duplicates: which tracks are the same recording, by their fingerprints or by their samples."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from musicgen_ft.corpus.fingerprint import FRAME_S, Fingerprint

MIN_SHARED = 5
"""Different hashes that two tracks have in common before they are compared, and that have to be aligned."""

MIN_SHARE = 0.4
"""Share of the shorter track that has to be aligned."""

# Share of the different hashes that is aligned. Copies have 0.09 (loud ones, clipped by 6 dB) to 1. Pieces that differ
# in nothing but their melody have up to 0.18, but then at many offsets alike, bar by bar. Where the two meet, copies
# are given up: a wrong match merges two groups of copies.
_SURE_SCORE = 0.19  # enough by itself: a copy of a loop fits at many offsets too
_MIN_SCORE = 0.07  # enough if the best offset stands out, for long
_MIN_PROMINENCE = 6.5  # times the votes of the next best offset, times the share; the other pieces have up to 5.4

_REACH = 16  # tracks of a hash's list with which a track is paired: a hash that is everywhere says little
_MAX_REPEATS = 32  # occurrences of a hash in a track that vote for an offset: loops have thousands
_BLOCK = 1 << 20  # occurrences of hashes that are paired at once
_MAX_GAP_S = 6.0  # between two aligned hashes that belong to one stretch

Pairs = npt.NDArray[np.int64]
_Bits = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Match:
    """Two tracks that are the same recording, wholly or in part."""

    first: int
    """Position of the one, the smaller."""
    second: int
    """Position of the other."""
    offset_s: float
    """Where the second one starts in the first, in seconds; negative if it starts before it."""
    share: float
    """Share of the shorter one that is aligned, in [MIN_SHARE, 1]."""


def find_matches(fingerprints: Sequence[Fingerprint | None]) -> list[Match]:
    """Which tracks are the same recording; of many copies not every pair, but enough of them to join all.

    Copies may differ in format, sample rate, channels, level, and start, and one may be a part of the other. Time grows
    with the number of hashes, memory by about 30 bytes a hash.

    Args:
        fingerprints: of the tracks; None matches nothing.

    Returns:
        Matches in the order of ``first``, then ``second``.
    """
    matches = []
    for first, second in _candidates(fingerprints).tolist():
        one, other = fingerprints[first], fingerprints[second]
        assert one is not None and other is not None
        found = _align(one, other)
        if found is not None:
            matches.append(Match(first, second, *found))
    return matches


def exact_duplicates(hashes: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of positions of equal hashes, each with the one before it; an empty string is equal to nothing."""
    last: dict[str, int] = {}
    pairs = []
    for number, name in enumerate(hashes):
        if name in last:
            pairs.append((last[name], number))
        if name:
            last[name] = number
    return pairs


def clusters(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The cluster of each of ``count`` items that ``pairs`` join, named by its smallest member."""
    parents = list(range(count))

    def root(item: int) -> int:
        while parents[item] != item:
            parents[item] = parents[parents[item]]
            item = parents[item]
        return item

    for pair in pairs:
        low, high = sorted(map(root, pair))
        parents[high] = low
    return [root(item) for item in range(count)]


# ---- candidates: tracks with enough hashes in common -----------------------------------------------------------------


def _candidates(fingerprints: Sequence[Fingerprint | None]) -> Pairs:
    """Pairs [n, 2] of tracks with ``MIN_SHARED`` different hashes in common or more, the smaller first, in order."""
    postings = _postings(fingerprints)
    hashes, tracks = (postings >> np.uint64(32)).astype(np.uint32), postings.astype(np.uint32)
    del postings
    is_shared = np.zeros(len(hashes), np.bool_)
    same = hashes[1:] == hashes[:-1]
    is_shared[1:] |= same
    is_shared[:-1] |= same
    hashes, tracks = hashes[is_shared], tracks[is_shared]
    by_track = np.argsort(tracks, kind="stable")
    found = [_frequent_pairs(hashes, tracks, part) for part in _blocks(tracks[by_track], by_track)]
    return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


def _postings(fingerprints: Sequence[Fingerprint | None]) -> _Bits:
    """Each hash of each track once: the hash in the upper 32 bits, the track in the lower, ascending."""
    postings = np.empty(sum(len(fingerprint.hashes) for fingerprint in fingerprints if fingerprint), np.uint64)
    num_postings = 0
    for track, fingerprint in enumerate(fingerprints):
        if fingerprint is not None:
            hashes = np.unique(fingerprint.hashes).astype(np.uint64)
            postings[num_postings : num_postings + len(hashes)] = hashes << np.uint64(32) | np.uint64(track)
            num_postings += len(hashes)
    postings = postings[:num_postings]
    postings.sort()
    return postings


def _blocks(tracks: npt.NDArray[np.uint32], order: npt.NDArray[np.intp]) -> Iterator[npt.NDArray[np.intp]]:
    """Parts of ``order`` of about ``_BLOCK``, each with all that belongs to its tracks; ``tracks`` ascend."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(tracks)) + 1]) if len(tracks) else np.zeros(0, np.intp)
    # The first start of a track in every block, and the end.
    cuts = starts[np.unique(starts // _BLOCK, return_index=True)[1]].tolist()
    for begin, end in pairwise([*cuts, len(tracks)]):
        yield order[begin:end]


def _frequent_pairs(
    hashes: npt.NDArray[np.uint32], tracks: npt.NDArray[np.uint32], places: npt.NDArray[np.intp]
) -> Pairs:
    """Pairs of a track at ``places`` of the postings with a later one, in at least ``MIN_SHARED`` lists."""
    keys = []
    for distance in range(1, _REACH + 1):
        places = places[places + distance < len(hashes)]
        places = places[hashes[places] == hashes[places + distance]]
        keys.append(tracks[places].astype(np.uint64) << np.uint64(32) | tracks[places + distance])
    shared, counts = np.unique(np.concatenate(keys), return_counts=True)
    shared = shared[counts >= MIN_SHARED]
    return np.stack([shared >> np.uint64(32), shared & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


# ---- alignment: whether the hashes in common are at the same distance, and for how long ------------------------------


def _align(one: Fingerprint, other: Fingerprint) -> tuple[float, float] | None:
    """``(offset_s, share)`` of the other in the one, or None if they are not the same recording."""
    one, other = _comparable(one, other)
    found = _offset(one, other)
    if found is None:
        return None
    offset, prominence = found
    parts = [_aligned(one, other, offset), _aligned(other, one, -offset)]
    if min(part.num_hashes for part in parts) < MIN_SHARED:
        return None
    score = min(part.score for part in parts)  # copies are alike from both sides
    share = min(parts, key=lambda part: part.length).share
    stands_out = score >= _MIN_SCORE and prominence * share >= _MIN_PROMINENCE
    is_copy = share >= MIN_SHARE and (score >= _SURE_SCORE or stands_out)
    return (offset * FRAME_S, share) if is_copy else None


class _Aligned(NamedTuple):
    """How much of a fingerprint is in its partner."""

    num_hashes: int
    """Different hashes that are aligned."""
    score: float
    """Share of the different hashes, within the time that both have, that is aligned."""
    share: float
    """Share of its time that is aligned."""
    length: int
    """Frames from its first to its last hash."""


def _aligned(fingerprint: Fingerprint, partner: Fingerprint, offset: int) -> _Aligned:
    """What of a fingerprint the partner has too, ``offset`` frames earlier."""
    moved = fingerprint.times.astype(np.int64) - offset
    in_both = (moved >= partner.times[0] - 1) & (moved <= partner.times[-1] + 1)
    hashes, moved = fingerprint.hashes[in_both], moved[in_both]
    theirs = _keys(partner.hashes, partner.times)
    is_aligned = np.isin(np.stack([_keys(hashes, moved + slack) for slack in (-1, 0, 1)]), theirs).any(axis=0)
    # A hash counts once however often it comes back: a drum loop is in many pieces.
    _, places, repeats = np.unique(hashes, return_inverse=True, return_counts=True)
    weights = 1.0 / repeats[places]
    length = int(fingerprint.times[-1] - fingerprint.times[0])
    return _Aligned(
        num_hashes=len(np.unique(hashes[is_aligned])),
        score=float(weights[is_aligned].sum() / max(1.0, weights.sum())),
        share=_covered(moved[is_aligned]) / max(1, length),
        length=length,
    )


def _keys(hashes: npt.NDArray[np.uint32], times: npt.NDArray[Any]) -> _Bits:
    """A hash and its time in one number; times from -2 on."""
    return hashes.astype(np.uint64) << np.uint64(32) | (times + 2).astype(np.uint64)


def _comparable(one: Fingerprint, other: Fingerprint) -> tuple[Fingerprint, Fingerprint]:
    """Both without the hashes above the largest that both could have kept."""
    limit = min(one.hashes.max(), other.hashes.max())
    kept, other_kept = one.hashes <= limit, other.hashes <= limit
    return (
        Fingerprint(one.hashes[kept], one.times[kept]),
        Fingerprint(other.hashes[other_kept], other.times[other_kept]),
    )


def _offset(one: Fingerprint, other: Fingerprint) -> tuple[int, float] | None:
    """Frames by which most hashes come later in the one than in the other, and how far that stands out.

    None if hardly any agree.
    """
    hashes, times = _few_each(one)
    other_hashes, other_times = _few_each(other)
    starts = np.searchsorted(other_hashes, hashes, side="left")
    counts = np.searchsorted(other_hashes, hashes, side="right") - starts
    if not counts.any():
        return None
    left = np.repeat(np.arange(len(hashes)), counts)
    right = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts) + starts[left]
    offsets = times[left] - other_times[right]
    # What comes back votes for many offsets: for each of them no more than what is there once.
    repeats = np.searchsorted(hashes, hashes, side="right") - np.searchsorted(hashes, hashes)
    votes = 1.0 / np.maximum(repeats, counts)[left]
    histogram = np.bincount(offsets - offsets.min(), weights=votes)
    around = np.convolve(histogram, [0.9, 1.0, 0.9], mode="full")  # [i] is around offset i - 1
    best = int(around.argmax())
    most = float(around[best])
    if most < MIN_SHARED / 2:  # not worth a closer look: most candidates end here
        return None
    around[max(0, best - 4) : best + 5] = 0.0
    return best - 1 + int(offsets.min()), most / max(1.0, float(around.max()))


def _few_each(fingerprint: Fingerprint) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Hashes, ascending, and their times, each hash with its first occurrences only."""
    order = np.argsort(fingerprint.hashes, kind="stable")
    hashes = fingerprint.hashes[order]
    rank = np.arange(len(hashes)) - np.searchsorted(hashes, hashes)
    few = rank < _MAX_REPEATS
    return hashes[few], fingerprint.times[order][few].astype(np.int64)


def _covered(times: npt.NDArray[np.int64]) -> float:
    """Frames between aligned hashes, but for long gaps; ``times`` ascend."""
    gaps = np.diff(times)
    return float(gaps[gaps <= _MAX_GAP_S / FRAME_S].sum())
