from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musicgen_ft.codec import CodecSpec
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.shards.batch import Crop
from musicgen_ft.shards.crops import CropDataset, ValidDataset
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.track import Track, TrackMeta

Tracks = dict[Split, list[Track]]

CARD, SEGMENT = 50, 20


class Captions:
    def describe(self, labels: Labels, rng: np.random.Generator) -> str | None:
        return f"{labels.description} {rng.integers(10)}"

    def plain(self, labels: Labels) -> str | None:
        return labels.description


@pytest.fixture
def index(shards: Path) -> ShardIndex:
    return ShardIndex.open(shards)


def crops_of(index: ShardIndex, **changed: Any) -> CropDataset:
    settings: dict[str, Any] = {"segment_frames": SEGMENT, "card": CARD, "seed": 3, "global_batch": 4} | changed
    return CropDataset(index.split("train"), captions=Captions(), **settings)


def contains(codes: np.ndarray, crop: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(codes, crop.shape[1], axis=1)  # [K, starts, T]
    return bool((windows == crop[:, None]).all(axis=(0, 2)).any())


def test_an_epoch_passes_about_once_over_every_track(index: ShardIndex, tracks: Tracks) -> None:
    crops = crops_of(index)

    found = Counter(crops[position].key for position in range(crops.num_slots))

    assert [found[track.key] for track in tracks["train"]] == [1, 2, 4, 1, 3, 2]


def test_lengths_of_crops_are_known_without_reading_them(index: ShardIndex) -> None:
    crops = crops_of(index)
    positions = range(5, 5 + 2 * crops.num_slots)

    found = crops.num_frames(positions)

    assert found.tolist() == [int(crops[position].mask.sum()) for position in positions]
    assert len(set(found.tolist())) > 1


def test_a_crop_is_a_stretch_of_its_track_padded_with_the_special_token(index: ShardIndex, tracks: Tracks) -> None:
    crops = crops_of(index)
    by_key = {track.key: track.codes for track in tracks["train"]}

    for position in range(2 * crops.num_slots):
        crop = crops[position]
        codes, T = by_key[crop.key], int(crop.mask.sum())
        assert (crop.codes.dtype, crop.codes.shape, crop.mask.shape) == (torch.int64, (3, SEGMENT), (SEGMENT,))
        assert min(SEGMENT, codes.shape[1]) == T
        assert crop.mask.tolist() == [True] * T + [False] * (SEGMENT - T)
        assert contains(codes, crop.codes[:, :T].numpy())
        assert (crop.codes[:, T:] == CARD).all()


def test_crops_start_anywhere_in_the_track(index: ShardIndex) -> None:
    crops = crops_of(index)

    # Track 1 has 41 frames, so that 22 starts are possible; its frame t of codebook 0 holds (t + 1) % 50.
    starts = {int(crop.codes[0, 0]) - 1 for crop in map(crops.__getitem__, range(4000)) if crop.key == "track_001"}

    assert starts == set(range(22))


def equal(first: Crop, second: Crop) -> bool:
    return torch.equal(first.codes, second.codes) and first[2:] == second[2:]


def test_a_crop_is_a_pure_function_of_seed_and_position(index: ShardIndex) -> None:
    forward, backward = crops_of(index), crops_of(index)

    there = [forward[position] for position in range(30)]
    back = [backward[position] for position in reversed(range(30))][::-1]

    assert all(equal(first, second) for first, second in zip(there, back, strict=True))
    assert not all(equal(first, crops_of(index, seed=4)[first.position]) for first in there)


def test_dropped_texts_match_their_probability_and_leave_the_crops_as_they_are(index: ShardIndex) -> None:
    kept, dropped = crops_of(index), crops_of(index, cfg_dropout=0.3)
    pairs = [(kept[position], dropped[position]) for position in range(2000)]

    rate = sum(crop.description is None for _, crop in pairs) / 2000

    assert abs(rate - 0.3) < 5 * 0.0103  # 5 sigma of binomial(2000, 0.3) / 2000
    assert all(crop.description is not None for crop, _ in pairs)
    assert all(torch.equal(first.codes, second.codes) for first, second in pairs)
    assert all(second.description in (first.description, None) for first, second in pairs)


def test_dropout_by_step_drops_all_texts_of_a_step_or_none(index: ShardIndex) -> None:
    crops = crops_of(index, cfg_dropout=0.3, cfg_dropout_scope="step")
    steps = [{crops[4 * step + i].description is None for i in range(4)} for step in range(600)]

    assert all(len(is_dropped) == 1 for is_dropped in steps)
    assert abs(sum(is_dropped == {True} for is_dropped in steps) / 600 - 0.3) < 5 * 0.0187  # 5 sigma of 600 draws


@pytest.mark.parametrize("scope", ["sample", "step"])
@pytest.mark.parametrize(("probability", "is_dropped"), [(0.0, False), (1.0, True)])
def test_dropout_of_nothing_and_of_everything(
    index: ShardIndex, scope: str, probability: float, is_dropped: bool
) -> None:
    crops = crops_of(index, cfg_dropout=probability, cfg_dropout_scope=scope)

    assert {crops[position].description is None for position in range(50)} == {is_dropped}


def test_a_probability_out_of_range_is_refused(index: ShardIndex) -> None:
    with pytest.raises(ValueError, match=r"cfg_dropout is 1\.5, expected a probability in \[0, 1\]"):
        crops_of(index, cfg_dropout=1.5)


def valid_of(index: ShardIndex, max_crops: int) -> list[Crop]:
    crops = ValidDataset(
        index.split("valid"), segment_frames=SEGMENT, card=CARD, captions=Captions(), max_crops=max_crops
    )
    return [crops[number] for number in range(len(crops))]


def test_validation_crops_follow_each_other_without_overlap(index: ShardIndex, tracks: Tracks) -> None:
    found = valid_of(index, max_crops=99)

    # 44 frames are 2 crops, the rest of 4 is less than half of one; 12 frames are all there is; 99 frames are 5.
    expected = [(0, 0, 20), (0, 20, 40), (1, 0, 12), (2, 0, 20), (2, 20, 40), (2, 40, 60), (2, 60, 80), (2, 80, 99)]
    assert len(found) == len(expected)
    for number, (crop, (i, start, stop)) in enumerate(zip(found, expected, strict=True)):
        track = tracks["valid"][i]
        np.testing.assert_array_equal(crop.codes[:, crop.mask].numpy(), track.codes[:, start:stop])
        assert (crop.key, crop.description, crop.position) == (track.key, track.meta.labels.description, number)


def test_fewer_validation_crops_are_spread_evenly(index: ShardIndex) -> None:
    assert [crop.key for crop in valid_of(index, max_crops=4)] == ["track_100", "track_101", "track_102", "track_102"]


def test_there_may_be_no_validation_crop(index: ShardIndex) -> None:
    assert valid_of(index, max_crops=0) == []


# ---- silence ---------------------------------------------------------------------------------------------------------


def second_by_second(sounding: str, *, num_frames: int, is_measured: bool = True) -> Track:
    """A track of which "-" seconds are silent and "x" seconds sound; its codes tell every frame apart."""
    times = np.arange(num_frames)
    codes = np.stack([times % CARD, times // CARD, np.zeros(num_frames)]).astype(np.uint16)
    seconds = np.zeros((4, len(sounding)), np.float16)
    seconds[0] = [-20 if second == "x" else -61 for second in sounding]
    meta = TrackMeta(labels=Labels(), relative_path="a.wav", num_frames=num_frames, duration_s=num_frames / 10)
    return Track(key="a", codes=codes, meta=meta, seconds=seconds if is_measured else None)


def start_of(crop: Crop) -> int:
    return int(crop.codes[0, 0] + CARD * crop.codes[1, 0])


def silent_share(crop: Crop, sounding: str) -> float:
    """Of the seconds that a crop has a part in, those that are silent."""
    start, stop = start_of(crop), start_of(crop) + int(crop.mask.sum())
    touched = sounding[start // 10 : -(-stop // 10)]
    return touched.count("-") / len(touched)


@pytest.fixture
def index_of(tmp_path: Path, codec: CodecSpec, write_folder: Callable[..., Path]) -> Callable[..., ShardIndex]:
    """A function that opens shards in which each split has the one track."""

    def make(*tracks: Track) -> ShardIndex:
        return ShardIndex.open(write_folder(tmp_path / "one", codec, {"train": [*tracks], "valid": [*tracks]}))

    return make


@pytest.mark.parametrize(
    ("sounding", "num_frames"),
    [
        ("------------xxxxxxxx", 200),
        ("xx--xxxx---xx------x", 193),
        ("-------------------xx", 207),
        ("x-------------------", 200),
        ("---------xx", 105),
    ],
)
def test_a_silent_stretch_is_not_served_where_there_is_another(
    index_of: Callable[..., ShardIndex], sounding: str, num_frames: int
) -> None:
    index = index_of(second_by_second(sounding, num_frames=num_frames))
    crops = crops_of(index)

    served = [crops[position] for position in range(400)]

    assert max(silent_share(crop, sounding) for crop in [*served, *valid_of(index, max_crops=99)]) <= 0.5


def test_silence_takes_no_crop_from_what_sounds(index_of: Callable[..., ShardIndex]) -> None:
    sounding = "------------xxxxxxxx"
    crops = crops_of(index_of(second_by_second(sounding, num_frames=200)))

    starts = {start_of(crops[position]) for position in range(6000)}

    # 2 s from frame 110 on are half silent; from 111 to 119 they have parts of three seconds, of which one is silent.
    assert starts == {*range(110, 181)}


def test_in_place_of_a_silent_stretch_come_all_the_others(index_of: Callable[..., ShardIndex]) -> None:
    crops = crops_of(index_of(second_by_second("xxxx--------------------------xxxx----", num_frames=375)))

    counts = Counter(start_of(crops[position]) for position in range(6000))

    allowed = {0, 10, 20, 30, 290, 300, 310, 320, 330}
    assert {start for start, count in counts.items() if count > 150} == allowed  # any other is drawn about 17 times


def test_validation_takes_the_nearest_stretch_that_sounds(index_of: Callable[..., ShardIndex]) -> None:
    found = valid_of(index_of(second_by_second("xxx------------xxxxx", num_frames=200)), max_crops=99)

    assert [start_of(crop) for crop in found] == [0, 20, 20, 20, 20, 140, 140, 140, 160, 180]


def test_the_end_of_a_track_may_be_the_stretch_that_sounds(index_of: Callable[..., ShardIndex]) -> None:
    found = valid_of(index_of(second_by_second("-----------------xxxx", num_frames=207)), max_crops=1)
    assert start_of(found[0]) == 160
    found = valid_of(index_of(second_by_second("-------------------xx", num_frames=207)), max_crops=1)
    assert start_of(found[0]) == 180


def test_a_track_that_is_silent_all_over_is_served_all_the_same(index_of: Callable[..., ShardIndex]) -> None:
    crops = crops_of(index_of(second_by_second("-" * 20, num_frames=200)))

    assert all(crops[position].mask.all() for position in range(50))


def test_of_a_track_that_is_too_silent_everywhere_comes_the_least_silent(
    index_of: Callable[..., ShardIndex],
) -> None:
    sounding = "---------x----------"
    crops = crops_of(index_of(second_by_second(sounding, num_frames=200)), segment_frames=40)

    assert {silent_share(crops[position], sounding) for position in range(100)} == {0.75}


def test_a_track_no_longer_than_a_crop_is_served_whole(index_of: Callable[..., ShardIndex]) -> None:
    crops = crops_of(index_of(second_by_second("-x", num_frames=17)))

    assert {(start_of(crops[position]), int(crops[position].mask.sum())) for position in range(20)} == {(0, 17)}


def test_a_track_that_sounds_and_one_that_nobody_measured_give_the_same_crops(
    tmp_path: Path, codec: CodecSpec, write_folder: Callable[..., Path]
) -> None:
    found = []
    for is_measured in (True, False):
        track = second_by_second("x" * 21, num_frames=207, is_measured=is_measured)
        folder = write_folder(tmp_path / str(is_measured), codec, {"train": [track], "valid": [track]})
        index = ShardIndex.open(folder)
        crops = crops_of(index, cfg_dropout=0.4)
        found.append([*(crops[position] for position in range(50)), *valid_of(index, max_crops=99)])

    assert all(equal(first, second) for first, second in zip(*found, strict=True))
    assert len({start_of(crop) for crop in found[0]}) > 20
