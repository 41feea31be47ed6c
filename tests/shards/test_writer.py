import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from musicgen_ft.codec import CodecSpec
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.errors import UserError
from musicgen_ft.files import sha256
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.sidecar import read_sidecar
from musicgen_ft.shards.track import Track, TrackMeta
from musicgen_ft.shards.writer import ShardWriter

MakeTrack = Callable[..., Track]
Tracks = dict[Split, list[Track]]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_same_tracks_give_same_bytes(tmp_path: Path, tracks: Tracks, make_shards: Callable[..., Path]) -> None:
    first, second = make_shards(tmp_path / "a", tracks), make_shards(tmp_path / "b", tracks)

    assert files_of(first) == files_of(second)


def test_a_shard_is_closed_when_it_has_max_samples(shards: Path) -> None:
    assert [path.name for path in sorted(shards.iterdir())] == [
        "manifest.json",
        "train-000000.index.json",
        "train-000000.tar",
        "train-000001.index.json",
        "train-000001.tar",
        "valid-000000.index.json",
        "valid-000000.tar",
    ]


def test_a_shard_is_closed_before_it_exceeds_max_shard_bytes(
    tmp_path: Path, codec: CodecSpec, make_track: MakeTrack
) -> None:
    with ShardWriter(tmp_path, codec, max_shard_bytes=6000) as writer:  # a track takes 512 * (1 + 1 + 1 + 1) bytes
        for number in range(5):
            writer.add("train", make_track(number))

    assert [shard.num_samples for shard in writer.shards] == [2, 2, 1]


def test_the_index_tells_where_the_members_lie(shards: Path) -> None:
    sidecar = read_sidecar(shards, "train-000001.tar")

    with tarfile.open(shards / "train-000001.tar") as tar:
        members = {member.name: (member.offset_data, member.size) for member in tar}
    for i, key in enumerate(sidecar.keys):
        assert members[f"{key}.codes.npy"] == (sidecar.codes_offset[i], sidecar.codes_bytes[i])
        assert members[f"{key}.json"] == (sidecar.json_offset[i], sidecar.json_bytes[i])
    assert sidecar.shard.sha256 == sha256(shards / "train-000001.tar")
    assert sidecar.shard.num_bytes == (shards / "train-000001.tar").stat().st_size


def test_an_exception_leaves_only_full_shards_and_no_temporaries(
    tmp_path: Path, codec: CodecSpec, make_track: MakeTrack
) -> None:
    def prepare() -> None:
        with ShardWriter(tmp_path, codec, max_samples=2) as writer:
            for number in range(3):
                writer.add("train", make_track(number))
            writer.add("valid", make_track(9))
            raise RuntimeError("the GPU is gone")

    with pytest.raises(RuntimeError, match="the GPU is gone"):
        prepare()

    assert [path.name for path in sorted(tmp_path.iterdir())] == ["train-000000.index.json", "train-000000.tar"]


def test_a_kill_leaves_no_tar_without_index_and_a_second_run_completes_the_same_bytes(
    tmp_path: Path, codec: CodecSpec
) -> None:
    program = f"""
import os, signal
import numpy as np
from musicgen_ft.codec import CodecSpec
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.shards.track import Track, TrackMeta
from musicgen_ft.shards.writer import ShardWriter
from pathlib import Path

with ShardWriter(Path({str(tmp_path / "killed")!r}), {codec!r}, max_samples=2) as writer:
    for number in range(5):
        meta = TrackMeta(labels=Labels(), relative_path="a.wav", num_frames=6, duration_s=0.6)
        codes = np.full((3, 6), number, dtype=np.uint16)
        writer.add("train", Track(key=f"t{{number}}", codes=codes, meta=meta))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    found = {path.name for path in (tmp_path / "killed").iterdir()}

    assert killed.returncode == -signal.SIGKILL
    assert {name for name in found if not name.startswith(".")} == {
        f"train-00000{number}.{kind}" for number in (0, 1) for kind in ("tar", "index.json")
    }
    assert any(name.startswith(".train-000002.tar.tmp-") for name in found)

    def write(folder: Path) -> int:
        written = 0
        with ShardWriter(folder, codec, max_samples=2) as writer:
            for number in range(5):
                if (key := f"t{number}") not in writer:
                    meta = TrackMeta(labels=Labels(), relative_path="a.wav", num_frames=6, duration_s=0.6)
                    writer.add("train", Track(key=key, codes=np.full((3, 6), number, dtype=np.uint16), meta=meta))
                    written += 1
        return written

    assert (write(tmp_path / "killed"), write(tmp_path / "whole")) == (1, 5)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_a_folder_begun_with_another_config_or_codec_is_refused(
    tmp_path: Path, codec: CodecSpec, make_track: MakeTrack
) -> None:
    with ShardWriter(tmp_path, codec, fingerprint="segments of 30 s") as writer:
        writer.add("train", make_track(0))

    with pytest.raises(UserError, match="begun with another codec or config"):
        ShardWriter(tmp_path, codec, fingerprint="segments of 10 s")


def test_a_damaged_shard_is_not_taken_over(tmp_path: Path, codec: CodecSpec, make_track: MakeTrack) -> None:
    with ShardWriter(tmp_path, codec) as writer:
        writer.add("train", make_track(0))
    path = tmp_path / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:-700])

    with pytest.raises(UserError, match=r"train-000000\.tar is damaged"):
        ShardWriter(tmp_path, codec)


def test_a_complete_folder_is_refused(shards: Path, codec: CodecSpec) -> None:
    with pytest.raises(UserError, match="holds complete shards"):
        ShardWriter(shards, codec)


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

    with ShardWriter(tmp_path, codec) as writer, pytest.raises(ValueError, match=message):
        writer.add("train", Track(key="a", codes=codes, meta=meta))


@pytest.mark.parametrize("key", ["", "a.b", "a b", "/a", "a/", "a//b", "ä" * 41, "..", "a\\b"])
def test_a_key_that_a_tar_or_webdataset_would_bend_is_refused(make_track: MakeTrack, key: str) -> None:
    good = make_track(0)

    with pytest.raises(ValueError, match="without dots, blanks and backslashes"):
        Track(key=key, codes=good.codes, meta=good.meta)


def test_a_key_comes_once_in_the_whole_folder(tmp_path: Path, codec: CodecSpec, make_track: MakeTrack) -> None:
    with ShardWriter(tmp_path, codec, max_samples=1) as writer:
        writer.add("train", make_track(0))
        writer.add("train", make_track(1))

        with pytest.raises(ValueError, match="track_000: its key is taken"):
            writer.add("valid", make_track(0))


def test_a_full_disk_leaves_no_temporaries(
    tmp_path: Path, codec: CodecSpec, make_track: MakeTrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def prepare() -> None:
        with ShardWriter(tmp_path, codec) as writer:
            writer.add("train", make_track(0))
            writer.add("valid", make_track(1))
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match="No space left"):
        prepare()

    assert list(tmp_path.iterdir()) == []
