"""A judge learns the genres of a labelled folder, hears them through the codec too, and refuses what tells none."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from musicgen_ft.audio import write_wav
from musicgen_ft.codec import Codec
from musicgen_ft.errors import UserError
from musicgen_ft.evaluation.held_out import render_clips
from musicgen_ft.evaluation.judge import CLIPS_OF_A_TRACK, clips_of, labelled_tracks, saved_judge, train_judge
from musicgen_ft.evaluation.linear import LinearClassifier
from musicgen_ft.evaluation.listening import Listener
from musicgen_ft.evaluation.reconstruction import reconstruct
from musicgen_ft.synthesis.genres import GENRES

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


def test_clips_are_cut_from_the_beginning_and_no_more_than_few() -> None:
    track = sound("noise", 5.0, 0).numpy()
    clips = clips_of(track, RATE, 1.2)
    assert len(clips) == CLIPS_OF_A_TRACK
    assert {clip.shape for clip in clips} == {(1, round(1.2 * RATE))}
    assert np.array_equal(np.concatenate(clips, axis=1), track[:, : 3 * round(1.2 * RATE)])
    assert [clip.shape[1] for clip in clips_of(track, RATE, 60.0)] == [5 * RATE]
    assert clips_of(track[:, : RATE // 2], RATE, 60.0) == []


@pytest.mark.parametrize("cores", [1, 3])
def test_a_judge_is_the_same_however_many_listen(
    corpus: Path, nano_codec: Codec, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    usual = train_judge(corpus, labelled_tracks(corpus), nano_codec, clip_s=2.0)
    monkeypatch.setattr("musicgen_ft.evaluation.judge.num_cores", lambda: cores)
    found = train_judge(corpus, labelled_tracks(corpus), nano_codec, clip_s=2.0)
    clip = sound("chords", 2.0, 7)[0].numpy()
    assert np.array_equal(found.probabilities(clip, RATE), usual.probabilities(clip, RATE))


def test_a_judge_tells_genres_apart_and_how_many_were_heard_as_asked(corpus: Path, nano_codec: Codec) -> None:
    tracks = labelled_tracks(corpus)
    done: list[None] = []
    judge = train_judge(corpus, tracks, nano_codec, clip_s=2.0, progress=lambda: done.append(None))
    assert (judge.classes, len(done)) == (("chords", "noise"), 7)
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


def test_a_folder_of_one_genre_is_refused_also_where_the_other_is_too_short(tmp_path: Path, nano_codec: Codec) -> None:
    def track(name: str, genre: str, seconds: float) -> None:
        write_wav(tmp_path / f"{name}.wav", sound("noise", seconds, 0), RATE)
        (tmp_path / f"{name}.json").write_text(json.dumps({"genre": genre}))

    track("a", "noise", 2.0)
    with pytest.raises(UserError, match=r"--judge .*: found noise alone, expected tracks of two genres or more"):
        labelled_tracks(tmp_path)
    track("b", "chords", 0.5)
    with pytest.raises(UserError, match="found noise alone, expected tracks of two genres or more"):
        train_judge(tmp_path, labelled_tracks(tmp_path), nano_codec, clip_s=1.0)
    track("a", "noise", 0.5)
    with pytest.raises(UserError, match="found none, expected tracks of two genres or more"):
        train_judge(tmp_path, labelled_tracks(tmp_path), nano_codec, clip_s=1.0)


def test_the_bundled_judge_tells_the_genres_of_unseen_clips_through_the_codec(nano_codec: Codec) -> None:
    judge = saved_judge(Path("nano"))
    assert judge is not None
    assert set(judge.classes) == set(GENRES)
    clips = render_clips(
        tuple(GENRES), seed=990_000, clips=1, duration_s=10.0, sample_rate=RATE, channels=1, progress=lambda: None
    )
    back = [reconstruct(nano_codec, torch.from_numpy(clip.waveform)).waveform.numpy() for clip in clips]
    assert [judge.predict(waveform, RATE) for waveform in back] == [clip.genre for clip in clips]


def test_a_folder_is_no_saved_judge_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert saved_judge(Path("nano")) is None
    assert saved_judge(tmp_path / "nowhere") is None


def test_a_saved_judge_of_other_features_is_refused(tmp_path: Path) -> None:
    LinearClassifier(np.arange(12.0).reshape(4, 3), ["a", "b", "a", "b"]).save(tmp_path / "old.npz")
    with pytest.raises(UserError, match=r"found a judge of 3 features, expected one of \d+\. .* make it again"):
        saved_judge(tmp_path / "old.npz")
