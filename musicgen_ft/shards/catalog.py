"""The indices of all shards of a folder, joined in one file that is mapped into memory and read where it is needed.

A shard's own index is JSON: of ten million tracks it takes minutes to read and tens of gigabytes to hold. The catalog
has the same in columns: no Python object is made for each track. It can always be made again of the shards' indices,
and names the manifest that it was made for: beside another one it does not count.

The file: a magic line, a line of JSON (``_Header``), then the columns, each from a multiple of 64 bytes on.

N tracks of a split, M texts.
"""

import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_path, user_cache
from musicgen_ft.shards.format import (
    CATALOG_NAME,
    MANIFEST_NAME,
    PREPARE_COMMAND,
    SPLITS,
    Manifest,
    ShardInfo,
    Split,
)
from musicgen_ft.shards.sidecar import CHROMA_COLUMNS, COLUMNS, SECONDS_COLUMNS, Sidecar, read_sidecar

logger = logging.getLogger(__name__)

Column = npt.NDArray[Any]

MIN_CACHED_TRACKS = 100_000
"""A folder without a catalog and with fewer tracks is read anew each time: a fraction of a second."""

_MAGIC = b"musicgen-ft catalog 1\n"
_ALIGNMENT = 64
_BLOCK = 1 << 24


class Texts(Sequence[str]):
    """Texts that are decoded when they are asked for; equal to a tuple or a list of the same."""

    def __init__(self, text: Column, ends: Column, numbers: "range | Column") -> None:
        """Those of the ``numbers``, out of M texts that lie in ``text``, UTF-8, and end at ``ends`` [M]."""
        self._text, self._ends, self._numbers = text, ends, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[str, ...]: ...
    def __getitem__(self, i: int | slice) -> str | tuple[str, ...]:
        if isinstance(i, slice):
            return tuple(map(self._decoded, self._numbers[i]))
        return self._decoded(self._numbers[i])

    def __iter__(self) -> Iterator[str]:
        return map(self._decoded, self._numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # like a list's

    def _decoded(self, number: Any) -> str:
        start = int(self._ends[number - 1]) if number else 0
        return self._text[start : int(self._ends[number])].tobytes().decode()


class Catalog:
    """The tracks of a folder in columns. Mapped from its file, it is pickled as the file's name alone."""

    def __init__(self, columns: Mapping[str, Column], path: Path | None = None) -> None:
        """Use ``open_catalog``."""
        self.columns: Mapping[str, Column] = columns
        """``{split}/{name}`` -> [N]; ``text`` and ``text_ends``: keys of train, keys of valid, other groups."""
        self.path = path

    def num_tracks(self, split: Split) -> int:
        """N."""
        return len(self.columns[f"{split}/num_frames"])

    def keys(self, split: Split) -> Texts:
        """N keys."""
        first = 0 if split == SPLITS[0] else self.num_tracks(SPLITS[0])
        return Texts(self.columns["text"], self.columns["text_ends"], range(first, first + self.num_tracks(split)))

    def groups(self, split: Split) -> Texts:
        """N groups."""
        return Texts(self.columns["text"], self.columns["text_ends"], self.columns[f"{split}/group"])

    def shared_groups(self) -> tuple[str, ...]:
        """Groups that are in both splits, sorted."""
        train, valid = (self.columns[f"{split}/group"] for split in SPLITS)
        is_in_train = np.zeros(len(self.columns["text_ends"]), dtype=bool)
        is_in_train[train] = True
        shared = np.unique(valid[is_in_train[valid]])
        return tuple(sorted(Texts(self.columns["text"], self.columns["text_ends"], shared)))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "columns": self.columns if self.path is None else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self.columns = state["columns"] if self.path is None else _mapped(self.path)


def open_catalog(folder: Path, manifest: Manifest) -> Catalog:
    """The catalog of a complete folder, as it lies there; made anew where there is none of this manifest.

    One that was made anew for a large folder is kept in the user's cache. Readers write nothing into the folder.

    Raises:
        UserError: if it has to be made anew and an index of a shard is missing or not as the manifest says.
    """
    made_for = _digest(folder)
    cached = user_cache() / "catalogs" / f"{made_for}.bin"
    for path in (folder / CATALOG_NAME, cached):
        if _is_whole(path, made_for):
            return Catalog(_mapped(path), path)
    columns = make_columns(folder, manifest)
    if sum(manifest.num_tracks.values()) >= MIN_CACHED_TRACKS:
        with suppress(OSError):  # without it the next start takes as long again, and nothing else is lost
            _write(cached, columns, made_for)
            return Catalog(_mapped(cached), cached)
    return Catalog(columns)


def write_catalog(folder: Path, manifest: Manifest) -> None:
    """Writes the catalog into a folder whose manifest is there, whole or not at all."""
    _write(folder / CATALOG_NAME, make_columns(folder, manifest), _digest(folder))


# ---- making it -------------------------------------------------------------------------------------------------------


def make_columns(folder: Path, manifest: Manifest) -> dict[str, Column]:
    """The columns of a catalog, of the indices of all shards.

    Raises:
        UserError: if an index is missing or not as the manifest says.
    """
    numbers: dict[str, int] = {}  # text -> its first number, for groups
    text, ends = bytearray(), list[npt.NDArray[np.int64]]()
    columns: dict[str, Column] = {}
    groups: dict[Split, list[list[str]]] = {split: [] for split in SPLITS}
    num_keys = 0
    for split in SPLITS:
        parts: dict[str, list[npt.NDArray[np.int64]]] = {}
        names: tuple[str, ...] = (*COLUMNS, *(() if manifest.chroma is None else CHROMA_COLUMNS), *SECONDS_COLUMNS)
        for shard in manifest.of(split):
            sidecar, of_shard = _checked_sidecar(folder, shard, manifest)
            names = tuple(name for name in names if name in of_shard)  # some may have no figures of seconds
            for name in names:
                parts.setdefault(name, []).append(of_shard[name])
            for number, key in enumerate(sidecar.keys, start=num_keys):
                numbers.setdefault(key, number)
            num_keys += len(sidecar.keys)
            ends.append(_append_texts(text, sidecar.keys))
            groups[split].append(sidecar.groups)
        for name in names:
            columns[f"{split}/{name}"] = _smallest(np.concatenate(parts.get(name, [np.zeros(0, np.int64)])))
    for split in SPLITS:
        of_split = [np.zeros(0, np.int64)]
        while groups[split]:
            names_of = groups[split].pop(0)
            new = [name for name in dict.fromkeys(names_of) if name not in numbers]
            numbers.update((name, number) for number, name in enumerate(new, start=num_keys))
            num_keys += len(new)
            ends.append(_append_texts(text, new))
            of_split.append(np.fromiter((numbers[name] for name in names_of), np.int64, len(names_of)))
        columns[f"{split}/group"] = _smallest(np.concatenate(of_split))
    columns["text"] = np.frombuffer(text, dtype=np.uint8)
    columns["text_ends"] = _smallest(np.concatenate([np.zeros(0, np.int64), *ends]))
    return columns


def _append_texts(text: bytearray, texts: Iterable[str]) -> npt.NDArray[np.int64]:
    """Appends texts; where each of them ends."""
    encoded = [each.encode() for each in texts]
    ends = len(text) + np.cumsum([len(each) for each in encoded], dtype=np.int64)
    text += b"".join(encoded)
    return ends


def _smallest(column: npt.NDArray[np.int64]) -> Column:
    """The column in the narrowest unsigned type that holds it."""
    return column.astype(np.min_scalar_type(int(column.max(initial=0))))


def _checked_sidecar(folder: Path, shard: ShardInfo, manifest: Manifest) -> tuple[Sidecar, dict[str, Column]]:
    """A shard's index, and its columns of numbers."""
    sidecar = read_sidecar(folder, shard.name)
    columns = {name: np.array(getattr(sidecar, name), dtype=np.int64) for name in sidecar.columns}
    header_bytes = columns["codes_bytes"] - 2 * manifest.codec.n_q * columns["num_frames"]
    is_consistent = (
        sidecar.shard == shard
        and sidecar.codec_sha256 == manifest.codec.sha256
        and columns["num_frames"].sum() == shard.num_frames
        and bool((header_bytes > 0).all() and (header_bytes % 64 == 0).all())  # npy pads its header to 64 bytes
        and ("chroma_offset" in columns) == (manifest.chroma is not None)
        and _lie_in_order(sidecar, columns, shard.num_bytes)
    )
    if not is_consistent:
        raise UserError(
            f"{folder / shard.name}: its index and the manifest disagree; they are of two runs of prepare. "
            f"Restore the folder or run: {PREPARE_COMMAND}"
        )
    return sidecar, columns


def _lie_in_order(sidecar: Sidecar, columns: dict[str, Column], num_bytes: int) -> bool:
    """Whether the members of each track lie one behind the other, and within the file."""
    starts = [columns[f"{name}_offset"] for name in sidecar.members]
    ends = [columns[f"{name}_offset"] + columns[f"{name}_bytes"] for name in sidecar.members]
    limits = [*starts[1:], np.full(len(sidecar.keys), num_bytes)]
    return all(bool((end <= limit).all()) for end, limit in zip(ends, limits, strict=True))


# ---- the file --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Header:
    made_for: str
    """SHA-256 of the manifest."""
    num_bytes: int
    """Of all that follows the header."""
    columns: dict[str, list[Any]]
    """Name -> type, first byte behind the header, number of entries."""

    @property
    def checksum(self) -> int:
        """CRC-32 of the header alone; that of the file goes on from it."""
        return zlib.crc32(json.dumps(asdict(self), sort_keys=True).encode())


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()


def _write(path: Path, columns: Mapping[str, Column], made_for: str) -> None:
    places: dict[str, list[Any]] = {}
    offset = 0
    blocks: list[Any] = []
    for name, column in columns.items():
        little = column.astype(column.dtype.newbyteorder("<"), copy=False)
        places[name] = [little.dtype.str, offset, len(little)]
        padding = bytes(-little.nbytes % _ALIGNMENT)
        blocks += [little.data, padding]
        offset += little.nbytes + len(padding)
    header = _Header(made_for=made_for, num_bytes=offset, columns=places)
    crc = header.checksum
    for block in blocks:
        crc = zlib.crc32(block, crc)
    text = json.dumps({"header": asdict(header), "crc32": crc}).encode()
    text += b" " * (-(len(_MAGIC) + len(text) + 1) % _ALIGNMENT) + b"\n"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines([_MAGIC, text, *blocks])


def _read_header(path: Path) -> tuple[_Header, int, int]:
    """The header, the file's CRC-32 and the byte behind both; ValueError, KeyError or TypeError if there are none."""
    with path.open("rb") as file:
        if file.readline(len(_MAGIC)) != _MAGIC:
            raise ValueError("another format or version")
        values = json.loads(file.readline())
        return _Header(**values["header"]), values["crc32"], file.tell()


def _is_whole(path: Path, made_for: str) -> bool:
    """Whether a catalog is there, of this manifest, and as it was written; a damaged one is told."""
    if not path.is_file():
        return False
    try:
        header, expected, start = _read_header(path)
        if header.made_for != made_for:
            return False
        crc = header.checksum
        with path.open("rb") as file:  # not through the map, whose pages would count as this process's memory
            file.seek(start)
            buffer = memoryview(bytearray(_BLOCK))
            while size := file.readinto(buffer):
                crc = zlib.crc32(buffer[:size], crc)
        is_whole = path.stat().st_size == start + header.num_bytes and crc == expected
    except (ValueError, KeyError, TypeError, OSError):
        is_whole = False
    if not is_whole:
        logger.warning(f"{path} is damaged and is passed over: the tracks are read from the indices of the shards")
    return is_whole


def _mapped(path: Path) -> dict[str, Column]:
    header, _, start = _read_header(path)
    data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)[start:]
    columns = {}
    for name, (dtype, offset, length) in header.columns.items():
        size = np.dtype(dtype).itemsize * length
        columns[name] = data[offset : offset + size].view(dtype)
    return columns
