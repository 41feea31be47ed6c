"""The plan of a shards folder: which track goes into which shard. Made once; each shard is a pure function of it."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from musicgen_ft.codec import CodecSpec
from musicgen_ft.corpus.assessment import Assessed
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.quality import SECOND_FIGURES, Quality, Seconds, seconds_from_text, seconds_to_text
from musicgen_ft.shards.format import SPLITS, Split
from musicgen_ft.shards.writer import TAR_BLOCK

_META_BYTES = 1024
"""At most what a track's JSON takes beside its labels and paths."""
_NPY_BYTES = 128
"""The header of an npy file."""
_TAR_END_BYTES = 11264
"""At most what ends a tar: two empty blocks, filled up to a record of 20."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedTrack:
    """A track that is to be encoded, and all that its shard will say of it."""

    key: str
    """Unique and stable."""
    relative_path: str
    """Path of its audio under the corpus, with forward slashes."""
    labels: Labels
    """Its labels."""
    group: str
    """Tracks of one group are in one split."""
    start_s: int
    """Second of the file at which it begins."""
    stop_s: int | None
    """Second before which it ends; None is the file's end."""
    duration_s: float
    """Seconds between the two."""
    quality: Quality
    """Figures of the file."""
    seconds: Seconds
    """Figures of its seconds."""
    num_bytes: int
    """Size of the file: one of another size is another file, and was not surveyed."""
    audio_sha256: str
    """Hash of the file's samples."""
    is_truncated: bool
    """Whether the file ends before its container says it does."""
    num_bad_packets: int
    """Damaged packets in the file."""
    settings: str
    """What else decides its codes: codec, window, stems."""

    @property
    def codes_state(self) -> str:
        """Hash of what decides its codes."""
        return _digest([self.audio_sha256, self.start_s, self.stop_s, self.settings])

    @property
    def state(self) -> str:
        """Hash of all that is planned for it."""
        return _digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value; ``from_dict`` is its inverse."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        read = {"labels": self.labels.to_dict(), "quality": self.quality.to_dict()}
        return {**values, **read, "seconds": seconds_to_text(self.seconds)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PlannedTrack":
        """A track from what ``to_dict`` gave."""
        read = {
            "labels": Labels.from_dict(values["labels"]),
            "quality": Quality.from_dict(values["quality"]),
            "seconds": seconds_from_text(values["seconds"]),
        }
        return cls(**{**values, **read})


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A shard that is to be made."""

    name: str
    """File name of the tar."""
    split: Split
    """Of all its tracks."""
    tracks: tuple[PlannedTrack, ...]
    """In the order of the tar."""


def planned_track(track: Assessed, settings: str) -> PlannedTrack:
    """What is to be encoded of a file that is kept."""
    record, survey, verdict = track.record, track.survey, track.verdict
    assert survey.quality is not None and survey.seconds is not None, "what is kept was measured"
    return PlannedTrack(
        key=record.id,
        relative_path=record.relative_path,
        labels=record.labels,
        group=track.group,
        start_s=verdict.start_s,
        stop_s=verdict.stop_s,
        duration_s=verdict.duration_s(survey.quality),
        quality=survey.quality,
        seconds=survey.seconds[:, verdict.start_s : verdict.stop_s],
        num_bytes=survey.num_bytes,
        audio_sha256=survey.audio_sha256,
        is_truncated=survey.is_truncated,
        num_bad_packets=survey.num_bad_packets,
        settings=settings,
    )


def make_plan(
    tracks: Mapping[Split, Sequence[PlannedTrack]],
    codec: CodecSpec,
    *,
    existing: Mapping[str, Iterable[str]],
    max_shard_bytes: int,
) -> tuple[list[str], list[PlannedShard]]:
    """Shares tracks among shards, and keeps those that are there and want no change.

    Args:
        tracks: of each split, in order.
        codec: that will encode them.
        existing: shards that are in the folder, name -> states of their tracks.
        max_shard_bytes: a shard is full before it exceeds this size (unless one track alone does).

    Returns:
        Names of the shards to keep, and the shards to make. New shards are numbered on from the highest that is
        there: no name is used again for other tracks.
    """
    kept: list[str] = []
    new: list[PlannedShard] = []
    for split in SPLITS:
        wanted = {track.state: track for track in tracks[split]}
        of_split = {name: list(states) for name, states in existing.items() if name.startswith(f"{split}-")}
        number = max((int(name[len(split) + 1 : -len(".tar")]) + 1 for name in of_split), default=0)
        for name, states in sorted(of_split.items()):
            if states and all(state in wanted for state in states):
                kept.append(name)
                for state in states:
                    del wanted[state]
        for group in _filled(list(wanted.values()), codec, max_shard_bytes):
            new.append(PlannedShard(name=f"{split}-{number:06d}.tar", split=split, tracks=tuple(group)))
            number += 1
    return kept, new


def _filled(tracks: Sequence[PlannedTrack], codec: CodecSpec, max_bytes: int) -> Iterable[list[PlannedTrack]]:
    shard: list[PlannedTrack] = []
    size = _TAR_END_BYTES
    for track in tracks:
        needed = _size(track, codec)
        if shard and size + needed > max_bytes:
            yield shard
            shard, size = [], _TAR_END_BYTES
        shard.append(track)
        size += needed
    if shard:
        yield shard


def _size(track: PlannedTrack, codec: CodecSpec) -> int:
    """About the bytes of a track in a tar, rather too many: as if every base had a melody."""
    num_frames, num_seconds = math.ceil(track.duration_s * codec.frame_rate) + 1, math.ceil(track.duration_s)
    texts = [track.labels.to_dict(), track.relative_path, track.group]
    members = (
        2 * codec.n_q * num_frames + _NPY_BYTES,
        2 * len(SECOND_FIGURES) * num_seconds + _NPY_BYTES,
        8 * num_seconds + _NPY_BYTES,  # chroma
        len(_json(texts)) + _META_BYTES,
    )
    return sum((1 + math.ceil(member / TAR_BLOCK)) * TAR_BLOCK for member in members)


def _digest(value: Any) -> str:
    return hashlib.sha256(_json(value)).hexdigest()[:32]


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
