"""The tracks of a corpus: where they are, and what is known of them."""

import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath

from musicgen_ft import audio
from musicgen_ft.corpus.labels import Labels, labels_from_fields, merge
from musicgen_ft.corpus.manifests import NAMES, SUFFIXES, find_manifests, is_manifest, read_manifests
from musicgen_ft.corpus.tables import (
    SPLITS,
    Row,
    Split,
    exists,
    is_printable,
    json_object,
    read_labels,
    read_tables,
    shown,
    text_fields,
)
from musicgen_ft.errors import UserError

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".aif", ".aiff", ".wma")
CONTAINERS = (".zip", ".tar", ".tgz", ".parquet", ".arrow")
"""Files that may hold audio, but that are not looked into."""

# Embedded tags that are labels or that a split can be made by. Not the comment: shops and encoders fill it ("Visit
# https://..."), the same in every track, and it would become the caption.
TAGS = (
    *("title", "artist", "album", "album_artist", "genre", "description", "mood", "instrument", "keywords"),
    *("bpm", "tbpm", "tmpo", "key", "tkey", "initialkey", "initial_key"),
)
NO_GENRES = (*SPLITS, "data", "audio")
"""Names of folders that tell how a dataset is laid out, not what music is in it."""
SLUG_LENGTH = 60
HASH_LENGTH = 12  # hex digits; with 8, two of 100 000 tracks whose names leave no slug would meet
NUM_READERS = 8  # threads that open files for their tags: most of their time they wait


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
    split: Split | None
    """Whether it is trained on or validated with, where the corpus says so itself."""
    fields: dict[str, str] = field(default_factory=dict)
    """Every text, number and truth value that sidecar, table and tags give, as text: name in lower case -> value."""
    is_genre_of_folder: bool = False
    """Whether the genre is but the folder's name: a tag goes before it."""
    problem: str | None = None
    """Why its labels cannot be read. Such a track is to be left out and named, not trained on without its labels."""


def scan_corpus(corpus: Path, *, read_tags: bool = True) -> list[Record]:
    """Finds the tracks of a corpus and reads their labels.

    The labels of a track come, field by field, from the first of these that has the field: the sidecar ``.json`` of
    the same stem, the sidecar ``.txt`` (its description), a metadata table or the line of the manifest, the tags in the
    audio file, and the name of the folder that it lies in (its genre, "_" read as a space).

    The split of a track is what the table's column ``split`` says, or else the folder ``train``, ``valid``, ``test``,
    ... that it lies under, straight in the corpus or in its folder ``data``, if the corpus has folders of both sides.

    Args:
        corpus: a folder; hidden files and folders are passed over, links are followed, each folder once. Or a manifest
            of audiocraft's, or a folder without audio that holds such manifests.
        read_tags: whether to open each file for its tags. Without it, whoever opens the file for its sound can add them
            by ``with_tags``.

    Returns:
        The tracks in the order of their relative paths.

    Raises:
        UserError: if there is no such corpus, no audio in it, a folder or a table cannot be read. What concerns one
            track only is told by its ``problem``.
    """
    is_listed = is_manifest(corpus) and corpus.is_file()
    records = _of_manifests([corpus]) if is_listed else _of_folder(corpus)
    _refuse_equal_ids(records)
    if not read_tags:
        return records
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return list(map(with_tags, records, pool.map(lambda record: embedded_tags(record.path), records)))


def embedded_tags(path: Path) -> dict[str, str]:
    """The tags in an audio file, names in lower case; none if it cannot be opened: whoever decodes it will name it."""
    try:
        return audio.probe(path).tags
    except (audio.AudioError, OSError):
        return {}


def with_tags(record: Record, tags: Mapping[str, str]) -> Record:
    """The record with what its embedded tags tell: it goes before the folder's name, and behind everything else."""
    known = {name: tags[name] for name in TAGS if name in tags}
    told = replace(record.labels, genre=None) if record.is_genre_of_folder else record.labels
    tagged = merge(told, labels_from_fields(known))
    return replace(
        record,
        labels=merge(tagged, record.labels),
        fields={**text_fields(known), **record.fields},
        is_genre_of_folder=record.is_genre_of_folder and tagged.genre is None,
    )


# ---- what there is ---------------------------------------------------------------------------------------------------


