import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicgen_ft.codec import CodecSpec
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.files import sha256
from musicgen_ft.shards.format import Rejected, Split
from musicgen_ft.shards.sidecar import read_sidecar
from musicgen_ft.shards.track import Track, TrackMeta
from musicgen_ft.shards.writer import write_shard

MakeTrack = Callable[..., Track]
Tracks = dict[Split, list[Track]]

NAME = "train-000000.tar"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def measured(track: Track) -> Track:
    """The track with figures of its seconds."""
    num_seconds = -(-track.meta.num_frames // 10)
    return replace(track, seconds=np.arange(4 * num_seconds, dtype=np.float16).reshape(4, num_seconds))


def write(folder: Path, tracks: list[Track], codec: CodecSpec, **options: Any) -> None:
    write_shard(folder, NAME, tracks, split="train", codec=codec, **options)


# ---- what is written -------------------------------------------------------------------------------------------------


def test_same_tracks_give_same_bytes(tmp_path: Path, tracks: Tracks, make_shards: Callable[..., Path]) -> None:
    first, second = make_shards(tmp_path / "a", tracks), make_shards(tmp_path / "b", tracks)

    assert files_of(first) == files_of(second)
    assert list(files_of(first)) == [
        "manifest.json",
        "train-000000.index.json",
        "train-000000.tar",
        "train-000001.index.json",
        "train-000001.tar",
        "valid-000000.index.json",
        "valid-000000.tar",
    ]


def test_the_index_tells_where_the_members_lie(tmp_path: Path, codec: CodecSpec, tracks: Tracks) -> None:
    returned = write_shard(tmp_path, NAME, map(measured, tracks["train"]), split="train", codec=codec)
    sidecar = read_sidecar(tmp_path, NAME)
    assert sidecar.seconds_offset is not None and sidecar.seconds_bytes is not None

    with tarfile.open(tmp_path / NAME) as tar:
        members = {member.name: (member.offset_data, member.size) for member in tar}
    assert len(members) == 3 * len(tracks["train"])
    for i, track in enumerate(tracks["train"]):
        assert sidecar.keys[i] == track.key
        assert members[f"{track.key}.codes.npy"] == (sidecar.codes_offset[i], sidecar.codes_bytes[i])
        assert members[f"{track.key}.json"] == (sidecar.json_offset[i], sidecar.json_bytes[i])
        assert members[f"{track.key}.seconds.npy"] == (sidecar.seconds_offset[i], sidecar.seconds_bytes[i])
    assert sidecar == returned


def test_the_index_tells_of_the_tar(tmp_path: Path, codec: CodecSpec, tracks: Tracks) -> None:
    shard = write_shard(tmp_path, NAME, tracks["train"], split="train", codec=codec).shard

    assert (shard.name, shard.split, shard.num_samples, shard.num_frames) == (NAME, "train", 6, 224)
    assert (shard.sha256, shard.num_bytes) == (sha256(tmp_path / NAME), (tmp_path / NAME).stat().st_size)


def test_the_index_keeps_what_prepare_wants_to_know_again(
    tmp_path: Path, codec: CodecSpec, make_track: MakeTrack
) -> None:
    alone = replace(make_track(3), state="5ta7e", codes_state="c0de5")
    of_album = replace(make_track(4), meta=replace(make_track(4).meta, group="an album"))
    rejected = [Rejected(relative_path="folk/noise.wav", reason="the codec carries it with 1.0 dB")]

    write(tmp_path, [alone, of_album], codec, settings="window_s=30", rejected=rejected)

    sidecar = read_sidecar(tmp_path, NAME)
    assert sidecar.keys == ["track_003", "track_004"]
    assert sidecar.groups == ["track_003", "an album"]  # a track of no group is one by itself
    assert (sidecar.states, sidecar.codes_states) == (["5ta7e", ""], ["c0de5", ""])
    assert (sidecar.settings, sidecar.codec_sha256) == ("window_s=30", codec.sha256)
    assert sidecar.rejected == rejected


def test_a_shard_of_which_every_track_was_rejected_is_written(tmp_path: Path, codec: CodecSpec) -> None:
    write(tmp_path, [], codec, rejected=[Rejected(relative_path="a.wav", reason="no samples")])

    sidecar = read_sidecar(tmp_path, NAME)
    assert (sidecar.shard.num_samples, sidecar.keys, sidecar.num_frames) == (0, [], [])
    with tarfile.open(tmp_path / NAME) as tar:
        assert tar.getnames() == []


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_an_exception_leaves_nothing(tmp_path: Path, codec: CodecSpec, make_track: MakeTrack) -> None:
    def tracks() -> Any:
        yield make_track(0)
        raise RuntimeError("the GPU is gone")

    with pytest.raises(RuntimeError, match="the GPU is gone"):
        write_shard(tmp_path, NAME, tracks(), split="train", codec=codec)

    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_nothing_under_the_final_names(tmp_path: Path, codec: CodecSpec) -> None:
    program = f"""
import os, signal
import numpy as np
from musicgen_ft.codec import CodecSpec
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.shards.track import Track, TrackMeta
from musicgen_ft.shards.writer import write_shard
from pathlib import Path

def tracks():
    meta = TrackMeta(labels=Labels(), relative_path="a.wav", num_frames=6, duration_s=0.6)
    yield Track(key="a", codes=np.zeros((3, 6), np.uint16), meta=meta)
    os.kill(os.getpid(), signal.SIGKILL)

write_shard(Path({str(tmp_path)!r}), {NAME!r}, tracks(), split="train", codec={codec!r})
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)

    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f".{NAME}.tmp-")


@pytest.mark.parametrize("num_renames", [0, 1])
def test_no_tar_is_ever_without_its_index(
    tmp_path: Path, codec: CodecSpec, make_track: MakeTrack, monkeypatch: pytest.MonkeyPatch, num_renames: int
) -> None:
    replace_file, done = os.replace, list[Path]()

    def stop(source: Path, target: Path) -> None:
        if len(done) == num_renames:
            raise KeyboardInterrupt
        done.append(target)
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", stop)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, [make_track(0)], codec)

    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.index.json"][:num_renames]


def test_a_full_disk_leaves_no_temporaries(
    tmp_path: Path, codec: CodecSpec, make_track: MakeTrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, [make_track(0)], codec)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 6), dtype=np.uint16), r"codes are \[2, 6\], expected \[n_q=3, T > 0\]"),
        (np.zeros((3, 0), dtype=np.uint16), r"codes are \[3, 0\], expected \[n_q=3, T > 0\]"),
        (np.full((3, 6), 50, dtype=np.uint16), r"a code is 50, expected \[0, card=50\)"),
        (np.zeros((3, 6), dtype=np.int64), r"codes are int64 \[3, 6\], expected uint16 \[K, 6\]"),
    ],
)
def test_codes_that_are_not_the_codecs_are_refused(
    tmp_path: Path, codec: CodecSpec, codes: np.ndarray, message: str
) -> None:
    meta = TrackMeta(labels=Labels(), relative_path="a.wav", num_frames=codes.shape[1], duration_s=0.6)

    with pytest.raises(ValueError, match=f"track a: {message}"):
        write(tmp_path, [Track(key="a", codes=codes, meta=meta)], codec)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", "a.b", "a b", "/a", "a/", "a//b", "ä" * 41, "..", "a\\b"])
def test_a_key_that_a_tar_or_webdataset_would_bend_is_refused(make_track: MakeTrack, key: str) -> None:
    good = make_track(0)

    with pytest.raises(ValueError, match="without dots, blanks and backslashes"):
        Track(key=key, codes=good.codes, meta=good.meta)


def test_a_key_comes_once_in_a_shard(tmp_path: Path, codec: CodecSpec, make_track: MakeTrack) -> None:
    with pytest.raises(ValueError, match="track_000: its key is taken, expected each key once"):
        write(tmp_path, [make_track(0), make_track(1), make_track(0)], codec)


@pytest.mark.parametrize("measured_ones", [{0}, {1}])
def test_tracks_with_and_without_figures_of_their_seconds_do_not_mix(
    tmp_path: Path, codec: CodecSpec, make_track: MakeTrack, measured_ones: set[int]
) -> None:
    tracks = [measured(make_track(number)) if number in measured_ones else make_track(number) for number in range(2)]

    with pytest.raises(ValueError, match=r"track track_001: it has .*, the tracks before it"):
        write(tmp_path, tracks, codec)


def test_figures_of_seconds_of_another_shape_are_refused(
    tmp_path: Path, codec: CodecSpec, make_track: MakeTrack
) -> None:
    with pytest.raises(ValueError, match=r"float16 \[3, 2\], expected float16 \[4, S\]"):
        write(tmp_path, [replace(make_track(0), seconds=np.zeros((3, 2), np.float16))], codec)


def test_a_name_that_is_not_its_splits_is_refused(tmp_path: Path, codec: CodecSpec, make_track: MakeTrack) -> None:
    with pytest.raises(ValueError, match=r"'train-000000\.tar' of split 'valid' is not a shard's name"):
        write_shard(tmp_path, NAME, [make_track(0)], split="valid", codec=codec)

    assert list(tmp_path.iterdir()) == []
