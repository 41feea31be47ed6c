"""Claims about how raw fields become labels."""

import json
import math
from dataclasses import replace

import pytest

from musicgen_ft.corpus.labels import Labels, field_of, labels_from_fields, merge

FULL = Labels(
    description="A cool song.",
    captions=("Another, cool song.", "A third."),
    title="Enracinement",
    artist="Voyager I",
    album="Disc 2",
    genre="electronic",
    key="a minor",
    bpm=120.0,
    moods=("uplifting", "calm"),
    instrument="mix",
    keywords=("bright",),
)


def test_labels_survive_json() -> None:
    heard = replace(FULL, computed=("key", "bpm"))
    assert Labels.from_dict(json.loads(json.dumps(heard.to_dict()))) == heard
    assert Labels.from_dict(json.loads(json.dumps(Labels().to_dict()))) == Labels()


def test_labels_of_earlier_shards_are_read() -> None:
    values = json.loads('{"description": "Old.", "title": null, "artist": null, "genre": "jazz", "key": null}')
    values |= json.loads('{"bpm": 90.0, "moods": ["calm"], "instrument": null, "keywords": []}')
    assert Labels.from_dict(values) == Labels(description="Old.", genre="jazz", bpm=90.0, moods=("calm",))


def test_labels_read_back_as_fields_are_the_same() -> None:
    assert labels_from_fields(FULL.to_dict()) == FULL


def test_fields_are_normalised_as_audiocraft_does() -> None:
    found = labels_from_fields(
        {
            "description": " A cool Song. ",
            "title": " Enracinement",
            "artist": "Voyager I ",
            "genre": " Electronic ",
            "key": " A minor ",
            "bpm": "120",
            "moods": ["Uplifting", " Very calm "],
            "instrument": " Mix",
            "keywords": "Bright, pulsing cool,",
            "sample_rate": 48000,
        }
    )
    assert found == Labels(
        description="A cool Song.",
        title="Enracinement",
        artist="Voyager I",
        genre="electronic",
        key="a minor",
        bpm=120.0,
        moods=("uplifting", "very calm"),
        instrument="mix",
        keywords=("bright", "pulsing", "cool"),
    )


@pytest.mark.parametrize("value", ["", "  ", "None", None, [], math.nan, {}])
def test_an_empty_value_is_no_label(value: object) -> None:
    names = [name for name in FULL.to_dict() if name != "computed"]
    assert labels_from_fields(dict.fromkeys(names, value)) == Labels()


@pytest.mark.parametrize(
    ("value", "bpm"),
    [
        ("127.5", 127.5),
        (90, 90.0),
        (90.5, 90.5),
        ("fast", None),
        ("0", None),
        ("-3", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_a_tempo_is_a_positive_number(value: object, bpm: float | None) -> None:
    assert labels_from_fields({"bpm": value}).bpm == bpm


def test_several_keys_are_no_key() -> None:
    assert labels_from_fields({"key": "C major, A minor"}).key is None


def test_a_list_of_genres_is_joined() -> None:
    assert labels_from_fields({"genre": ["Techno", "House"]}).genre == "techno, house"


@pytest.mark.parametrize(
    ("alias", "value", "field", "found"),
    [
        ("caption", "Calm.", "description", "Calm."),
        ("text", "Calm.", "description", "Calm."),
        ("mood", "calm", "moods", ("calm",)),
        ("Tempo", "98", "bpm", 98.0),
        ("TBPM", "98", "bpm", 98.0),
        ("InitialKey", "Am", "key", "am"),
        ("tags", "lo-fi, tape", "keywords", ("lo-fi", "tape")),
    ],
)
def test_a_field_may_go_by_an_alias(alias: str, value: str, field: str, found: object) -> None:
    assert getattr(labels_from_fields({alias: value}), field) == found


def test_the_name_of_a_field_wins_over_its_alias_unless_it_is_empty() -> None:
    assert labels_from_fields({"caption": "alias", "description": "name"}).description == "name"
    assert labels_from_fields({"caption": "alias", "description": ""}).description == "alias"


def test_merge_takes_each_field_from_the_first_that_has_it() -> None:
    first, second = Labels(genre="techno", moods=("dark",)), Labels(genre="house", bpm=120.0, moods=("warm",))
    assert merge(first, second) == Labels(genre="techno", moods=("dark",), bpm=120.0)
    assert merge(Labels(), FULL) == merge(FULL, Labels()) == FULL


@pytest.mark.parametrize(
    ("values", "descriptions"),
    [
        ({"description": ["One.", " Two, too. ", "", None]}, ("One.", "Two, too.")),
        ({"Caption": "One.", "captions": ["Two.", "One."]}, ("One.", "Two.")),
        ({"captions": ["One.", "Two."]}, ("One.", "Two.")),
        ({"captions": "One, and one only."}, ("One, and one only.",)),
        ({"caption_10": "Ten.", "Caption_2": "Two.", "caption": "One.", "caption_3": ""}, ("One.", "Two.", "Ten.")),
        ({"description_1": "One.", "description_x": "no"}, ("One.",)),
        ({"text": "alias", "description": ["name", "next"]}, ("name", "next")),
        ({"captions": {"a": "b"}, "description": 5}, ()),
    ],
)
def test_a_track_may_have_several_descriptions(values: dict[str, object], descriptions: tuple[str, ...]) -> None:
    labels = labels_from_fields(values)
    assert labels.descriptions == descriptions
    assert (labels.description, labels.captions) == (descriptions[0] if descriptions else None, descriptions[1:])


def test_merge_takes_all_descriptions_from_the_first_that_has_one() -> None:
    one, several = Labels(description="A."), Labels(description="B.", captions=("C.",), genre="jazz")
    assert merge(one, several) == Labels(description="A.", genre="jazz")
    assert merge(several, one) == merge(Labels(), several) == several


def test_what_was_computed_stays_so_only_where_it_is_taken() -> None:
    heard = Labels(bpm=90.0, key="a minor", computed=("bpm", "key"))
    given = Labels(bpm=120.0, genre="jazz")
    assert merge(given, heard) == Labels(bpm=120.0, genre="jazz", key="a minor", computed=("key",))
    assert merge(heard, given) == Labels(bpm=90.0, genre="jazz", key="a minor", computed=("key", "bpm"))


def test_nobody_can_give_a_computed_field() -> None:
    assert labels_from_fields({"computed": ["bpm"], "bpm": 90}) == Labels(bpm=90.0)


def test_a_field_is_found_by_its_name_and_by_its_aliases() -> None:
    found = [field_of(name) for name in ("bpm", " Tempo ", "caption", "Tags", "key", "computed", "colour")]
    assert found == ["bpm", "bpm", "description", "keywords", "key", None, None]
