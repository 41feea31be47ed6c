"""Claims about what is found in a corpus folder, and about every mistake in it."""

import json
import logging
import os
import re
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest

from musicgen_ft.corpus import scan
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.scan import AUDIO_SUFFIXES, Record, scan_corpus, with_tags
from musicgen_ft.errors import UserError

WriteTrack = Callable[..., Path]


def touch(folder: Path, *names: str) -> None:
    """Files with an audio suffix are tracks to the scan, whatever they hold."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def scan_one(folder: Path) -> Record:
    (record,) = scan_corpus(folder)
    return record


def splits(folder: Path) -> dict[str, str | None]:
    return {record.relative_path: record.split for record in scan_corpus(folder)}


def problem(folder: Path) -> str:
    """What is wrong with the labels of the only track, in one line."""
    found = scan_one(folder).problem
    assert found is not None and "\n" not in found and str(folder) not in found
    return found


def fails(folder: Path, *parts: str) -> None:
    """The scan fails with one line that holds the parts in this order."""
    with pytest.raises(UserError, match=".*".join(map(re.escape, parts))) as failure:
        scan_corpus(folder)
    assert "\n" not in str(failure.value)


def on_listing(monkeypatch: pytest.MonkeyPatch, folder: Path, error: OSError) -> None:
    """Listing the folder fails; root may list what chmod forbids."""
    scandir = os.scandir

    def failing(path: Path) -> object:
        if path == folder:
            raise error
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)


# Which tracks there are


def test_tracks_come_sorted_with_absolute_and_relative_path(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.wav", "b/1.MP3", "a.flac", "b.ogg", "notes.md", "b/cover.jpg")
    records = scan_corpus(tmp_path)
    assert [record.relative_path for record in records] == ["a.flac", "b.ogg", "b/1.MP3", "b/2.wav"]
    assert [record.path for record in records] == [tmp_path / record.relative_path for record in records]


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_every_audio_suffix_counts_in_any_case(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, f"a{suffix}", f"b{suffix.upper()}")
    assert len(scan_corpus(tmp_path)) == 2


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", ".a.wav", "._a.wav", ".trash/b.wav")
    assert scan_one(tmp_path).relative_path == "a.wav"


def test_links_are_followed_and_loops_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "elsewhere/deep/b.wav", "corpus/real/a.wav")
    corpus = tmp_path / "corpus"
    (corpus / "file.wav").symlink_to(tmp_path / "elsewhere/deep/b.wav")
    (corpus / "folder").symlink_to(tmp_path / "elsewhere")
    (corpus / "again").symlink_to(corpus / "real")
    (corpus / "real/up").symlink_to(corpus)
    (corpus / "real/gone.wav").symlink_to(tmp_path / "gone.wav")
    assert [record.relative_path for record in scan_corpus(corpus)] == ["file.wav", "folder/deep/b.wav", "real/a.wav"]
    assert "gone.wav is skipped: it leads nowhere" in caplog.text


def test_a_relative_folder_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "techno", "a.wav")
    monkeypatch.chdir(tmp_path / "techno")
    record = scan_one(Path())
    assert record.path == tmp_path / "techno/a.wav"
    assert record.labels.genre == "techno"


# Ids


def test_ids_are_unique_stable_and_of_few_characters(tmp_path: Path) -> None:
    names = [
        "A b/Ünï.cödé (Live).wav",
        "a-b/uni-code-live.wav",
        "日本.wav",
        "日本.mp3",
        "x" * 90 + "/" + "y" * 90 + ".wav",
    ]
    touch(tmp_path, *names)
    ids = {record.relative_path: record.id for record in scan_corpus(tmp_path)}
    assert len(set(ids.values())) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_-]{1,60}-[0-9a-f]{12}", id_) for id_ in ids.values())
    assert ids["A b/Ünï.cödé (Live).wav"] == "a-b-uni-code-live-79c60f8fe3c4"
    assert ids["日本.wav"].startswith("track-")
    touch(tmp_path, "new.wav")
    assert {record.relative_path: record.id for record in scan_corpus(tmp_path)}.items() > ids.items()


# Labels


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".m4a"])
def test_embedded_tags_are_labels(tmp_path: Path, write_track: WriteTrack, suffix: str) -> None:
    write_track(f"folder/a{suffix}", title="Night", artist="Me", genre="Deep House", comment="Visit http://shop")
    labels = scan_one(tmp_path).labels
    assert labels == Labels(title="Night", artist="Me", genre="deep house")


@pytest.mark.parametrize(
    ("suffix", "tags"),
    [
        (".mp3", {"TBPM": "124", "TKEY": "Am"}),
        (".flac", {"BPM": "124", "INITIALKEY": "Am"}),
        (".ogg", {"bpm": "124", "key": "Am"}),
    ],
)
def test_tempo_and_key_are_read_from_tags(
    tmp_path: Path, write_track: WriteTrack, suffix: str, tags: dict[str, str]
) -> None:
    write_track(f"a{suffix}", **tags)
    labels = scan_one(tmp_path).labels
    assert (labels.bpm, labels.key) == (124.0, "am")


def test_each_field_comes_from_the_first_source_that_has_it(tmp_path: Path, write_track: WriteTrack) -> None:
    folder = tmp_path / "drum_and_bass"
    write_track("drum_and_bass/a.flac", title="tag", artist="tag", bpm="1", description="tag", mood="tag", genre="tag")
    (folder / "a.json").write_text(json.dumps({"title": "json", "artist": "", "bpm": "", "key": "json"}))
    (folder / "a.txt").write_text("text\n")
    (tmp_path / "metadata.csv").write_text(
        "file_name,title,artist,description,bpm,key\ndrum_and_bass/a.flac,table,table,table,,x\n"
    )
    expected = Labels(
        title="json", key="json", description="text", artist="table", bpm=1.0, moods=("tag",), genre="tag"
    )
    assert scan_one(tmp_path).labels == expected


def test_the_name_of_the_folder_is_the_genre_of_last_resort(tmp_path: Path) -> None:
    touch(tmp_path / "My Songs", "a.wav", "Electronic/Drum_and_Bass/b.wav")
    inside, below = scan_corpus(tmp_path / "My Songs")[::-1]
    assert (inside.labels, below.labels) == (Labels(genre="my songs"), Labels(genre="drum and bass"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", '\ufefffile_name,caption,bpm\r\nx/a.wav,"Calm, slow.",90\r\n\r\n'),
        ("x/metadata.csv", 'caption, bpm, file_name\n "Calm, slow.", 90, a.wav'),
        ("metadata.jsonl", '{"file_name": "./x/a.wav", "caption": "Calm, slow.", "bpm": 90}\n\n'),
        ("x/metadata.jsonl", '\ufeff{"bpm": "90", "description": "Calm, slow.", "file_name": "a.wav"}'),
    ],
)
def test_a_metadata_table_gives_labels(tmp_path: Path, name: str, content: str) -> None:
    touch(tmp_path, "x/a.wav", "x/unlisted.wav")
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    listed, unlisted = scan_corpus(tmp_path)
    assert listed.labels.bpm == 90.0
    assert listed.labels.description == "Calm, slow."
    assert unlisted.labels == Labels(genre="x")


# Split


def test_explicit_splits_are_kept(tmp_path: Path) -> None:
    names = ["train", "valid", "validation", "val", "Test"]
    touch(tmp_path, *(f"{name}.wav" for name in names), "free.wav")
    (tmp_path / "metadata.csv").write_text("file_name,split\n" + "".join(f"{name}.wav,{name}\n" for name in names))
    found = splits(tmp_path)
    assert found.pop("free.wav") is None
    assert found.pop("train.wav") == "train"
    assert set(found.values()) == {"valid"}


@pytest.mark.parametrize("top", ["", "data/"])
def test_folders_named_like_both_sides_tell_the_split_and_no_genre(tmp_path: Path, top: str) -> None:
    names = [f"{top}{name}" for name in ("Train/a.wav", "Train/techno/b.wav", "validation/c.wav", "test/d.wav")]
    touch(tmp_path, *names, "free/train/e.wav")
    found = {record.relative_path: (record.split, record.labels.genre) for record in scan_corpus(tmp_path)}
    assert found == {
        names[0]: ("train", None),
        names[1]: ("train", "techno"),
        names[2]: ("valid", None),
        names[3]: ("valid", None),
        "free/train/e.wav": (None, None),
    }


@pytest.mark.parametrize("only", ["train", "test"])
def test_a_folder_of_one_side_tells_no_split(tmp_path: Path, only: str) -> None:
    touch(tmp_path, f"{only}/a.wav", "techno/b.wav")
    assert set(splits(tmp_path).values()) == {None}


def test_a_table_goes_before_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.wav", "train/b.wav", "test/c.wav")
    (tmp_path / "train/metadata.csv").write_text("file_name,split\na.wav,valid\nb.wav,\n")
    assert splits(tmp_path) == {"test/c.wav": "valid", "train/a.wav": "valid", "train/b.wav": "train"}


# Fields


def test_fields_are_all_that_is_told_as_text(tmp_path: Path, write_track: WriteTrack) -> None:
    write_track("x/a.flac", album="tag", album_artist="Tag", genre="tag", comment="no")
    (tmp_path / "x/a.json").write_text(
        '{"Album": "Sidecar", "year": 1999, "live": true, "gain": -1.5, "n": NaN, "moods": ["a"], "artist": null}'
    )
    (tmp_path / "x/a.txt").write_text(" text\n")
    (tmp_path / "metadata.csv").write_text("file_name,split,Collection,album,empty\nx/a.flac,train,Loft,table,\n")
    assert scan_one(tmp_path).fields == {
        **{"album": "Sidecar", "year": "1999", "live": "true", "gain": "-1.5", "description": "text"},
        **{"collection": "Loft", "album_artist": "Tag", "genre": "tag"},
    }


def test_tags_that_come_later_take_their_place(tmp_path: Path, write_track: WriteTrack) -> None:
    tags = {"title": "tag", "artist": "tag", "genre": "Tag", "description": "tag", "comment": "no"}
    write_track("techno/a.flac", **tags)
    (tmp_path / "techno/a.json").write_text('{"title": "json"}')
    (tmp_path / "techno/a.txt").write_text("text")
    (tmp_path / "metadata.csv").write_text("file_name,artist\ntechno/a.flac,table\n")
    (before,) = scan_corpus(tmp_path, read_tags=False)
    assert (before.labels.genre, before.is_genre_of_folder) == ("techno", True)
    after = with_tags(before, tags)
    assert after == scan_one(tmp_path) == with_tags(after, tags)
    assert after.labels == Labels(title="json", artist="table", genre="tag", description="text")
    assert with_tags(before, {"comment": "no"}) == before


def test_a_genre_that_was_told_stays_when_tags_come(tmp_path: Path) -> None:
    touch(tmp_path, "techno/a.wav", "house/b.wav")
    (tmp_path / "metadata.csv").write_text("file_name,genre\ntechno/a.wav,Techno\n")
    house, techno = (with_tags(record, {"genre": "tag"}) for record in scan_corpus(tmp_path, read_tags=False))
    assert (house.labels.genre, techno.labels.genre) == ("tag", "techno")


def test_a_file_is_read_by_its_content_not_by_its_suffix(tmp_path: Path, write_track: WriteTrack) -> None:
    write_track("x/a.flac", title="Night").rename(tmp_path / "x/a.mp3")
    (tmp_path / "x/b.wav").write_text("some text")
    flac, text = scan_corpus(tmp_path)
    assert (flac.labels.title, text.labels.title) == ("Night", None)


# Names


def test_names_that_differ_in_normal_form_only_are_two_tracks(tmp_path: Path) -> None:
    touch(tmp_path, "caf\u00e9.wav", "cafe\u0301.wav")
    (tmp_path / "metadata.csv").write_text("file_name,title\ncaf\u00e9.wav,one\ncafe\u0301.wav,two\n")
    two, one = scan_corpus(tmp_path)
    assert (one.labels.title, two.labels.title) == ("one", "two")
    assert one.id != two.id


@pytest.mark.parametrize("written", ["x/caf\u00e9.wav", "x\\cafe\u0301.wav", "x\\caf\u00e9.wav"])
def test_a_table_may_write_a_name_in_another_normal_form_or_with_backslashes(tmp_path: Path, written: str) -> None:
    touch(tmp_path, "x/cafe\u0301.wav", "x/b.wav")
    (tmp_path / "metadata.csv").write_text(f"file_name,title\nx/b.wav,b\n{written},found\n", encoding="utf-8")
    assert [record.labels.title for record in scan_corpus(tmp_path)] == ["b", "found"]


def test_a_track_that_a_table_writes_in_two_ways(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.wav")
    for one, other in permutations(["x/a.wav", "x\\a.wav"]):
        (tmp_path / "metadata.csv").write_text(f"file_name\n{one}\n{other}\n")
        fails(tmp_path, "metadata.csv, line 3: ", "a.wav is listed already in", "metadata.csv, line 2")


def test_the_longest_names(tmp_path: Path) -> None:
    name = "é" * 125 + "x.wav"  # 255 bytes; its sidecar's name would have 256
    touch(tmp_path, name, "a.wav")
    (tmp_path / "metadata.csv").write_text(f"file_name,title\n{name},long\n", encoding="utf-8")
    assert [record.labels.title for record in scan_corpus(tmp_path)] == [None, "long"]
    (tmp_path / "metadata.csv").write_text(f"file_name\n{'x' * 400}.wav\n")
    fails(tmp_path, "metadata.csv, line 2: ", "is not there")


def test_equal_ids_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "HASH_LENGTH", 0)
    touch(tmp_path, "a b.wav", "a-b.wav")
    fails(tmp_path, "a b.wav and ", "a-b.wav get the same id a-b-. Rename one of them")


# What one track suffers from


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.json", b"{'genre': 1}", ["a.json is not valid JSON", "line 1 column 2", "Correct or remove the file"]),
        ("a.json", b"", ["a.json is not valid JSON: Expecting value"]),
        ("a.json", b'{"genre": "\xff"}', ["a.json is not UTF-8 text"]),
        ("a.json", b'["x"]', ["a.json holds a JSON list, expected an object"]),
        ("a.json", b'{"title": "\\ud83d"}', ["a.json is not valid JSON", "surrogates not allowed"]),
        ("a.json", b"[" * 100_000, ["a.json is not valid JSON", "recursion"]),
        ("a.json", b'{"bpm": ' + b"9" * 5000 + b"}", ["a.json is not valid JSON", "4300 digits"]),
        ("a.json", b'{"bpm": ' + b"9" * 400 + b"}", ["a.json holds a value that cannot be read"]),
        ("a.txt", b"caf\xe9", ["a.txt is not UTF-8 text", "Save it as UTF-8"]),
    ],
)
def test_a_sidecar_that_cannot_be_read_is_a_problem_of_its_track_only(
    tmp_path: Path, name: str, content: bytes, parts: list[str]
) -> None:
    touch(tmp_path, "a.wav")
    (tmp_path / name).write_bytes(content)
    assert re.search(".*".join(map(re.escape, ["its labels cannot be read: ", *parts])), problem(tmp_path))
    touch(tmp_path, "b.wav")
    (tmp_path / "b.json").write_text('{"title": "good"}')
    _, good = scan_corpus(tmp_path)
    assert (good.problem, good.labels.title) == (None, "good")


def test_a_folder_named_like_a_sidecar_is_none(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "a.json/notes", "a.txt/notes")
    assert scan_one(tmp_path).problem is None


def test_a_sidecar_without_permission_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *args: object, **kwargs: object) -> str:  # root may read what chmod forbids
        raise PermissionError(13, "Permission denied", str(self))

    touch(tmp_path, "a.wav", "a.txt")
    monkeypatch.setattr(Path, "read_text", denied)
    assert problem(tmp_path) == "its labels cannot be read: a.txt cannot be read: Permission denied"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_what_is_no_file_is_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.wav")
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would wait for ever
    (tmp_path / "itself.wav").symlink_to(tmp_path / "itself.wav")
    assert scan_one(tmp_path).relative_path == "a.wav"
    assert "pipe.wav is skipped: it is no file" in caplog.text
    assert "itself.wav is skipped: it leads nowhere" in caplog.text


def test_a_folder_that_vanishes_on_the_way_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.wav", "x/b.wav")
    on_listing(monkeypatch, tmp_path / "x", FileNotFoundError(2, "No such file or directory"))
    assert scan_one(tmp_path).relative_path == "a.wav"
    assert "x is skipped: it is gone since its parent was listed" in caplog.text


# Mistakes


@pytest.mark.parametrize(
    ("error", "reason"),
    [(PermissionError(13, "Permission denied"), "permission denied"), (OSError(5, "I/O error"), "i/o error")],
)
def test_a_folder_that_cannot_be_read_ends_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, reason: str
) -> None:
    touch(tmp_path, "a.wav", "x/b.wav")
    on_listing(monkeypatch, tmp_path / "x", error)
    fails(tmp_path, f"x cannot be read: {reason}. Give yourself access to it.")


@pytest.mark.parametrize(
    ("names", "found", "remedy"),
    [
        (["data/train-00000-of-00001.parquet"], "1 .parquet file", "cast_column('audio', Audio(decode=False))"),
        (["data/train.zip", "data/test.ZIP"], "2 .zip files", "Unpack them first"),
    ],
)
def test_audio_inside_of_other_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str], found: str, remedy: str
) -> None:
    touch(tmp_path, *names)
    fails(tmp_path, f"{tmp_path} holds no audio but {found}, expected files that end in .wav", remedy)
    touch(tmp_path, "a.wav")
    assert scan_one(tmp_path).relative_path == "a.wav"
    assert f"passed over {found}; audio in them counts once they are unpacked" in caplog.text


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    fails(tmp_path / "x", f"{tmp_path / 'x'} does not exist, expected the folder of a corpus")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    fails(tmp_path / "a.wav", "a.wav is a file, expected the folder of a corpus")


def test_an_empty_folder(tmp_path: Path) -> None:
    touch(tmp_path, ".hidden")
    fails(tmp_path, f"{tmp_path} is empty, expected files that end in .wav .flac")


def test_a_folder_without_audio(tmp_path: Path) -> None:
    touch(tmp_path, "notes.md", "sub/a.mid")
    fails(tmp_path, f"{tmp_path} holds no audio, expected files that end in .wav .flac", ".wma")


@pytest.mark.parametrize("name", ["a\nb.wav", "a\udcff.wav"])
def test_a_name_that_is_not_printable_utf8(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    fails(tmp_path, "its name is not printable UTF-8", "Rename it")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("metadata.csv", b"", ["metadata.csv has no column file_name; its first line has: nothing"]),
        (
            "metadata.csv",
            b"file,bpm\na.wav,1\n",
            ["no column file_name; its first line has: file, bpm"],
        ),
        ("metadata.csv", b"file_name,bpm\na.wav,1,2\n", ["metadata.csv, line 2 has 3 cells, the header has 2"]),
        ("metadata.csv", b"file_name,bpm\na.wav\n", ["metadata.csv, line 2 has 1 cells, the header has 2"]),
        ("metadata.csv", b'file_name,title\na.wav,"x"y\n', ["metadata.csv, line 2 is not valid CSV"]),
        ("metadata.csv", b"file_name,title\na.wav,caf\xe9\n", ["metadata.csv is not UTF-8 text", "Save it as UTF-8"]),
        ("metadata.csv", b"file_name,bpm\n,1\n", ["metadata.csv, line 2 has no file_name"]),
        (
            "metadata.csv",
            b"file_name\na.wav\n./a.wav\n",
            ["line 3: a.wav is listed already in", "line 2"],
        ),
        ("metadata.csv", b"file_name\na.wav\nb.wav\n", ["metadata.csv, line 3: ", "b.wav is not there"]),
        ("metadata.csv", b"file_name\na.md\n", ["metadata.csv, line 2: ", "a.md is not an audio file of this corpus"]),
        (
            "metadata.csv",
            b"file_name,split\na.wav,odd\n",
            ["line 2: split is 'odd', expected one of train,"],
        ),
        ("metadata.jsonl", b'{"file_name": "a.wav"}\n{oops\n', ["metadata.jsonl, line 2 is not valid JSON"]),
        ("metadata.jsonl", b'"a.wav"\n', ["metadata.jsonl, line 1 holds a JSON str, expected an object"]),
        ("metadata.jsonl", b'\n{"bpm": 1}\n', ["metadata.jsonl, line 2 has no file_name"]),
        ("metadata.jsonl", b'{"file_name": "a\xff"}\n', ["metadata.jsonl is not UTF-8 text"]),
    ],
)
def test_a_file_of_labels_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    touch(tmp_path, "a.wav", "a.md")
    (tmp_path / name).write_bytes(content)
    fails(tmp_path, *parts)


def test_two_tables_in_one_folder(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.wav", "x/metadata.csv", "x/metadata.jsonl")
    fails(tmp_path, f"{tmp_path / 'x'} holds both metadata.csv and metadata.jsonl, expected one of them")


def test_a_track_listed_in_two_tables(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.wav")
    (tmp_path / "metadata.csv").write_text("file_name\nx/a.wav\n")
    (tmp_path / "x/metadata.csv").write_text("file_name\na.wav\n")
    fails(tmp_path, "x/metadata.csv, line 2: a.wav is listed already in", "metadata.csv, line 2")


def test_a_broken_audio_file_is_still_a_track(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.mp3").write_bytes(b"no music")
    with caplog.at_level(logging.DEBUG):
        assert scan_one(tmp_path).relative_path == "a.mp3"
    assert not caplog.records
