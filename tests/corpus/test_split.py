import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.scan import Record
from musicgen_ft.corpus.split import MIN_ALBUMS, Split, assign_splits, group_values, join_groups, position
from musicgen_ft.errors import UserError


def record(path: str, *, fields: dict[str, str] | None = None, **labels: Any) -> Record:
    key = path.replace("/", "-").partition(".")[0]
    return Record(
        id=key,
        path=Path("/corpus") / path,
        relative_path=path,
        labels=Labels(**labels),
        split=None,
        fields=fields or {},
    )


def split_of(groups: list[str], *, valid_fraction: float = 0.2, **options: Any) -> dict[str, Split]:
    splits = assign_splits(groups, [None] * len(groups), valid_fraction=valid_fraction, **options)
    found: dict[str, Split] = {}
    for group, split in zip(groups, splits, strict=True):
        assert found.setdefault(group, split) == split
    return found


def names(count: int) -> list[str]:
    return [f"group {number}" for number in range(count)]


# ---- what tracks are grouped by --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split_by", "expected"),
    [
        ("track", ["a-1", "a-2", "b-3", "4"]),
        ("folder", ["folder a", "folder a", "folder b", "4"]),
        ("artist", ["artist Bo", "artist Cy", "a record's id", "a record's id"]),
        ("Artist", ["Artist Bo", "Artist Cy", "a record's id", "a record's id"]),
        ("album", ["album Bo / Blue", "album Cy / Blue", "album Various / Blue", "a record's id"]),
        ("session", ["session 7", "a record's id", "session 7", "a record's id"]),
    ],
)
def test_tracks_are_grouped_by_any_field(split_by: str, expected: list[str]) -> None:
    records = [
        record("a/1.wav", artist="Bo", album="Blue", fields={"session": "7"}),
        record("a/2.wav", artist="Cy", album="Blue"),
        record("b/3.wav", album="Blue", fields={"session": "7", "album_artist": "Various"}),
        record("4.wav"),
    ]

    found = group_values(records, split_by)

    alone = [one.id if value == "a record's id" else value for one, value in zip(records, expected, strict=True)]
    assert found == alone


@pytest.mark.parametrize("split_by", ["artist", "to_dict", "descriptions", "x"])
def test_a_field_that_no_track_has_is_refused(split_by: str) -> None:
    records = [record("a/1.wav", fields={"session": "7", "isrc": "DE1"}), record("a/2.wav", description="calm")]

    with pytest.raises(UserError, match=rf"split_by {split_by}: no track has this field, expected .*isrc, session"):
        group_values(records, split_by)


def test_auto_goes_by_album_where_that_gives_enough_groups() -> None:
    few = [record(f"{n}.wav", album=f"album {n % (MIN_ALBUMS - 1)}", artist="Bo") for n in range(30)]
    enough = [record(f"{n}.wav", album=f"album {n % MIN_ALBUMS}", artist="Bo") for n in range(30)]

    assert group_values(few, "auto") == group_values(few, "track")
    assert group_values(enough, "auto") == group_values(enough, "album")
    assert len(set(group_values(enough, "auto"))) == MIN_ALBUMS


def test_auto_goes_by_track_where_nobody_knows_an_album() -> None:
    records = [record(f"{n}.wav") for n in range(30)]

    assert group_values(records, "auto") == [one.id for one in records]


# ---- joining ---------------------------------------------------------------------------------------------------------


def test_tracks_of_one_value_and_duplicates_are_together() -> None:
    values = ["x", "y", "x", "z", "w"]

    found = join_groups(values, [(2, 3)])  # joins x and z

    assert found[0] == found[2] == found[3]
    assert len(set(found)) == 3
    assert found[1] == "y" and found[4] == "w"
    assert found[0] == min("xz", key=position)


def test_a_chain_of_duplicates_is_one_group() -> None:
    found = join_groups(["a", "b", "c", "d"], [(3, 2), (1, 0), (2, 1)])

    assert set(found) == {min("abcd", key=position)}


def test_the_name_of_a_group_does_not_depend_on_the_order() -> None:
    values = ["a", "b", "c", "d", "e"]
    pairs = [(0, 1), (1, 2)]
    expected = dict(zip(values, join_groups(values, pairs), strict=True))

    for order in itertools.permutations(range(5)):
        shuffled = [values[number] for number in order]
        moved = [(order.index(a), order.index(b)) for a, b in pairs]
        assert dict(zip(shuffled, join_groups(shuffled, moved), strict=True)) == expected


def test_no_track_is_no_group() -> None:
    assert join_groups([], []) == []
    assert assign_splits([], [], valid_fraction=0.1) == []


# ---- sides -----------------------------------------------------------------------------------------------------------


def test_the_share_of_many_groups_is_the_fraction() -> None:
    for fraction in (0.05, 0.3):
        share = list(split_of(names(2000), valid_fraction=fraction).values()).count("valid") / 2000

        assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / 2000) ** 0.5  # 4 sigma of a fair draw


