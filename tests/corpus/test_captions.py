"""Claims about captions; that merging equals audiocraft's is told by ``tests/parity/test_captions.py``."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from musicgen_ft.cli import parse
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.corpus.captions import (
    CaptionPolicy,
    caption_policy,
    check_template,
    compose,
    drop_words,
    fill_template,
    preview,
)
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.errors import UserError

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


@pytest.mark.parametrize("name", ["merge_text_p", "drop_desc_p", "field_keep_p", "field_dropout", "word_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} is {value}, expected a probability in \[0, 1\]"):
        CaptionPolicy(**{name: value})  # type: ignore[arg-type]  # the name is a parameter of the test


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match="source is 'title', expected description, fields, auto or template"):
        CaptionPolicy(source="title")  # type: ignore[arg-type]  # what a YAML file could hold


# Several descriptions


def test_training_draws_each_description_alike_and_validation_reads_the_first() -> None:
    labels = Labels(description="one", captions=("two", "three"), genre="jazz")
    found = draws(CaptionPolicy(), labels, 3000)
    assert found.keys() == {"one", "two", "three"}
    assert all(count / 3000 == pytest.approx(1 / 3, abs=0.035) for count in found.values())  # 4 standard deviations
    assert CaptionPolicy().plain(labels) == "one"
    assert draws(CaptionPolicy(source="fields"), labels, 9) == {"genre: jazz": 9}


def test_fields_are_merged_into_the_description_that_was_drawn() -> None:
    labels = Labels(description="one", captions=("two",), genre="jazz")
    found = draws(CaptionPolicy(merge_text_p=1, field_keep_p=1), labels, 99)
    assert found.keys() == {"one. genre: jazz", "two. genre: jazz"}


# Field dropout and shuffling


def test_field_dropout_leaves_fields_out_of_composed_captions_but_never_all() -> None:
    policy, labels = CaptionPolicy(field_dropout=0.4), Labels(genre="jazz", bpm=90.0, computed=("bpm",))
    found = draws(policy, labels, 3000)
    assert found.keys() == {"genre: jazz. bpm: 90", "genre: jazz", "bpm: 90"}
    assert found["genre: jazz. bpm: 90"] / 3000 == pytest.approx(0.36, abs=0.036)  # 4 standard deviations
    assert policy.plain(labels) == "genre: jazz. bpm: 90"
    assert draws(CaptionPolicy(field_dropout=1), labels, 99).keys() == {"genre: jazz", "bpm: 90"}


def test_field_dropout_leaves_descriptions_and_merging_alone() -> None:
    assert draws(CaptionPolicy(field_dropout=1), TRACK, 9) == {"A cool song.": 9}
    merging = CaptionPolicy(field_dropout=1, merge_text_p=1, field_keep_p=1, drop_desc_p=1)
    assert {len((caption or "").split(". ")) for caption in draws(merging, TRACK, 50)} == {3}


def test_shuffling_puts_fields_and_the_words_of_lists_in_any_order() -> None:
    policy, labels = CaptionPolicy(shuffle_fields=True), Labels(genre="jazz", moods=("calm", "warm"))
    moods = ["moods: calm, warm", "moods: warm, calm"]
    assert draws(policy, labels, 99).keys() == {
        *(f"genre: jazz. {words}" for words in moods),
        *(f"{words}. genre: jazz" for words in moods),
    }
    assert policy.plain(labels) == "genre: jazz. moods: calm, warm"
    template = CaptionPolicy(source="template", template="{moods} {genre}", shuffle_fields=True)
    assert draws(template, labels, 99).keys() == {"calm, warm jazz", "warm, calm jazz"}


def test_a_choice_that_is_off_draws_nothing() -> None:
    """A run that is resumed after an upgrade reads the captions that it would have read before."""
    rng = np.random.default_rng(5)
    for labels in (TRACK, Labels(genre="jazz", moods=("calm", "warm")), Labels()):
        CaptionPolicy().describe(labels, rng)
    assert rng.bit_generator.state == np.random.default_rng(5).bit_generator.state


# Trigger


@pytest.mark.parametrize(
    ("trigger", "caption"),
    [("zorp style", "zorp style, A cool song."), (" Zorp: ", "Zorp: A cool song."), (" ", "A cool song.")],
)
def test_the_trigger_stands_before_every_caption(trigger: str, caption: str) -> None:
    policy = CaptionPolicy(trigger=trigger)
    assert policy.plain(TRACK) == caption
    assert draws(policy, TRACK, 9) == {caption: 9}


def test_the_trigger_survives_merging_and_dropouts_and_is_the_caption_of_the_unknown() -> None:
    policy = CaptionPolicy(trigger="zorp", merge_text_p=0.5, drop_desc_p=1, field_keep_p=0.5, word_dropout=0.5)
    found = draws(policy, TRACK, 300)
    assert all(caption == "zorp" or (caption or "").startswith("zorp, ") for caption in found)
    assert len(found) > 9
    assert draws(CaptionPolicy(trigger="zorp", word_dropout=1), TRACK, 9) == {"zorp": 9}
    assert draws(CaptionPolicy(trigger="zorp"), Labels(), 9) == {"zorp": 9}


# Template

TEMPLATE = "zorp, a {genre} track[ with {instrument}] in {key}, {bpm} bpm. It is {moods}."


@pytest.mark.parametrize(
    ("template", "labels", "caption"),
    [
        (
            TEMPLATE,
            Labels(genre="jazz", instrument="piano", key="a minor", bpm=97.5, moods=("calm", "warm")),
            "zorp, a jazz track with piano in a minor, 97.5 bpm. It is calm, warm.",
        ),
        (TEMPLATE, Labels(genre="jazz", key="a minor", bpm=90.0), "zorp, a jazz track in a minor, 90 bpm."),
        (TEMPLATE, Labels(genre="jazz", moods=("calm",)), "zorp. It is calm."),
        (TEMPLATE, Labels(genre="jazz", key="c major"), "zorp, a jazz track in c major."),
        (TEMPLATE, Labels(), "zorp."),
        ("a {genre} track[, {bpm} bpm]", Labels(genre="jazz", bpm=120.0), "a jazz track, 120 bpm"),
        ("a {genre} track[, {bpm} bpm]", Labels(genre="jazz"), "a jazz track"),
        ("a [{moods} ]{genre}  track", Labels(genre="jazz"), "a jazz track"),
        ("{genre} {bpm}", Labels(genre="jazz"), None),
        ("{description}, {bpm} bpm", Labels(description="Calm. Slow..", bpm=60.0), "Calm. Slow, 60 bpm"),
        ("{key}; {bpm} bpm, slow", Labels(bpm=60.0), "60 bpm, slow"),
        ("in 3/4, vol.2, {genre}", Labels(genre="a {bpm}, b"), "in 3/4, vol.2, a {bpm}, b"),
    ],
)
def test_a_template_leaves_out_what_is_not_known(template: str, labels: Labels, caption: str | None) -> None:
    check_template(template)
    assert fill_template(template, labels) == caption
    policy = CaptionPolicy(source="template", template=template)
    assert policy.plain(labels) == caption
    assert draws(policy, labels, 9) == {caption: 9}


def test_a_dropped_field_is_unknown_to_a_template_and_one_that_it_names_stays() -> None:
    policy = CaptionPolicy(source="template", template="{genre}, {bpm} bpm", field_dropout=0.5)
    labels = Labels(genre="jazz", bpm=90.0, key="a minor", moods=("calm",))
    assert draws(policy, labels, 99).keys() == {"jazz, 90 bpm", "jazz", "90 bpm"}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a {gnre} track", r"\{gnre\} is no field, did you mean \{genre\}\?; there are genre, moods"),
        ("{tempo} bpm", r"\{tempo\} is no field, did you mean \{bpm\}\?"),
        ("{album}", r"\{album\} is no field; there are"),
        ("{}", r"\{\} is no field; there are"),
        ("a {genre track", "'{' is left over in 'a {genre track', expected braces in pairs"),
        ("a {genre}} track", "'}' is left over"),
        ("a [{genre} track", r"'\[' is left over in .* expected brackets in pairs and not nested"),
        ("a [{genre} [{key}]] track", r"'\[' is left over"),
        ("a [slow] track", r"\[slow\] names no field"),
        (" ", "there is no template"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CaptionPolicy(source="template", template=template)


def test_choices_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="caption source is auto, expected template"):
        CaptionPolicy(template="{genre}")
    with pytest.raises(UserError, match=r"merge_text_p is 0\.25 with the caption source template, expected 0"):
        CaptionPolicy(source="template", template="{genre}", merge_text_p=0.25)


# Config and preview


def test_the_config_of_a_run_says_every_choice_of_the_policy() -> None:
    words = ["shards", "--out", "run", "--caption_source", "template", "--caption_template", "[{genre}: ]{bpm}"]
    words += ["--trigger", "#zorp", "--drop_desc_p", "0.1", "--field_keep_p", "0.2"]
    words += ["--field_dropout", "0.3", "--shuffle_fields", "true", "--word_dropout", "0.4"]
    assert caption_policy(parse(FinetuneConfig, "finetune", words)) == CaptionPolicy(
        source="template",
        template="[{genre}: ]{bpm}",
        trigger="#zorp",
        drop_desc_p=0.1,
        field_keep_p=0.2,
        field_dropout=0.3,
        shuffle_fields=True,
        word_dropout=0.4,
    )
    assert caption_policy(FinetuneConfig()) == CaptionPolicy()
    assert caption_policy(FinetuneConfig(merge_text_p=0.5)).merge_text_p == 0.5


def test_a_preview_is_what_training_draws() -> None:
    policy = CaptionPolicy(merge_text_p=0.5, word_dropout=0.3)
    rng = np.random.default_rng(7)
    expected = [policy.describe(TRACK, rng) for _ in range(5)]
    assert preview(policy, TRACK, 5, np.random.default_rng(7)) == expected
    assert len(set(expected)) > 1
