"""Claims about all judges together: real clips are what their captions say, and what has collapsed is counted."""

import numpy as np
import pytest
import torch

from musicgen_ft.codec import CodecSpec
from musicgen_ft.evaluation.clip_features import clip_features
from musicgen_ft.evaluation.genres import GenreClassifier
from musicgen_ft.evaluation.held_out import Clip, render_clips
from musicgen_ft.evaluation.lead import LeadClassifier
from musicgen_ft.evaluation.steering import Played, steering

RATE = 16_000
SPEC = CodecSpec(id="x", sha256="0", sample_rate=RATE, frame_rate=50, channels=1, n_q=3, card=11)
GENRES = ("house", "waltz")

Judges = tuple[GenreClassifier, LeadClassifier]


def clips_of(seed: int, count: int) -> list[Clip]:
    return render_clips(GENRES, seed=seed, clips=count, duration_s=5.0, sample_rate=RATE)


@pytest.fixture(scope="module")
def judges() -> Judges:
    clips = clips_of(900_200, 6)
    features = np.stack([clip_features(clip.waveform, RATE) for clip in clips])
    genres = [clip.genre for clip in clips]
    return GenreClassifier(features, genres), LeadClassifier(features, genres, [clip.lead for clip in clips])


@pytest.fixture(scope="module")
def asked() -> list[Clip]:
    return clips_of(900_201, 2)


def test_real_clips_are_what_their_captions_say(judges: Judges, asked: list[Clip]) -> None:
    found = steering(asked, [Played(clip.waveform, None) for clip in asked], *judges, SPEC)
    assert found["genres"]["accuracy"] == 1
    assert found["tempo"]["clips"] == 4
    assert found["tempo"]["within_octaves"] >= 0.75
    assert found["key"] >= 0.25  # of 24, in five seconds
    assert found["silent"] == 0
    assert found["looping"] is None


def test_clips_that_are_another_prompts_are_not_what_was_asked(judges: Judges, asked: list[Clip]) -> None:
    found = steering(asked, [Played(clip.waveform, None) for clip in reversed(asked)], *judges, SPEC)
    assert found["genres"]["accuracy"] == 0
    assert found["genres"]["confusion"] == {"house": {"waltz": 2}, "waltz": {"house": 2}}


def test_silence_and_loops_are_counted_apart(judges: Judges, asked: list[Clip]) -> None:
    varied = torch.randint(11, (3, 250), generator=torch.Generator().manual_seed(0))
    looping = varied[:, :50].repeat(1, 5)
    silence = np.zeros_like(asked[0].waveform)
    half_silent = asked[3].waveform.copy()
    half_silent[:, half_silent.shape[1] // 2 :] = 0
    played = [
        Played(asked[0].waveform, varied),
        Played(asked[1].waveform, looping),
        Played(silence, looping),
        Played(half_silent, varied),
    ]
    found = steering(asked, played, *judges, SPEC)
    assert (found["silent"], found["looping"]) == (0.5, 0.5)
