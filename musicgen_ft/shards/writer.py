"""Writing shards: every tar is whole and has its index, or is not there.

K codebooks, T frames.
"""

import logging
import re
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from webdataset.writer import TarWriter

from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.codec import CodecSpec
from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_path, refuse_file, sha256
from musicgen_ft.shards.format import MANIFEST_NAME, PREPARE_COMMAND, SPLITS, ShardInfo, Split
from musicgen_ft.shards.sidecar import Sidecar, read_sidecar, write_sidecar
from musicgen_ft.shards.track import (
    CHROMA_MEMBER,
    CODES_MEMBER,
    META_MEMBER,
    Track,
    encode_chroma,
    encode_codes,
    encode_meta,
)

logger = logging.getLogger(__name__)

TAR_BLOCK = 512


class ShardWriter:
    """Appends tracks to the shards of a folder; a context manager.

    A shard gets its final name when it is full or the block ends, after its index. An exception or a kill loses only
    the shards that were open. Opened on a folder that an earlier run began, the writer takes over the whole shards in
    it: the caller skips the tracks whose key is ``in`` the writer, and as long as it adds the others in the same
    order, the finished folder is byte for byte that of an uninterrupted run. The manifest is the caller's to write.
    """

    def __init__(
        self,
        folder: Path,
        codec: CodecSpec,
        *,
        chroma: ChromaSpec | None = None,
        fingerprint: str = "",
        max_shard_bytes: int = 256 * 2**20,
        max_samples: int = 100_000,
    ) -> None:
        """Opens a folder for writing.

        Args:
            folder: new, empty, or begun by an earlier writer with the same codec and fingerprint.
            codec: what makes the codes.
            chroma: the numbers of the tracks' chroma; None where they have none.
            fingerprint: names everything else that decides what the shards hold, such as a hash of the prepare
                config; a folder that was begun with another is refused.
            max_shard_bytes: a shard is closed before it exceeds this size (unless one track alone does).
            max_samples: tracks of a shard.

        Raises:
            UserError: if the folder is complete, or was begun with another codec or fingerprint.
        """
        if (folder / MANIFEST_NAME).exists():
            raise UserError(f"{folder} holds complete shards ({MANIFEST_NAME} is there). Choose another --out.")
        folder.mkdir(parents=True, exist_ok=True)
        self.chroma = chroma
        """The numbers of the tracks' chroma, for the manifest; None where they have none."""
        self._folder, self._codec = folder, codec
        self._fingerprint = fingerprint if chroma is None else f"{fingerprint} {chroma}"
        self._max_shard_bytes, self._max_samples = max_shard_bytes, max_samples
        self._done: dict[Split, list[ShardInfo]] = {split: [] for split in SPLITS}
        self._open: dict[Split, _OpenShard] = {}
        self._keys: set[str] = set()
        self._take_over()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for split in SPLITS:
                    self._close(split)
        finally:
            for shard in self._open.values():
                shard.discard()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    @property
    def shards(self) -> tuple[ShardInfo, ...]:
        """The shards that are on disk under their final names, in the manifest's order."""
        return tuple(shard for split in SPLITS for shard in self._done[split])

    def add(self, split: Split, track: Track) -> None:
        """Appends a track to the open shard of ``split``.

        Raises:
            ValueError: if the key is taken, the codes are not [n_q, T > 0] with values in [0, card), or there is chroma
                where the writer was told of none, or the other way round.
        """
        self._check(track)
        members = {CODES_MEMBER: encode_codes(track.codes), META_MEMBER: encode_meta(track.meta)}
        if track.chroma is not None:
            members = {CHROMA_MEMBER: encode_chroma(track.chroma), **members}
        shard = self._open.get(split)
        is_full = shard and len(shard.keys) == self._max_samples
        if shard and (is_full or shard.size_with(*members.values()) > self._max_shard_bytes):
            self._close(split)
            shard = None
        if shard is None:
            name = f"{split}-{len(self._done[split]):06d}.tar"
            shard = self._open[split] = _OpenShard(self._folder / name)
        shard.add(track, members)
        self._keys.add(track.key)

    def _check(self, track: Track) -> None:
        K, T = track.codes.shape
        if track.key in self._keys:
            raise ValueError(f"track {track.key}: its key is taken, expected each key once")
        if (K, T > 0) != (self._codec.n_q, True):
            raise ValueError(f"track {track.key}: codes are [{K}, {T}], expected [n_q={self._codec.n_q}, T > 0]")
        if (highest := int(track.codes.max())) >= self._codec.card:
            raise ValueError(f"track {track.key}: a code is {highest}, expected [0, card={self._codec.card})")
        if (track.chroma is None) != (self.chroma is None):
            found, expected = ("no chroma", "it") if track.chroma is None else ("chroma", "none")
            raise ValueError(f"track {track.key}: found {found}, the writer expects {expected}")
        if track.chroma is not None and self.chroma is not None and track.chroma.max() >= self.chroma.n_chroma:
            raise ValueError(f"track {track.key}: a pitch class is {track.chroma.max()}, of {self.chroma.n_chroma}")

    def _close(self, split: Split) -> None:
        if (shard := self._open.pop(split, None)) is None:
            return
        with shard.stack:  # the rename; on an error here the temporary file goes
            shard.finish()
            info = ShardInfo(
                name=shard.path.name,
                split=split,
                num_samples=len(shard.keys),
                num_frames=sum(shard.columns["num_frames"]),
                num_bytes=shard.temporary.stat().st_size,
                sha256=sha256(shard.temporary),
            )
            sidecar = Sidecar(
                shard=info,
                codec_sha256=self._codec.sha256,
                fingerprint=self._fingerprint,
                keys=shard.keys,
                **shard.columns,
            )
            write_sidecar(self._folder, sidecar)  # before the tar: no tar is ever without its index
        self._done[split].append(info)

    def _take_over(self) -> None:
        """Keeps the whole shards of an earlier run, in unbroken order, and removes what it left half done."""
        for split in SPLITS:
            for leftover in self._folder.glob(f".{split}-*.tmp-*"):
                leftover.unlink()
            while (path := self._folder / f"{split}-{len(self._done[split]):06d}.tar").exists():
                sidecar = read_sidecar(self._folder, path.name)
                self._refuse_foreign(sidecar)
                if sha256(path) != sidecar.shard.sha256:
                    raise UserError(f"{path} is damaged: its SHA-256 is not its index's. Remove it and run again.")
                self._done[split].append(sidecar.shard)
                self._keys.update(sidecar.keys)
            if self._done[split]:
                logger.info("%s: took over %d shards of split %s", self._folder, len(self._done[split]), split)

    def _refuse_foreign(self, sidecar: Sidecar) -> None:
        found = (sidecar.codec_sha256, sidecar.fingerprint)
        if found != (self._codec.sha256, self._fingerprint):
            raise UserError(
                f"{self._folder} was begun with another codec or config ({sidecar.shard.name}). "
                f"Remove it or choose another --out, then run: {PREPARE_COMMAND}"
            )


