"""The catalog against the indices of the shards that it joins."""

import json
import logging
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicgen_ft.codec import CodecSpec
from musicgen_ft.errors import UserError
from musicgen_ft.shards import catalog as catalog_module
from musicgen_ft.shards.catalog import Texts, open_catalog, write_catalog
from musicgen_ft.shards.format import CATALOG_NAME, Split, read_manifest, write_manifest
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.sidecar import read_sidecar
from musicgen_ft.shards.track import Track

Tracks = dict[Split, list[Track]]
SPLITS: list[Split] = ["train", "valid"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached catalogs, which is not there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "musicgen-ft" / "catalogs"


@pytest.fixture
def with_catalog(shards: Path) -> Path:
    """Complete shards as ``prepare`` leaves them."""
    write_catalog(shards, read_manifest(shards))
    return shards


@pytest.fixture
def no_reading(with_catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No index of a shard may be read from now on."""

    def refuse(folder: Path, manifest: Any) -> Any:
        raise AssertionError(f"{folder} is read")

    monkeypatch.setattr(catalog_module, "make_columns", refuse)


def expect_same(index: ShardIndex, tracks: Tracks) -> None:
    for split in SPLITS:
        found = index.split(split)
        assert len(found) == len(tracks[split])
        assert found.keys == [track.key for track in tracks[split]]
        assert found.groups == [track.meta.group or track.key for track in tracks[split]]
        assert found.num_frames.tolist() == [track.meta.num_frames for track in tracks[split]]
        for i, expected in enumerate(tracks[split]):
            track = found.track(i)
            assert (track.key, track.meta) == (expected.key, expected.meta)
            np.testing.assert_array_equal(track.codes, expected.codes)


@pytest.mark.usefixtures("no_reading")
@pytest.mark.parametrize("place", ["where it was made", "elsewhere"])
def test_a_folder_opens_by_its_catalog_alone(with_catalog: Path, tracks: Tracks, tmp_path: Path, place: str) -> None:
    folder = with_catalog
    if place == "elsewhere":
        folder = tmp_path / "copy"
        shutil.copytree(with_catalog, folder)

    expect_same(ShardIndex.open(folder), tracks)


def test_the_columns_are_those_of_the_shards_indices(with_catalog: Path) -> None:
    manifest = read_manifest(with_catalog)
    catalog = open_catalog(with_catalog, manifest)

    for split in SPLITS:
        sidecars = [read_sidecar(with_catalog, shard.name) for shard in manifest.of(split)]
        for name in sidecars[0].columns:
            expected = [value for sidecar in sidecars for value in getattr(sidecar, name)]
            assert catalog.columns[f"{split}/{name}"].tolist() == expected
        assert catalog.keys(split) == [key for sidecar in sidecars for key in sidecar.keys]
        assert catalog.groups(split) == [group for sidecar in sidecars for group in sidecar.groups]


def test_offsets_beyond_four_gigabytes_and_names_beyond_ascii_are_kept(
    tmp_path: Path, codec: CodecSpec, tracks: Tracks, write_folder: Callable[..., Path]
) -> None:
    folder = write_folder(tmp_path / "wide", codec, {"train": tracks["train"][:2], "valid": []})
    far = 2**33
    path = folder / "train-000000.index.json"
    values = json.loads(path.read_text())
    values["keys"][0] = "für/日本"
    for name in ("codes_offset", "json_offset"):
        values[name][1] += far
    values["shard"]["num_bytes"] += far
    path.write_text(json.dumps(values))
    manifest = read_manifest(folder)
    (shard,) = manifest.shards
    write_manifest(folder, replace(manifest, shards=(replace(shard, num_bytes=shard.num_bytes + far),)))
    write_catalog(folder, read_manifest(folder))

    catalog = open_catalog(folder, read_manifest(folder))

    assert catalog.path is not None
    assert catalog.columns["train/codes_offset"].tolist() == values["codes_offset"]
    assert catalog.keys("train") == ["für/日本", "track_001"]


def test_a_catalog_of_another_manifest_is_passed_over(with_catalog: Path, tracks: Tracks) -> None:
    manifest = read_manifest(with_catalog)
    kept = tuple(shard for shard in manifest.shards if shard.name != "train-000000.tar")
    write_manifest(with_catalog, replace(manifest, shards=kept))

    expect_same(ShardIndex.open(with_catalog), {"train": tracks["train"][4:], "valid": tracks["valid"]})


@pytest.mark.parametrize("damage", ["header", "first", "last", "cut", "more", "empty", "foreign", "version"])
def test_a_damaged_catalog_is_told_and_passed_over(
    with_catalog: Path, tracks: Tracks, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = with_catalog / CATALOG_NAME
    data = bytearray(path.read_bytes())
    begin = data.index(b"\n", data.index(b"\n") + 1) + 1
    if damage == "header":
        place = data.index(b'"num_bytes": ') + len(b'"num_bytes": ')
        data[place] = data[place] % 10 + ord("1")
    elif damage in ("first", "last"):
        data[begin if damage == "first" else -1] ^= 1
    else:
        data = {
            "cut": data[:-1], "more": data + b"\0", "empty": bytearray(), "foreign": bytearray(b"{}\n"),
            "version": data.replace(b"catalog 1", b"catalog 2"),
        }[damage]  # fmt: skip
    path.write_bytes(data)

    with caplog.at_level(logging.WARNING):
        expect_same(ShardIndex.open(with_catalog), tracks)

    assert f"{path} is damaged and is passed over" in caplog.text


def test_a_large_folder_without_one_is_kept_in_the_users_cache(
    shards: Path, tracks: Tracks, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in shards.iterdir())
    monkeypatch.setattr(catalog_module, "MIN_CACHED_TRACKS", 9)

    expect_same(ShardIndex.open(shards), tracks)
    (cached,) = cache.iterdir()
    monkeypatch.setattr(catalog_module, "make_columns", None)  # a second time nothing is made
    expect_same(ShardIndex.open(shards), tracks)

    assert open_catalog(shards, read_manifest(shards)).path == cached
    assert sorted(path.name for path in shards.iterdir()) == before


def test_a_small_folder_leaves_nothing_in_the_users_cache(shards: Path, tracks: Tracks, cache: Path) -> None:
    expect_same(ShardIndex.open(shards), tracks)

    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(
    shards: Path, tracks: Tracks, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder")
    monkeypatch.setattr(catalog_module, "MIN_CACHED_TRACKS", 9)

    expect_same(ShardIndex.open(shards), tracks)


def test_a_catalog_is_not_made_of_an_index_that_the_manifest_does_not_know(shards: Path) -> None:
    path = shards / "train-000001.index.json"
    values = json.loads(path.read_text())
    values["codes_offset"][1] += 100_000
    path.write_text(json.dumps(values))

    with pytest.raises(UserError, match=r"train-000001\.tar: its index and the manifest disagree"):
        write_catalog(shards, read_manifest(shards))
    assert not (shards / CATALOG_NAME).exists()


def test_a_shard_that_was_cut_is_refused_all_the_same(with_catalog: Path) -> None:
    path = with_catalog / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:-512])

    with pytest.raises(UserError, match=r"train-000000\.tar has .* it was cut or replaced"):
        ShardIndex.open(with_catalog)


def test_a_mapped_catalog_is_pickled_as_its_name(with_catalog: Path, tracks: Tracks) -> None:
    catalog = open_catalog(with_catalog, read_manifest(with_catalog))

    data = pickle.dumps(catalog)

    assert len(data) < 1000 < (with_catalog / CATALOG_NAME).stat().st_size
    assert pickle.loads(data).keys("train") == catalog.keys("train")


def test_a_mapped_catalog_works_in_a_process_of_its_own(with_catalog: Path, tracks: Tracks) -> None:
    split = ShardIndex.open(with_catalog).split("train")

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        codes = pool.apply(split.codes, (5, 2, 9))

    np.testing.assert_array_equal(codes, tracks["train"][5].codes[:, 2:9])


def test_groups_that_are_in_both_splits_are_found(
    tmp_path: Path, tracks: Tracks, make_shards: Callable[..., Path]
) -> None:
    def grouped(track: Track, group: str) -> Track:
        return replace(track, meta=replace(track.meta, group=group))

    train = [grouped(track, group) for track, group in zip(tracks["train"], "bbaacd", strict=True)]
    valid = [grouped(track, group) for track, group in zip(tracks["valid"], ("e", "track_000", "a"), strict=True)]
    folder = make_shards(tmp_path / "shared", {"train": train, "valid": valid})
    assert open_catalog(folder, read_manifest(folder)).shared_groups() == ("a",)  # no key counts as a group

    valid[0] = grouped(valid[0], "b")
    folder = make_shards(tmp_path / "two", {"train": train, "valid": valid})
    index = ShardIndex.open(folder)
    with pytest.raises(UserError, match=r"2 groups .* 'a' with track_002 in train and track_102 in valid"):
        index.refuse_leaks()


def test_texts_are_a_sequence() -> None:
    text = np.frombuffer("aübc".encode(), dtype=np.uint8)
    texts = Texts(text, np.array([1, 3, 3, 5]), np.array([3, 0, 1, 2]))

    assert list(texts) == ["bc", "a", "ü", ""]
    assert (texts[0], texts[-1], texts[1:3]) == ("bc", "", ("a", "ü"))
    assert (texts.index("ü"), "x" in texts, len(texts)) == (2, False, 4)
    assert texts == ("bc", "a", "ü", "")
    assert texts != ["bc"]
    with pytest.raises(IndexError):
        texts[4]
