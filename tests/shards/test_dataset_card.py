"""Claims about the card of a shards folder; its program is run."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.codec import CodecSpec
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.shards.dataset_card import dataset_card, read_snippet
from musicgen_ft.shards.format import Manifest, Split
from musicgen_ft.shards.track import Track, TrackMeta
from musicgen_ft.shards.writer import write_shard

LABELS = {"drone": Labels(genre="drone", description="Slow."), "no": Labels(), "odd": Labels(genre="a|b\nc")}


def metas(*genres: str, duration_s: float = 1800.0) -> list[TrackMeta]:
    return [
        TrackMeta(labels=LABELS.get(genre, Labels(genre=genre)), relative_path="x", num_frames=1, duration_s=duration_s)
        for genre in genres
    ]


def front_of(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def rows_of(card: str, head: str) -> list[list[str]]:
    """The rows of the table whose first line begins with ``head``."""
    table = card[card.index(f"| {head} |") :].split("\n\n")[0]
    return [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in table.splitlines()[2:]]


CODEC = CodecSpec(id="tiny", sha256="c0dec" * 8, sample_rate=320, frame_rate=10, channels=1, n_q=3, card=50)
NUM_FRAMES = {"train-000000.tar": (5, 41, 70, 20), "train-000001.tar": (55, 33), "valid-000000.tar": (44, 12, 99)}


def track_of(name: str, number: int, num_frames: int) -> Track:
    codes = np.full((CODEC.n_q, num_frames), number, np.uint16)
    labels = Labels(description=f"song {number} für dich", genre="folk")
    meta = TrackMeta(labels=labels, relative_path=f"{name}/{number}", num_frames=num_frames, duration_s=num_frames / 10)
    return Track(key=f"{name[:-4]}-{number}", codes=codes, meta=meta)


def write(folder: Path, *names: str) -> Manifest:
    """Shards of a few tracks and their manifest."""
    infos = []
    for name in names:
        tracks = [track_of(name, number, num_frames) for number, num_frames in enumerate(NUM_FRAMES[name])]
        split: Split = "train" if name.startswith("train") else "valid"
        infos.append(write_shard(folder, name, tracks, split=split, codec=CODEC).shard)
    return Manifest(codec=CODEC, base="nano", shards=tuple(infos), config={}, toolkit_version="0.1.0")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write(tmp_path, *NUM_FRAMES)


def test_the_program_on_the_card_reads_every_track(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = dataset_card(manifest, [])
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert program == read_snippet(manifest)
    assert '"train-{000000..000001}.tar"' in program
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "card", "exec"), {})
    lines = iter(capsys.readouterr().out.splitlines())
    for name in ("train-000000.tar", "train-000001.tar"):
        for number, num_frames in enumerate(NUM_FRAMES[name]):
            line = next(lines)
            assert line.startswith(f"{name[:-4]}-{number} (3, {num_frames}) {num_frames / 10} {{")
            assert f"song {number} für dich" in line
    assert next(lines, None) is None


def test_the_program_reads_a_single_shard_of_the_only_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = read_snippet(write(tmp_path, "valid-000000.tar"))
    assert '"valid-000000.tar"' in program
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "card", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_front_matter_is_what_the_hub_reads(manifest: Manifest) -> None:
    front = front_of(dataset_card(replace(manifest, config={"corpus": "music/My Häuser: 2"}), []))
    assert front["pretty_name"] == "My Häuser: 2"
    assert front["license"] == "unknown"
    assert front["task_categories"] == ["text-to-audio"]
    assert {"musicgen", "webdataset"} <= set(front["tags"])
    assert front["size_categories"] == ["n<1K"]
    assert front["configs"][0]["data_files"] == [
        {"split": "train", "path": "train-*.tar"},
        {"split": "validation", "path": "valid-*.tar"},
    ]


@pytest.mark.parametrize(("num_tracks", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M")])
def test_the_size_is_one_of_the_hubs(manifest: Manifest, num_tracks: int, size: str) -> None:
    shards = (replace(manifest.shards[0], num_samples=num_tracks),)
    front = front_of(dataset_card(replace(manifest, shards=shards), []))
    assert front["size_categories"] == [size]
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "train-*.tar"}]  # valid has none


def test_hours_of_each_split_and_genre(manifest: Manifest) -> None:
    frames = 36000 * manifest.codec.frame_rate // 10
    shards = tuple(replace(shard, num_frames=frames) for shard in manifest.shards)
    card = dataset_card(replace(manifest, shards=shards), metas("drone", "folk", "folk", "no", "odd", "drone", "folk"))
    assert rows_of(card, "split") == [["train", "6", "2.00", "2"], ["valid", "3", "1.00", "1"]]
    assert rows_of(card, "genre") == [
        ["folk", "3", "1.50"],
        ["drone", "2", "1.00"],
        ["a\\|b c", "1", "0.50"],
        ["unknown", "1", "0.50"],
    ]
    assert "2 of 7 tracks have a description." in card


def test_of_many_genres_the_small_ones_are_summed(manifest: Manifest) -> None:
    card = dataset_card(manifest, metas(*(f"genre {number:02d}" for number in range(33)), "genre 32"))
    rows = rows_of(card, "genre")
    assert len(rows) == 31
    assert rows[0] == ["genre 32", "2", "1.00"]
    assert rows[-1] == ["3 more", "3", "1.50"]


def test_no_folder_of_the_user_is_on_the_card(manifest: Manifest) -> None:
    home = Path("/", "home", "anna")
    config = {
        **{"corpus": f"{home}/music/loops", "out": f"{home}/shards", "stems_model": f"{home}/models/demucs.th"},
        **{"quality": {"log": f"{home}/log.txt"}, "trim_silence": True, "workers": 7, "none": None},
    }
    bases = {f"{home}/bases/mine": "mine", "C:\\Users\\anna\\mine": "mine", "~/anna/mine": "mine", "me/base": "me/base"}
    for base, published in bases.items():
        card = dataset_card(replace(manifest, config=config, base=base), [])
        assert "anna" not in card
        assert card.count(f"--base {published}\n") == 2
        assert "# loops\n" in card
    settings = dict(rows_of(dataset_card(replace(manifest, config=config), []), ""))
    assert (settings["stems_model"], settings["quality.log"], settings["trim_silence"]) == (
        *("demucs.th", "log.txt", "true"),
    )
    assert not settings.keys() & {"corpus", "out", "workers", "none"}


def test_what_made_it_is_told(manifest: Manifest) -> None:
    settings = dict(rows_of(dataset_card(manifest, []), ""))
    assert settings["codec"] == "tiny, 320 Hz, mono"
    assert settings["codec's weights, SHA-256"] == manifest.codec.sha256
    assert settings["toolkit"] == "musicgen-ft 0.1.0"
    assert settings["files of the corpus left out"] == "0"
    assert "melody" not in settings


def test_stereo_and_melody_are_told(manifest: Manifest) -> None:
    chroma = ChromaSpec(sample_rate=320)
    card = dataset_card(replace(manifest, codec=replace(manifest.codec, channels=2), chroma=chroma), [])
    settings = dict(rows_of(card, ""))
    assert settings["codec"] == "tiny, 320 Hz, stereo"
    assert "chroma.npy" in settings["melody"]
    assert "left and of the right channel take turns" in card
