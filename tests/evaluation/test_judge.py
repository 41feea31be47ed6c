"""A judge learns the genres of a labelled folder, hears them through the codec too, and refuses what tells none."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from musicgen_ft.audio import write_wav
from musicgen_ft.codec import Codec
from musicgen_ft.errors import UserError
from musicgen_ft.evaluation.judge import CLIPS_OF_A_TRACK, labelled_clips, train_judge
from musicgen_ft.evaluation.listening import Listener

RATE = 16_000


def sound(genre: str, seconds: float, seed: int) -> torch.Tensor:
    """Noise for ``noise``, a chord for ``chords``."""
    time_s = torch.arange(round(seconds * RATE)) / RATE
    generator = torch.Generator().manual_seed(seed)
    if genre == "noise":
        return 0.1 * torch.randn(1, len(time_s), generator=generator)
    pitches = 220 * 2 ** (torch.rand(3, 1, generator=generator))
    return 0.2 * torch.sin(2 * torch.pi * pitches * time_s).sum(0, keepdim=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 tracks of 5 s of two genres, and one that is too short."""
    folder = tmp_path_factory.mktemp("judge")
    for number in range(6):
        genre = ("noise", "chords")[number % 2]
        write_wav(folder / f"{number}.wav", sound(genre, 5.0, number), RATE)
        (folder / f"{number}.json").write_text(json.dumps({"genre": genre}))
    write_wav(folder / "short.wav", sound("noise", 0.5, 9), RATE)
    (folder / "short.json").write_text(json.dumps({"genre": "noise"}))
    return folder


def test_clips_are_cut_from_each_labelled_track_and_no_more_than_few(corpus: Path, nano_codec: Codec) -> None:
    of_second = labelled_clips(corpus, nano_codec.spec, clip_s=1.2)
    assert len(of_second) == 6 * CLIPS_OF_A_TRACK
    assert {clip.waveform.shape for clip in of_second} == {(1, round(1.2 * RATE))}
    assert sum(clip.genre == "chords" for clip in of_second) == 9
    assert not np.array_equal(of_second[0].waveform, of_second[1].waveform)

    whole = labelled_clips(corpus, nano_codec.spec, clip_s=60.0)
    assert [clip.waveform.shape[1] for clip in whole] == [5 * RATE] * 6


def test_a_judge_tells_genres_apart_and_how_many_were_heard_as_asked(corpus: Path, nano_codec: Codec) -> None:
    clips = labelled_clips(corpus, nano_codec.spec, clip_s=2.0)
    done: list[None] = []
    judge = train_judge(clips, nano_codec, progress=lambda: done.append(None))
    assert (judge.classes, len(done)) == (("chords", "noise"), len(clips))
    assert judge.predict(sound("noise", 2.0, 50)[0].numpy(), RATE) == "noise"
    assert judge.predict(sound("chords", 2.0, 51)[0].numpy(), RATE) == "chords"

    listener = Listener((), sample_rate=RATE, classifier=judge)
    heard = listener.probabilities([sound("noise", 2.0, 60), sound("noise", 2.0, 61), sound("chords", 2.0, 62)])
    assert listener.heard_as_asked(heard, ["noise", "chords", "chords"]) == pytest.approx(2 / 3)
    assert listener.heard_as_asked(heard, ["noise", None, "polka"]) == 1.0  # what the judge has no class for counts not
    assert listener.heard_as_asked(heard, [None, None, "polka"]) is None
    short = listener.probabilities([sound("noise", 0.3, 60)])  # the rest of a track
    assert listener.heard_as_asked(short, ["noise"]) == 1.0
    assert Listener((), sample_rate=RATE).heard_as_asked(heard, ["noise"] * 3) is None


def test_a_folder_of_one_genre_is_refused(tmp_path: Path, nano_codec: Codec) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"genre": "noise"}))
    write_wav(tmp_path / "a.wav", sound("noise", 0.5, 0), RATE)
    with pytest.raises(UserError, match=r"--judge .*: found none, expected tracks of two genres or more"):
        labelled_clips(tmp_path, nano_codec.spec, clip_s=1.0)
    write_wav(tmp_path / "a.wav", sound("noise", 2.0, 0), RATE)
    with pytest.raises(UserError, match=r"found noise \(2 clips\), expected tracks of two genres"):
        labelled_clips(tmp_path, nano_codec.spec, clip_s=1.0)