def test_the_split_knows_nothing_of_the_order() -> None:
    groups = names(200)
    expected = split_of(groups)
    random.Random(0).shuffle(groups)

    assert split_of(groups) == expected


def test_a_group_stays_when_the_corpus_grows() -> None:
    for seed in range(10):
        order = names(300)
        random.Random(seed).shuffle(order)
        previous: dict[str, Split] = {}

        for size in (1, 2, 3, 5, 9, 40, 300):
            found = split_of(order[:size], valid_fraction=0.1, previous=previous)
            assert {group: found[group] for group in previous} == previous
            previous = found


def test_a_group_stays_without_a_memory_where_both_sides_were_drawn() -> None:
    drawn = {group: "valid" if position(group) < 0.2 else "train" for group in names(400)}

    for size in (30, 60, 400):
        assert {drawn[group] for group in names(size)} == {"train", "valid"}
        assert split_of(names(size)) == {group: drawn[group] for group in names(size)}


def test_growth_that_joins_two_groups_moves_but_one() -> None:
    values = [f"v{number}" for number in range(60)]
    before = dict(zip(values, assign_splits(values, [None] * 60, valid_fraction=0.3), strict=True))
    joined = join_groups([*values, "new"], [(0, 60), (7, 60)])
    after = assign_splits(joined, [None] * 61, valid_fraction=0.3, previous=before)

    assert joined[0] == joined[7] == joined[60]
    moved = [value for value, split in zip(values, after, strict=False) if before[value] != split]
    assert set(moved) <= {"v0", "v7"} and len(moved) <= 1


def test_each_side_gets_a_group_if_there_are_two() -> None:
    for number in range(50):
        pair = [f"a{number}", f"b{number}"]
        assert set(split_of(pair, valid_fraction=0.01).values()) == {"train", "valid"}
        assert set(split_of(pair, valid_fraction=0.99).values()) == {"train", "valid"}
        assert split_of(pair, valid_fraction=0.0) == dict.fromkeys(pair, "train")
        assert split_of([pair[0]], valid_fraction=0.99) == {pair[0]: "train"}


def test_a_side_that_is_empty_takes_a_new_group_before_an_old_one() -> None:
    for number in range(20):
        old, new = f"old {number}", f"new {number}"
        for fraction in (0.01, 0.99):
            assert split_of([old, new], valid_fraction=fraction, previous={old: "train"}) == {
                old: "train",
                new: "valid",
            }
            assert split_of([old, new], valid_fraction=fraction, previous={old: "valid"}) == {
                old: "valid",
                new: "train",
            }


def test_a_side_that_is_empty_takes_an_old_group_if_there_is_no_new_one() -> None:
    found = split_of(names(4), previous=dict.fromkeys(names(4), "train"))

    assert list(found.values()).count("valid") == 1
    assert found[min(names(4), key=position)] == "valid"


def test_what_was_so_before_goes_before_the_draw() -> None:
    groups = names(40)
    opposite: dict[str, Split] = {
        group: "train" if split == "valid" else "valid" for group, split in split_of(groups).items()
    }

    assert split_of(groups, previous=opposite) == opposite
    assert split_of(groups[:20], previous=opposite) == {group: opposite[group] for group in groups[:20]}


def test_the_corpus_itself_goes_before_everything() -> None:
    groups = ["a", "a", "b", "c", "c"]
    explicit: list[Split | None] = ["valid", None, "valid", "train", "train"]

    found = assign_splits(groups, explicit, valid_fraction=0.5, previous={"a": "train", "b": "train", "c": "valid"})

    assert found == ["valid", "valid", "valid", "train", "train"]


@pytest.mark.parametrize("side", ["train", "valid"])
def test_a_corpus_that_puts_all_on_one_side_is_believed(side: Split) -> None:
    assert assign_splits(["a", "b"], [side, side], valid_fraction=0.5) == [side, side]


def test_what_is_free_fills_the_side_that_is_empty() -> None:
    explicit: list[Split | None] = [None, "train", "train"]
    assert assign_splits(["free", "b", "c"], explicit, valid_fraction=0.01) == ["valid", "train", "train"]
    explicit = ["valid", None, "valid"]
    assert assign_splits(["a", "free", "c"], explicit, valid_fraction=0.99) == ["valid", "train", "valid"]


def test_one_group_on_both_sides_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"one\.wav is to be in train and three\.wav in valid, but they are one group .g"
    ) as error:
        assign_splits(
            ["g", "h", "g"],
            ["train", "valid", "valid"],
            valid_fraction=0.1,
            name=lambda number: ("one.wav", "two.wav", "three.wav")[number],
        )
    assert "--split_by track" in str(error.value) and "--duplicates drop" in str(error.value)
