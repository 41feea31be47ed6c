"""Writing a shard: a tar that is whole and has its index, or is not there.

K codebooks, T frames.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.codec import CodecSpec
from musicgen_ft.files import atomic_path, sha256
from musicgen_ft.shards.format import Rejected, ShardInfo, Split
from musicgen_ft.shards.sidecar import COLUMNS, TEXT_COLUMNS, Sidecar, write_sidecar
from musicgen_ft.shards.track import Track

TAR_BLOCK = 512


def write_shard(
    folder: Path,
    name: str,
    tracks: Iterable[Track],
    *,
    split: Split,
    codec: CodecSpec,
    chroma: ChromaSpec | None = None,
    settings: str = "",
    rejected: Iterable[Rejected] = (),
) -> Sidecar:
    """Writes one shard and its index; equal tracks give equal bytes.

    Args:
        folder: of the shards; it is made.
        name: of the tar.
        tracks: in the order of the tar.
        split: that all tracks belong to.
        codec: what made the codes.
        chroma: the numbers of the tracks' chroma; None where they have none.
        settings: what else decides the codes.
        rejected: tracks that were to be in it.

    Returns:
        The index, as it was written.

    Raises:
        ValueError: if a key comes twice, codes are not [n_q, T > 0] with values in [0, card), there is chroma where
            the folder has none, or the other way round, or only some of the tracks were measured.
    """
    columns: dict[str, list[int]] = {}
    keys = set[str]()
    texts: dict[str, list[str]] = {column: [] for column in TEXT_COLUMNS}
    with atomic_path(folder / name) as temporary:
        with temporary.open("wb") as stream, TarWriter(stream, mtime=0, encoder=False) as tar:
            for track in tracks:
                _check(track, codec, chroma, keys)
                keys.add(track.key)
                row = _append(tar, track)
                if columns and row.keys() != columns.keys():
                    raise ValueError(f"track {track.key}: it has {sorted(row)}, the tracks before it {sorted(columns)}")
                for column, number in row.items():
                    columns.setdefault(column, []).append(number)
                values = (track.key, track.meta.group or track.key, track.state, track.codes_state)
                for column, text in zip(TEXT_COLUMNS, values, strict=True):
                    texts[column].append(text)
        columns = columns or {column: [] for column in COLUMNS}
        info = ShardInfo(
            name=name,
            split=split,
            num_samples=len(texts["keys"]),
            num_frames=sum(columns["num_frames"]),
            num_bytes=temporary.stat().st_size,
            sha256=sha256(temporary),
        )
        facts: dict[str, Any] = {**texts, **columns}
        sidecar = Sidecar(shard=info, codec_sha256=codec.sha256, settings=settings, rejected=list(rejected), **facts)
        write_sidecar(folder, sidecar)  # before the tar gets its name: no tar is ever without its index
    return sidecar


def _append(tar: TarWriter, track: Track) -> dict[str, int]:
    """Appends the members of a track, sorted by name as TarWriter sorts them; tells where they lie."""
    row = {"num_frames": track.meta.num_frames}
    for name, member in track.members().items():
        tar.write({"__key__": track.key, name: member})
        # Counted from the end: a key beyond ASCII takes two more blocks for a header of its own (POSIX pax).
        start = int(tar.tarstream.offset) - -(-len(member) // TAR_BLOCK) * TAR_BLOCK
        column = name.removesuffix(".npy")
        row |= {f"{column}_offset": start, f"{column}_bytes": len(member)}
    return row


def _check(track: Track, codec: CodecSpec, chroma: ChromaSpec | None, taken: set[str]) -> None:
    K, T = track.codes.shape
    if track.key in taken:
        raise ValueError(f"track {track.key}: its key is taken, expected each key once")
    if (K, T > 0) != (codec.n_q, True):
        raise ValueError(f"track {track.key}: codes are [{K}, {T}], expected [n_q={codec.n_q}, T > 0]")
    if (highest := int(track.codes.max())) >= codec.card:
        raise ValueError(f"track {track.key}: a code is {highest}, expected [0, card={codec.card})")
    if (track.chroma is None) != (chroma is None):
        found, expected = ("no chroma", "it") if track.chroma is None else ("chroma", "none")
        raise ValueError(f"track {track.key}: found {found}, the shard expects {expected}")
    if track.chroma is not None and chroma is not None and track.chroma.max() >= chroma.n_chroma:
        raise ValueError(f"track {track.key}: a pitch class is {track.chroma.max()}, of {chroma.n_chroma}")
