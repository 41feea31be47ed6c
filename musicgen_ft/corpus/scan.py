"""The tracks of a corpus folder: where they are, what is known of them, and on which side of the split they fall."""

import hashlib
import logging
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from musicgen_ft import audio
from musicgen_ft.corpus.labels import Labels, labels_from_fields, merge
from musicgen_ft.corpus.tables import Row, Split, read_tables
from musicgen_ft.errors import UserError
from musicgen_ft.files import read_json

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".aif", ".aiff", ".wma")

# Embedded tags that are labels. Not the comment: shops and encoders fill it ("Visit https://..."), the same in every
# track, and it would become the caption.
TAGS = (
    *("title", "artist", "genre", "description", "mood", "instrument", "keywords"),
    *("bpm", "tbpm", "tmpo", "key", "tkey", "initialkey", "initial_key"),
)
SLUG_LENGTH = 60
HASH_LENGTH = 12  # hex digits; with 8, two of 100 000 tracks whose names leave no slug would meet


@dataclass(frozen=True, kw_only=True)
class Record:
    """One track of a corpus."""

    id: str
    """Unique and stable: made of the relative path, in [a-z0-9_-]."""
    path: Path
    """The audio file, absolute."""
    relative_path: str
    """The same relative to the corpus, with "/"."""
    labels: Labels
    """What is known of it."""
    split: Split
    """Whether it is trained on or validated with."""


def scan_corpus(folder: Path, *, valid_fraction: float = 0.1) -> list[Record]:
    """Finds the tracks of a corpus and reads their labels.

    The labels of a track come, field by field, from the first of these that has the field: the sidecar ``.json`` of
    the same stem, the sidecar ``.txt`` (its description), a metadata table (its column ``split`` counts too), the
    tags in the audio file, and the name of the folder that it lies in (its genre, "_" read as a space).

    The split of a track without an explicit one is drawn by a hash of its id: it stays when the corpus grows.

    Args:
        folder: the corpus. Hidden files and folders are passed over; links are followed, each folder once.
        valid_fraction: expected part of the tracks that falls into ``valid``, in [0, 1). If it is above 0, at least
            one of two tracks does; at least one is always left to train on. Explicit splits go before both.

    Returns:
        The tracks in the order of their relative paths.

    Raises:
        UserError: if there is no such folder, no audio in it, or a file with labels cannot be read.
    """
    if not 0 <= valid_fraction < 1:
        raise UserError(f"valid_fraction is {valid_fraction}, expected a number in [0, 1). Correct it.")
    root = folder.resolve()
    folders, tracks = _find(folder, root)
    rows = read_tables(folders)
    _refuse_missing(rows, tracks)
    splits = _split({_id(root, path): rows[path].split if path in rows else None for path in tracks}, valid_fraction)
    return [
        Record(
            id=_id(root, path),
            path=path,
            relative_path=path.relative_to(root).as_posix(),
            labels=_labels(path, rows.get(path)),
            split=splits[_id(root, path)],
        )
        for path in tracks
    ]


def _find(folder: Path, root: Path) -> tuple[list[Path], list[Path]]:
    """The folders of the corpus and its audio files, both sorted."""
    if not folder.exists():
        raise UserError(f"{folder} does not exist, expected the folder of a corpus. Check the path.")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, expected the folder of a corpus. Give the folder that it lies in.")
    folders: list[Path] = []
    tracks: list[Path] = []
    waiting, seen, is_empty = [root], set[Path](), True
    while waiting:
        current = waiting.pop()
        if current.resolve() in seen:  # a link may lead back up
            continue
        seen.add(current.resolve())
        folders.append(current)
        for path in _visible(current):
            is_empty = False
            if path.is_dir():
                waiting.insert(0 if path.is_symlink() else len(waiting), path)  # a folder goes before a link to it
            elif _is_track(path):
                tracks.append(path)
    if not tracks:
        found = "is empty" if is_empty else "holds no audio"
        raise UserError(f"{folder} {found}, expected files that end in {' '.join(AUDIO_SUFFIXES)}. Check the path.")
    return sorted(folders), sorted(tracks, key=lambda path: path.relative_to(root).as_posix())


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden, sorted."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except PermissionError as error:
        raise UserError(f"{folder} cannot be read: permission denied. Give yourself access to it.") from error


def _is_track(path: Path) -> bool:
    if path.suffix.lower() not in AUDIO_SUFFIXES:
        return False
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in str(path)):  # control, not UTF-8
        raise UserError(f"{str(path)!r}: its name is not printable UTF-8, as JSON and tar files need it. Rename it.")
    if not path.is_file():
        logger.warning("%s is skipped: it leads nowhere", path)
    return path.is_file()


def _refuse_missing(rows: dict[Path, Row], tracks: list[Path]) -> None:
    known = set(tracks)
    for track, row in rows.items():
        if track not in known:
            reason = "is not an audio file of this corpus" if track.exists() else "is not there"
            raise UserError(f"{row.place}: {track} {reason}. Correct file_name, or remove the line.")


def _labels(path: Path, row: Row | None) -> Labels:
    """Labels from every source that a track has, the first source that has a field winning."""
    labels = merge(_sidecar_json(path.with_suffix(".json")), _sidecar_text(path.with_suffix(".txt")))
    if row is not None:
        labels = merge(labels, row.labels)
    return merge(merge(labels, _embedded(path)), labels_from_fields({"genre": path.parent.name.replace("_", " ")}))


def _sidecar_json(path: Path) -> Labels:
    if not path.is_file():
        return Labels()
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a JSON {type(values).__name__}, expected an object of labels. Correct the file.")
    return labels_from_fields(values)


def _sidecar_text(path: Path) -> Labels:
    if not path.is_file():
        return Labels()
    try:
        return labels_from_fields({"description": path.read_text(encoding="utf-8-sig")})
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from error


def _embedded(path: Path) -> Labels:
    try:
        tags = audio.probe(path).tags
    except audio.AudioError:  # whoever decodes the file will name it
        return Labels()
    return labels_from_fields({name: tags[name] for name in TAGS if name in tags})


def _id(root: Path, path: Path) -> str:
    """A key that a shard, a file name and a URL can carry: the readable end of the path, and a hash of all of it."""
    relative = path.relative_to(root)
    ascii_path = unicodedata.normalize("NFKD", relative.with_suffix("").as_posix()).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9_]+", "-", ascii_path.lower())[-SLUG_LENGTH:].strip("-_")
    digest = hashlib.sha256(relative.as_posix().encode()).hexdigest()[:HASH_LENGTH]
    return f"{slug or 'track'}-{digest}"


def _split(explicit: dict[str, Split | None], valid_fraction: float) -> dict[str, Split]:
    """The split of every id: the explicit one, or by the hash of the id."""
    splits: dict[str, Split] = {
        id_: split or ("valid" if _position(id_) < valid_fraction else "train") for id_, split in explicit.items()
    }
    free = sorted((id_ for id_, split in explicit.items() if split is None), key=_position)
    sides = set(splits.values())
    if free and sides == {"valid"}:
        splits[free[-1]] = "train"
    elif free and sides == {"train"} and valid_fraction > 0 and len(splits) > 1:
        splits[free[0]] = "valid"
    return splits


def _position(id_: str) -> float:
    """A place in [0, 1) that depends on the id only."""
    return int.from_bytes(hashlib.sha256(id_.encode()).digest()[:8], "big") / 2**64
