"""``prepare`` killed, run again, run by many, run on a corpus that changed: no track encoded twice, the same bytes."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from musicgen_ft.cli import recipe_path
from musicgen_ft.corpus import surveying
from musicgen_ft.corpus.survey import survey
from musicgen_ft.files import write_json
from musicgen_ft.shards import build, job, work, writer
from musicgen_ft.shards.encode import Encoded, Encoder
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.track import TrackMeta
from musicgen_ft.shards.work import WorkFolder, read_tracks

# What the fixtures of conftest.py give.
Command = Callable[..., Any]
Tune = Callable[..., npt.NDArray[np.float32]]
WriteAudio = Callable[..., Path]
BytesOf = Callable[[Path], dict[str, str]]

OPTIONS = ("--workers", 1, "--valid_fraction", 0.4)
SHARDS = ("train-000000.tar", "valid-000000.tar")


class KilledError(BaseException):
    """Stands in for SIGKILL: no handler of ours catches it."""


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory, tune: Tune, write_audio: WriteAudio) -> Path:
    """Six tracks of different lengths; not to be changed."""
    folder = tmp_path_factory.mktemp("prepare") / "music"
    for number in range(6):
        write_audio(folder / f"{number}.wav", tune(number, 1.25 + number / 8))
    return folder


@pytest.fixture(scope="module")
def whole(music: Path, command: Command) -> Path:
    """Its shards, made without interruption; not to be changed."""
    return prepared(command, music, music.parent / "whole")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each track was encoded, to the end."""
    count: Counter[str] = Counter()
    encode = Encoder.encode

    def counted(self: Encoder, path: Path, track: Any) -> Encoded:
        found = encode(self, path, track)
        count[track.relative_path] += 1
        return found

    monkeypatch.setattr(Encoder, "encode", counted)
    return count


def prepared(command: Command, corpus: Path, out: Path, *words: object) -> Path:
    result = command("prepare", corpus, "--out", out, *OPTIONS, *words)
    assert result.status == 0, result.err
    return out


def metas(shards: Path) -> dict[str, tuple[str, TrackMeta]]:
    """Split and record of every track, by its relative path."""
    index = ShardIndex.open(shards, verify=True)
    return {
        meta.relative_path: (split, meta)
        for split in ("train", "valid")
        for meta in (index.split(split).meta(i) for i in range(len(index.split(split))))
    }


def reasons(shards: Path) -> dict[str, str]:
    """Why each file was left out, by its relative path."""
    return {file.relative_path: file.reason for file in ShardIndex.open(shards).manifest.rejected}


# ---- what it makes ---------------------------------------------------------------------------------------------------


def test_the_folder_holds_shards_with_their_indices_a_manifest_the_list_of_tracks_and_a_card(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}

    assert names == {
        *("manifest.json", "catalog.bin", "tracks.jsonl", "README.md"),
        *(f"{split}-000000.{suffix}" for split in ("train", "valid") for suffix in ("tar", "index.json")),
    }
    assert [track.record.relative_path for track in read_tracks(whole)] == [f"{n}.wav" for n in range(6)]
    assert ShardIndex.open(whole, verify=True).manifest.config["valid_fraction"] == 0.4


def test_silent_ends_are_cut_off_and_silence_is_left_out(
    tmp_path: Path, command: Command, tune: Tune, write_audio: WriteAudio
) -> None:
    sound = tune(0, 2.0)
    silence = np.zeros((1, 16_000), np.float32)
    write_audio(tmp_path / "corpus" / "framed.wav", np.concatenate([silence, silence, sound, silence], axis=1))
    write_audio(tmp_path / "corpus" / "sound.wav", sound)
    write_audio(tmp_path / "corpus" / "silent.wav", np.zeros((1, 40_000), np.float32))
    write_audio(tmp_path / "corpus" / "short.wav", tune(1, 0.5))

    cut = prepared(command, tmp_path / "corpus", tmp_path / "cut", "--duplicates", "keep")
    uncut = prepared(
        *(command, tmp_path / "corpus", tmp_path / "uncut", "--duplicates", "keep", "--trim_silence", False),
        *("--max_silent_share", 1, "--min_loudness_lufs", -100, "--min_duration_s", 0.1),
    )

    _, framed = metas(cut)["framed.wav"]
    assert (framed.source["start_s"], framed.source["stop_s"], framed.duration_s) == (2, 4, 2.0)
    assert framed.num_frames == 100
    assert "silent for 100% of its length" in reasons(cut)["silent.wav"]
    assert reasons(cut)["short.wav"] == "0.50 s long, expected at least 1 s"
    assert metas(uncut)["framed.wav"][1].num_frames == 250
    assert set(metas(uncut)) == {"framed.wav", "sound.wav", "silent.wav", "short.wav"}


