"""Metadata tables of a corpus, as Hugging Face's AudioFolder defines them: ``metadata.csv`` or ``metadata.jsonl``."""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from musicgen_ft.corpus.labels import Labels, labels_from_fields
from musicgen_ft.errors import UserError

TABLES = ("metadata.csv", "metadata.jsonl")

Split = Literal["train", "valid"]

_SPLITS: dict[str, Split] = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "valid"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a table says of one track."""

    labels: Labels
    """From every column but ``file_name`` and ``split``."""
    split: Split | None
    """From the column ``split``."""
    place: str
    """The table and the line, for messages."""


def read_tables(folders: list[Path]) -> dict[Path, Row]:
    """Reads the metadata tables that lie in ``folders``; the paths of the tracks are relative to their table.

    Raises:
        UserError: if a folder has two tables, or a table cannot be read, lists a track twice or has an unknown split.
    """
    rows: dict[Path, Row] = {}
    for folder in folders:
        found = [folder / name for name in TABLES if (folder / name).is_file()]
        if len(found) > 1:
            raise UserError(f"{folder} holds both {' and '.join(TABLES)}, expected one of them. Remove the other.")
        for table in found:
            for place, cells in _lines(table):
                track, row = _row(table, place, cells)
                if track in rows:
                    raise UserError(
                        f"{place}: {track.name} is listed already in {rows[track].place}. Keep one of the two."
                    )
                rows[track] = row
    return rows


def _row(table: Path, place: str, cells: dict[str, Any]) -> tuple[Path, Row]:
    """The track's path and its row, of one line of a table."""
    file_name = cells.pop("file_name", None)
    if not isinstance(file_name, str) or not file_name.strip():
        raise UserError(f"{place} has no file_name, expected the path of an audio file relative to {table.parent}.")
    split = str(cells.pop("split", None) or "").strip().lower()
    if split and split not in _SPLITS:
        raise UserError(f"{place}: split is {split!r}, expected one of {', '.join(_SPLITS)}. Correct the cell.")
    track = Path(os.path.normpath(table.parent / file_name.strip()))
    return track, Row(labels=labels_from_fields(cells), split=_SPLITS.get(split), place=place)


def _lines(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a table as (place, cells)."""
    read = _csv_lines if table.suffix == ".csv" else _jsonl_lines
    try:
        for number, cells in read(table):
            yield f"{table}, line {number}", cells
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is not UTF-8 text: {error}. Save it as UTF-8.") from error


def _csv_lines(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True, skipinitialspace=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if "file_name" not in header:
                found = ", ".join(header) or "nothing"
                raise UserError(
                    f"{table} has no column file_name; its first line has: {found}. Name one column file_name."
                )
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    found = f"{len(cells)} cells, the header has {len(header)}"
                    raise UserError(f"{table}, line {reader.line_num} has {found}. Put cells with commas in quotes.")
                yield reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UserError(f"{table}, line {reader.line_num} is not valid CSV: {error}. Correct the line.") from error


def _jsonl_lines(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{table}, line {number} is not valid JSON: {error}. Correct the line.") from error
            if not isinstance(cells, dict):
                raise UserError(f"{table}, line {number} is a JSON {type(cells).__name__}, expected an object.")
            yield number, cells
