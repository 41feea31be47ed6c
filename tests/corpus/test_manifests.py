"""Claims about audiocraft's manifests as a corpus."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musicgen_ft.corpus.scan import Record, scan_corpus
from musicgen_ft.errors import UserError

WriteTrack = Callable[..., Path]


def write_manifest(path: Path, *lines: dict[str, Any] | str) -> Path:
    """A manifest as audiocraft writes it, gzipped by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = {"duration": 0.1, "sample_rate": 48000, "amplitude": None, "weight": None, "info_path": None}
    values = [{"path": line, **rest} if isinstance(line, str) else line for line in lines]
    data = "".join(json.dumps(value) + "\n" for value in values).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def paths(records: list[Record]) -> list[str]:
    return [record.relative_path for record in records]


def fails(corpus: Path, *parts: str) -> None:
    with pytest.raises(UserError, match=".*".join(map(re.escape, parts))) as failure:
        scan_corpus(corpus)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "Mine.JSONL"])
def test_a_manifest_is_a_corpus(tmp_path: Path, write_track: WriteTrack, name: str) -> None:
    a = write_track("music/techno/a.flac", title="tag", artist="tag")
    b = write_track("music/b.mp3")
    write_track("music/unlisted.wav")
    a.with_suffix(".json").write_text('{"title": "Sidecar", "bpm": 120}')  # audiocraft's place for labels
    line = {"path": str(b), "duration": 0.1, "sample_rate": 48000, "weight": 2.5, "genre": "House", "artist": "line"}
    found = {record.relative_path: record for record in scan_corpus(write_manifest(tmp_path / name, str(a), line))}
    assert list(found) == ["b.mp3", "techno/a.flac"]
    assert {record.path for record in found.values()} == {a, b}
    assert {record.split for record in found.values()} == {None}
    first, second = found["techno/a.flac"].labels, found["b.mp3"].labels
    assert (first.title, first.artist, first.bpm, first.genre) == ("Sidecar", "tag", 120.0, "techno")
    assert (second.genre, second.artist) == ("house", "line")
    assert found["b.mp3"].fields["weight"] == "2.5"


def test_relative_paths_start_at_the_current_folder_as_in_audiocraft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "here/music/a.wav", "egs/music/a.wav")
    monkeypatch.chdir(tmp_path / "here")
    (record,) = scan_corpus(write_manifest(tmp_path / "egs/data.jsonl", "music/../music/a.wav"))
    assert record.path == tmp_path / "here/music/a.wav"


@pytest.mark.parametrize("place", ["egs/mine/data.jsonl", "data.jsonl"])
def test_relative_paths_may_start_at_the_manifest_or_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    touch(tmp_path, "music/a.wav", "elsewhere/x.txt")
    manifest = write_manifest(tmp_path / place, "music/lost.wav", "music/a.wav")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [record.path for record in scan_corpus(manifest)] == [tmp_path / "music/a.wav", tmp_path / "music/lost.wav"]
    monkeypatch.chdir(tmp_path)
    assert scan_corpus(Path(place))[0].path == tmp_path / "music/a.wav"


def test_a_folder_of_manifests_of_both_sides_tells_the_split(tmp_path: Path) -> None:
    touch(tmp_path, *(f"music/{name}.wav" for name in "abcd"))
    egs = tmp_path / "egs"
    music = tmp_path / "music"
    write_manifest(egs / "train/data.jsonl.gz", str(music / "a.wav"), str(music / "b.wav"))
    write_manifest(egs / "evaluate/data.jsonl", str(music / "c.wav"), str(music / "d.wav"))
    write_manifest(egs / "generate/data.jsonl", str(music / "d.wav"))
    found = {record.relative_path: record.split for record in scan_corpus(egs)}
    assert found == {"a.wav": "train", "b.wav": "train", "c.wav": "valid", "d.wav": "valid"}
    write_manifest(egs / "evaluate/data.jsonl", str(music / "a.wav"))
    fails(egs, "train/data.jsonl.gz, line 1: ", "a.wav is listed for train, and for valid in", "evaluate/data.jsonl")


def test_a_manifest_in_the_folder_itself_goes_before_those_below(tmp_path: Path) -> None:
    touch(tmp_path, "music/a.wav", "music/b.wav")
    write_manifest(tmp_path / "egs/train/data.jsonl", str(tmp_path / "music/a.wav"))
    write_manifest(tmp_path / "egs/data.jsonl", {"path": str(tmp_path / "music/b.wav"), "split": "test"})
    (record,) = scan_corpus(tmp_path / "egs")
    assert (record.relative_path, record.split) == ("b.wav", "valid")


