"""Which tracks are trained on and which are validated with: whole groups, so that no recording is on both sides."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from musicgen_ft.corpus.duplicates import clusters
from musicgen_ft.corpus.scan import Record
from musicgen_ft.errors import UserError

Split = Literal["train", "valid"]

MIN_ALBUMS = 5
"""``auto`` splits by album where that gives so many groups: with fewer, validation would be one album or none."""


def group_values(records: Sequence[Record], split_by: str) -> list[str]:
    """What each track is grouped by: equal values stay together.

    Args:
        records: the corpus.
        split_by: ``track``; ``album`` (with its artist), ``artist`` or ``folder``; any other field of tables, sidecars
            or tags; ``auto``: album where that gives at least MIN_ALBUMS groups, else track.

    Returns:
        One text per track, in the order of ``records``; a track without the field is a group of its own.

    Raises:
        UserError: if no track has the field.
    """
    if split_by == "track":
        return [record.id for record in records]
    if split_by == "auto":
        albums = group_values(records, "album") if any(map(_album, records)) else []
        return albums if len(set(albums)) >= MIN_ALBUMS else group_values(records, "track")
    values = [_value_of(split_by)(record) for record in records]
    if not any(values):
        known = sorted({name for record in records for name in record.fields})
        raise UserError(
            f"split_by {split_by}: no track has this field, expected one of auto, track, album, artist, folder"
            f"{''.join(', ' + name for name in known)}."
        )
    return [f"{split_by} {value}" if value else record.id for record, value in zip(records, values, strict=True)]


def join_groups(values: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """The group of each track: tracks of one value, and tracks that are duplicates of each other, are together.

    Args:
        values: of ``group_values``.
        pairs: tracks of the same recording, by number.

    Returns:
        For each track the name of its group: the value, of all in it, that comes first by hash. It stays when a
        corpus grows, unless the growth joins two groups.
    """
    first_of: dict[str, int] = {}
    same_value = [(first_of.setdefault(value, number), number) for number, value in enumerate(values)]
    cluster_of = clusters(len(values), [*same_value, *pairs])
    name_of: dict[int, str] = {}
    for cluster, value in zip(cluster_of, values, strict=True):
        name_of[cluster] = min(name_of.get(cluster, value), value, key=position)
    return [name_of[cluster] for cluster in cluster_of]


def assign_splits(
    groups: Sequence[str],
    explicit: Sequence[Split | None],
    *,
    valid_fraction: float,
    previous: Mapping[str, Split] | None = None,
    name: Callable[[int], str] = str,
) -> list[Split]:
    """The split of each track.

    A group goes where its tracks were put by hand; else where it was in an earlier run of the same folder; else by a
    hash of its name, which knows nothing of the other groups: it stays when the corpus grows.

    Args:
        groups: of ``join_groups``.
        explicit: what the corpus itself says of each track.
        valid_fraction: expected part of the groups that falls into ``valid``, in [0, 1). If it is above 0, at least
            one of two groups does; at least one is always left to train on. Explicit splits go before both.
        previous: split of the groups of an earlier run.
        name: of a track by number, for messages.

    Raises:
        UserError: if the corpus puts tracks of one group on both sides.
    """
    by_hand: dict[str, tuple[Split, int]] = {}
    for number, (group, split) in enumerate(zip(groups, explicit, strict=True)):
        if split is not None and by_hand.setdefault(group, (split, number))[0] != split:
            other, where = by_hand[group]
            raise UserError(
                f"{name(where)} is to be in {other} and {name(number)} in {split}, but they are one group ({group}): "
                "the model would be validated on what it learned. Put both on one side, or say --split_by track (if an "
                "album or the like joins them), or --duplicates drop (if one is a copy of the other)."
            )
    previous = previous or {}
    splits: dict[str, Split] = {}
    for group in dict.fromkeys(groups):
        drawn: Split = "valid" if position(group) < valid_fraction else "train"
        splits[group] = by_hand[group][0] if group in by_hand else previous.get(group, drawn)
    free = [group for group in splits if group not in by_hand]
    free = [group for group in free if group not in previous] or free  # what was trained on stays so, if it can
    sides = set(splits.values())
    if free and sides == {"valid"}:
        splits[max(free, key=position)] = "train"
    elif free and sides == {"train"} and valid_fraction > 0 and len(splits) > 1:
        splits[min(free, key=position)] = "valid"
    return [splits[group] for group in groups]


def position(text: str) -> float:
    """A place in [0, 1) that depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _value_of(split_by: str) -> Callable[[Record], str | None]:
    if split_by == "album":
        return _album
    if split_by == "folder":
        return lambda record: record.relative_path.rpartition("/")[0] or None
    return lambda record: record.fields.get(split_by.lower()) or record.labels.to_dict().get(split_by.lower()) or None


def _album(record: Record) -> str | None:
    album = record.labels.album
    return f"{record.fields.get('album_artist') or record.labels.artist or ''} / {album}" if album else None
