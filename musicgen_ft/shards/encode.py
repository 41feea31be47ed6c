"""Encoding a track: its sound through the codec, and its melody.

C channels, L samples, K codebooks, T frames, S seconds.
"""

import io
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from musicgen_ft.audio import AudioError, AudioReader, Samples
from musicgen_ft.chroma import Chroma, ChromaSpec, ChromaStream
from musicgen_ft.codec import Codec, Window
from musicgen_ft.corpus.quality import codec_snr, with_codec_snr
from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_path
from musicgen_ft.shards.plan import PlannedTrack
from musicgen_ft.shards.track import Codes, Track, TrackMeta
from musicgen_ft.stems import Separator, converted

SAME_LENGTH_S = 0.1
"""A track that is so much longer or shorter than its file was when it was surveyed is of another file."""


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How tracks are encoded."""

    window_s: float = 30.0
    """Seconds encoded at a time."""
    codec_check_s: float = 30.0
    """Seconds of each track whose codes are decoded again, to measure what the codec cannot carry; 0: none."""
    vocals: Literal["keep", "remove"] = "keep"
    """``remove`` encodes what demucs leaves without them."""
    melody: Literal["mix", "stems"] = "mix"
    """Whether the melody is taken of everything, or without drums and bass as the released models were trained."""
    stems_model: str = "htdemucs"
    """Which demucs."""
    windows_at_once: int = 1
    """Windows of one batch."""

    def settings(self, codec: Codec, chroma: ChromaSpec | None) -> str:
        """What decides the codes of a track beside its samples, in words."""
        words = [f"{codec.spec} window_s={self.window_s:g} check_s={self.codec_check_s:g}"]
        if self.vocals != "keep":
            words.append(f"vocals={self.vocals}")
        if chroma is not None:
            words.append(f"{chroma} melody={self.melody}")
        if self.vocals != "keep" or (chroma is not None and self.melody == "stems"):
            words.append(f"stems_model={Path(self.stems_model).name}")
        return " ".join(words)


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """What encoding gave."""

    codes: Codes
    """uint16 [K, T]."""
    chroma: Chroma | None
    """uint8 [F], the pitch class of each chroma frame; None for bases without melody."""
    snr_db: float
    """How well the codec carries the track; NaN where it was not measured."""
    snr_seconds: Samples
    """float32 [S], the same for each second."""


class StoppedError(Exception):
    """Nobody waits for the track any more."""


class Encoder:
    """Encodes tracks; several threads may share one."""

    def __init__(
        self,
        codec: Codec,
        options: EncodeOptions,
        *,
        chroma: ChromaSpec | None = None,
        separator: Separator | None = None,
    ) -> None:
        """Gathers what encoding needs.

        Args:
            codec: of the base.
            options: how.
            chroma: the numbers of the chroma; None where the base has no melody.
            separator: demucs, where stems are asked for.

        Raises:
            UserError: if the chroma is of another sample rate than the codec.
        """
        if chroma is not None and chroma.sample_rate != codec.spec.sample_rate:
            raise UserError(
                f"the base takes chroma of audio at {chroma.sample_rate} Hz, its codec {codec.spec.id} takes "
                f"{codec.spec.sample_rate} Hz: expected one rate, as every released melody model has it. "
                "Use another base."
            )
        self.codec, self.options, self.chroma, self.separator = codec, options, chroma, separator
        self.settings = options.settings(codec, chroma)
        self.stopped = threading.Event()
        """Set by whoever waits for the threads no longer: they end at their next window."""

    def encode(self, path: Path, track: PlannedTrack) -> Encoded:
        """One track's codes and chroma, in memory that does not grow with its length.

        Raises:
            AudioError: if the file cannot be decoded any more, or is another one than when it was planned.
            OSError: if it cannot be read.
        """
        if path.stat().st_size != track.num_bytes:
            raise AudioError(f"{path}: it changed since it was surveyed. Run again.")
        spec = self.codec.spec
        blocks = self._sound(path, track)
        melody = None if self.chroma is None else ChromaStream(self.chroma)
        if melody is not None and self.options.melody == "mix":
            blocks = melody.watch(blocks)
        windows = self.codec.encode_windows(
            blocks, window_s=self.options.window_s, windows_at_once=self.options.windows_at_once
        )
        checked = self._checked(track)
        snr_seconds = np.full(track.seconds.shape[1], np.nan, dtype=np.float32)
        parts, signal, noise = [], 0.0, 0.0
        for number, window in enumerate(windows):
            if self.stopped.is_set():
                raise StoppedError
            parts.append(window.kept_codes)
            if number in checked:
                original, decoded = self._decoded(window)
                _, per_second = codec_snr(original, decoded, spec.sample_rate)
                first = round(number * self.options.window_s)
                room = len(snr_seconds[first : first + len(per_second)])
                snr_seconds[first : first + room] = per_second[:room]
                signal += float(np.square(original, dtype=np.float64).sum())
                noise += float(np.square(original - decoded, dtype=np.float64).sum())
        if not parts:
            raise AudioError(f"{path}: no samples, but it had some when it was surveyed. Run again.")
        codes = np.concatenate(parts, axis=1)
        if abs(found_s := codes.shape[1] / spec.frame_rate - track.duration_s) > SAME_LENGTH_S:
            raise AudioError(
                f"{path}: {found_s + track.duration_s:.1f} s long, {track.duration_s:.1f} s when it was surveyed: "
                "it was changed meanwhile. Run again."
            )
        if melody is not None and self.options.melody == "stems":
            for block in self._stems(path, track, "melody", channels=1):
                melody.push(block[0])
        snr_db = 10 * np.log10(signal / noise) if signal > 0 and noise > 0 else np.nan
        return Encoded(
            codes=codes,
            chroma=None if melody is None else melody.finish(),
            snr_db=float(snr_db),
            snr_seconds=snr_seconds,
        )

    def _sound(self, path: Path, track: PlannedTrack) -> Iterator[Samples]:
        spec = self.codec.spec
        if self.options.vocals == "remove":
            return self._stems(path, track, "instrumental", channels=spec.channels)
        reader = AudioReader(path, sample_rate=spec.sample_rate, channels=spec.channels, block_s=self.options.window_s)
        return cut(reader.blocks(), spec.sample_rate, start_s=track.start_s, stop_s=track.stop_s)

    def _stems(
        self, path: Path, track: PlannedTrack, which: Literal["melody", "instrumental"], *, channels: int
    ) -> Iterator[Samples]:
        """The track without drums and bass, or without vocals, at the codec's rate."""
        separator = self.separator
        assert separator is not None, "the recipe opens demucs where it is asked for"
        rate = separator.sample_rate
        # audiocraft takes the melody's stems of the mono mix.
        reader = AudioReader(path, sample_rate=rate, channels=1 if which == "melody" else 2)
        blocks = cut(reader.blocks(), rate, start_s=track.start_s, stop_s=track.stop_s)
        stems = separator.melody(blocks) if which == "melody" else separator.instrumental(blocks)
        return converted(stems, from_rate=rate, to_rate=self.codec.spec.sample_rate, channels=channels)

    def _checked(self, track: PlannedTrack) -> range:
        """The windows in the middle of the track that are decoded again."""
        total = max(1, int(np.ceil(track.duration_s / self.options.window_s)))
        count = min(total, int(np.ceil(self.options.codec_check_s / self.options.window_s)))
        return range((total - count) // 2, (total - count) // 2 + count)

    def _decoded(self, window: Window) -> tuple[Samples, Samples]:
        """Samples of a window that count, and what the codec makes of them: float32 [C, L] both."""
        decoded = self.codec.decode(window.codes[None])[0].cpu().numpy()
        original = window.samples[:, window.kept]
        return original, decoded[:, : window.samples.shape[1]][:, window.kept]


def cut(blocks: Iterable[Samples], sample_rate: int, *, start_s: int, stop_s: int | None) -> Iterator[Samples]:
    """The part of a track, in float32 [C, L] blocks, between two of its seconds; all blocks are read."""
    position = 0
    for block in blocks:
        first = max(0, start_s * sample_rate - position)
        last = None if stop_s is None else max(0, stop_s * sample_rate - position)
        position += block.shape[1]
        piece = block[:, first:last]
        if piece.shape[1]:
            yield piece


def finished_track(planned: PlannedTrack, encoded: Encoded) -> Track:
    """The track as its shard holds it."""
    quality, seconds = planned.quality, planned.seconds
    if np.isfinite(encoded.snr_db):
        quality, seconds = with_codec_snr(quality, seconds, encoded.snr_db, encoded.snr_seconds)
    source = {
        "audio_sha256": planned.audio_sha256,
        "start_s": planned.start_s,
        "stop_s": planned.stop_s,
        "is_truncated": planned.is_truncated,
        "num_bad_packets": planned.num_bad_packets,
    }
    return Track(
        key=planned.key,
        codes=encoded.codes,
        chroma=encoded.chroma,
        seconds=seconds,
        meta=TrackMeta(
            labels=planned.labels,
            relative_path=planned.relative_path,
            num_frames=encoded.codes.shape[1],
            duration_s=planned.duration_s,
            group=planned.group,
            quality=quality,
            source=source,
        ),
        state=planned.state,
        codes_state=planned.codes_state,
    )


def encoded_of(track: Track) -> Encoded:
    """What encoding once gave of a track that a shard holds: the part of it that need not be made again."""
    assert track.meta.quality is not None and track.seconds is not None, "shards of prepare are measured"
    snr_db = track.meta.quality.codec_snr_db
    return Encoded(
        codes=track.codes,
        chroma=track.chroma,
        snr_db=np.nan if snr_db is None else snr_db,
        snr_seconds=track.seconds[-1].astype(np.float32),
    )


def write_encoded(path: Path, encoded: Encoded) -> None:
    """Writes a part: whole or not at all."""
    buffer = io.BytesIO()
    chroma = np.zeros(0, np.uint8) if encoded.chroma is None else encoded.chroma
    np.savez(
        buffer, codes=encoded.codes, chroma=chroma, snr_db=np.float64(encoded.snr_db), snr_seconds=encoded.snr_seconds
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read_encoded(path: Path) -> Encoded:
    """What ``write_encoded`` wrote; nothing is ever unpickled."""
    with np.load(path, allow_pickle=False) as values:
        chroma = values["chroma"]
        return Encoded(
            codes=values["codes"],
            chroma=chroma if len(chroma) else None,
            snr_db=float(values["snr_db"]),
            snr_seconds=values["snr_seconds"],
        )
