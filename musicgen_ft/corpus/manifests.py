"""Audiocraft's manifests: JSON lines of ``{"path": ..., "duration": ..., "sample_rate": ...}``, plain or gzipped."""

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from musicgen_ft.corpus.tables import SPLITS, Row, Split, exists, is_printable, json_lines, read_row, shown
from musicgen_ft.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz")
NAMES = ("data.jsonl", "data.jsonl.gz")
"""What audiocraft looks for in the folder of a data source."""
FOLDERS: dict[str, Split] = {**SPLITS, "evaluate": "valid", "generate": "valid"}
"""Names of a folder of one manifest: audiocraft's stages beside the usual ones."""
EXAMPLE = '{"path": "music/a.mp3", "duration": 180.0, "sample_rate": 44100}'
NUM_TRIED = 100  # files looked for, to tell where the relative paths of a manifest start


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One track of a manifest."""

    path: Path
    """The audio file, absolute."""
    written: str
    """Its path as the manifest has it: it stays when the manifest grows."""
    row: Row
    """What the line tells of it."""


def is_manifest(path: Path) -> bool:
    """Whether a path is named like a manifest."""
    return path.name.lower().endswith(SUFFIXES)


def find_manifests(folder: Path) -> list[Path]:
    """The manifest of a folder, or those of the folders in it (``train/data.jsonl.gz``, ``valid/data.jsonl.gz``).

    Raises:
        UserError: if one folder has two.
    """
    found = _manifest_in(folder)
    if found is not None:
        return [found]
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for path in map(_manifest_in, folders) if path is not None]


def read_manifests(manifests: list[Path]) -> list[Listed]:
    """Reads the tracks of manifests, each track once.

    Relative paths start at the current folder, as in audiocraft; where they lead nowhere from there, at the manifest's
    folder or the next one above it that they lead somewhere from. Whether every file is there is not looked at: whoever
    decodes will tell.

    The split is what the line's ``split`` says, or the name of the manifest's folder where both sides have one.

    Raises:
        UserError: if a manifest cannot be read, a line is none of a manifest, a file lies in an archive, none of the
            files is there, or a file is listed for both sides of the split.
    """
    listed: dict[Path, Listed] = {}
    sides = _sides(manifests)
    for manifest in manifests:
        for track in _tracks(manifest, sides.get(manifest)):
            earlier = listed.setdefault(track.path, track)
            if earlier is not track and earlier.row.split != track.row.split:
                raise UserError(
                    f"{track.row.place}: {shown(track.written)} is listed for {track.row.split or 'no split'}, and for "
                    f"{earlier.row.split or 'no split'} in {earlier.row.place}. Keep one of the two."
                )
    return list(listed.values())


def _manifest_in(folder: Path) -> Path | None:
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{folder} holds both {' and '.join(NAMES)}, expected one of them. Remove the other.")
    return found[0] if found else None


def _sides(manifests: list[Path]) -> dict[Path, Split]:
    """The split of each manifest by its folder's name: only together do "train" and "valid" tell of a split."""
    sides: dict[Path, Split] = {}
    for path in manifests:
        side = FOLDERS.get(path.absolute().parent.name.lower())
        if side is not None:
            sides[path] = side
    return sides if len(set(sides.values())) == 2 else {}


def _tracks(manifest: Path, side: Split | None) -> Iterator[Listed]:
    lines = list(_lines(manifest))
    if not lines:
        raise UserError(f"{manifest} lists no tracks, expected lines like {EXAMPLE}. Check the path.")
    base = _base(manifest, [written for written, _ in lines])
    for written, row in lines:
        path = Path(os.path.normpath(base / written))
        if not path.name:
            raise UserError(
                f"{row.place}: {written} is a folder, expected the path of an audio file. Correct the line."
            )
        yield Listed(path=path, written=written, row=replace(row, split=row.split or side))


def _lines(manifest: Path) -> Iterator[tuple[str, Row]]:
    """The lines of a manifest: the path as written, and the rest as a row."""
    is_zipped = manifest.name.lower().endswith(".gz")
    try:
        with (gzip.open if is_zipped else open)(manifest, "rt", encoding="utf-8-sig") as file:
            for number, values in json_lines(file, manifest):
                place = f"{manifest}, line {number}"
                rest = {name: value for name, value in values.items() if name not in ("path", "info_path")}
                yield _path(values, place), read_row(rest, place)
    except UnicodeDecodeError as error:
        raise UserError(f"{manifest} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{manifest} is not a whole gzip file: {error}. Write it again.") from error
    except OSError as error:
        raise UserError(f"{manifest} cannot be read: {error.strerror}. Check the path and its permissions.") from error


def _path(values: dict[str, Any], place: str) -> str:
    path, info_path = values.get("path"), values.get("info_path")
    if not isinstance(path, str) or not path.strip():
        raise UserError(f"{place} has no path, expected a line like {EXAMPLE}. Correct the line.")
    for archived in (path, info_path):
        if isinstance(archived, str) and ".zip:" in archived.lower():
            raise UserError(
                f"{place}: {shown(archived)} lies in an archive, expected a file. Unpack it, and list that."
            )
    if not is_printable(path):
        raise UserError(f"{place}: {shown(path)} is not printable UTF-8, as JSON and tar files need it. Rename it.")
    return path


def _base(manifest: Path, written: list[str]) -> Path:
    """The folder that the relative paths of a manifest start at."""
    home = manifest.absolute().parent
    candidates = (Path.cwd(), home, *home.parents)
    tried = written[:NUM_TRIED]
    relative = [path for path in tried if not Path(path).is_absolute()]
    found = next((folder for folder in candidates if _any_in(folder, relative or tried)), None)
    if found is None:
        of_all = "none of its files is" if len(tried) == len(written) else f"none of its first {len(tried)} files is"
        where = f" from {Path.cwd()}, from {home} or from above it" if relative else ""
        raise UserError(
            f"{manifest}: {of_all} there, such as {shown((relative or tried)[0])}{where}. Correct the paths"
            + (", or run from the folder that they start at." if relative else ".")
        )
    return found


def _any_in(folder: Path, written: Iterable[str]) -> bool:
    return any(exists(folder / path) for path in written)
