"""Reading shards: random access to any stretch of any track.

K codebooks, T frames, N tracks, F frames of chroma.
"""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from musicgen_ft.chroma import Chroma
from musicgen_ft.corpus.quality import Seconds, decode_seconds
from musicgen_ft.errors import UserError
from musicgen_ft.files import sha256
from musicgen_ft.shards.format import PREPARE_COMMAND, SPLITS, Manifest, ShardInfo, Split, read_manifest
from musicgen_ft.shards.sidecar import CHROMA_COLUMNS, COLUMNS, SECONDS_COLUMNS, Sidecar, read_sidecar
from musicgen_ft.shards.track import Codes, Track, TrackMeta, decode_chroma, decode_meta

Column = npt.NDArray[np.int64]

MAX_OPEN_FILES = 128
"""Shards a process holds open at once: a laptop's limit is often 256 descriptors."""


class ShardIndex:
    """A complete shards folder, open for reading."""

    def __init__(self, folder: Path, manifest: Manifest, splits: "dict[Split, SplitIndex]") -> None:
        """Use ``open``."""
        self.folder = folder
        self.manifest = manifest
        self._splits = splits

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> "ShardIndex":
        """Opens a shards folder and checks that it is whole.

        Args:
            folder: where the shards lie.
            verify: reads every shard through and checks its SHA-256, too; without it only sizes and indices.

        Raises:
            UserError: if the folder is incomplete, or a shard or its index is not as the manifest says.
        """
        manifest = read_manifest(folder)
        splits: dict[Split, SplitIndex] = {}
        for split in SPLITS:
            shards = manifest.of(split)
            for shard in shards:
                _check_shard(folder, shard, verify=verify)
            sidecars = [_checked_sidecar(folder, shard, manifest) for shard in shards]
            splits[split] = SplitIndex(folder, sidecars, manifest)
        return cls(folder, manifest, splits)

    def refuse_leaks(self) -> None:
        """Refuses to validate on what is trained on.

        Raises:
            UserError: if a group of tracks (copies of a recording, an album ...) is in both splits.
        """
        train, valid = self.split("train"), self.split("valid")
        both = sorted({*train.groups} & {*valid.groups})
        if both:
            tracks = [split.keys[split.groups.index(both[0])] for split in (train, valid)]
            raise UserError(
                f"{self.folder}: {len(both)} groups of tracks are in both splits, e.g. {both[0]!r} with {tracks[0]} in "
                f"train and {tracks[1]} in valid: the validation loss would be of music that was trained on. "
                f"Make the shards anew: {PREPARE_COMMAND}"
            )

    def split(self, split: Split) -> "SplitIndex":
        """The tracks of one split; it may have none."""
        return self._splits[split]


class SplitIndex:
    """The tracks of one split, by number. Survives pickling and forking into the workers of a DataLoader."""

    def __init__(self, folder: Path, sidecars: list[Sidecar], manifest: Manifest) -> None:
        """Joins the indices of the shards of a split, which lie in ``folder``."""
        self.hop_length = manifest.codec.hop_length
        """Samples of a frame of the codes."""
        self.frame_rate = manifest.codec.frame_rate
        """Frames of codes per second."""
        self.chroma_spec = manifest.chroma
        """The numbers of the tracks' chroma; None where they have none."""
        self.keys = tuple(key for sidecar in sidecars for key in sidecar.keys)
        """N keys."""
        self.groups = tuple(group for sidecar in sidecars for group in sidecar.groups)
        """N groups: tracks of one group are to be in one split."""
        names = COLUMNS if self.chroma_spec is None else (*COLUMNS, *CHROMA_COLUMNS)
        self.has_seconds = all("seconds_offset" in sidecar.columns for sidecar in sidecars)
        """Whether the tracks were measured second by second."""
        names = (*names, *SECONDS_COLUMNS) if self.has_seconds else names
        self._columns = {name: _joined(sidecars, name) for name in names}
        counts = [len(sidecar.keys) for sidecar in sidecars]
        self._shard = np.repeat(np.arange(len(sidecars)), counts)  # [N]
        self._files = _Files([folder / sidecar.shard.name for sidecar in sidecars])
        self._n_q = manifest.codec.n_q

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_frames(self) -> Column:
        """int64 [N]: T of each track."""
        return self._columns["num_frames"]

    def codes(self, i: int, start: int = 0, stop: int | None = None) -> Codes:
        """Frames ``start`` to ``stop`` of track ``i``.

        Args:
            i: number of the track, in [0, N).
            start: first frame.
            stop: frame after the last one; T where it is None.

        Returns:
            uint16 [K, stop - start].
        """
        K, T = self._n_q, int(self.num_frames[i])
        stop = T if stop is None else stop
        assert 0 <= start < stop <= T, f"frames {start} to {stop} of {T}"
        # The npy header is whatever comes before the last 2 * K * T bytes (checked when the index was opened).
        first = int(self._columns["codes_offset"][i] + self._columns["codes_bytes"][i]) - 2 * K * T
        rows = [self._read(i, first + 2 * (k * T + start), 2 * (stop - start)) for k in range(K)]
        return np.frombuffer(b"".join(rows), dtype="<u2").reshape(K, stop - start)

    def meta(self, i: int) -> TrackMeta:
        """What is known of track ``i`` beside its codes."""
        return decode_meta(self._member(i, "json"))

    def chroma(self, i: int) -> Chroma:
        """The chroma of track ``i``, uint8 [F], where the shards have it: 7.8 bytes a second, so always whole."""
        return decode_chroma(self._member(i, "chroma"))

    def seconds(self, i: int) -> Seconds:
        """The figures of each second of track ``i``, float16 [4, S], where ``has_seconds``: 8 bytes a second."""
        return decode_seconds(self._member(i, "seconds"))

    def track(self, i: int) -> Track:
        """Track ``i``, whole."""
        return Track(
            key=self.keys[i],
            codes=self.codes(i),
            meta=self.meta(i),
            chroma=None if self.chroma_spec is None else self.chroma(i),
            seconds=self.seconds(i) if self.has_seconds else None,
        )

    def _member(self, i: int, name: str) -> bytes:
        return self._read(i, int(self._columns[f"{name}_offset"][i]), int(self._columns[f"{name}_bytes"][i]))

    def _read(self, i: int, offset: int, size: int) -> bytes:
        shard = int(self._shard[i])
        data = os.pread(self._files.descriptor(shard), size, offset)
        if len(data) != size:
            raise UserError(
                f"{self._files.paths[shard]}, track {self.keys[i]}: {len(data)} bytes at {offset}, expected {size}. "
                f"The file was cut while it was read; restore it or run: {PREPARE_COMMAND}"
            )
        return data


