import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicgen_ft.codec import CodecSpec
from musicgen_ft.errors import UserError
from musicgen_ft.shards.format import Manifest, Rejected, ShardInfo, check_codec, read_manifest, write_manifest
from musicgen_ft.shards.track import Track, decode_codes, decode_meta, encode_codes, encode_meta


@pytest.fixture
def manifest(codec: CodecSpec) -> Manifest:
    shards = (
        ShardInfo(name="train-000000.tar", split="train", num_samples=4, num_frames=70, num_bytes=99, sha256="a1"),
        ShardInfo(name="train-000001.tar", split="train", num_samples=3, num_frames=50, num_bytes=88, sha256="b2"),
        ShardInfo(name="valid-000000.tar", split="valid", num_samples=2, num_frames=25, num_bytes=77, sha256="c3"),
    )
    return Manifest(
        codec=codec,
        base="facebook/musicgen-small",
        shards=shards,
        config={"quality": {"min_duration_s": 2.5}},
        toolkit_version="0.1.0",
        rejected=(Rejected(relative_path="a/ö.mp3", reason="no audio stream"),),
    )


def test_manifest_write_then_read_is_equal(tmp_path: Path, manifest: Manifest) -> None:
    write_manifest(tmp_path, manifest)

    assert read_manifest(tmp_path) == manifest


def test_manifest_counts_tracks_and_seconds_of_each_split(manifest: Manifest) -> None:
    assert manifest.num_tracks == {"train": 7, "valid": 2}
    assert manifest.duration_s == {"train": 12.0, "valid": 2.5}


def test_a_folder_that_is_none_is_told_from_one_that_is_empty_and_one_that_is_incomplete(
    tmp_path: Path, shards: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (shards / "manifest.json").unlink()

    with pytest.raises(UserError, match=r"nowhere is not a folder.*Make one: musicgen-ft prepare"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"empty is not a shards folder.*Run: musicgen-ft prepare"):
        read_manifest(tmp_path / "empty")
    with pytest.raises(UserError, match="shards is incomplete: prepare did not finish it"):
        read_manifest(shards)


def test_a_folder_with_only_the_temporary_of_a_killed_prepare_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / ".train-000000.tar.tmp-4711").write_bytes(b"half")

    with pytest.raises(UserError, match="is incomplete: prepare did not finish it"):
        read_manifest(tmp_path)


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.pop(name)


def having(**changed: Any) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.update(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (having(version=1), "has version 1, this toolkit reads version 2"),
        (having(format="mp3"), "has format 'mp3', expected 'musicgen-ft shards'"),
        (having(extra=1), r"unknown keys \['extra'\]"),
        (without("base"), r"missing keys \['base'\]"),
        (without("shards"), "found None where a list is expected"),
        (having(base=7), "Manifest.base is 7, expected str"),
        (lambda values: values["codec"].update(n_q="3"), "CodecSpec.n_q is '3', expected int"),
        (lambda values: values["shards"][0].update(name="../../x.tar"), "is not a shard's name"),
        (lambda values: values["shards"][0].update(split="valid"), "is not a shard's name"),
    ],
)
def test_a_manifest_that_is_not_as_agreed_is_refused(
    tmp_path: Path, manifest: Manifest, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    values = json.loads(json.dumps(manifest.to_dict()))
    change(values)
    (tmp_path / "manifest.json").write_text(json.dumps(values))

    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": ')

    with pytest.raises(UserError, match="is not valid JSON"):
        read_manifest(tmp_path)


def test_shards_of_the_same_codec_are_accepted_whatever_its_name(manifest: Manifest, codec: CodecSpec) -> None:
    check_codec(manifest, replace(codec, id="a copy"))


@pytest.mark.parametrize(
    ("name", "value"), [("sha256", "f" * 40), ("n_q", 8), ("card", 1024), ("frame_rate", 25), ("sample_rate", 640)]
)
def test_shards_of_another_codec_are_refused_with_the_command_that_mends_it(
    manifest: Manifest, codec: CodecSpec, name: str, value: Any
) -> None:
    other = replace(codec, id="other", **{name: value})

    with pytest.raises(UserError) as caught:
        check_codec(manifest, other)

    found, expected = str(getattr(codec, name))[:12], str(value)[:12]
    assert f"codec tiny ({name}={found}" in str(caught.value)
    assert f"codec other ({name}={expected})" in str(caught.value)
    assert "musicgen-ft prepare CORPUS --out SHARDS --base BASE" in str(caught.value)


def test_codes_and_meta_encode_then_decode_are_equal(make_track: Callable[..., Track]) -> None:
    track = make_track(3, 17)

    codes, meta = decode_codes(encode_codes(track.codes)), decode_meta(encode_meta(track.meta))

    assert codes.dtype == np.uint16
    np.testing.assert_array_equal(codes, track.codes)
    assert meta == track.meta


def test_codes_are_written_in_c_order_as_npy_1_0(make_track: Callable[..., Track]) -> None:
    codes = make_track(3, 17).codes

    transposed = encode_codes(np.asfortranarray(codes))

    assert transposed == encode_codes(codes)
    assert transposed[:8] == b"\x93NUMPY\x01\x00"
    assert transposed[-codes.nbytes :] == codes.tobytes()
