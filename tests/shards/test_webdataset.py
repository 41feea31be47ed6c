"""Any webdataset reader opens the shards."""

import importlib
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest
from webdataset.compat import WebDataset

from musicgen_ft.codec import CodecSpec
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.sidecar import read_sidecar
from musicgen_ft.shards.track import Track

Tracks = dict[Split, list[Track]]


def assert_reads(url: str, tracks: list[Track]) -> None:
    reader: Any = WebDataset(url, shardshuffle=False).decode()  # untyped
    samples = list(reader)
    assert [sample["__key__"] for sample in samples] == [track.key for track in tracks]
    for sample, track in zip(samples, tracks, strict=True):
        assert sample["codes.npy"].dtype == np.uint16
        np.testing.assert_array_equal(sample["codes.npy"], track.codes)
        assert sample["json"] == {
            "labels": track.meta.labels.to_dict(),
            "relative_path": track.meta.relative_path,
            "num_frames": track.meta.num_frames,
            "duration_s": track.meta.duration_s,
            "group": track.meta.group,
            "quality": None,
            "source": track.meta.source,
        }


def test_webdataset_reads_from_disk(shards: Path, tracks: Tracks) -> None:
    assert_reads(str(shards / "train-{000000..000001}.tar"), tracks["train"])
    assert_reads(str(shards / "valid-000000.tar"), tracks["valid"])


def test_webdataset_reads_over_http(server: tuple[str, list[str]], tracks: Tracks) -> None:
    # webdataset reads http through curl; without it, through the pipe that any program can feed.
    url = f"{server[0]}/train-000000.tar"
    fetch = "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[1]).read())"
    assert_reads(url if shutil.which("curl") else f"pipe:{sys.executable} -c '{fetch}' {url}", tracks["train"][:4])


def test_webdataset_reads_through_fsspec_as_the_docs_show(
    shards: Path, tracks: Tracks, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "corpus.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    schemes = importlib.import_module("webdataset.gopen").gopen_schemes
    monkeypatch.setitem(schemes, "memory", None)
    memory = fsspec.filesystem("memory")
    memory.put(f"{shards}/", "/bucket/shards/", recursive=True)

    exec(compile(snippet.replace('"s3"', '"memory"'), "corpus.md", "exec"), {})

    assert_reads("memory://bucket/shards/train-{000000..000001}.tar", tracks["train"])


def test_keys_in_any_script_are_read_by_webdataset_and_by_us(
    tmp_path: Path, codec: CodecSpec, make_track: Callable[..., Track], make_shards: Callable[..., Path]
) -> None:
    """``prepare`` makes keys of ASCII; whoever writes shards by ``write_shard`` may have others."""
    keys = ("plain", "Größe-–-音楽", "🎵/e\u0301", "-rf", "音" * 26, "a" * 80)
    tracks = [replace(make_track(number), key=key) for number, key in enumerate(keys)]
    folder = make_shards(tmp_path / "shards", {"train": tracks, "valid": [make_track(9)]})

    for path in sorted(folder.glob("train-*.tar")):
        sidecar = read_sidecar(folder, path.name)
        with tarfile.open(path) as tar:
            members = {member.name: (member.offset_data, member.size) for member in tar}
        for number, key in enumerate(sidecar.keys):
            assert members[f"{key}.codes.npy"] == (sidecar.codes_offset[number], sidecar.codes_bytes[number])
            assert members[f"{key}.json"] == (sidecar.json_offset[number], sidecar.json_bytes[number])
    assert_reads(str(folder / "train-{000000..000001}.tar"), tracks)
    split = ShardIndex.open(folder, verify=True).split("train")
    assert list(split.keys) == list(keys)
    for number, track in enumerate(tracks):
        np.testing.assert_array_equal(split.codes(number), track.codes)
        assert split.meta(number) == track.meta
