"""Encoding a corpus: every track through the codec, into shards; a broken file costs itself alone."""

import logging
from collections.abc import Callable, Iterable

from musicgen_ft.audio import AudioError, AudioReader
from musicgen_ft.chroma import ChromaSpec, ChromaStream
from musicgen_ft.codec import Codec
from musicgen_ft.corpus.scan import Record
from musicgen_ft.errors import UserError
from musicgen_ft.shards.format import Rejected
from musicgen_ft.shards.track import Track, TrackMeta
from musicgen_ft.shards.writer import ShardWriter

logger = logging.getLogger(__name__)


def encode_corpus(
    records: Iterable[Record],
    codec: Codec,
    writer: ShardWriter,
    *,
    window_s: float,
    min_duration_s: float,
    progress: Callable[[float], None],
) -> list[Rejected]:
    """Encodes the tracks that the writer does not hold yet.

    Args:
        records: the corpus, always in the same order, so that an interrupted folder can be completed.
        codec: of the base.
        writer: open on the folder; tracks carry chroma where it was told of one.
        window_s: seconds encoded at a time.
        min_duration_s: shorter tracks are rejected.
        progress: told the seconds of audio of each track that is done.

    Returns:
        The files that were left out, each with its reason.

    Raises:
        UserError: if the chroma is of another sample rate than the codec.
    """
    chroma = writer.chroma
    if chroma is not None and chroma.sample_rate != codec.spec.sample_rate:
        raise UserError(
            f"the base takes chroma of audio at {chroma.sample_rate} Hz, its codec {codec.spec.id} takes "
            f"{codec.spec.sample_rate} Hz: expected one rate, as every released melody model has it. Use another base."
        )
    rejected = []
    for record in records:
        if record.id in writer:
            progress(0.0)
            continue
        try:
            track = encode_track(record, codec, window_s=window_s, min_duration_s=min_duration_s, chroma=chroma)
        except (AudioError, OSError) as error:
            reason = " ".join(str(error).removeprefix(f"{record.path}: ").split())
            logger.warning(f"left out {record.relative_path}: {reason}")
            rejected.append(Rejected(relative_path=record.relative_path, reason=reason))
            progress(0.0)
            continue
        writer.add(record.split, track)
        progress(track.meta.duration_s)
    return rejected


def encode_track(
    record: Record, codec: Codec, *, window_s: float, min_duration_s: float, chroma: ChromaSpec | None = None
) -> Track:
    """One track's codes, labels, what is known of its file, and its chroma where a spec of it is given.

    Raises:
        AudioError: if the file cannot be decoded, or is shorter than ``min_duration_s``.
    """
    spec = codec.spec
    reader = AudioReader(record.path, sample_rate=spec.sample_rate, channels=spec.channels, block_s=window_s)
    melody = None if chroma is None else ChromaStream(chroma)
    blocks = reader.blocks() if melody is None else melody.watch(reader.blocks())
    codes = codec.encode_track(blocks, window_s=window_s)
    duration_s = reader.num_samples / spec.sample_rate
    if duration_s < min_duration_s or codes.shape[1] == 0:
        raise AudioError(f"{record.path}: {duration_s:.2f} s long, expected at least {min_duration_s:g} s")
    return Track(
        key=record.id,
        codes=codes,
        chroma=None if melody is None else melody.finish(),
        meta=TrackMeta(
            labels=record.labels,
            relative_path=record.relative_path,
            num_frames=codes.shape[1],
            duration_s=duration_s,
            source={"is_truncated": reader.is_truncated, "num_bad_packets": reader.num_bad_packets},
        ),
    )
