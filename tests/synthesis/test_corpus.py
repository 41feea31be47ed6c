"""A corpus on the disk: the same bytes each time, whole, with labels that audiocraft reads."""

import json
import select
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from musicgen_ft.errors import UserError
from musicgen_ft.synthesis.corpus import synthesize_corpus
from musicgen_ft.synthesis.genres import GENRES

FIELDS = {"description", "title", "artist", "genre", "key", "bpm", "moods", "instrument", "keywords"}
FIELDS |= {"duration", "sample_rate", "file_extension", "name"}


def synthesize(folder: Path, num_tracks: int, seed: int = 7, genres: tuple[str, ...] | None = None) -> list[Path]:
    folder.mkdir()
    return synthesize_corpus(
        folder, num_tracks=num_tracks, seed=seed, duration_s=0.5, sample_rate=16_000, genres=genres
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_corpus_has_the_same_bytes_on_every_run(tmp_path: Path) -> None:
    synthesize(tmp_path / "once", 3)
    synthesize(tmp_path / "again", 3)
    assert contents(tmp_path / "once") == contents(tmp_path / "again")


def test_a_track_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    synthesize(tmp_path / "few", 2)
    synthesize(tmp_path / "many", 5)
    assert contents(tmp_path / "few").items() <= contents(tmp_path / "many").items()


def test_several_processes_make_the_same_bytes(tmp_path: Path) -> None:
    """And tell of each track once."""
    told: list[int] = []
    (tmp_path / "two").mkdir()
    paths = synthesize_corpus(
        tmp_path / "two",
        num_tracks=3,
        seed=7,
        duration_s=0.5,
        sample_rate=16_000,
        workers=2,
        progress=lambda done, _: told.append(done),
    )
    assert paths == sorted(path for path in (tmp_path / "two").iterdir() if path.suffix == ".wav")
    assert told == [1, 2, 3]
    synthesize(tmp_path / "one", 3)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_another_seed_or_number_gives_another_track(tmp_path: Path) -> None:
    paths = synthesize(tmp_path / "a", 2, genres=("house",)) + synthesize(tmp_path / "b", 1, seed=8, genres=("house",))
    assert len({path.read_bytes() for path in paths}) == 3


def test_as_many_tracks_as_genres_cover_them_all(tmp_path: Path) -> None:
    paths = synthesize(tmp_path / "corpus", len(GENRES))
    labels = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    assert [label["genre"] for label in labels] == list(GENRES)


def test_every_wav_has_audiocrafts_fields_beside_it(tmp_path: Path) -> None:
    (path,) = synthesize(tmp_path / "corpus", 1, genres=("drum and bass",))
    label = json.loads(path.with_suffix(".json").read_text())
    assert path.name == "00000_drum_and_bass.wav"
    assert label.keys() == FIELDS
    assert (label["name"], label["file_extension"], label["artist"]) == (path.stem, "wav", "musicgen-ft")
    assert (label["duration"], label["sample_rate"]) == (0.5, 16_000)
    assert isinstance(label["moods"], list)
    assert isinstance(label["bpm"], int)


def test_a_wav_is_stereo_pcm_of_the_asked_length(tmp_path: Path) -> None:
    (path,) = synthesize(tmp_path / "corpus", 1)
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 16_000)
        assert file.getnframes() == 8_000
        samples = np.frombuffer(file.readframes(8_000), "<i2")
    assert 8_000 < np.abs(samples.astype(int)).max() < 32_000


def test_progress_is_told_after_each_track(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    synthesize_corpus(
        tmp_path,
        num_tracks=2,
        seed=0,
        duration_s=0.1,
        sample_rate=8_000,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("num_tracks", "duration_s", "genres", "message"),
    [
        (0, 1.0, None, "num_tracks is 0, expected 1 or more"),
        (1, -1.0, None, r"duration_s is -1\.0, expected a positive number"),
        (1, 1.0, (), "genres is empty, expected some of: techno"),
        (1, 1.0, ("techno", "polka"), "genre 'polka' is not known, expected one of: techno"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_written(
    tmp_path: Path, num_tracks: int, duration_s: float, genres: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        synthesize_corpus(tmp_path, num_tracks=num_tracks, seed=0, duration_s=duration_s, genres=genres)
    assert not list(tmp_path.iterdir())


def test_no_process_is_left_of_a_corpus_that_was_killed(tmp_path: Path) -> None:
    """The pipe that each of them holds the other end of closes with the last."""
    code = (
        "from pathlib import Path; from musicgen_ft.synthesis.corpus import synthesize_corpus\n"
        "if __name__ == '__main__':\n"
        f"    synthesize_corpus(Path({str(tmp_path)!r}), num_tracks=500, seed=7, duration_s=20.0, workers=2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        while not any(tmp_path.glob("*.wav")):
            assert parent.poll() is None
            time.sleep(0.1)
        parent.kill()
        assert select.select([parent.stdout], [], [], 30)[0]  # what can be read is its end
