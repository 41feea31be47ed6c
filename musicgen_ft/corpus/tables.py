"""Metadata tables of a corpus, as Hugging Face's AudioFolder defines them: ``metadata.csv`` or ``metadata.jsonl``."""

import csv
import json
import math
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from musicgen_ft.corpus.labels import Labels, labels_from_fields
from musicgen_ft.errors import UserError

TABLES = ("metadata.csv", "metadata.jsonl")
PARQUET_TABLE = "metadata.parquet"

Split = Literal["train", "valid"]

SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "test", "testing", "eval", "evaluation"), "valid"),
}
"""Name of a split, in a table or of a folder -> the side of ours that it falls on. The names are those of Hugging
Face's ``datasets``; what is held out there, for whatever end, is never trained on here."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a table says of one track."""

    labels: Labels
    """From every column but the file's name and ``split``."""
    fields: dict[str, str]
    """The same columns as text, names in lower case."""
    split: Split | None
    """From the column ``split``."""
    place: str
    """The table and the line, for messages."""


def read_tables(folders: Iterable[Path]) -> dict[Path, Row]:
    """Reads the metadata tables that lie in ``folders``; the paths of the tracks are relative to their table.

    Raises:
        UserError: if a folder has two tables, or a table cannot be read, lists a track twice or has an unknown split.
    """
    rows: dict[Path, Row] = {}
    for folder in folders:
        found = [folder / name for name in TABLES if (folder / name).is_file()]
        if len(found) > 1:
            raise UserError(f"{folder} holds both {' and '.join(TABLES)}, expected one of them. Remove the other.")
        if not found and (folder / PARQUET_TABLE).is_file():
            raise UserError(
                f"{folder / PARQUET_TABLE} cannot be read, expected {' or '.join(TABLES)}. Convert it, with pandas: "
                f"read_parquet('{PARQUET_TABLE}').to_json('{TABLES[1]}', orient='records', lines=True)"
            )
        for table in found:
            for place, cells in _lines(table):
                track, row = _row(table, place, cells)
                if track in rows:
                    raise UserError(
                        f"{place}: {shown(track.name)} is listed already in {rows[track].place}. Keep one of the two."
                    )
                rows[track] = row
    return rows


def read_row(cells: Mapping[str, object], place: str) -> Row:
    """What is told of a track by the cells of one line, its path left out.

    Raises:
        UserError: if the split is unknown, or a cell cannot be read.
    """
    split = str(cells.get("split") or "").strip().lower()
    if split and split not in SPLITS:
        raise UserError(f"{place}: split is {shown(split)!r}, expected one of {', '.join(SPLITS)}. Correct the cell.")
    rest = {name: value for name, value in cells.items() if name != "split"}
    try:
        return Row(labels=read_labels(rest), fields=text_fields(rest), split=SPLITS.get(split), place=place)
    except ValueError as error:
        raise UserError(f"{place} {error}. Correct the line.") from error


def read_labels(values: Mapping[str, object]) -> Labels:
    """Labels from raw fields.

    Raises:
        ValueError: if a value is beyond reading (lists in lists in lists, a number of 400 digits), in words that follow
            the name of the file.
    """
    try:
        return labels_from_fields(values)
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"holds a value that cannot be read: {error}") from error


def text_fields(values: Mapping[str, object]) -> dict[str, str]:
    """The fields that hold one text, number or truth value, as text; names in lower case."""
    texts = {name.strip().lower(): _field_text(value) for name, value in values.items()}
    return {name: text for name, text in texts.items() if name and text}


def json_object(text: str) -> dict[str, Any]:
    """The object that a JSON text holds.

    Raises:
        ValueError: if it holds none that can be written again as UTF-8, in words that follow the name of the file.
    """
    try:
        value = json.loads(text)
        if "\\u" in text:  # half of a surrogate pair passes json, and would end a run where its track is written
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # ValueError, too, is a number of more than 4300 digits
        raise ValueError(f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"holds a JSON {type(value).__name__}, expected an object")
    return value


def json_lines(file: Iterable[str], where: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file with the numbers of their lines; empty lines are passed over.

    Raises:
        UserError: if a line is no JSON object.
    """
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield number, json_object(line)
            except ValueError as error:
                raise UserError(f"{where}, line {number} {error}. Correct the line.") from error


def is_printable(text: str) -> bool:
    """Whether a text has neither control characters nor what is no UTF-8, which JSON and tar files could not hold."""
    return text.isprintable() or not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def exists(path: Path) -> bool:
    """Whether there is such a file; False, too, for a name that no file can have."""
    try:
        path.stat()
    except (OSError, ValueError):  # Path.exists lets "File name too long" through
        return False
    return True


def shown(text: object) -> str:
    """Anything as part of one line of a message."""
    line = str(text)
    line = line if line.isprintable() else ascii(line)[1:-1]
    return line if len(line) <= 300 else f"{line[:300]}..."


def _field_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return value.strip() if isinstance(value, str) else ""


def _row(table: Path, place: str, cells: dict[str, Any]) -> tuple[Path, Row]:
    """The track's path and its row, of one line of a table."""
    column = _path_column(cells)
    file_name = None if column is None else cells[column]
    if not isinstance(file_name, str) or not file_name.strip():
        raise UserError(f"{place} has no file_name, expected the path of an audio file relative to {table.parent}.")
    track = Path(os.path.normpath(table.parent / file_name.strip()))
    return track, read_row({name: value for name, value in cells.items() if name != column}, place)


def _path_column(names: Iterable[str]) -> str | None:
    """The column with the audio file: ``file_name``, ``audio_file_name``, or the only one that ends in ``_file_name``.

    Source: AudioFolder, which makes an audio column of each of them.
    """
    names = list(names)
    for name in ("file_name", "audio_file_name"):
        if name in names:
            return name
    others = [name for name in names if name.endswith("_file_name")]
    return others[0] if len(others) == 1 else None


def _lines(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a table as (place, cells)."""
    read = _csv_lines if table.suffix == ".csv" else _jsonl_lines
    try:
        for number, cells in read(table):
            yield f"{table}, line {number}", cells
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{table} cannot be read: {error.strerror}. Give yourself access to it.") from error


def _csv_lines(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True, skipinitialspace=True)
        try:
            header = _header(table, next(reader, []))
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    found = f"{len(cells)} cells, the header has {len(header)}"
                    raise UserError(f"{table}, line {reader.line_num} has {found}. Put cells with commas in quotes.")
                yield reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UserError(f"{table}, line {reader.line_num} is not valid CSV: {error}. Correct the line.") from error


def _header(table: Path, cells: list[str]) -> list[str]:
    header = [name.strip() for name in cells]
    if _path_column(header) is None:
        found = shown(", ".join(header)) or "nothing"
        raise UserError(f"{table} has no column file_name; its first line has: {found}. Name one column file_name.")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise UserError(f"{table} has two columns {shown(twice[0])!r}, expected each name once. Rename one of them.")
    return header


def _jsonl_lines(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8-sig") as file:
        yield from json_lines(file, table)
