"""Files that are whole or not there: written under a temporary name in the same folder, flushed, then renamed."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from musicgen_ft.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that becomes ``path`` when the block ends without an error.

    The temporary file lies in the same folder, so that the rename cannot cross a filesystem, and is flushed to the
    disk before it. If the block raises, the temporary file is removed and an earlier ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process's number alone: on machines that share a folder, two processes have the same.
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``folder`` that becomes ``folder`` when the block ends without an error.

    Raises:
        UserError: if ``folder`` already exists and is not empty.
    """
    refuse_used(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        if folder.exists():
            folder.rmdir()  # refuse_used saw it empty; fails, rightly, if something came in since
        os.replace(temporary, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Flushes a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget(path: Path) -> None:
    """Lets the system drop a file's pages, so that the next reading is from the disk."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def refuse_used(folder: Path) -> None:
    """Raises UserError if ``folder`` is a file, lies under one, or is a folder with anything in it."""
    refuse_file(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} is not empty: it holds the output of another run. Choose another --out or remove it."
        )


def refuse_file(folder: Path) -> None:
    """Raises UserError if ``folder``, or a folder that it is to lie in, is a file."""
    for path in (folder, *folder.parents):
        if path.is_file():
            raise UserError(f"{path} is a file, expected a folder to write into. Choose another --out.")


def refuse_folder(path: Path) -> None:
    """Raises UserError if ``path``, which is to be written as a file, is a folder, or lies under a file."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected the name of a file to write. Choose another --out.")
    refuse_file(path.parent)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as readable UTF-8 JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: if the file is not valid UTF-8 JSON, with the line and column.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}. Correct or remove the file.") from error


def user_cache() -> Path:
    """Folder for what can be made again: ``musicgen-ft`` in the user's cache (``XDG_CACHE_HOME``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "musicgen-ft"
