"""Caption merging and label reading against audiocraft's own."""

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from audiocraft.data.music_dataset import MusicInfo, augment_music_info_description

from musicgen_ft.corpus.captions import CaptionPolicy
from musicgen_ft.corpus.labels import Labels, labels_from_fields

FIELDS: dict[str, Any] = {
    "description": "A cool song from Voyager..",
    "title": " Enracinement ",
    "artist": "Voyager I",
    "genre": " Electronic",
    "key": "A minor",
    "bpm": "120",
    "moods": ["Uplifting", "very calm"],
    "instrument": "Mix",
    "keywords": "",
}


def music_info(fields: dict[str, Any]) -> Any:
    return MusicInfo.from_dict(
        {"meta": None, "seek_time": 0, "n_frames": 1, "total_frames": 1, "sample_rate": 1, "channels": 1} | fields
    )


@pytest.mark.parametrize(
    "fields",
    [
        FIELDS,
        FIELDS | {"keywords": "bright, pulsing  cool,", "moods": "dark warm,cold", "bpm": 97.5},
        FIELDS | {"key": "C, D", "bpm": "fast", "moods": [], "genre": "", "title": "None"},
        {"description": "only text"},
    ],
)
def test_labels_equal_audiocrafts_music_info(fields: dict[str, Any]) -> None:
    info, labels = music_info(fields), labels_from_fields(fields)
    found = labels.to_dict()
    for name in ("captions", "album", "computed"):  # ours alone
        assert not found.pop(name)
    for name, value in found.items():
        assert (value or None) == (getattr(info, name) or None), name


@pytest.mark.parametrize("description", [FIELDS["description"], None])
@pytest.mark.parametrize(
    ("merge_text_p", "drop_desc_p", "keep_p"), [(0.25, 0.5, 0.5), (1.0, 0.5, 0.8), (0.7, 0.0, 0.3)]
)
def test_merged_captions_have_audiocrafts_distribution(
    description: str | None, merge_text_p: float, drop_desc_p: float, keep_p: float
) -> None:
    fields = {"description": description, "genre": "Electronic", "bpm": "120", "moods": ["calm", "warm"]}
    policy = CaptionPolicy(
        source="description", merge_text_p=merge_text_p, drop_desc_p=drop_desc_p, field_keep_p=keep_p
    )
    info, labels, rng, count = music_info(fields), labels_from_fields(fields), np.random.default_rng(0), 6000

    random.seed(0)
    theirs = Counter(
        augment_music_info_description(info, merge_text_p, drop_desc_p, keep_p).description for _ in range(count)
    )
    ours = Counter(policy.describe(labels, rng) for _ in range(count))

    assert ours.keys() == theirs.keys()
    for caption, number in theirs.items():
        deviation = math.sqrt(2 * number * (1 - number / count))  # of the difference of two counts
        assert ours[caption] == pytest.approx(number, abs=5 * deviation + 5), caption


def test_without_merging_the_description_is_untouched() -> None:
    labels = Labels(description="A cool song")
    assert CaptionPolicy(source="description").describe(labels, np.random.default_rng(0)) == "A cool song"
