"""The contract of a shards folder: its names, its manifest, and the bytes of one sample.

A folder holds ``train-000000.tar``, ..., ``valid-000000.tar``, a sidecar ``train-000000.index.json`` beside each, and
``manifest.json``, which is written last: a folder is complete only when its manifest is there. The tars are in
WebDataset's format, three members per track: ``{key}.codes.npy``, ``{key}.json`` and ``{key}.seconds.npy``; shards for
a melody base have a fourth, ``{key}.chroma.npy``. ``catalog.bin`` joins the sidecars, so that millions of tracks open
at once; without it the sidecars are read. ``tracks.jsonl`` tells of every file of the corpus what was found in it and
what became of it, and ``README.md`` is the dataset's card. What is half done lies in ``.work``.

K codebooks, T frames.
"""

import re
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.codec import CodecSpec
from musicgen_ft.errors import UserError
from musicgen_ft.files import read_json, write_json

Split = Literal["train", "valid"]

SPLITS: tuple[Split, ...] = get_args(Split)
FORMAT = "musicgen-ft shards"
VERSION = 2
MANIFEST_NAME = "manifest.json"
TRACKS_NAME = "tracks.jsonl"
CATALOG_NAME = "catalog.bin"
CARD_NAME = "README.md"
WORK_NAME = ".work"
PREPARE_COMMAND = "musicgen-ft prepare CORPUS --out SHARDS --base BASE"

_SHARD_NAME = re.compile(r"(train|valid)-\d{6}\.tar")
_CODEC_AGREES = ("sha256", "n_q", "card", "frame_rate", "sample_rate")

T_ = TypeVar("T_")


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard, as the manifest tells of it."""

    name: str
    """File name of the tar."""
    split: Split
    """The split that all its samples belong to."""
    num_samples: int
    """Tracks in it."""
    num_frames: int
    """Frames of all its tracks together."""
    num_bytes: int
    """Size of the tar."""
    sha256: str
    """Hex SHA-256 of the tar."""

    def __post_init__(self) -> None:
        if not _SHARD_NAME.fullmatch(self.name) or not self.name.startswith(f"{self.split}-"):
            raise ValueError(f"{self.name!r} of split {self.split!r} is not a shard's name like 'train-000000.tar'")


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A file of the corpus that is not in the shards."""

    relative_path: str
    """Path under the corpus, with forward slashes."""
    reason: str
    """Why, in words."""
    codec_snr_db: float | None = None
    """How well the codec carries it, where that is why."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a complete shards folder says of itself."""

    codec: CodecSpec
    """The codec that made the codes."""
    base: str
    """Id or folder of the base whose codec it is."""
    shards: tuple[ShardInfo, ...]
    """Every shard, in order of split and number."""
    config: dict[str, Any]
    """The resolved prepare config, as plain JSON."""
    toolkit_version: str
    """The musicgen-ft that wrote it."""
    rejected: tuple[Rejected, ...] = ()
    """Files of the corpus that were left out."""
    chroma: ChromaSpec | None = None
    """The numbers of the tracks' chroma; None where they have none, as for a base without melody."""

    @cached_property
    def num_tracks(self) -> dict[Split, int]:
        """Tracks of each split."""
        return {split: sum(shard.num_samples for shard in self.of(split)) for split in SPLITS}

    @cached_property
    def num_frames(self) -> dict[Split, int]:
        """Frames of each split."""
        return {split: sum(shard.num_frames for shard in self.of(split)) for split in SPLITS}

    @cached_property
    def duration_s(self) -> dict[Split, float]:
        """Seconds of each split, by its frames."""
        return {split: frames / self.codec.frame_rate for split, frames in self.num_frames.items()}

    def of(self, split: Split) -> tuple[ShardInfo, ...]:
        """The shards of one split."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value; ``from_dict`` is its inverse."""
        return {"format": FORMAT, "version": VERSION, **present(asdict(self))}

    @classmethod
    def from_dict(cls, values: Any, where: Path | str) -> "Manifest":
        """A manifest from what ``to_dict`` gave.

        Args:
            values: the JSON value.
            where: its file or URL, for the messages.

        Raises:
            UserError: if it is not a manifest, of another version, or has a missing, unknown or mistyped key.
        """
        values = check_header(values, FORMAT, where)
        values["codec"] = strict(CodecSpec, values.get("codec"), where)
        values["shards"] = tuple(strict(ShardInfo, shard, where) for shard in as_list(values.get("shards"), where))
        values["rejected"] = tuple(strict(Rejected, file, where) for file in as_list(values.get("rejected"), where))
        if "chroma" in values:
            values["chroma"] = strict(ChromaSpec, values["chroma"], where)
        return strict(cls, values, where)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Completes ``folder``: to be called when every shard lies in it."""
    write_json(folder / MANIFEST_NAME, manifest.to_dict())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a complete shards folder.

    Raises:
        UserError: if the folder does not exist, holds no shards, is incomplete, or its manifest is not valid.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder, expected a shards folder. Make one: {PREPARE_COMMAND}")
    path = folder / MANIFEST_NAME
    if not path.is_file():
        # A killed prepare leaves shards, or only its half-done part.
        begun = any(file.name == WORK_NAME or _SHARD_NAME.search(file.name) for file in folder.iterdir())
        found = "is incomplete: prepare did not finish it" if begun else "is not a shards folder"
        raise UserError(f"{folder} {found} ({MANIFEST_NAME} is missing). Run: {PREPARE_COMMAND}")
    return Manifest.from_dict(read_json(path), path)


def is_shard_file(name: str) -> bool:
    """Whether a file's name is that of a shard or of its index."""
    return re.fullmatch(r"(train|valid)-\d{6}\.(tar|index\.json)", name) is not None


