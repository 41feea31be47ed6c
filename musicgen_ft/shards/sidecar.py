"""The index beside a shard: where each track's members lie in the tar, in columns."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_path, read_json
from musicgen_ft.shards.format import (
    PREPARE_COMMAND,
    VERSION,
    Rejected,
    ShardInfo,
    as_list,
    check_header,
    present,
    strict,
)

SIDECAR_FORMAT = "musicgen-ft shard index"

TEXT_COLUMNS = ("keys", "groups", "states", "codes_states")
"""The columns of text."""
COLUMNS = ("num_frames", "codes_offset", "codes_bytes", "json_offset", "json_bytes")
"""The columns of numbers."""
CHROMA_COLUMNS = ("chroma_offset", "chroma_bytes")
"""Two more, in shards with chroma."""
SECONDS_COLUMNS = ("seconds_offset", "seconds_bytes")
"""Two more, in shards whose tracks were measured."""


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """The index of one shard. All columns have one entry per track, in the order of the tar."""

    shard: ShardInfo
    """The tar it belongs to."""
    codec_sha256: str
    """Hash of the codec that made the codes."""
    settings: str
    """What else decides the codes, as prepare was told it; a folder holds shards of one answer only."""
    keys: list[str]
    """Keys of the tracks."""
    groups: list[str]
    """Groups of the tracks: one group is in one split."""
    states: list[str]
    """Hash of all that prepare knew of each track: a shard whose states are wanted as they are is not made again."""
    codes_states: list[str]
    """Hash of what decides each track's codes: codes of an equal state are not encoded again."""
    num_frames: list[int]
    """T of each track."""
    codes_offset: list[int]
    """Byte of the tar where the npy file of the codes starts."""
    codes_bytes: list[int]
    """Bytes of that npy file, header included."""
    json_offset: list[int]
    """Byte of the tar where the JSON starts."""
    json_bytes: list[int]
    """Bytes of the JSON."""
    rejected: list[Rejected]
    """Tracks that were to be in this shard and could not be encoded."""
    chroma_offset: list[int] | None = None
    """Byte of the tar where the npy file of the chroma starts; None in shards without chroma."""
    chroma_bytes: list[int] | None = None
    """Bytes of that npy file, header included."""
    seconds_offset: list[int] | None = None
    """Byte of the tar where the npy file of the seconds' figures starts; None in shards without."""
    seconds_bytes: list[int] | None = None
    """Bytes of that npy file, header included."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of numbers that this index has."""
        chroma = () if self.chroma_offset is None else CHROMA_COLUMNS
        return (*COLUMNS, *chroma, *(() if self.seconds_offset is None else SECONDS_COLUMNS))

    @property
    def members(self) -> tuple[str, ...]:
        """The members of each track, by the names of their columns, in the order of the tar."""
        return tuple(sorted(name.removesuffix("_offset") for name in self.columns if name.endswith("_offset")))


def sidecar_path(shard: Path) -> Path:
    """``train-000000.index.json`` of ``train-000000.tar``."""
    return shard.with_suffix(".index.json")


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    """Writes the sidecar beside its shard, whole or not at all."""
    values = {"format": SIDECAR_FORMAT, "version": VERSION, **present(asdict(sidecar))}
    with atomic_path(sidecar_path(folder / sidecar.shard.name)) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def read_sidecar(folder: Path, shard_name: str) -> Sidecar:
    """The sidecar of one shard.

    Raises:
        UserError: if it is missing, not valid, or its columns disagree in length.
    """
    path = sidecar_path(folder / shard_name)
    if not path.is_file():
        raise UserError(f"{path} is missing: the index of {shard_name}. Restore it or run: {PREPARE_COMMAND}")
    values: dict[str, Any] = check_header(read_json(path), SIDECAR_FORMAT, path)
    values["shard"] = strict(ShardInfo, values.get("shard"), path)
    values["rejected"] = [strict(Rejected, file, path) for file in as_list(values.get("rejected"), path)]
    sidecar = strict(Sidecar, values, path)
    for name in ("chroma", "seconds"):
        if (getattr(sidecar, f"{name}_offset") is None) != (getattr(sidecar, f"{name}_bytes") is None):
            raise UserError(
                f"{path} has {name}_offset without {name}_bytes, or the other way round. "
                f"Restore it or run: {PREPARE_COMMAND}"
            )
    lengths = {name: len(getattr(sidecar, name)) for name in (*TEXT_COLUMNS, *sidecar.columns)}
    if sidecar.shard.name != shard_name or set(lengths.values()) != {sidecar.shard.num_samples}:
        raise UserError(
            f"{path}: index of {sidecar.shard.name} with columns of {lengths} entries, expected that of {shard_name} "
            f"with {sidecar.shard.num_samples} each. Restore it or run: {PREPARE_COMMAND}"
        )
    return sidecar
