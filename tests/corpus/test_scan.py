"""Claims about what is found in a corpus folder, and about every mistake in it."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.scan import AUDIO_SUFFIXES, Record, scan_corpus
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


def splits(folder: Path, valid_fraction: float) -> dict[str, str]:
    return {record.relative_path: record.split for record in scan_corpus(folder, valid_fraction=valid_fraction)}


def fails(folder: Path, *parts: str, valid_fraction: float = 0.1) -> None:
    """The scan fails with one line that holds the parts in this order."""
    with pytest.raises(UserError, match=".*".join(map(re.escape, parts))) as failure:
        scan_corpus(folder, valid_fraction=valid_fraction)
    assert "\n" not in str(failure.value)


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


def test_the_split_keeps_to_its_fraction_and_stays_when_the_corpus_grows(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}.wav" for number in range(500)))
    before = splits(tmp_path, 0.2)
    assert list(before.values()).count("valid") / 500 == pytest.approx(0.2, abs=0.07)  # 4 standard deviations
    touch(tmp_path, *(f"new/{number}.wav" for number in range(50)))
    assert splits(tmp_path, 0.2).items() > before.items()
    wider = splits(tmp_path, 0.4)
    assert all(wider[path] == "valid" for path, split in before.items() if split == "valid")


@pytest.mark.parametrize("fraction", [1e-9, 0.1, 0.999999999])
def test_of_two_tracks_one_is_trained_on_and_one_validated_with(tmp_path: Path, fraction: float) -> None:
    touch(tmp_path, "a.wav", "b.wav")
    assert set(splits(tmp_path, fraction).values()) == {"train", "valid"}


def test_a_single_track_is_trained_on(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    assert splits(tmp_path, 0.999999999) == {"a.wav": "train"}


def test_a_fraction_of_zero_validates_with_nothing(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}.wav" for number in range(20)))
    assert set(splits(tmp_path, 0).values()) == {"train"}


def test_explicit_splits_are_kept(tmp_path: Path) -> None:
    names = ["train", "valid", "validation", "val", "Test"]
    touch(tmp_path, *(f"{name}.wav" for name in names), "free.wav")
    (tmp_path / "metadata.csv").write_text("file_name,split\n" + "".join(f"{name}.wav,{name}\n" for name in names))
    found = splits(tmp_path, 0)
    assert found.pop("free.wav") == found.pop("train.wav") == "train"
    assert set(found.values()) == {"valid"}


def test_a_free_track_is_trained_on_where_all_others_are_for_validation(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "b.wav")
    (tmp_path / "metadata.csv").write_text("file_name,split\na.wav,valid\n")
    assert splits(tmp_path, 0.999999999) == {"a.wav": "valid", "b.wav": "train"}


# Mistakes


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


def test_a_fraction_out_of_range(tmp_path: Path) -> None:
    fails(tmp_path, "valid_fraction is 1, expected a number in [0, 1)", valid_fraction=1)


@pytest.mark.parametrize("name", ["a\nb.wav", "a\udcff.wav"])
def test_a_name_that_is_not_printable_utf8(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    fails(tmp_path, "its name is not printable UTF-8", "Rename it")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.json", b"{'genre': 1}", ["a.json is not valid JSON", "line 1 column 2"]),
        ("a.json", b'{"genre": "\xff"}', ["a.json is not valid JSON"]),
        ("a.json", b'["x"]', ["a.json holds a JSON list, expected an object of labels"]),
        ("a.txt", b"caf\xe9", ["a.txt is not UTF-8 text", "Save it as UTF-8"]),
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
        ("metadata.csv", b"file_name,split\na.wav,dev\n", ["line 2: split is 'dev', expected one of train, valid"]),
        ("metadata.jsonl", b'{"file_name": "a.wav"}\n{oops\n', ["metadata.jsonl, line 2 is not valid JSON"]),
        ("metadata.jsonl", b'"a.wav"\n', ["metadata.jsonl, line 1 is a JSON str, expected an object"]),
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