def check_codec(manifest: Manifest, spec: CodecSpec) -> None:
    """Refuses shards whose codes another codec made.

    Args:
        manifest: of the shards.
        spec: the codec of the base that is to read them.

    Raises:
        UserError: if the two differ in weights, codebooks, codebook size, frame rate or sample rate.
    """
    made, reads = manifest.codec, spec
    differing = [name for name in _CODEC_AGREES if getattr(made, name) != getattr(reads, name)]
    if differing:
        found = ", ".join(f"{name}={_short(getattr(made, name))}" for name in differing)
        expected = ", ".join(f"{name}={_short(getattr(reads, name))}" for name in differing)
        raise UserError(
            f"the shards were made by codec {made.id} ({found}, prepared with --base {manifest.base}), "
            f"the base reads those of codec {reads.id} ({expected}). Prepare again with this base: {PREPARE_COMMAND}"
        )


def check_header(values: Any, expected: str, where: Path | str) -> dict[str, Any]:
    """A copy of ``values`` without its ``format`` and ``version``, once they are the expected ones.

    Raises:
        UserError: if they are not.
    """
    found = values.get("format") if isinstance(values, dict) else None
    if found != expected:
        raise UserError(f"{where} has format {found!r}, expected {expected!r}. Run: {PREPARE_COMMAND}")
    if values.get("version") != VERSION:
        raise UserError(
            f"{where} has version {values.get('version')}, this toolkit reads version {VERSION}. "
            f"Install the toolkit that wrote it, or run: {PREPARE_COMMAND}"
        )
    return {name: value for name, value in values.items() if name not in ("format", "version")}


def check_chroma(manifest: Manifest, spec: ChromaSpec) -> None:
    """Refuses shards that do not hold the chroma that a melody base is conditioned on.

    Raises:
        UserError: if they hold none, or one of other numbers.
    """
    if manifest.chroma != spec:
        found = "no chroma" if manifest.chroma is None else str(manifest.chroma)
        raise UserError(
            f"the shards hold {found} (prepared with --base {manifest.base}), the base is conditioned on {spec}. "
            f"Prepare again with this base: {PREPARE_COMMAND}"
        )


def present(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are there: optional fields that are None stay out of the file, as before they existed."""
    return {name: value for name, value in values.items() if value is not None}


def strict(cls: type[T_], values: Any, where: Path | str) -> T_:
    """A dataclass from a JSON object with exactly its fields; ``int`` and ``str`` fields are checked.

    A field whose default is None may be missing.

    Raises:
        UserError: if a key is missing, unknown or of another type.
    """
    remedy = f"Restore the file or run: {PREPARE_COMMAND}"
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    needed = {name for name, field in known.items() if field.default is not None}
    found = set(values) if isinstance(values, dict) else set()
    if not needed <= found <= set(known):
        missing, unknown = sorted(needed - found), sorted(found - set(known))
        raise UserError(f"{where}: {cls.__name__} has missing keys {missing} and unknown keys {unknown}. {remedy}")
    for name, hint in _hints(cls).items():  # type: ignore[arg-type]  # a class has a hash
        if hint in (int, str) and type(values[name]) is not hint:
            raise UserError(f"{where}: {cls.__name__}.{name} is {values[name]!r}, expected {hint.__name__}. {remedy}")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}. {remedy}") from error


@lru_cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def as_list(value: Any, where: Path | str) -> list[Any]:
    """The value, which has to be a list."""
    if not isinstance(value, list):
        raise UserError(f"{where}: found {value!r} where a list is expected. Run: {PREPARE_COMMAND}")
    return value


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
