import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musicgen_ft.errors import UserError
from musicgen_ft.shards import index as index_module
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.index import ShardIndex, SplitIndex
from musicgen_ft.shards.track import Track

Tracks = dict[Split, list[Track]]
SPLITS: list[Split] = ["train", "valid"]


@pytest.mark.parametrize("split", SPLITS)
def test_write_then_read_is_equal(shards: Path, tracks: Tracks, split: Split) -> None:
    found = ShardIndex.open(shards, verify=True).split(split)

    assert found.keys == tuple(track.key for track in tracks[split])
    assert found.num_frames.tolist() == [track.meta.num_frames for track in tracks[split]]
    for i, expected in enumerate(tracks[split]):
        track = found.track(i)
        assert (track.key, track.meta) == (expected.key, expected.meta)
        assert track.codes.dtype == np.uint16
        np.testing.assert_array_equal(track.codes, expected.codes)


def test_any_stretch_of_a_track_is_read(shards: Path, tracks: Tracks) -> None:
    found = ShardIndex.open(shards).split("train")

    for i, track in enumerate(tracks["train"]):
        for start, stop in ((0, 1), (0, track.meta.num_frames), (3, 5), (track.meta.num_frames - 1, None)):
            np.testing.assert_array_equal(found.codes(i, start, stop), track.codes[:, start:stop])


def test_a_folder_without_valid_tracks_has_an_empty_split(
    tmp_path: Path, tracks: Tracks, make_shards: Callable[..., Path]
) -> None:
    index = ShardIndex.open(make_shards(tmp_path / "shards", {"train": tracks["train"]}))

    assert (len(index.split("train")), len(index.split("valid"))) == (6, 0)


def test_no_more_files_are_held_open_than_the_limit(
    shards: Path, tracks: Tracks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "MAX_OPEN_FILES", 1)
    found = ShardIndex.open(shards).split("train")

    for i in (0, 5, 1, 4):  # tracks 0 to 3 lie in one shard, 4 and 5 in the other
        np.testing.assert_array_equal(found.codes(i), tracks["train"][i].codes)

    assert len(found._files._open) == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_index_works_in_another_process(shards: Path, tracks: Tracks, method: str) -> None:
    split = ShardIndex.open(shards).split("train")
    split.codes(0)  # a descriptor is open when the process starts

    with multiprocessing.get_context(method).Pool(1) as pool:
        codes = pool.apply(split.codes, (5, 2, 9))

    np.testing.assert_array_equal(codes, tracks["train"][5].codes[:, 2:9])


def test_an_index_pickled_while_files_are_open_reads_on(shards: Path, tracks: Tracks) -> None:
    split = ShardIndex.open(shards).split("train")
    split.codes(0)

    copy: SplitIndex = pickle.loads(pickle.dumps(split))

    np.testing.assert_array_equal(copy.codes(2), tracks["train"][2].codes)
    np.testing.assert_array_equal(split.codes(1), tracks["train"][1].codes)


def test_a_missing_shard_is_refused(shards: Path) -> None:
    (shards / "train-000001.tar").unlink()

    with pytest.raises(UserError, match=r"train-000001\.tar is missing, the manifest lists it.*prepare"):
        ShardIndex.open(shards)


@pytest.mark.parametrize("lost", [1, 512, 4096])
def test_a_cut_tar_is_refused(shards: Path, lost: int) -> None:
    path = shards / "train-000000.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-lost])

    with pytest.raises(
        UserError, match=rf"train-000000\.tar has {size - lost} bytes, the manifest says {size}.*prepare"
    ):
        ShardIndex.open(shards)


def test_a_changed_byte_is_refused_on_verify(shards: Path) -> None:
    path = shards / "valid-000000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)

    ShardIndex.open(shards)
    with pytest.raises(UserError, match=r"valid-000000\.tar has SHA-256 .*its content changed.*prepare"):
        ShardIndex.open(shards, verify=True)


def test_a_shard_without_its_index_is_refused(shards: Path) -> None:
    (shards / "train-000000.index.json").unlink()

    with pytest.raises(UserError, match=r"train-000000\.index\.json is missing"):
        ShardIndex.open(shards)


def test_an_index_of_another_shard_is_refused(shards: Path) -> None:
    shutil.copy(shards / "train-000001.index.json", shards / "train-000000.index.json")

    with pytest.raises(UserError, match=r"index of train-000001\.tar .* expected that of train-000000\.tar"):
        ShardIndex.open(shards)


@pytest.mark.parametrize("column", ["num_frames", "codes_offset", "codes_bytes", "json_offset", "json_bytes"])
def test_an_index_that_points_beside_the_codes_is_refused(shards: Path, column: str) -> None:
    path = shards / "train-000000.index.json"
    values = json.loads(path.read_text())
    values[column][1] += 100_000
    path.write_text(json.dumps(values))

    with pytest.raises(UserError, match=r"train-000000\.tar: its index and the manifest disagree"):
        ShardIndex.open(shards)