def _of_folder(folder: Path) -> list[Record]:
    root = folder.resolve()
    found = _find(folder, root)
    if not found.tracks:
        manifests = find_manifests(root)
        if manifests:
            return _of_manifests(manifests)
        raise UserError(f"{folder} {_nothing(found)}")
    if found.containers:
        logger.warning("%s: passed over %s; audio in them counts once they are unpacked", folder, _counts(found))
    for name in NAMES:
        if (root / name).is_file():
            logger.warning("%s is passed over, since its folder holds audio; to go by it, give the file", root / name)
    rows = _of_tracks(read_tables(found.folders), found.tracks)
    names = {path: path.relative_to(root).as_posix() for path in found.tracks}
    sides = _folder_splits(names.values())
    return [
        _record(
            path=path,
            relative_path=names[path],
            id_=_id(names[path], names[path]),
            row=rows.get(path),
            side=sides.get(names[path]),
        )
        for path in sorted(found.tracks, key=names.__getitem__)
    ]


def _of_manifests(manifests: list[Path]) -> list[Record]:
    listed = read_manifests(manifests)
    root = Path(os.path.commonpath([track.path.parent for track in listed]))
    # The readable part of an id must not change with the root, which a growing manifest may move.
    records = [
        _record(
            path=track.path,
            relative_path=track.path.relative_to(root).as_posix(),
            id_=_id("/".join(track.path.parts[-2:]), track.written),
            row=track.row,
            side=None,
        )
        for track in listed
    ]
    return sorted(records, key=lambda record: record.relative_path)


def _record(*, path: Path, relative_path: str, id_: str, row: Row | None, side: Split | None) -> Record:
    labels, fields, problem = Labels(), dict[str, str](), None
    try:
        labels, fields = _sidecars(path)
    except ValueError as error:
        problem = f"its labels cannot be read: {error}"
    if row is not None:
        labels, fields = merge(labels, row.labels), {**row.fields, **fields}
    labelled = merge(labels, _labels_of_folder(path.parent.name))
    return Record(
        id=id_,
        path=path,
        relative_path=relative_path,
        labels=labelled,
        split=(row.split if row is not None else None) or side,
        fields=fields,
        is_genre_of_folder=labels.genre is None and labelled.genre is not None,
        problem=problem,
    )


@cache  # a corpus has fewer folders than tracks
def _labels_of_folder(name: str) -> Labels:
    return labels_from_fields({"genre": None if name.lower() in NO_GENRES else name.replace("_", " ")})


@dataclass(frozen=True, kw_only=True)
class _Found:
    folders: list[Path]
    tracks: list[Path]
    containers: Counter[str]  # files by suffix
    is_empty: bool


def _find(folder: Path, root: Path) -> _Found:
    """What a folder holds, at any depth."""
    if not folder.exists():
        raise UserError(f"{folder} does not exist, expected the folder of a corpus. Check the path.")
    if not folder.is_dir():
        raise UserError(
            f"{folder} is a file, expected the folder of a corpus, or audiocraft's manifest: {' or '.join(SUFFIXES)}. "
            "Give the folder that it lies in."
        )
    folders: list[Path] = []
    tracks: list[Path] = []
    containers: Counter[str] = Counter()
    waiting, seen, is_empty = [root], set[str](), True
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in seen:  # a link may lead back up
            continue
        seen.add(real)
        folders.append(current)
        for entry in _visible(current):
            is_empty = False
            path = current / entry.name
            suffix = path.suffix.lower()
            if _is_folder(entry):
                waiting.insert(0 if entry.is_symlink() else len(waiting), path)  # a folder goes before a link to it
            elif suffix in AUDIO_SUFFIXES and _is_track(entry, path):
                tracks.append(path)
            elif suffix in CONTAINERS:
                containers[suffix] += 1
    return _Found(folders=sorted(folders), tracks=tracks, containers=containers, is_empty=is_empty)