NAMES = (
    "Größe – 音楽.wav", "🎵 e\u0301.wav", "音" * 80 + ".wav", "a" * 240 + ".wav", "many.dots.v1.2.wav", "-rf.wav",
    " blank .wav", "back\\slash.wav", "quote\"'.wav", "アルバム/曲.wav", "--out/=.wav", "%2e%2e$HOME;,.wav",
)  # fmt: skip


def test_tracks_of_any_printable_name_are_prepared(
    tmp_path: Path, command: Command, tune: Tune, write_audio: WriteAudio
) -> None:
    for number, name in enumerate(NAMES):
        write_audio(tmp_path / "corpus" / name, tune(number, 1.1))
    shards = prepared(command, tmp_path / "corpus", tmp_path / "shards", "--duplicates", "keep")

    assert set(metas(shards)) == set(NAMES)
    index = ShardIndex.open(shards, verify=True)
    keys = [key for split in ("train", "valid") for key in index.split(split).keys]
    assert len(set(keys)) == len(NAMES)
    assert all(re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+)*", key) for key in keys)


@pytest.mark.parametrize("name", ["new\nline.wav", "tab\t.wav", "red\x1b[31m.wav", "latin1\udce9.wav"])
def test_a_name_that_is_not_printable_is_refused_in_one_line(
    tmp_path: Path, command: Command, music: Path, name: str
) -> None:
    (tmp_path / "corpus").mkdir()
    shutil.copy(music / "0.wav", tmp_path / "corpus" / name)
    result = command("prepare", tmp_path / "corpus", "--out", tmp_path / "shards", *OPTIONS)

    assert result.status == 2
    (line,) = result.err.splitlines()
    assert line.isprintable()
    assert line.endswith("its name is not printable UTF-8, as JSON and tar files need it. Rename it.")
    assert not (tmp_path / "shards").exists()


def test_the_codes_of_a_trimmed_track_are_those_of_the_part_alone(
    tmp_path: Path, command: Command, tune: Tune, write_audio: WriteAudio
) -> None:
    sound, silence = tune(0, 2.0), np.zeros((1, 32_000), np.float32)
    write_audio(tmp_path / "corpus" / "framed.wav", np.concatenate([silence, sound], axis=1))
    write_audio(tmp_path / "corpus" / "sound.wav", sound)

    index = ShardIndex.open(
        prepared(
            command,
            tmp_path / "corpus",
            tmp_path / "out",
            "--duplicates",
            "keep",
            "--valid_fraction",
            0,
            "--workers",
            2,
        )
    )

    assert np.array_equal(index.split("train").codes(0), index.split("train").codes(1))


def test_tempo_and_key_are_heard_where_the_labels_lack_them_and_marked_so(
    tmp_path: Path, command: Command, tune: Tune, write_audio: WriteAudio
) -> None:
    for name in ("given.wav", "unknown.wav"):
        write_audio(tmp_path / "corpus" / name, tune(len(name), 8.0))
    (tmp_path / "corpus" / "given.json").write_text('{"bpm": 77, "key": "C minor", "genre": "folk"}')

    heard = metas(prepared(command, tmp_path / "corpus", tmp_path / "heard"))
    deaf = metas(prepared(command, tmp_path / "corpus", tmp_path / "deaf", "--auto_labels", False))

    given, unknown = heard["given.wav"][1].labels, heard["unknown.wav"][1].labels
    assert (given.bpm, given.key, given.genre, given.computed) == (77, "c minor", "folk", ())
    assert unknown.bpm or unknown.key
    assert set(unknown.computed) == {name for name in ("bpm", "key") if getattr(unknown, name)}
    assert (deaf["unknown.wav"][1].labels.bpm, deaf["unknown.wav"][1].labels.computed) == (None, ())


