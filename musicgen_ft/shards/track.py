"""One track of the shards: its record, and its members in a tar.

K codebooks, T frames, F frames of chroma, S seconds.
"""

import io
import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from musicgen_ft.chroma import Chroma
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.quality import Quality, Seconds, decode_seconds, encode_seconds

Codes = npt.NDArray[np.uint16]

CHROMA_MEMBER = "chroma.npy"
CODES_MEMBER = "codes.npy"
META_MEMBER = "json"
SECONDS_MEMBER = "seconds.npy"
MAX_KEY_BYTES = 80
"""A tar's USTAR header holds a name of 100 bytes."""

# WebDataset takes everything after the first dot of a name as the member's kind.
_KEY = re.compile(r"[^./\\\s\x00-\x1f]+(/[^./\\\s\x00-\x1f]+)*")


@dataclass(frozen=True, kw_only=True)
class TrackMeta:
    """What is known of a track beside its codes."""

    labels: Labels
    """Its labels."""
    relative_path: str
    """Path of its audio under the corpus, with forward slashes."""
    num_frames: int
    """T."""
    duration_s: float
    """Seconds of its audio."""
    group: str = ""
    """Tracks of one group are in one split: of one album, say, or copies of one recording. "" is its key alone."""
    quality: Quality | None = None
    """Figures of the file it was made of, before trimming; None where nobody measured."""
    source: dict[str, Any] = field(default_factory=dict)
    """Whatever else prepare found out: which part of the file it is, whether that is damaged. Plain JSON."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """One track: its codes and what is known of it."""

    key: str
    """Unique in the folder; no dots, no blanks, at most 80 bytes."""
    codes: Codes
    """uint16 [K, T], each in [0, card)."""
    meta: TrackMeta
    """The rest."""
    chroma: Chroma | None = None
    """uint8 [F], the pitch class of each chroma frame; None in shards for bases without melody."""
    seconds: Seconds | None = None
    """float16 [4, S], the figures of each second (SECOND_FIGURES); None where nobody measured."""
    state: str = ""
    """Hash of all that prepare knew of it, which the shard's index keeps; "" in one that was read."""
    codes_state: str = ""
    """Hash of what decides its codes, which the shard's index keeps; "" in one that was read."""

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key) or len(self.key.encode()) > MAX_KEY_BYTES:
            raise ValueError(
                f"key {self.key!r}: expected 1 to {MAX_KEY_BYTES} bytes without dots, blanks and backslashes"
            )
        if self.codes.dtype != np.uint16 or self.codes.ndim != 2 or self.codes.shape[1] != self.meta.num_frames:
            found = f"{self.codes.dtype} {list(self.codes.shape)}"
            raise ValueError(f"track {self.key}: codes are {found}, expected uint16 [K, {self.meta.num_frames}]")
        if self.chroma is not None and (self.chroma.dtype != np.uint8 or self.chroma.ndim != 1 or not len(self.chroma)):
            found = f"{self.chroma.dtype} {list(self.chroma.shape)}"
            raise ValueError(f"track {self.key}: its chroma is {found}, expected uint8 [F > 0]")

    def members(self) -> dict[str, bytes]:
        """Its members in a tar, name -> bytes, in the tar's order."""
        members = {CODES_MEMBER: encode_codes(self.codes), META_MEMBER: encode_meta(self.meta)}
        if self.chroma is not None:
            members[CHROMA_MEMBER] = encode_chroma(self.chroma)
        if self.seconds is not None:
            members[SECONDS_MEMBER] = encode_seconds(self.seconds)
        return dict(sorted(members.items()))


def track_of_members(key: str, members: dict[str, bytes]) -> Track:
    """The inverse of ``Track.members``."""
    chroma, seconds = members.get(CHROMA_MEMBER), members.get(SECONDS_MEMBER)
    return Track(
        key=key,
        codes=decode_codes(members[CODES_MEMBER]),
        meta=decode_meta(members[META_MEMBER]),
        chroma=None if chroma is None else decode_chroma(chroma),
        seconds=None if seconds is None else decode_seconds(seconds),
    )


def encode_codes(codes: Codes) -> bytes:
    """The bytes of ``codes`` as npy version 1.0 in C order: a header, then exactly ``2 * K * T`` bytes."""
    return _npy(np.ascontiguousarray(codes, dtype="<u2"))


def decode_codes(data: bytes) -> Codes:
    """uint16 [K, T] from the bytes of an npy file; nothing is ever unpickled."""
    codes = np.load(io.BytesIO(data), allow_pickle=False)
    assert codes.dtype == np.uint16, f"codes.npy holds {codes.dtype}"
    return codes  # type: ignore[no-any-return]  # np.load is untyped


def encode_chroma(chroma: Chroma) -> bytes:
    """The bytes of ``chroma`` as npy version 1.0."""
    return _npy(np.ascontiguousarray(chroma))


def decode_chroma(data: bytes) -> Chroma:
    """uint8 [F] from the bytes of an npy file; nothing is ever unpickled."""
    chroma = np.load(io.BytesIO(data), allow_pickle=False)
    assert chroma.dtype == np.uint8, f"chroma.npy holds {chroma.dtype}"
    return chroma  # type: ignore[no-any-return]  # np.load is untyped


def encode_meta(meta: TrackMeta) -> bytes:
    """The bytes of ``meta`` as JSON, the same for equal values."""
    values = {
        "labels": meta.labels.to_dict(),
        "relative_path": meta.relative_path,
        "num_frames": meta.num_frames,
        "duration_s": meta.duration_s,
        "group": meta.group,
        "quality": None if meta.quality is None else meta.quality.to_dict(),
        "source": meta.source,
    }
    return json.dumps(values, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def decode_meta(data: bytes) -> TrackMeta:
    """The inverse of ``encode_meta``."""
    values = json.loads(data)
    quality = values["quality"]
    read = {
        "labels": Labels.from_dict(values["labels"]),
        "quality": None if quality is None else Quality.from_dict(quality),
    }
    return TrackMeta(**{**values, **read})


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
