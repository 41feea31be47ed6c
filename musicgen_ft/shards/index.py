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
from musicgen_ft.shards.catalog import Catalog, Texts, open_catalog
from musicgen_ft.shards.format import PREPARE_COMMAND, SPLITS, Manifest, ShardInfo, Split, read_manifest
from musicgen_ft.shards.track import Codes, Track, TrackMeta, decode_chroma, decode_meta

Column = npt.NDArray[np.int64]

MAX_OPEN_FILES = 128
"""Shards a process holds open at once: a laptop's limit is often 256 descriptors."""


class ShardIndex:
    """A complete shards folder, open for reading."""

    def __init__(self, folder: Path, manifest: Manifest, catalog: Catalog) -> None:
        """Use ``open``."""
        self.folder = folder
        self.manifest = manifest
        self._catalog = catalog
        self._splits = {split: SplitIndex(folder, split, catalog, manifest) for split in SPLITS}

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
        for shard in manifest.shards:
            _check_shard(folder, shard, verify=verify)
        return cls(folder, manifest, open_catalog(folder, manifest))

    def refuse_leaks(self) -> None:
        """Refuses to validate on what is trained on.

        Raises:
            UserError: if a group of tracks (copies of a recording, an album ...) is in both splits.
        """
        if shared := self._catalog.shared_groups():
            group = shared[0]
            tracks = [split.keys[split.groups.index(group)] for split in (self.split("train"), self.split("valid"))]
            raise UserError(
                f"{self.folder}: {len(shared)} groups of tracks are in both splits, e.g. {group!r} with {tracks[0]} in "
                f"train and {tracks[1]} in valid: the validation loss would be of music that was trained on. "
                f"Make the shards anew: {PREPARE_COMMAND}"
            )

    def split(self, split: Split) -> "SplitIndex":
        """The tracks of one split; it may have none."""
        return self._splits[split]


class SplitIndex:
    """The tracks of one split, by number. Survives pickling and forking into the workers of a DataLoader."""

    def __init__(self, folder: Path, split: Split, catalog: Catalog, manifest: Manifest) -> None:
        """The part of a catalog whose shards lie in ``folder``."""
        self._split: Split = split
        self._catalog = catalog
        self.hop_length = manifest.codec.hop_length
        """Samples of a frame of the codes."""
        self.frame_rate = manifest.codec.frame_rate
        """Frames of codes per second."""
        self.chroma_spec = manifest.chroma
        """The numbers of the tracks' chroma; None where they have none."""
        self.has_seconds = f"{split}/seconds_offset" in catalog.columns
        """Whether the tracks were measured second by second."""
        self.num_frames: Column = self._column("num_frames").astype(np.int64)
        """int64 [N]: T of each track."""
        shards = manifest.of(split)
        self._ends = np.cumsum([shard.num_samples for shard in shards], dtype=np.int64)  # of each shard's tracks
        self._files = _Files([folder / shard.name for shard in shards])
        self._n_q = manifest.codec.n_q

    def __len__(self) -> int:
        return len(self.num_frames)

    @property
    def keys(self) -> Texts:
        """N keys."""
        return self._catalog.keys(self._split)

    @property
    def groups(self) -> Texts:
        """N groups: tracks of one group are to be in one split."""
        return self._catalog.groups(self._split)

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
        # The npy header is whatever comes before the last 2 * K * T bytes (checked when the catalog was made).
        first = int(self._column("codes_offset")[i]) + int(self._column("codes_bytes")[i]) - 2 * K * T
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
        return self._read(i, int(self._column(f"{name}_offset")[i]), int(self._column(f"{name}_bytes")[i]))

    def _column(self, name: str) -> npt.NDArray[Any]:
        return self._catalog.columns[f"{self._split}/{name}"]

    def _read(self, i: int, offset: int, size: int) -> bytes:
        shard = int(np.searchsorted(self._ends, i, side="right"))
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
