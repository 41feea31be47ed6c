"""Claims about captions; that merging equals audiocraft's is told by ``tests/parity/test_captions.py``."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from musicgen_ft.corpus.captions import CaptionPolicy, compose, drop_words
from musicgen_ft.corpus.labels import Labels

TRACK = Labels(
    description="A cool song.", title="T", artist="A", genre="electronic", bpm=120.0, moods=("uplifting", "calm")
)
FIELDS = "genre: electronic. moods: uplifting, calm. bpm: 120"


def draws(policy: CaptionPolicy, labels: Labels, count: int) -> Counter[str | None]:
    rng = np.random.default_rng(0)
    return Counter(policy.describe(labels, rng) for _ in range(count))


def test_compose_puts_the_known_fields_in_a_fixed_order() -> None:
    assert compose(TRACK) == FIELDS
    full = Labels(genre="jazz", moods=("calm",), instrument="piano", key="a minor", bpm=97.5, keywords=("live", "slow"))
    assert compose(full) == "genre: jazz. moods: calm. instrument: piano. key: a minor. bpm: 97.5. keywords: live, slow"


def test_compose_of_nothing_known_is_none() -> None:
    assert compose(Labels(title="T", artist="A", description="D")) is None


@pytest.mark.parametrize(
    ("policy", "described", "undescribed"),
    [
        (CaptionPolicy(), "A cool song.", "genre: jazz"),
        (CaptionPolicy(source="description"), "A cool song.", None),
        (CaptionPolicy(source="fields"), FIELDS, "genre: jazz"),
    ],
)
def test_source_says_where_the_caption_comes_from(
    policy: CaptionPolicy, described: str, undescribed: str | None
) -> None:
    for labels, caption in ((TRACK, described), (Labels(genre="jazz"), undescribed), (Labels(), None)):
        assert policy.plain(labels) == caption
        assert draws(policy, labels, 9) == {caption: 9}


def test_plain_knows_no_chance() -> None:
    policy = CaptionPolicy(merge_text_p=1, drop_desc_p=1, word_dropout=1)
    assert policy.plain(TRACK) == "A cool song."


def test_merging_adds_the_kept_fields_in_any_order() -> None:
    found = draws(CaptionPolicy(merge_text_p=1, field_keep_p=1), TRACK, 200)
    pairs = ["genre: electronic", "moods: uplifting, calm", "bpm: 120.0"]
    assert set(found) == {"A cool song. " + ". ".join(order) for order in permutations(pairs)}


def test_merging_drops_the_description_by_its_probability() -> None:
    policy = CaptionPolicy(merge_text_p=1, drop_desc_p=0.3, field_keep_p=0)
    found = draws(policy, TRACK, 2000)
    assert set(found) == {None, "A cool song."}
    assert found[None] / 2000 == pytest.approx(0.3, abs=0.04)  # 4 standard deviations


def test_with_merging_on_an_unmerged_description_ends_in_a_dot() -> None:
    policy = CaptionPolicy(merge_text_p=1e-9)
    assert draws(policy, Labels(description="A cool song"), 9) == {"A cool song.": 9}
    assert policy.plain(Labels(description="A cool song")) == "A cool song"


def test_a_track_without_a_description_is_merged_or_composed() -> None:
    policy = CaptionPolicy(merge_text_p=0.5, drop_desc_p=1, field_keep_p=0.5)
    assert set(draws(policy, Labels(genre="jazz", bpm=90.0), 200)) == {
        "genre: jazz. bpm: 90",
        "genre: jazz. bpm: 90.0",
        "bpm: 90.0. genre: jazz",
        "genre: jazz",
        "bpm: 90.0",
    }


def test_equal_seeds_give_equal_captions() -> None:
    policy = CaptionPolicy(merge_text_p=0.5, drop_desc_p=0.5, word_dropout=0.3)
    assert draws(policy, TRACK, 50) == draws(policy, TRACK, 50)


def test_word_dropout_drops_each_word_by_its_probability() -> None:
    rng = np.random.default_rng(0)
    kept = drop_words(" ".join(["word"] * 10000), 0.3, rng)
    assert len((kept or "").split(" ")) / 10000 == pytest.approx(0.7, abs=0.02)  # 4 standard deviations
    assert draws(CaptionPolicy(word_dropout=0.5), Labels(description="a b"), 99).keys() == {"a b", "a", "b", None}


@pytest.mark.parametrize("name", ["merge_text_p", "drop_desc_p", "field_keep_p", "word_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} is {value}, expected a probability in \[0, 1\]"):
        CaptionPolicy(**{name: value})  # type: ignore[arg-type]  # the name is a parameter of the test


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match="source is 'title', expected description, fields or auto"):
        CaptionPolicy(source="title")  # type: ignore[arg-type]  # what a YAML file could hold