def refuse_foreign_files(folder: Path) -> None:
    """Raises UserError if a folder to write into is complete, or holds anything but shards begun by a writer."""
    refuse_file(folder)
    if not folder.is_dir():
        return
    if (folder / MANIFEST_NAME).exists():
        raise UserError(f"{folder} holds complete shards ({MANIFEST_NAME} is there). Choose another --out.")
    for file in sorted(folder.iterdir()):
        if not re.fullmatch(r"\.?(train|valid)-\d{6}\.(tar|index\.json)(\.tmp-\d+)?", file.name):
            raise UserError(f"{folder} is not empty: it holds {file.name}, no shard. Choose another --out.")


class _OpenShard:
    """A tar under its temporary name, and the columns of its index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: list[str] = []
        self.columns: dict[str, list[int]] = {}
        self.stack = ExitStack()
        self.temporary = self.stack.enter_context(atomic_path(path))
        self._stream = self.stack.enter_context(self.temporary.open("wb"))
        self._tar = self.stack.enter_context(TarWriter(self._stream, mtime=0, encoder=False))

    def size_with(self, *members: bytes) -> int:
        """Bytes of the tar, without its end, once ``members`` are in it."""
        return int(self._tar.tarstream.offset) + sum(TAR_BLOCK + _padded(member) for member in members)

    def add(self, track: Track, members: dict[str, bytes]) -> None:
        """Appends the members of a track, which are sorted by name: TarWriter sorts them, too."""
        offset = int(self._tar.tarstream.offset)
        self._tar.write({"__key__": track.key, **members})
        row = {"num_frames": track.meta.num_frames}
        for name, member in members.items():
            column = name.removesuffix(".npy")
            row |= {f"{column}_offset": offset + TAR_BLOCK, f"{column}_bytes": len(member)}
            offset += TAR_BLOCK + _padded(member)
        assert offset == int(self._tar.tarstream.offset)
        self.keys.append(track.key)
        for name, value in row.items():
            self.columns.setdefault(name, []).append(value)

    def finish(self) -> None:
        """Writes the end of the tar and hands its bytes to the system."""
        self._tar.close()
        self._stream.flush()

    def discard(self) -> None:
        """Removes the temporary file."""
        error = RuntimeError(f"{self.path.name} was not finished")
        with suppress(OSError):  # closing writes; on a full disk that fails as the write before did
            self.stack.__exit__(type(error), error, None)


def _padded(member: bytes) -> int:
    return -(-len(member) // TAR_BLOCK) * TAR_BLOCK