def test_a_manifest_among_audio_is_passed_over_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.wav", "b.wav")
    write_manifest(tmp_path / "data.jsonl", "a.wav")
    assert paths(scan_corpus(tmp_path)) == ["a.wav", "b.wav"]
    assert "data.jsonl is passed over, since its folder holds audio" in caplog.text
    assert paths(scan_corpus(tmp_path / "data.jsonl")) == ["a.wav"]


def test_ids_stay_when_the_manifest_grows(tmp_path: Path) -> None:
    touch(tmp_path, "x/techno/a.wav", "x/techno/b.wav", "y/c.wav")
    manifest = tmp_path / "data.jsonl"
    before = {record.path: record.id for record in scan_corpus(write_manifest(manifest, "x/techno/a.wav"))}
    grown = ("y/c.wav", "x/techno/b.wav", "x/techno/a.wav", "x/techno/a.wav")
    records = scan_corpus(write_manifest(manifest, *grown))
    after = {record.path: record.id for record in records}
    assert paths(records) == ["x/techno/a.wav", "x/techno/b.wav", "y/c.wav"]  # a file listed twice is one track
    assert after.items() > before.items()
    assert len(set(after.values())) == 3
    assert after[tmp_path / "x/techno/a.wav"].startswith("techno-a-")


def test_a_broken_sidecar_is_a_problem_of_its_track_only(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "b.wav", "a.json")
    broken, good = scan_corpus(write_manifest(tmp_path / "data.jsonl", "a.wav", "b.wav"))
    assert (broken.problem or "").startswith("its labels cannot be read: a.json is not valid JSON")
    assert good.problem is None


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["lists no tracks, expected lines like {"]),
        (b'{"path": "a.wav"}\n{oops\n', ["data.jsonl, line 2 is not valid JSON"]),
        (b'{"path": "a.wav"}\n\n["a.wav"]\n', ["data.jsonl, line 3 holds a JSON list, expected an object"]),
        (b'{"file_name": "a.wav"}', ["data.jsonl, line 1 has no path, expected a line like {"]),
        (b'{"path": "music.zip:a.wav"}', ["line 1: music.zip:a.wav lies in an archive, expected a file. Unpack it"]),
        (b'{"path": "a.wav", "info_path": "i.zip:a.json"}', ["line 1: i.zip:a.json lies in an archive"]),
        (b'{"path": "a.wav", "split": "odd"}', ["line 1: split is 'odd', expected one of train"]),
        (b'{"path": "a\\u0000.wav"}', ["line 1: a\\x00.wav is not printable UTF-8"]),
        (b'{"path": "/"}', ["line 1: / is a folder, expected the path of an audio file"]),
        (b'{"path": "lost.wav"}', ["none of its files is there, such as lost.wav", "run from the folder that they"]),
        (
            b'{"path": "/nowhere/lost.wav"}',
            ["none of its files is there, such as /nowhere/lost.wav. Correct the paths."],
        ),
        (b'{"path": "' + b"x" * 400 + b'.wav"}', ["none of its files is there, such as xxx", "..."]),
        (b'{"path": "caf\xe9"}', ["data.jsonl is not UTF-8 text"]),
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    touch(tmp_path, "a.wav")
    (tmp_path / "data.jsonl").write_bytes(content)
    fails(tmp_path / "data.jsonl", *parts)


def test_of_many_files_the_first_are_looked_for(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "data.jsonl", *(f"{number}.wav" for number in range(200)))
    fails(manifest, "none of its first 100 files is there, such as 0.wav")
    touch(tmp_path, "99.wav")
    assert len(scan_corpus(manifest, read_tags=False)) == 200  # whoever decodes will name the others


@pytest.mark.parametrize("cut", [0.5, 2.0])
def test_a_gzip_file_that_is_none_or_cut(tmp_path: Path, cut: float) -> None:
    manifest = write_manifest(tmp_path / "data.jsonl.gz", *("a.wav" * 9,) * 9)
    data = manifest.read_bytes()
    manifest.write_bytes(data[: int(len(data) * cut)] if cut < 1 else b"plain text")
    fails(manifest, "data.jsonl.gz is not a whole gzip file", "Write it again")


def test_two_manifests_in_one_folder(tmp_path: Path) -> None:
    write_manifest(tmp_path / "data.jsonl", "a.wav")
    write_manifest(tmp_path / "data.jsonl.gz", "a.wav")
    fails(tmp_path, "holds both data.jsonl and data.jsonl.gz, expected one of them")


def test_a_file_that_is_no_manifest(tmp_path: Path) -> None:
    touch(tmp_path, "corpus.csv")
    fails(tmp_path / "corpus.csv", "corpus.csv is a file, expected the folder of a corpus, or audiocraft's manifest")
    fails(tmp_path / "data.jsonl", "data.jsonl does not exist")