class _Files:
    """Descriptors of files, opened when first read; pickled as paths alone.

    ``os.pread`` carries its own offset, so that forked processes may share a descriptor.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._open: OrderedDict[int, int] = OrderedDict()

    def descriptor(self, number: int) -> int:
        """An open descriptor of file ``number``."""
        if number in self._open:
            self._open.move_to_end(number)
        else:
            self._open[number] = os.open(self.paths[number], os.O_RDONLY)
            if len(self._open) > MAX_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


def _joined(sidecars: list[Sidecar], name: str) -> Column:
    return np.array([value for sidecar in sidecars for value in getattr(sidecar, name)], dtype=np.int64)


def _check_shard(folder: Path, shard: ShardInfo, *, verify: bool) -> None:
    path = folder / shard.name
    if not path.is_file():
        raise UserError(f"{path} is missing, the manifest lists it. Restore it or run: {PREPARE_COMMAND}")
    if (size := path.stat().st_size) != shard.num_bytes:
        raise UserError(
            f"{path} has {size} bytes, the manifest says {shard.num_bytes}: it was cut or replaced. "
            f"Restore it or run: {PREPARE_COMMAND}"
        )
    if verify and (found := sha256(path)) != shard.sha256:
        raise UserError(
            f"{path} has SHA-256 {found[:12]}..., the manifest says {shard.sha256[:12]}...: its content changed. "
            f"Restore it or run: {PREPARE_COMMAND}"
        )


def _checked_sidecar(folder: Path, shard: ShardInfo, manifest: Manifest) -> Sidecar:
    sidecar = read_sidecar(folder, shard.name)
    columns = {name: np.array(getattr(sidecar, name), dtype=np.int64) for name in sidecar.columns}
    header_bytes = columns["codes_bytes"] - 2 * manifest.codec.n_q * columns["num_frames"]
    is_consistent = (
        sidecar.shard == shard
        and sidecar.codec_sha256 == manifest.codec.sha256
        and columns["num_frames"].sum() == shard.num_frames
        and bool((header_bytes > 0).all() and (header_bytes % 64 == 0).all())  # npy pads its header to 64 bytes
        and ("chroma_offset" in columns) == (manifest.chroma is not None)
        and _lie_in_order(sidecar, columns, shard.num_bytes)
    )
    if not is_consistent:
        raise UserError(
            f"{folder / shard.name}: its index and the manifest disagree; they are of two runs of prepare. "
            f"Restore the folder or run: {PREPARE_COMMAND}"
        )
    return sidecar


def _lie_in_order(sidecar: Sidecar, columns: dict[str, Column], num_bytes: int) -> bool:
    """Whether the members of each track lie one behind the other, and within the file."""
    starts = [columns[f"{name}_offset"] for name in sidecar.members]
    ends = [columns[f"{name}_offset"] + columns[f"{name}_bytes"] for name in sidecar.members]
    limits = [*starts[1:], np.full(len(sidecar.keys), num_bytes)]
    return all(bool((end <= limit).all()) for end, limit in zip(ends, limits, strict=True))
