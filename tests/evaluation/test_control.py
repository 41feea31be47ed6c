"""The control has the same music under other tracks' labels, each once, and none its own."""

import json
from pathlib import Path

import pytest

from musicgen_ft.errors import UserError
from musicgen_ft.evaluation.control import shuffle_labels


def corpus(folder: Path, count: int) -> Path:
    for number in range(count):
        place = folder / ("new" if number % 2 else "old")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.wav").write_bytes(b"sound %d" % number)
        (place / f"{number}.json").write_text(json.dumps({"genre": f"genre {number}"}))
    return folder


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_label_has_changed_its_place(tmp_path: Path, count: int, seed: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shuffle_labels(corpus(tmp_path / "corpus", count), out, seed=seed)
    sounds = {path.stem: int(path.read_bytes().split()[1]) for path in out.glob("*.wav")}
    labels = {path.stem: int(json.loads(path.read_text())["genre"].split()[1]) for path in out.glob("*.json")}
    assert sorted(sounds.values()) == sorted(labels.values()) == list(range(count))
    assert sounds.keys() == labels.keys()
    assert all(sounds[stem] != labels[stem] for stem in sounds)


def test_one_track_cannot_change_places(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found 1 tracks, expected two or more"):
        shuffle_labels(corpus(tmp_path, 1), tmp_path, seed=0)
