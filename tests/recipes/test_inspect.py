"""``inspect``: what it tells of a corpus and of its shards, what it leaves as it was, and what training will read."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from musicgen_ft.cli import read_config
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.corpus import surveying
from musicgen_ft.corpus.captions import caption_policy
from musicgen_ft.corpus.survey import survey
from musicgen_ft.shards.crops import CropDataset
from musicgen_ft.shards.index import ShardIndex

# What the fixtures of conftest.py give.
Command = Callable[..., Any]
Tune = Callable[..., npt.NDArray[np.float32]]
WriteAudio = Callable[..., Path]
BytesOf = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory, tune: Tune, write_audio: WriteAudio) -> Path:
    """Three tracks with labels, one without, one that is silent, one that is broken; not to be changed."""
    folder = tmp_path_factory.mktemp("inspect") / "my music"
    for number, name in enumerate(("a", "b", "c", "d")):
        write_audio(folder / f"{name}.wav", tune(number, 1.5))
    (folder / "a.json").write_text('{"description": "a slow waltz", "genre": "waltz", "moods": ["calm", "sad"]}')
    (folder / "b.json").write_text('{"genre": "folk", "moods": ["happy", "warm", "bright"], "instrument": "fiddle"}')
    (folder / "c.txt").write_text("rain on a tin roof")
    write_audio(folder / "silent.wav", np.zeros((1, 32_000), np.float32))
    (folder / "broken.mp3").write_bytes(b"no music at all" * 100)
    return folder


@pytest.fixture(scope="module")
def music_shards(music: Path, command: Command) -> Path:
    """Its shards; not to be changed."""
    out = music.parent / "my shards"
    result = command("prepare", music, "--out", out, "--workers", 1, "--auto_labels", False)
    assert result.status == 0, result.err
    return out


@pytest.fixture
def inspected(tmp_path: Path, command: Command) -> Callable[..., tuple[str, str]]:
    """A function that inspects, and gives what was printed, and the page."""

    def run(place: Path, *words: object) -> tuple[str, str]:
        result = command("inspect", place, "--out", tmp_path / "page.html", "--workers", 1, *words)
        assert result.status == 0, result.err
        assert f"page: {tmp_path / 'page.html'}" in result.out
        return result.out, (tmp_path / "page.html").read_text(encoding="utf-8")

    return run


def test_of_a_corpus_it_prints_a_table_and_writes_a_page_with_players(
    music: Path, inspected: Callable[..., tuple[str, str]]
) -> None:
    said, page = inspected(music)

    assert said.startswith("my music\n")
    assert re.search(r"^files +6 +kept whole 4 +trimmed 0 +dropped 2$", said, re.MULTILINE)
    assert re.search(r"silent for .* of its length", said)
    for name in ("a.wav", "b.wav", "c.wav", "d.wav", "silent.wav", "broken.mp3"):
        assert name in page
    assert "rain on a tin roof" in page
    assert page.count("<audio") == 4


def test_of_shards_it_tells_the_same_files_and_what_the_codec_loses(
    music: Path, music_shards: Path, inspected: Callable[..., tuple[str, str]]
) -> None:
    of_corpus, _ = inspected(music)
    of_shards, page = inspected(music_shards)

    def line(said: str, name: str) -> str:
        return next(line for line in said.splitlines() if line.split()[:1] == [name])

    assert line(of_shards, "files") == line(of_corpus, "files")
    assert "codec SNR" in of_shards
    assert "codec SNR" not in of_corpus
    assert page.count("<audio") == 4


@pytest.mark.parametrize("place", ["corpus", "shards"])
def test_it_writes_nothing_into_what_it_looks_at(
    place: str, music: Path, music_shards: Path, inspected: Callable[..., Any], bytes_of: BytesOf
) -> None:
    folder = music if place == "corpus" else music_shards
    before = bytes_of(folder), sorted(folder.rglob("*"))

    inspected(folder, "--captions", 1)

    assert (bytes_of(folder), sorted(folder.rglob("*"))) == before


def test_the_page_goes_to_the_working_directory_under_the_name_of_the_folder(
    music: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = command("inspect", music, "--players", 0)

    assert result.status == 0, result.err
    assert [path.name for path in tmp_path.iterdir()] == ["my music.html"]
    assert "<audio" not in (tmp_path / "my music.html").read_text(encoding="utf-8")


def test_figures_are_kept_until_a_file_changes(
    music: Path,
    tmp_path: Path,
    inspected: Callable[..., tuple[str, str]],
    tune: Tune,
    write_audio: WriteAudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(music, tmp_path / "music"))
    decoded: list[str] = []

    def counted(record: Any, *, listen: bool) -> Any:
        decoded.append(record.relative_path)
        return survey(record, listen=listen)

    monkeypatch.setattr(surveying, "survey", counted)
    first, _ = inspected(folder, "--players", 0)
    assert sorted(decoded) == sorted(path.name for path in folder.iterdir() if path.suffix in (".wav", ".mp3"))
    decoded.clear()

    again, _ = inspected(folder, "--players", 0)
    assert decoded == []
    assert again == first

    write_audio(folder / "b.wav", tune(9, 3.0))
    changed, _ = inspected(folder, "--players", 0)
    assert decoded == ["b.wav"]
    assert changed != first


def test_a_folder_that_may_not_be_written_is_inspected_all_the_same(
    music: Path, tmp_path: Path, inspected: Callable[..., Any]
) -> None:
    folder = Path(shutil.copytree(music, tmp_path / "locked"))
    folder.chmod(0o500)

    said, _ = inspected(folder)

    assert "files" in said


# ---- captions --------------------------------------------------------------------------------------------------------

POLICIES = {
    "as it is": "{}",
    "only descriptions": "caption_source: description",
    "fields in any order": "{caption_source: fields, shuffle_fields: true, field_dropout: 0.5}",
    "merged as audiocraft": "{caption_source: description, merge_text_p: 0.75, drop_desc_p: 0.5}",
    "a template": 'caption_source: template\ncaption_template: "{genre} music[ with {instrument}]"\ntrigger: MYSTYLE',
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_captions_are_those_that_training_draws(
    name: str, music_shards: Path, tmp_path: Path, inspected: Callable[..., tuple[str, str]]
) -> None:
    (tmp_path / "mine.yaml").write_text(POLICIES[name])
    policy = caption_policy(read_config(FinetuneConfig, "finetune", str(tmp_path / "mine.yaml")))

    said, _ = inspected(music_shards, "--captions", 120, "--finetune_config", tmp_path / "mine.yaml", "--players", 0)

    shown: dict[str, set[str | None]] = {}
    for block in re.findall(r"^(\S+\.wav)\n((?:  .*\n)+)", said, re.MULTILINE):
        lines = [line[2:] for line in block[1].splitlines()]
        assert len(lines) == 120
        shown[block[0]] = {None if line.startswith("(no caption") else line for line in lines}
    assert set(shown) == {"a.wav", "b.wav", "c.wav", "d.wav"}
    index = ShardIndex.open(music_shards)
    tracks = index.split("train")
    crops = CropDataset(
        tracks, segment_frames=50, card=index.manifest.codec.card, captions=policy, seed=3, global_batch=2
    )
    read: dict[str, set[str | None]] = {tracks.meta(i).relative_path: set() for i in range(len(tracks))}
    for crop in (crops[position] for position in range(120 * len(tracks))):
        read[tracks.meta(tracks.keys.index(crop.key)).relative_path].add(crop.description)
    for path, captions in read.items():
        if max(len(captions), len(shown[path])) <= 6:  # few enough that both have drawn each of them
            assert shown[path] == captions
        assert len(shown[path] & captions) > len(shown[path]) / 2


def test_captions_are_the_same_for_the_same_seed(music: Path, inspected: Callable[..., tuple[str, str]]) -> None:
    words = ("--captions", 4, "--finetune_config", "small", "--players", 0)

    first, again, other = (inspected(music, *words, "--seed", seed)[0] for seed in (0, 0, 1))

    assert first == again
    assert first.count("a.wav\n") == other.count("a.wav\n") == 1


# ---- shards alone ----------------------------------------------------------------------------------------------------


def test_shards_whose_codec_cannot_be_opened_give_a_page_without_players(
    music: Path, nano_folder: Path, tmp_path: Path, command: Command, inspected: Callable[..., tuple[str, str]]
) -> None:
    base = Path(shutil.copytree(nano_folder, tmp_path / "base"))
    prepared = command("prepare", music, "--out", tmp_path / "shards", "--base", base, "--workers", 1)
    assert prepared.status == 0, prepared.err
    shutil.rmtree(base)

    result = command("inspect", tmp_path / "shards", "--out", tmp_path / "page.html")

    assert result.status == 0, result.err
    assert "the page has no players: base " in result.err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a slow waltz" in page
    assert "<audio" not in page


@pytest.mark.parametrize(("content", "says"), [("{nothing}\n", "is damaged"), (None, "is missing: what became of")])
def test_shards_whose_list_of_tracks_is_damaged_or_missing_are_refused(
    content: str | None, says: str, music_shards: Path, tmp_path: Path, command: Command
) -> None:
    shards = Path(shutil.copytree(music_shards, tmp_path / "shards"))
    (shards / "tracks.jsonl").unlink()
    if content is not None:
        (shards / "tracks.jsonl").write_text(content)

    result = command("inspect", shards, "--out", tmp_path / "page.html")

    assert result.status == 2
    assert f"tracks.jsonl {says}" in result.err
    assert not (tmp_path / "page.html").exists()