def _visible(folder: Path) -> list["os.DirEntry[str]"]:
    """What lies in a folder and is not hidden, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except FileNotFoundError:
        logger.warning("%s is skipped: it is gone since its parent was listed", folder)
        return []
    except OSError as error:  # to go on would lose all that lies in it
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{folder} cannot be read: {reason}. Give yourself access to it.") from error


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_track(entry: "os.DirEntry[str]", path: Path) -> bool:
    if not is_printable(str(path)):
        raise UserError(f"{str(path)!r}: its name is not printable UTF-8, as JSON and tar files need it. Rename it.")
    try:
        is_file = entry.is_file()
    except OSError:
        is_file = False
    if not is_file:
        logger.warning("%s is skipped: it %s", path, "leads nowhere" if entry.is_symlink() else "is no file")
    return is_file


def _nothing(found: _Found) -> str:
    """The end of the message for a folder without audio."""
    expected = f"expected files that end in {' '.join(AUDIO_SUFFIXES)}"
    if found.is_empty:
        return f"is empty, {expected}. Check the path."
    if not found.containers:
        return f"holds no audio, {expected}. Check the path."
    if found.containers.keys() & {".parquet", ".arrow"}:
        remedy = "Write the audio into files first; datasets' cast_column('audio', Audio(decode=False)) gives its bytes"
    else:
        remedy = "Unpack them first"
    return f"holds no audio but {_counts(found)}, {expected}. {remedy}."


def _counts(found: _Found) -> str:
    return ", ".join(f"{count} {suffix} file{'s' * (count > 1)}" for suffix, count in sorted(found.containers.items()))


# ---- what is known of it ---------------------------------------------------------------------------------------------


def _of_tracks(rows: dict[Path, Row], tracks: list[Path]) -> dict[Path, Row]:
    """The rows by the files that they mean: macOS writes "é" in two characters, Windows "/" as a backslash."""
    known = set(tracks)
    missing = rows.keys() - known
    if not missing:
        return rows
    by_plain_name: dict[str, list[Path]] = {}
    for track in tracks:
        by_plain_name.setdefault(_plain_name(track), []).append(track)
    found: dict[Path, Row] = {}
    for path, row in rows.items():
        meant = [path] if path in known else by_plain_name.get(_plain_name(path), [])
        if len(meant) != 1:
            reason = "is not an audio file of this corpus" if exists(path) else "is not there"
            raise UserError(f"{row.place}: {shown(path)} {reason}. Correct file_name, or remove the line.")
        if meant[0] in found:
            raise UserError(f"{row.place}: {shown(path)} is listed already in {found[meant[0]].place}. Keep one.")
        found[meant[0]] = row
    return found


def _plain_name(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path).replace("\\", "/"))


def _sidecars(path: Path) -> tuple[Labels, dict[str, str]]:
    """Labels and fields of the files beside a track, ``.json`` before ``.txt``.

    Raises:
        ValueError: if one of them cannot be read, with the reason.
    """
    labels, fields = Labels(), dict[str, str]()
    for sidecar in (path.with_suffix(".json"), path.with_suffix(".txt")):
        if not os.path.isfile(sidecar):  # noqa: PTH113  Path.is_file lets "File name too long" through
            continue
        try:
            text = sidecar.read_text(encoding="utf-8-sig")
            values = json_object(text) if sidecar.suffix == ".json" else {"description": text}
            labels, fields = merge(labels, read_labels(values)), {**text_fields(values), **fields}
        except UnicodeDecodeError as error:
            raise ValueError(f"{sidecar.name} is not UTF-8 text: {error}. Save it as UTF-8.") from error
        except OSError as error:
            raise ValueError(f"{sidecar.name} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{sidecar.name} {error}. Correct or remove the file.") from error
    return labels, fields


def _folder_splits(relative_paths: Iterable[str]) -> dict[str, Split]:
    """The splits by the folders' names: only together do "train" and "valid" tell of a split."""
    sides: dict[str, Split] = {}
    for path in relative_paths:
        side = _folder_split(path)
        if side is not None:
            sides[path] = side
    return sides if len(set(sides.values())) == 2 else {}


def _folder_split(relative_path: str) -> Split | None:
    folders = relative_path.lower().split("/")[:-1]
    if folders[:1] == ["data"]:
        folders = folders[1:]
    return SPLITS.get(folders[0]) if folders else None


# ---- ids -------------------------------------------------------------------------------------------------------------


def _id(readable: str, unique: str) -> str:
    """A key that a shard, a file name and a URL can carry: the readable end of a path, and a hash of another."""
    stem = PurePosixPath(readable).with_suffix("").as_posix()
    ascii_path = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9_]+", "-", ascii_path.lower())[-SLUG_LENGTH:].strip("-_")
    digest = hashlib.sha256(unique.encode()).hexdigest()[:HASH_LENGTH]
    return f"{slug or 'track'}-{digest}"


def _refuse_equal_ids(records: list[Record]) -> None:
    """Two tracks of one id would be one in the shards."""
    by_id: dict[str, Record] = {}
    for record in records:
        other = by_id.setdefault(record.id, record)
        if other is not record:
            raise UserError(f"{other.path} and {record.path} get the same id {record.id}. Rename one of them.")
