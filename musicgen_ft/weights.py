"""Weight files: safetensors, or pickles restricted to tensors.

They are read without running anything that they hold, and written tensor by tensor: a checkpoint larger than the memory
can be converted.
"""

import hashlib
import io
import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from musicgen_ft.errors import UserError
from musicgen_ft.files import read_json


class LazyTensors(Mapping[str, Tensor]):
    """Tensors that are made when they are asked for, and held by nobody.

    Whoever takes them one after the other needs memory for one.
    """

    def __init__(self, like: Mapping[str, Tensor], make: Callable[[str], Tensor]) -> None:
        """Makes nothing yet.

        Args:
            like: name -> tensor on the meta device, which tells shape and dtype.
            make: name -> the tensor.
        """
        self.like = dict(like)
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.like:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)

    def __or__(self, other: Mapping[str, Tensor]) -> "LazyTensors":
        return LazyTensors({**self.like, **like_of(other)}, lambda name: (other if name in other else self)[name])


def like_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shapes and dtypes: the tensors on the meta device, none of them read."""
    if isinstance(tensors, LazyTensors):
        return tensors.like
    return {name: value.detach().to("meta") for name, value in tensors.items()}


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> LazyTensors:
    """The tensors in another dtype, each converted when it is asked for."""
    like = {name: value.to(dtype) for name, value in like_of(tensors).items()}
    return LazyTensors(like, lambda name: tensors[name].to(dtype))


def from_files(read: Callable[[], Mapping[str, Tensor]], *, num_parts: int = 16) -> LazyTensors:
    """Tensors of memory-mapped files of which only a part ever lies in memory.

    A mapped page stays in memory once it was touched. So the files are mapped anew whenever a part of the tensors was
    asked for: with the last of them, the pages of the old mapping go.

    Args:
        read: maps the files; called again for every part, it must give the same tensors each time.
        num_parts: parts that the whole is read in.
    """
    mapped: Mapping[str, Tensor] = read()
    like = like_of(mapped)
    part = sum(map(num_bytes, like.values())) // num_parts
    asked = 0

    def make(name: str) -> Tensor:
        nonlocal mapped, asked
        if asked > part:
            mapped, asked = {}, 0  # before the next, which would be a second copy where a file cannot be mapped
            mapped = read()
        asked += num_bytes(like[name])
        return mapped[name]

    return LazyTensors(like, make)


def num_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary of a ``torch.save`` file, memory-mapped where its format allows.

    Raises:
        UserError: if the file holds anything but tensors and plain values (it is not unpickled), or is damaged.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds pickled objects other than tensors, or is no checkpoint. Nothing is ever unpickled here: "
            f"export it to safetensors or to plain tensors where you trust it. ({_first_line(error)})"
        ) from error
    except (
        Exception
    ) as error:  # on damaged bytes torch's unpickler raises whatever comes: IndexError, KeyError, OSError
        raise UserError(
            f"{path} is damaged, missing or no checkpoint: {_first_line(error)}. Fetch it again."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a dictionary of tensors.")
    return value


def read_folder(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a transformers folder whose names begin with ``prefix``, which is cut off.

    Only those tensors are read. Takes one file or an index of several, safetensors before ``pytorch_model.bin``.
    """
    for name, read in (("model.safetensors", _read_safetensors), ("pytorch_model.bin", _read_bin)):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read(folder / name, prefix)
        if index.is_file():
            values = read_json(index)
            weight_map = values.get("weight_map") if isinstance(values, dict) else None
            if not isinstance(weight_map, dict):
                raise UserError(f"{index} holds no weight_map, name -> file. Fetch the base again.")
            parts = sorted(set(weight_map.values()))
            return {key: value for part in parts for key, value in read(folder / part, prefix).items()}
    raise UserError(f"{folder} has neither model.safetensors nor pytorch_model.bin. Fetch the base again.")


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes the bytes that safetensors' own ``save_file`` would, but with one tensor in memory at a time."""
    with path.open("wb") as file:
        for piece in safetensors_pieces(tensors, metadata):
            file.write(piece)


