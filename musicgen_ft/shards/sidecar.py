"""The index beside a shard: where each track's members lie in the tar, in columns."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_path, read_json
from musicgen_ft.shards.format import PREPARE_COMMAND, VERSION, ShardInfo, check_header, present, strict

SIDECAR_FORMAT = "musicgen-ft shard index"

COLUMNS = ("num_frames", "codes_offset", "codes_bytes", "json_offset", "json_bytes")
"""The columns of numbers; ``keys`` is the one of text."""
CHROMA_COLUMNS = ("chroma_offset", "chroma_bytes")
"""Two more, in shards with chroma."""


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """The index of one shard. All columns have one entry per track, in the order of the tar."""

    shard: ShardInfo
    """The tar it belongs to."""
    codec_sha256: str
    """Hash of the codec that made the codes."""
    fingerprint: str
    """What the writer was told the folder is made from; a folder holds shards of one fingerprint only."""
    keys: list[str]
    """Keys of the tracks."""
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
    chroma_offset: list[int] | None = None
    """Byte of the tar where the npy file of the chroma starts; None in shards without chroma."""
    chroma_bytes: list[int] | None = None
    """Bytes of that npy file, header included."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of numbers that this index has."""
        return COLUMNS if self.chroma_offset is None else (*COLUMNS, *CHROMA_COLUMNS)


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
    sidecar = strict(Sidecar, values, path)
    if (sidecar.chroma_offset is None) != (sidecar.chroma_bytes is None):
        raise UserError(
            f"{path} has chroma_offset without chroma_bytes, or the other way round. "
            f"Restore it or run: {PREPARE_COMMAND}"
        )
    lengths = {name: len(getattr(sidecar, name)) for name in ("keys", *sidecar.columns)}
    if sidecar.shard.name != shard_name or set(lengths.values()) != {sidecar.shard.num_samples}:
        raise UserError(
            f"{path}: index of {sidecar.shard.name} with columns of {lengths} entries, expected that of {shard_name} "
            f"with {sidecar.shard.num_samples} each. Restore it or run: {PREPARE_COMMAND}"
        )
    return sidecar
