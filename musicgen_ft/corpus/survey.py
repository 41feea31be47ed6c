"""Surveying: one pass over a file's sound, and everything that is learned from it."""

import hashlib
import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_ft.audio import AudioError, AudioReader, probe
from musicgen_ft.corpus.auto_labels import Heard, RhythmAndKey
from musicgen_ft.corpus.fingerprint import Fingerprint, FingerprintStream
from musicgen_ft.corpus.meters import MIN_SAMPLE_RATE, QualityMeter
from musicgen_ft.corpus.quality import Quality, Seconds, seconds_from_text, seconds_to_text
from musicgen_ft.corpus.scan import Record, with_tags

MAX_SAMPLES_PER_S = 64 * 96_000
"""In all channels of a file."""
VERSION = 1
"""Of what is measured and how; a survey of another version is made again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """What one pass over a file found; of a file that gives no usable audio, ``error`` and little else is set."""

    relative_path: str
    """Path under the corpus, with forward slashes."""
    num_bytes: int
    """Size of the file: with ``mtime_ns`` it tells whether the file changed."""
    mtime_ns: int
    """When it was last written."""
    error: str | None = None
    """Why the file cannot be used."""
    audio_sha256: str = ""
    """Hex SHA-256 of its decoded samples: equal for equal sound in other containers or with other tags."""
    quality: Quality | None = None
    """Figures of the track."""
    seconds: Seconds | None = None
    """Figures of each second."""
    fingerprint: Fingerprint | None = None
    """What near duplicates are found by."""
    heard: Heard | None = None
    """Tempo and key as heard; None where nobody listened for them."""
    tags: dict[str, str]
    """Embedded tags, names in lower case."""
    is_truncated: bool = False
    """Whether the file ends before its container says it does."""
    num_bad_packets: int = 0
    """Damaged packets that were skipped."""

    def is_of(self, record: Record, *, listen: bool) -> bool:
        """Whether it still tells of the record's file, and tells what is asked."""
        try:
            stat = record.path.stat()
        except OSError:
            return False
        is_same_file = (self.num_bytes, self.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        return is_same_file and (
            self.error is not None or self.heard is not None or not _ear(record, self.tags, listen)
        )


def survey(record: Record, *, listen: bool) -> Survey:
    """Decodes a file once, and measures it on the way; memory grows with its length by bytes a second.

    Args:
        record: the track.
        listen: whether to hear tempo and key where the labels have them not: it takes longer than all the rest.

    Returns:
        What was found; a file that cannot be used gives a survey with its ``error``, whatever is wrong with it.
    """
    try:
        with record.path.open("rb") as file:
            stat = os.fstat(file.fileno())
        if stat.st_size == 0:
            raise AudioError(f"{record.path}: the file is empty")
        tags = probe(record.path).tags
        found = Survey(relative_path=record.relative_path, num_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, tags=tags)
        return _measure(record.path, found, listen=_ear(record, tags, listen))
    except AudioError as error:
        return undecoded(record, " ".join(str(error).removeprefix(f"{record.path}: ").split()))
    except OSError as error:  # gone, or not to be read: told of no file, so that it is looked at again next time
        return replace(undecoded(record, error.strerror or str(error)), num_bytes=0, mtime_ns=0)


def undecoded(record: Record, error: str) -> Survey:
    """The survey of a file that gave nothing; ``error`` tells why."""
    num_bytes = mtime_ns = 0
    with suppress(OSError):
        stat = record.path.stat()
        num_bytes, mtime_ns = stat.st_size, stat.st_mtime_ns
    return Survey(relative_path=record.relative_path, num_bytes=num_bytes, mtime_ns=mtime_ns, error=error, tags={})


def _ear(record: Record, tags: dict[str, str], listen: bool) -> bool:
    labels = with_tags(record, tags).labels
    return listen and (labels.bpm is None or labels.key is None)


def _measure(path: Path, found: Survey, *, listen: bool) -> Survey:
    reader = AudioReader(path, sample_rate=None, channels=None)
    blocks = reader.blocks()
    first = next(blocks)  # a reader that has none raises
    rate = reader.source_sample_rate
    if rate < MIN_SAMPLE_RATE:
        raise AudioError(f"{path}: {rate} samples per second, expected at least {MIN_SAMPLE_RATE}")
    if rate * len(first) > MAX_SAMPLES_PER_S:  # a damaged header: a second of it would take all memory
        found_s = f"{rate} samples per second in {len(first)} channels"
        raise AudioError(f"{path}: {found_s}, expected at most {MAX_SAMPLES_PER_S} in all")
    digest = hashlib.sha256(f"{rate} {first.shape[0]}".encode())
    meter, prints = QualityMeter(rate, first.shape[0]), FingerprintStream(rate)
    ear = RhythmAndKey(rate) if listen else None
    for block in itertools.chain([first], blocks):
        digest.update(np.ascontiguousarray(block.T).tobytes())  # sample by sample: blocks of any length hash alike
        meter.push(block)
        prints.push(block)
        if ear is not None:
            ear.push(block)
    quality, seconds = meter.finish()
    return replace(
        found,
        audio_sha256=digest.hexdigest(),
        quality=quality,
        seconds=seconds,
        fingerprint=prints.finish(),
        heard=None if ear is None else ear.finish(),
        is_truncated=reader.is_truncated,
        num_bad_packets=reader.num_bad_packets,
    )


def survey_to_dict(found: Survey) -> dict[str, Any]:
    """A survey as a plain JSON value."""
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    return values | {
        "version": VERSION,
        "quality": None if found.quality is None else found.quality.to_dict(),
        "seconds": None if found.seconds is None else seconds_to_text(found.seconds),
        "fingerprint": None if found.fingerprint is None else found.fingerprint.to_text(),
        "heard": None if found.heard is None else asdict(found.heard),
    }


def survey_from_dict(values: dict[str, Any]) -> Survey | None:
    """The survey of what ``survey_to_dict`` gave; None where it is of another version of this toolkit.

    Raises:
        ValueError, KeyError, TypeError: if it is damaged.
    """
    values = dict(values)
    if values.pop("version") != VERSION:
        return None
    readers: dict[str, Callable[[Any], Any]] = {
        "quality": Quality.from_dict,
        "seconds": seconds_from_text,
        "fingerprint": Fingerprint.from_text,
        "heard": lambda heard: Heard(**heard),
    }
    read = {name: None if values[name] is None else reader(values[name]) for name, reader in readers.items()}
    return Survey(**{**values, **read})
