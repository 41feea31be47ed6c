"""A checkpoint as a folder into which every rank writes its own rows: no rank ever holds a whole model.

``rank-00000-of-00002.safetensors`` and so on hold the rows of each rank: a tensor is, in the order of the ranks, the
rows of all files. ``meta.pt`` holds all else, the tensors in it without their values. ``manifest.json``, written last,
tells the SHA-256 of every file. PyTorch's own distributed checkpoints keep a pickle, which would have to be unpickled.
"""

import errno
import hashlib
import itertools
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from musicgen_ft.errors import UserError
from musicgen_ft.files import forget, read_json, sha256, sync, write_json
from musicgen_ft.weights import LazyTensors, read_pickle, safetensors_pieces, write_pickle

MANIFEST_FILE = "manifest.json"
META_FILE = "meta.pt"


class Rows(NamedTuple):
    """What one rank holds of a tensor."""

    local: Tensor
    """[n, ...], its rows; n may be 0."""
    shape: torch.Size
    """Of the whole tensor."""


def rows_of(num_rows: int, rank: int, world: int) -> tuple[int, int]:
    """The first row of a rank and the one after its last, shared out as FSDP and ``torch.chunk`` do."""
    each = -(-num_rows // world)
    return min(rank * each, num_rows), min((rank + 1) * each, num_rows)


def rank_file(folder: Path, rank: int, world: int) -> Path:
    """The file of a rank's rows."""
    return folder / f"rank-{rank:05d}-of-{world:05d}.safetensors"


# ---- writing ---------------------------------------------------------------------------------------------------------


def write(path: Path, tree: Any) -> None:
    """Writes a checkpoint on all ranks of the process group together; its place in the folder is its commit.

    Args:
        path: of the folder, the same on all ranks, on a disk that all of them share.
        tree: dictionaries and lists of plain values, of small tensors that all ranks have, and of ``Rows``.

    Raises:
        OSError: on rank zero, if any rank could not write; on the others nothing is raised.
        UserError: on rank zero, if another one does not see the folder.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    token = [secrets.token_hex(4)]
    dist.broadcast_object_list(token)
    temporary = path.with_name(f".{path.name}.tmp-{token[0]}")
    try:
        written = _told(lambda: temporary.mkdir(parents=True)) if rank == 0 else {}
        dist.barrier()
        if not isinstance(written, OSError):
            written = _told(lambda: write_rank(temporary, tree, rank, world))
        gathered: list[Any] = [None] * world
        dist.all_gather_object(gathered, _failure(written) if isinstance(written, OSError) else written)
        if rank != 0:
            return
        for found in gathered:
            if isinstance(found, dict):
                continue
            if found[0] == errno.ENOENT:
                raise UserError(f"{path.parent}: {found[1]}. Choose an --out on a disk that all machines share.")
            raise OSError(*found, str(path))
        write_manifest(temporary, world, dict(itertools.chain.from_iterable(found.items() for found in gathered)))
        set_aside(path)
        os.replace(temporary, path)
        sync(path.parent)
        remove_aside(path)
    finally:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)


def write_rank(folder: Path, tree: Any, rank: int, world: int) -> dict[str, str]:
    """Writes what is a rank's, and reads it again from the disk.

    Returns:
        File name -> SHA-256.

    Raises:
        OSError: if the disk is full, or gives other bytes back than it was given.
    """
    rows: dict[str, Tensor] = {}

    def take(key: str, leaf: Tensor | Rows) -> Tensor:
        if isinstance(leaf, Tensor):
            return leaf
        rows[key] = leaf.local
        return torch.empty(leaf.shape, dtype=leaf.local.dtype, device="meta")

    meta = mapped(tree, take)
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the folder that rank 0 has made is not there", str(folder))
    file = rank_file(folder, rank, world)
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for piece in safetensors_pieces(rows, {"rank": str(rank), "world": str(world)}):
            out.write(piece)
            digest.update(piece)
    written = {file.name: digest.hexdigest()}
    sync(file)
    forget(file)
    if sha256(file) != written[file.name]:
        raise OSError(errno.EIO, "the disk gave back other bytes than were written", str(file))
    if rank == 0:
        write_pickle(folder / META_FILE, meta)
        sync(folder / META_FILE)
        written[META_FILE] = sha256(folder / META_FILE)
    return written


def write_manifest(folder: Path, world: int, hashes: Mapping[str, str]) -> None:
    """Makes a folder that all ranks have written into a whole checkpoint."""
    write_json(folder / MANIFEST_FILE, {"format": 1, "world": world, "sha256": dict(sorted(hashes.items()))})
    sync(folder)


def _told(do: Callable[[], dict[str, str] | None]) -> dict[str, str] | OSError:
    """What ``do`` gives, or its OSError: the ranks first tell one another how they fared."""
    try:
        return do() or {}
    except OSError as error:
        return error


def _failure(error: OSError) -> tuple[int, str]:
    return error.errno or errno.EIO, f"{error.strerror} (rank {dist.get_rank()} on {socket.gethostname()})"


# ---- reading ---------------------------------------------------------------------------------------------------------


def damage(folder: Path) -> str | None:
    """What is wrong with the bytes of a checkpoint, None if nothing is."""
    try:
        manifest = read_json(folder / MANIFEST_FILE)
        world, hashes = int(manifest["world"]), manifest["sha256"]
        for file in (folder / META_FILE, *(rank_file(folder, rank, world) for rank in range(world))):
            if sha256(file) != hashes[file.name]:
                return f"wrong checksum of {file.name}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is not there"
    except OSError as error:
        return f"{error.strerror}"
    except (UserError, ValueError, TypeError, LookupError):
        return f"{MANIFEST_FILE} is not what it was"
    return None


def read_meta(folder: Path) -> dict[str, Any]:
    """All but the rows: their tensors are on the meta device.

    Raises:
        UserError: if it holds anything but tensors and plain values.
    """
    return read_pickle(folder / META_FILE)


def read(folder: Path) -> dict[str, Any]:
    """The whole checkpoint, as a run of one process would have written it."""
    meta, parts = read_meta(folder), _Parts(folder)
    whole: dict[str, Any] = mapped(meta, lambda key, leaf: parts.whole(key, leaf) if leaf.is_meta else leaf)
    return whole


def read_rows(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """What a rank of any number of ranks holds: tensors as ``Rows``, of which no others are read."""
    meta, parts = read_meta(folder), _Parts(folder)

    def take(key: str, leaf: Tensor) -> Tensor | Rows:
        if not leaf.is_meta:
            return leaf
        return Rows(parts.rows(key, leaf, *rows_of(len(leaf), rank, world)), leaf.shape)

    rows: dict[str, Any] = mapped(meta, take)
    return rows


def cut_rows(tree: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """As ``read_rows``, of a checkpoint that one file holds: all that has rows is shared out."""

    def take(key: str, leaf: Tensor) -> Tensor | Rows:
        if leaf.ndim == 0:
            return leaf
        begin, end = rows_of(len(leaf), rank, world)
        return Rows(leaf[begin:end], leaf.shape)

    rows: dict[str, Any] = mapped(tree, take)
    return rows


def read_weights(folder: Path) -> dict[str, Any]:
    """The checkpoint without the optimizer; each weight is put together when it is asked for, and held by nobody."""
    meta, parts = read_meta(folder), _Parts(folder)

    def lazy(key: str, like: Mapping[str, Tensor]) -> LazyTensors:
        return LazyTensors(like, lambda name: parts.whole(f"{key}/{name}", like[name]))

    meta.pop("optimizer_states", None)
    if "state_dict" in meta:
        meta["state_dict"] = lazy("state_dict", meta["state_dict"])
    if "ema" in meta:
        meta["ema"] = {**meta["ema"], "weights": lazy("ema/weights", meta["ema"]["weights"])}
    return meta


class _Parts:
    """The files of all ranks that have written, mapped."""

    def __init__(self, folder: Path) -> None:
        world = int(read_json(folder / MANIFEST_FILE)["world"])
        self._folder = folder
        self._files: Sequence[Any] = [
            safe_open(rank_file(folder, rank, world), framework="pt") for rank in range(world)
        ]

    def whole(self, key: str, like: Tensor) -> Tensor:
        return self.rows(key, like, 0, len(like))

    def rows(self, key: str, like: Tensor, begin: int, end: int) -> Tensor:
        """The rows from ``begin`` to before ``end`` of a tensor, of whichever files hold them."""
        found, first = [], 0
        try:
            for file in self._files:
                part = file.get_slice(key)
                last = first + part.get_shape()[0]
                if max(first, begin) < min(last, end):
                    found.append(part[max(first, begin) - first : min(last, end) - first])
                first = last
        except SafetensorError as error:
            raise UserError(f"{self._folder} does not hold {key}: {error}. Begin a new run.") from error
        if not found:
            found.append(torch.empty(0, *like.shape[1:], dtype=like.dtype))
        rows = torch.cat(found) if len(found) > 1 else found[0]
        if first != len(like) or rows.shape != (end - begin, *like.shape[1:]) or rows.dtype != like.dtype:
            raise UserError(f"{self._folder} holds {key} otherwise than its {META_FILE} says. Begin a new run.")
        return rows


def mapped(tree: Any, change: Callable[[str, Any], Any], key: str = "") -> Any:
    """The tree with every tensor, or ``Rows``, changed; ``change`` is told its place, as ``ema/weights/out_norm.bias``.

    Args:
        tree: dictionaries, lists and tuples of anything.
        change: place and tensor -> what stands there instead.
        key: place of ``tree`` itself.
    """
    below = f"{key}/" if key else ""
    if isinstance(tree, Tensor | Rows):
        return change(key, tree)
    if isinstance(tree, Mapping):
        return {name: mapped(value, change, f"{below}{name}") for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(value, change, f"{below}{number}") for number, value in enumerate(tree))
    return tree


# ---- what lies at a checkpoint's place -------------------------------------------------------------------------------


def set_aside(path: Path) -> None:
    """Makes room for a folder, or for a file where a folder lies: a rename replaces only a file, by a file.

    For a moment nothing is at ``path``. ``put_back`` undoes it after a kill in that moment.
    """
    if path.exists():
        remove_aside(path)
        os.replace(path, _aside(path))


def remove_aside(path: Path) -> None:
    """Removes what ``path`` has replaced."""
    remove(_aside(path))


def put_back(folder: Path) -> None:
    """Brings back what was set aside and not replaced, and removes what was."""
    for aside in folder.glob(".*.ckpt.old"):
        path = aside.with_name(aside.name[1:].removesuffix(".old"))
        if path.exists():
            remove(aside)
        else:
            os.replace(aside, path)


def remove(path: Path) -> None:
    """Removes a checkpoint, be it a file, a folder, or not there; a folder loses its name before its files."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    nameless = path.with_name(f".{path.name.lstrip('.')}.tmp-{secrets.token_hex(4)}")
    os.replace(path, nameless)
    shutil.rmtree(nameless)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