def test_of_one_recording_in_many_formats_the_best_is_kept_and_the_others_are_named(
    tmp_path: Path, command: Command, tune: Tune, write_audio: WriteAudio
) -> None:
    corpus, song = tmp_path / "corpus", tune(0, 12.0)
    write_audio(corpus / "song.wav", song)
    write_audio(corpus / "song.flac", song)
    write_audio(corpus / "song.mp3", song)
    write_audio(corpus / "quiet.wav", 0.4 * song)
    write_audio(corpus / "other.wav", tune(1, 12.0))
    (corpus / "song.txt").write_text("all three have this text")
    (corpus / "quiet.txt").write_text("another text")

    dropped = prepared(command, corpus, tmp_path / "dropped")
    kept = prepared(command, corpus, tmp_path / "kept", "--duplicates", "keep", "--valid_fraction", 0.5)

    (best,) = set(metas(dropped)) - {"other.wav"}
    others = {"song.wav", "song.flac", "song.mp3", "quiet.wav"} - {best}
    assert reasons(dropped) == dict.fromkeys(others, f"the same recording as {best}, which is kept")
    found = metas(kept)
    assert set(found) == {*others, best, "other.wav"}
    assert len({found[name][0] for name in (*others, best)}) == 1
    assert len({found[name][1].group for name in (*others, best)}) == 1
    assert found["other.wav"][0] != found[best][0]


# ---- killed and run again --------------------------------------------------------------------------------------------


def die(*_: Any, **__: Any) -> Any:
    raise KilledError


