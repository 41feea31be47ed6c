"""Claims about metadata tables that a scan does not show; ``test_scan.py`` has the rest."""

import json
from pathlib import Path

import pytest

from musicgen_ft.corpus.tables import json_object, read_tables, shown, text_fields
from musicgen_ft.errors import UserError


def titles(folder: Path) -> dict[str, str | None]:
    return {path.name: row.labels.title for path, row in read_tables([folder]).items()}


def fails(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as failure:
        read_tables([folder])
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("title,file_name", "T,a.wav"),
        ("title,audio_file_name,cover_file_name", "T,a.wav,a.jpg"),
        ("title,cover_file_name,file_name", "T,a.jpg,a.wav"),
        ("title,song_file_name", "T,a.wav"),
    ],
)
def test_the_column_of_the_audio(tmp_path: Path, header: str, cells: str) -> None:
    (tmp_path / "metadata.csv").write_text(f"{header}\n{cells}\n")
    assert titles(tmp_path) == {"a.wav": "T"}
    row = dict(zip(header.split(","), cells.split(","), strict=True))
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert titles(tmp_path) == {"a.wav": "T"}


def test_two_columns_that_could_be_the_audio(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("mix_file_name,cover_file_name\na.wav,a.jpg\n")
    fails(tmp_path, "has no column file_name; its first line has: mix_file_name, cover_file_name")


def test_a_name_of_two_columns(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,title,title\na.wav,one,two\n")
    fails(tmp_path, r"metadata\.csv has two columns 'title', expected each name once")


def test_columns_without_a_name_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(",file_name,,title\n0,a.wav,x,T\n")
    (row,) = read_tables([tmp_path]).values()
    assert row.fields == {"title": "T"}


def test_a_table_in_parquet_is_refused_with_what_converts_it(tmp_path: Path) -> None:
    (tmp_path / "metadata.parquet").touch()
    fails(tmp_path, r"metadata\.parquet cannot be read, expected metadata\.csv.*read_parquet\('metadata\.parquet'\)")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.wav", "title": "T"}')
    assert titles(tmp_path) == {"a.wav": "T"}


@pytest.mark.parametrize("file_name", ["../a.wav", "x/../../a.wav"])
def test_a_path_that_leaves_its_folder_is_what_it_leads_to(tmp_path: Path, file_name: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/metadata.csv").write_text(f"file_name\n{file_name}\n")
    (found,) = read_tables([tmp_path / "x"])
    assert found == tmp_path / "a.wav"  # which the scan refuses where it is outside of the corpus


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"file_name": "a.wav", "bpm": 1' + "0" * 400 + "}", "line 1 holds a value that cannot be read"),
        ('{"file_name": "a.wav", "title": "\\ud83d"}', "line 1 is not valid JSON: .*surrogates"),
        ('{"file_name": "a\\nb.wav", "split": "o\\ndd"}', r"line 1: split is 'o\\\\ndd', expected one of"),
    ],
)
def test_a_line_that_would_break_later_is_refused_here(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(line)
    fails(tmp_path, reason)


def test_text_fields_are_scalars_by_lower_case_names() -> None:
    values = {
        " Album ": " A ",
        "n": 3,
        "x": 0.5,
        "yes": True,
        "none": None,
        "list": ["a"],
        "nan": float("nan"),
        "": "a",
    }
    assert text_fields(values) == {"album": "A", "n": "3", "x": "0.5", "yes": "true"}


def test_json_may_hold_whole_surrogate_pairs() -> None:
    assert json_object('{"title": "\\ud83c\\udfb5"}') == {"title": "🎵"}


def test_shown_is_one_short_line() -> None:
    assert shown("é\n\x00") == "\\xe9\\n\\x00"
    assert shown("é" * 400) == "é" * 300 + "..."
