"""Reading weight files without running anything that they hold: safetensors, or pickles restricted to tensors."""

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from musicgen_ft.errors import UserError
from musicgen_ft.files import read_json


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


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors, readable as the user's other files are: safetensors itself leaves them to the owner alone."""
    with _disk_errors_told(path):
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata)
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_pickle(path: Path, value: dict[str, Any]) -> None:
    """``torch.save``, which raises an OSError where the disk is full."""
    with _disk_errors_told(path), path.open("wb") as file:
        torch.save(value, file)  # onto an open file: given a path, torch keeps the system's error to itself


@contextmanager
def _disk_errors_told(path: Path) -> Iterator[None]:
    """Raises as an OSError what torch and safetensors hide in errors of their own."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        found = re.search(r"os error (\d+)", str(error))
        number = error.__context__.errno if isinstance(error.__context__, OSError) else found and int(found[1])
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