def nth(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """The function, which dies at its call of that number, counted from 1."""
    calls = iter(range(1, 1000))

    def call(*arguments: Any, **named: Any) -> Any:
        if next(calls) == number:
            raise KilledError
        return function(*arguments, **named)

    return call


def then_die(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        function(*arguments, **named)
        raise KilledError

    return call


MOMENTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "in the survey": (surveying, "survey", lambda f: nth(f, 3)),
    "before the plan counts": (work, "write_json", die),
    "after the plan": (WorkFolder, "write_plan", then_die),
    "at the first track": (Encoder, "encode", lambda f: nth(f, 1)),
    "between two tracks": (Encoder, "encode", lambda f: nth(f, 3)),
    "at a track's part": (build, "write_encoded", lambda f: nth(f, 2)),
    "at the first shard": (build, "write_shard", lambda f: nth(f, 1)),
    "in the middle of a shard": (writer, "_append", lambda f: nth(f, 2)),
    "between a shard's index and its tar": (writer, "write_sidecar", then_die),
    "between two shards": (build, "write_shard", lambda f: nth(f, 2)),
    "before the manifest": (job, "write_manifest", die),
    "after the manifest": (job, "write_manifest", then_die),
    "after the card": (WorkFolder, "finish", die),
    "after the list of tracks": (shutil, "rmtree", die),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_it_goes_on_encodes_no_track_twice_and_ends_with_the_bytes_of_an_unbroken_run(
    moment: str,
    music: Path,
    whole: Path,
    tmp_path: Path,
    command: Command,
    encoded: Counter[str],
    bytes_of: BytesOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, name, dying = MOMENTS[moment]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, dying(getattr(place, name)) if dying is not die else die)
        killed = command("prepare", music, "--out", tmp_path / "out", *OPTIONS)
    assert killed.status == 1
    assert "KilledError" in killed.err
    is_complete = (tmp_path / "out" / "manifest.json").exists()
    assert is_complete == (moment in ("after the manifest", "after the card", "after the list of tracks"))

    prepared(command, music, tmp_path / "out")

    assert set(encoded) == {f"{n}.wav" for n in range(6)}
    assert encoded.total() == 6 + (moment == "at a track's part")  # encoded, but not written yet
    assert bytes_of(tmp_path / "out") == bytes_of(whole)


def test_an_incomplete_folder_is_refused_by_those_who_read_it(
    music: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", die)
        assert command("prepare", music, "--out", tmp_path / "out", *OPTIONS).status == 1

    for words in (("finetune", tmp_path / "out", "--out", tmp_path / "run"), ("inspect", tmp_path / "out")):
        refused = command(*words)
        assert refused.status == 2
        assert "is incomplete: prepare did not finish it" in refused.err


def test_a_complete_folder_is_left_as_it_is(
    music: Path, whole: Path, tmp_path: Path, command: Command, encoded: Counter[str], bytes_of: BytesOf
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    shards = [path.stat() for path in sorted(out.glob("*.tar"))]

    prepared(command, music, out)

    assert not encoded
    assert bytes_of(out) == bytes_of(whole)
    assert [path.stat().st_ino for path in sorted(out.glob("*.tar"))] == [stat.st_ino for stat in shards]


def test_shards_of_another_corpus_are_not_replaced(
    whole: Path, tmp_path: Path, music: Path, tune: Tune, write_audio: Callable[..., Path], command: Command
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    other = tmp_path / "elsewhere" / music.name
    other.mkdir(parents=True)
    write_audio(other / "another.wav", tune(5, 2.0))

    refused = command("prepare", other, "--out", out)

    assert refused.status == 2, refused.err
    assert "holds shards of another corpus: none of its" in refused.err
    assert (out / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()


def test_a_killed_survey_does_not_decode_again_what_is_measured(
    tmp_path: Path, command: Command, tune: Tune, write_audio: WriteAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveying, "BLOCK", 2)
    for number in range(5):
        write_audio(tmp_path / "corpus" / f"{number}.wav", tune(number))
    decoded: list[str] = []

    def counted(record: Any, *, listen: bool) -> Any:
        if len(decoded) == 3:
            decoded.append("killed")
            raise KilledError
        decoded.append(record.relative_path)
        return survey(record, listen=listen)

    monkeypatch.setattr(surveying, "survey", counted)
    assert command("prepare", tmp_path / "corpus", "--out", tmp_path / "out", *OPTIONS).status == 1
    prepared(command, tmp_path / "corpus", tmp_path / "out")

    first = ["0.wav", "1.wav", "2.wav", "killed"]
    assert decoded == [*first, "2.wav", "3.wav", "4.wav"]  # a block of two counts when both are measured


def test_kills_are_not_blamed_on_the_files_that_were_measured_meanwhile(
    music: Path, whole: Path, tmp_path: Path, command: Command, bytes_of: BytesOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGKILL, unlike an exception, leaves the count of attempts as it is."""
    for _ in range(surveying.MAX_ATTEMPTS + 1):
        with monkeypatch.context() as patch:
            patch.setattr(surveying, "write_json", then_die(write_json))
            assert command("prepare", music, "--out", tmp_path / "out", *OPTIONS).status == 1
    (attempts,) = (tmp_path / "out" / ".work" / "surveys").glob("*.attempts.json")
    assert json.loads(attempts.read_text())["0.wav"] > surveying.MAX_ATTEMPTS

    prepared(command, music, tmp_path / "out")

    assert bytes_of(tmp_path / "out") == bytes_of(whole)


# ---- a corpus that changes -------------------------------------------------------------------------------------------


@pytest.fixture
def grown(music: Path, whole: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A corpus that may be changed, and its shards as they were made before."""
    (tmp_path / "music").mkdir()
    for path in music.iterdir():
        shutil.copy2(path, tmp_path / "music")  # with its time: an unchanged file
    return tmp_path / "music", Path(shutil.copytree(whole, tmp_path / "shards"))


@pytest.fixture
def readable(grown: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Opens the shards whenever prepare is about to write or remove something there, and tells how many tracks."""
    found: list[int] = []

    def look(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            found.append(sum(ShardIndex.open(grown[1], verify=True).manifest.num_tracks.values()))
            return function(*arguments, **named)

        return call

    for place, name in (
        *((Encoder, "encode"), (build, "write_shard"), (job, "write_manifest")),
        *((job, "remove_others"), (WorkFolder, "finish")),
    ):
        monkeypatch.setattr(place, name, look(getattr(place, name)))
    return found


def test_a_new_file_is_encoded_alone_and_the_groups_keep_their_side(
    grown: tuple[Path, Path],
    whole: Path,
    command: Command,
    encoded: Counter[str],
    readable: list[int],
    bytes_of: BytesOf,
    tune: Tune,
    write_audio: WriteAudio,
) -> None:
    corpus, shards = grown
    for number in (6, 7):
        write_audio(corpus / f"{number}.wav", tune(number))

    prepared(command, corpus, shards)

    assert encoded == Counter(["6.wav", "7.wav"])
    before, after = metas(whole), metas(shards)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"6.wav", "7.wav"}
    assert set(readable) == {6, 8}  # never without a manifest whose shards are there
    kept = bytes_of(whole)
    assert {name: bytes_of(shards)[name] for name in SHARDS} == {name: kept[name] for name in SHARDS}


def test_changed_audio_is_encoded_again_and_the_codes_of_its_neighbours_are_copied(
    grown: tuple[Path, Path],
    whole: Path,
    command: Command,
    encoded: Counter[str],
    readable: list[int],
    tune: Tune,
    write_audio: WriteAudio,
) -> None:
    corpus, shards = grown
    write_audio(corpus / "2.wav", tune(99, 2.5))

    prepared(command, corpus, shards)

    assert encoded == Counter(["2.wav"])
    assert metas(shards)["2.wav"][1].num_frames == 125
    assert metas(shards)["2.wav"][0] == metas(whole)["2.wav"][0]
    assert codes_of(shards, without="2.wav") == codes_of(whole, without="2.wav")
    assert readable
    assert_clean(shards)


def test_a_changed_label_encodes_nothing(
    grown: tuple[Path, Path], whole: Path, command: Command, encoded: Counter[str], readable: list[int]
) -> None:
    corpus, shards = grown
    (corpus / "3.txt").write_text("a tune in the rain")

    prepared(command, corpus, shards)

    assert not encoded
    assert metas(shards)["3.wav"][1].labels.description == "a tune in the rain"
    assert codes_of(shards) == codes_of(whole)
    assert readable
    assert_clean(shards)


def test_what_the_codec_could_not_carry_is_not_encoded_again_until_the_limit_lets_it_in(
    tmp_path: Path, music: Path, command: Command, encoded: Counter[str]
) -> None:
    out = tmp_path / "out"
    prepared(command, music, out)
    qualities = {name: meta.quality for name, (_, meta) in metas(out).items()}
    snr_db = {name: quality.codec_snr_db for name, quality in qualities.items() if quality and quality.codec_snr_db}
    worst, next_worst = sorted(snr_db, key=lambda name: snr_db[name])[:2]
    limit = (snr_db[worst] + snr_db[next_worst]) / 2
    shutil.rmtree(out)

    encoded.clear()
    prepared(command, music, out, "--min_codec_snr_db", limit)
    assert (len(encoded), list(reasons(out))) == (6, [worst])

    encoded.clear()
    prepared(command, music, out, "--min_codec_snr_db", limit, "--max_dc_offset", 0.5)
    assert (dict(encoded), list(reasons(out))) == ({}, [worst])

    prepared(command, music, out, "--min_codec_snr_db", snr_db[worst] - 1)
    assert (dict(encoded), set(metas(out))) == ({worst: 1}, set(snr_db))


def test_a_removed_file_goes_and_a_renamed_one_keeps_its_codes(
    grown: tuple[Path, Path], command: Command, encoded: Counter[str], readable: list[int]
) -> None:
    corpus, shards = grown
    (corpus / "0.wav").unlink()
    (corpus / "5.wav").rename(corpus / "renamed.wav")

    prepared(command, corpus, shards)

    assert not encoded
    assert set(metas(shards)) == {"1.wav", "2.wav", "3.wav", "4.wav", "renamed.wav"}
    assert readable
    assert_clean(shards)


def test_an_update_that_is_killed_leaves_the_old_shards_readable_and_goes_on(
    grown: tuple[Path, Path],
    command: Command,
    encoded: Counter[str],
    bytes_of: BytesOf,
    tmp_path: Path,
    tune: Tune,
    write_audio: WriteAudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus, shards = grown
    unbroken = Path(shutil.copytree(shards, tmp_path / "unbroken"))
    for number in (6, 7):
        write_audio(corpus / f"{number}.wav", tune(number))
    (corpus / "0.txt").write_text("the first")
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_manifest", die)
        assert command("prepare", corpus, "--out", shards, *OPTIONS).status == 1
    assert len(metas(shards)) == 6

    prepared(command, corpus, shards)

    assert encoded == Counter(["6.wav", "7.wav"])
    prepared(command, corpus, unbroken)
    assert bytes_of(shards) == bytes_of(unbroken)


def test_a_track_that_could_not_be_encoded_is_tried_again_and_then_left_out_no_more(
    grown: tuple[Path, Path], command: Command, tune: Tune, write_audio: WriteAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, shards = grown
    write_audio(corpus / "6.wav", tune(6))
    encode = Encoder.encode

    def fails(self: Encoder, path: Path, track: Any) -> Encoded:
        path.rename(path.with_suffix(".away"))
        return encode(self, path, track)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", fails)
        prepared(command, corpus, shards)
    assert reasons(shards) == {"6.wav": "No such file or directory"}
    (corpus / "6.away").rename(corpus / "6.wav")

    prepared(command, corpus, shards)

    assert reasons(shards) == {}
    assert "6.wav" in metas(shards)
    assert [track.record.relative_path for track in read_tracks(shards) if not track.is_kept] == []


def codes_of(shards: Path, *, without: str = "") -> dict[str, bytes]:
    index = ShardIndex.open(shards)
    splits = [index.split(split) for split in ("train", "valid")]
    found = {split.meta(i).relative_path: split.codes(i).tobytes() for split in splits for i in range(len(split))}
    found.pop(without, None)
    return found


def assert_clean(shards: Path) -> None:
    """Nothing lies in the folder but what its manifest lists."""
    listed = {shard.name for shard in ShardIndex.open(shards, verify=True).manifest.shards}
    names = {path.name for path in shards.iterdir()}
    indices = {name.replace(".tar", ".index.json") for name in listed}
    assert names == {*listed, *indices, "manifest.json", "catalog.bin", "tracks.jsonl", "README.md"}


# ---- several workers -------------------------------------------------------------------------------------------------


def test_a_worker_that_comes_when_another_has_just_completed_the_folder_ends_well(
    music: Path, whole: Path, tmp_path: Path, command: Command, bytes_of: BytesOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was about to do: its half-done part is gone."""
    for name in ("survey_step", "plan_step", "build_step", "complete_step"):
        out = tmp_path / name
        step = getattr(job, name)

        def late(*arguments: Any, out: Path = out, step: Callable[..., Any] = step, **named: Any) -> Any:
            shutil.rmtree(out)
            shutil.copytree(whole, out)
            return step(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(job, name, late)
            prepared(command, music, out)
        assert bytes_of(out) == bytes_of(whole), name


def test_equal_sound_in_two_files_is_encoded_by_two_threads_at_once(
    tmp_path: Path, command: Command, tune: Tune, write_audio: WriteAudio
) -> None:
    for number in range(6):
        write_audio(tmp_path / "corpus" / f"{number}.wav", tune(0))

    out = prepared(command, tmp_path / "corpus", tmp_path / "out", "--duplicates", "keep", "--workers", 6)

    assert len(set(codes_of(out).values())) == 1
    assert len(metas(out)) == 6


@pytest.fixture(scope="module")
def long_music(tmp_path_factory: pytest.TempPathFactory, tune: Tune, write_audio: WriteAudio) -> Path:
    """12 tracks long enough that prepare works for seconds; not to be changed."""
    folder = tmp_path_factory.mktemp("long") / "music"
    for number in range(12):
        piece = tune(number, 12.0 + number / 4)
        write_audio(folder / f"{number:02}.wav", piece)
    return folder


@pytest.fixture(scope="module")
def whole_long(long_music: Path, process: Command) -> tuple[Path, float]:
    """Its shards, made by one unbroken process, and the seconds that took."""
    begin = time.monotonic()
    result = process("prepare", long_music, "--out", long_music.parent / "whole", *LONG_OPTIONS)
    assert result.status == 0, result.err
    return long_music.parent / "whole", time.monotonic() - begin


LONG_OPTIONS = ("--workers", 2, "--valid_fraction", 0.5)


@pytest.fixture
def start(console_script: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """A function that starts ``musicgen-ft prepare WORDS ...``; what still runs at the end of the test is killed."""
    begun: list[subprocess.Popen[str]] = []

    def run(*words: object, program: tuple[object, ...] = ()) -> "subprocess.Popen[str]":
        arguments = [*map(str, program or (console_script, "prepare")), *map(str, words)]
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        begun.append(process)
        return process

    yield run
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def lease_owners(out: Path) -> dict[str, int]:
    """Process that is at each task."""
    found = {}
    for path in (out / ".work" / "leases").glob("*.lease"):
        try:
            found[path.stem] = int(json.loads(path.read_text())["pid"])
        except (ValueError, OSError):  # this moment made or gone
            continue
    return found


def wait_for(found: Callable[[], Any], *, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.01)
    raise AssertionError(f"nothing within {seconds} s")


@pytest.mark.slow
def test_killed_at_20_random_moments_it_ends_with_the_bytes_of_an_unbroken_run(
    long_music: Path,
    whole_long: tuple[Path, float],
    tmp_path: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    bytes_of: BytesOf,
) -> None:
    whole, duration_s = whole_long
    rng = random.Random(20)
    moments = [duration_s * (number + rng.random()) / 20 for number in range(20)]  # all over the run
    rng.shuffle(moments)
    out = tmp_path / "out"
    seen = Counter[str]()
    while moments:
        running = start(long_music, "--out", out, *LONG_OPTIONS)
        try:
            running.wait(timeout=moments[-1])
        except subprocess.TimeoutExpired:
            running.kill()  # its children, which it cannot end, notice by themselves
            moments.pop()
            seen[phase(out)] += 1
        assert running.wait() in (0, -signal.SIGKILL), running.communicate()[0]
        if running.returncode == 0:  # it was faster, since it had been begun, or as the machine is: from the beginning
            assert bytes_of(out) == bytes_of(whole)
            shutil.rmtree(out)
            moments = [*moments[:-1], *(0.8 * moment for moment in moments[-1:])]

    last = start(long_music, "--out", out, *LONG_OPTIONS)

    assert last.wait() == 0, last.communicate()[0]
    assert bytes_of(out) == bytes_of(whole)
    assert len(seen) >= 3, seen


def phase(out: Path) -> str:
    if (out / "manifest.json").exists():
        return "complete"
    if any(out.glob("*.tar")):
        return "shards"
    if any((out / ".work" / "parts").glob("*.npz")):
        return "encode"
    if (out / ".work" / "plan" / "plan.json").exists():
        return "plan"
    return "survey" if (out / ".work").exists() else "start"


@pytest.mark.slow
def test_two_processes_share_the_work_and_one_finishes_what_the_other_died_at(
    long_music: Path,
    whole_long: tuple[Path, float],
    tmp_path: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    bytes_of: BytesOf,
) -> None:
    out = tmp_path / "out"
    one, other = (start(long_music, "--out", out, *LONG_OPTIONS) for _ in range(2))

    def both_build() -> bool:
        owners = {owner for task, owner in lease_owners(out).items() if task.endswith(".tar")}
        return owners == {one.pid, other.pid}

    wait_for(both_build)
    one.kill()

    assert other.wait(timeout=120) == 0, other.communicate()[0]
    assert one.wait() == -signal.SIGKILL
    assert bytes_of(out) == bytes_of(whole_long[0])


@pytest.mark.slow
def test_torchrun_with_two_workers_gives_the_bytes_of_one(
    long_music: Path,
    whole_long: tuple[Path, float],
    tmp_path: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    bytes_of: BytesOf,
) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)

    running = start(long_music, "--out", tmp_path / "out", *LONG_OPTIONS, program=(*torchrun, recipe_path("prepare")))

    assert running.wait(timeout=200) == 0, running.communicate()[0]
    assert bytes_of(tmp_path / "out") == bytes_of(whole_long[0])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["none", "survey", "shard"])
def test_ray_gives_the_bytes_of_a_local_run_even_if_a_worker_of_it_dies(
    task: str,
    long_music: Path,
    whole_long: tuple[Path, float],
    tmp_path: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    bytes_of: BytesOf,
) -> None:
    out = tmp_path / "out"
    running = start(long_music, "--out", out, *LONG_OPTIONS, "--engine", "ray")

    def worker() -> int | None:
        """One of Ray's processes that is at such a task; not the one that we started, which plans."""
        owners = {t: pid for t, pid in lease_owners(out).items() if t.endswith(".tar") == (task == "shard")}
        return next((pid for t, pid in owners.items() if pid != running.pid), None)

    if task != "none":
        pid = wait_for(worker)
        assert b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
        os.kill(pid, signal.SIGKILL)

    assert running.wait(timeout=300) == 0, running.communicate()[0]
    assert bytes_of(out) == bytes_of(whole_long[0])


@pytest.mark.slow
def test_ctrl_c_stops_it_with_one_line_in_the_survey_too(
    long_music: Path, tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    running = start(long_music, "--out", tmp_path / "out", *LONG_OPTIONS)
    wait_for(lambda: lease_owners(tmp_path / "out"))

    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all of them
    told, _ = running.communicate(timeout=60)

    assert running.returncode == 130
    assert told.splitlines()[-1] == "musicgen-ft prepare: stopped by the user"
    assert "Traceback" not in told