def safetensors_pieces(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: its header, then the values of one tensor after the other."""
    like, kinds = like_of(tensors), list(_KINDS)
    names = sorted(like, key=lambda name: (-kinds.index(like[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in names:
        begin, end = end, end + num_bytes(like[name])
        kind = _KINDS[like[name].dtype].safetensors
        header[name] = {"dtype": kind, "shape": list(like[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield _values(tensors[name], like[name])


def write_pickle(path: Path, value: dict[str, Any]) -> None:
    """``torch.save``, which raises an OSError where the disk is full."""
    with _disk_errors_told(path), path.open("wb") as file:
        torch.save(value, file)  # onto an open file: given a path, torch keeps the system's error to itself


def write_release(path: Path, key: str, tensors: Mapping[str, Tensor], rest: dict[str, Any]) -> None:
    """Writes a file that ``torch.load`` reads as ``{key: tensors, **rest}``, with one tensor in memory at a time.

    ``torch.save`` would hold them all. Its format is a zip archive: the pickled dictionary, whose tensors tell only
    their shape and the number of their storage, then the bytes of each storage.

    Args:
        path: where to; the file is overwritten.
        key: the name of the tensors in the dictionary.
        tensors: name -> tensor.
        rest: plain values.
    """
    like = like_of(tensors)
    stored = {name: _Stored(str(number), value) for number, (name, value) in enumerate(like.items())}
    pickled = io.BytesIO()
    _TensorPickler(pickled, protocol=2).dump({key: stored, **rest})
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        _add_record(archive, "data.pkl", pickled.getvalue())
        _add_record(archive, "byteorder", sys.byteorder.encode())
        for name, place in stored.items():
            _add_record(archive, f"data/{place.key}", _values(tensors[name], like[name]))
        _add_record(archive, "version", b"3\n")


class _Kind(NamedTuple):
    """What the formats call a dtype."""

    safetensors: str
    storage: Any


_KINDS = {  # in safetensors' order of tensors, from the last to the first
    torch.bool: _Kind("BOOL", torch.BoolStorage),
    torch.uint8: _Kind("U8", torch.ByteStorage),
    torch.int8: _Kind("I8", torch.CharStorage),
    torch.int16: _Kind("I16", torch.ShortStorage),
    torch.float16: _Kind("F16", torch.HalfStorage),
    torch.bfloat16: _Kind("BF16", torch.BFloat16Storage),
    torch.int32: _Kind("I32", torch.IntStorage),
    torch.float32: _Kind("F32", torch.FloatStorage),
    torch.float64: _Kind("F64", torch.DoubleStorage),
    torch.int64: _Kind("I64", torch.LongStorage),
}


class _Stored(NamedTuple):
    """A tensor that is written later."""

    key: str
    like: Tensor


class _Storage(NamedTuple):
    """Its storage."""

    key: str
    like: Tensor


class _TensorPickler(pickle.Pickler):
    """Pickles what is stored elsewhere as ``torch.save`` pickles a tensor."""

    def persistent_id(self, value: Any) -> tuple[str, Any, str, str, int] | None:
        if not isinstance(value, _Storage):
            return None
        return "storage", _KINDS[value.like.dtype].storage, value.key, "cpu", value.like.numel()

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, _Stored):
            return NotImplemented
        shape = tuple(value.like.shape)
        stride = torch.empty(shape, device="meta").stride()
        place = _Storage(value.key, value.like)
        return _rebuild_tensor_v2, (place, 0, shape, stride, False, OrderedDict())


def _add_record(archive: zipfile.ZipFile, name: str, content: bytes | memoryview, *, alignment: int = 64) -> None:
    """Adds a file to an archive, its bytes aligned so that they can be mapped as numbers."""
    record = zipfile.ZipInfo(f"archive/{name}")
    assert archive.fp is not None
    begin = (
        archive.fp.tell() + 30 + len(record.filename) + 4
    )  # a zip's fixed header, the name, the padding's own header
    padding = -begin % alignment
    record.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    archive.writestr(record, content)


def _values(tensor: Tensor, like: Tensor) -> memoryview:
    """The bytes of a tensor, not copied where they lie in a row."""
    if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
        raise ValueError(f"found a tensor {tensor.shape} {tensor.dtype}, announced was {like.shape} {like.dtype}")
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def _disk_errors_told(path: Path) -> Iterator[None]:
    """Raises as an OSError what torch hides in an error of its own."""
    try:
        yield
    except RuntimeError as error:
        number = error.__context__.errno if isinstance(error.__context__, OSError) else None
        if number:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _read_safetensors(path: Path, prefix: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key[len(prefix) :]: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or missing: {_first_line(error)}. Fetch it again.") from error


def _read_bin(path: Path, prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in read_pickle(path).items() if key.startswith(prefix)}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over the names, shapes, dtypes and values of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