def test_a_tar_that_is_cut_while_it_is_read_is_told(shards: Path) -> None:
    split = ShardIndex.open(shards).split("train")
    (shards / "train-000000.tar").write_bytes(b"")

    with pytest.raises(UserError, match=r"train-000000\.tar, track track_000: 0 bytes at"):
        split.codes(0)


# ---- figures of seconds ----------------------------------------------------------------------------------------------


@pytest.fixture
def measured(tracks: Tracks) -> Tracks:
    """The same tracks, with figures that tell the track, the second and the figure."""

    def measure(track: Track) -> Track:
        num_seconds = -(-track.meta.num_frames // 10)
        figures = np.arange(4 * num_seconds).reshape(4, num_seconds) + int(track.key[-3:])
        seconds = figures.astype(np.float16)
        seconds[3, 0] = np.nan
        return replace(track, seconds=seconds)

    return {split: [measure(track) for track in tracks[split]] for split in tracks}


def test_figures_of_seconds_write_then_read_is_equal(
    tmp_path: Path, measured: Tracks, make_shards: Callable[..., Path]
) -> None:
    index = ShardIndex.open(make_shards(tmp_path / "shards", measured), verify=True)

    for split in SPLITS:
        found = index.split(split)
        assert found.has_seconds
        for i, expected in enumerate(measured[split]):
            seconds = found.track(i).seconds
            assert seconds is not None and expected.seconds is not None
            assert seconds.dtype == np.float16
            np.testing.assert_array_equal(seconds, expected.seconds)
            np.testing.assert_array_equal(found.seconds(i), expected.seconds)
            np.testing.assert_array_equal(found.codes(i), expected.codes)


def test_tracks_that_nobody_measured_have_no_figures(shards: Path) -> None:
    found = ShardIndex.open(shards).split("train")

    assert not found.has_seconds
    assert found.track(0).seconds is None


@pytest.mark.parametrize("column", ["seconds_offset", "seconds_bytes"])
def test_an_index_that_points_beside_the_figures_is_refused(
    tmp_path: Path, measured: Tracks, make_shards: Callable[..., Path], column: str
) -> None:
    shards = make_shards(tmp_path / "shards", measured)
    path = shards / "train-000000.index.json"
    values = json.loads(path.read_text())
    values[column][3] += 100_000
    path.write_text(json.dumps(values))

    with pytest.raises(UserError, match=r"train-000000\.tar: its index and the manifest disagree"):
        ShardIndex.open(shards)


def test_an_index_with_half_of_the_figures_columns_is_refused(
    tmp_path: Path, measured: Tracks, make_shards: Callable[..., Path]
) -> None:
    shards = make_shards(tmp_path / "shards", measured)
    path = shards / "train-000000.index.json"
    values = json.loads(path.read_text())
    del values["seconds_offset"]
    path.write_text(json.dumps(values))

    with pytest.raises(UserError, match=r"train-000000\.index\.json has seconds_offset without seconds_bytes"):
        ShardIndex.open(shards)


@pytest.mark.parametrize("column", ["groups", "states", "codes_states", "keys"])
def test_a_column_of_text_that_is_too_short_is_refused(shards: Path, column: str) -> None:
    path = shards / "train-000000.index.json"
    values = json.loads(path.read_text())
    values[column].pop()
    path.write_text(json.dumps(values))

    with pytest.raises(UserError, match=rf"train-000000\.index\.json: .*'{column}': 3, .*with 4 each"):
        ShardIndex.open(shards)


# ---- groups ----------------------------------------------------------------------------------------------------------


def grouped(track: Track, group: str) -> Track:
    return replace(track, meta=replace(track.meta, group=group))


def test_a_track_of_no_group_is_one_by_itself(tmp_path: Path, tracks: Tracks, make_shards: Callable[..., Path]) -> None:
    train = [grouped(tracks["train"][0], "an album"), grouped(tracks["train"][1], "an album"), *tracks["train"][2:]]
    index = ShardIndex.open(make_shards(tmp_path / "shards", {"train": train, "valid": tracks["valid"]}))

    assert index.split("train").groups[:4] == ("an album", "an album", "track_002", "track_003")
    assert index.split("train").meta(1).group == "an album"
    index.refuse_leaks()


def test_a_group_in_both_splits_is_refused(tmp_path: Path, tracks: Tracks, make_shards: Callable[..., Path]) -> None:
    train = [*tracks["train"][:4], grouped(tracks["train"][4], "an album"), tracks["train"][5]]
    valid = [tracks["valid"][0], grouped(tracks["valid"][1], "an album")]
    index = ShardIndex.open(make_shards(tmp_path / "shards", {"train": train, "valid": valid}))

    with pytest.raises(
        UserError, match=r"1 groups of tracks are in both .* 'an album' with track_004 in train and track_101 in valid"
    ):
        index.refuse_leaks()


def test_a_track_in_both_splits_is_refused(tmp_path: Path, tracks: Tracks, make_shards: Callable[..., Path]) -> None:
    both: Tracks = {"train": tracks["train"], "valid": [*tracks["valid"], tracks["train"][3]]}

    with pytest.raises(UserError, match=r"'track_003' with track_003 in train and track_003 in valid"):
        ShardIndex.open(make_shards(tmp_path / "shards", both)).refuse_leaks()
