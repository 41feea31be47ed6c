"""The labels of one track: raw fields under audiocraft's names, and how they are read from what people write."""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is known of one track, normalised as audiocraft's MusicInfo does (spec 4.3). Unknown fields are empty."""

    description: str | None = None
    """Free text, as it is given to T5."""
    captions: tuple[str, ...] = ()
    """Further descriptions of the same track, each as good as ``description``."""
    title: str | None = None
    """Title of the track."""
    artist: str | None = None
    """Who made it."""
    album: str | None = None
    """What it was released on; tells tracks that belong together, and is in no caption."""
    genre: str | None = None
    """One genre, lower case."""
    key: str | None = None
    """Musical key, lower case ("a minor")."""
    bpm: float | None = None
    """Tempo in beats per minute."""
    moods: tuple[str, ...] = ()
    """Lower-case words."""
    instrument: str | None = None
    """Lower-case free text."""
    keywords: tuple[str, ...] = ()
    """Lower-case words."""
    computed: tuple[str, ...] = ()
    """Names of the fields that were heard in the audio, and not given by anybody."""

    @property
    def descriptions(self) -> tuple[str, ...]:
        """Every description: ``description`` and ``captions``."""
        return (*filter(None, (self.description,)), *self.captions)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value; ``from_dict`` is its inverse."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Labels":
        """Labels from what ``to_dict`` gave, in this release or an earlier one that had fewer fields."""
        found: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**found)


def labels_from_fields(values: Mapping[str, object]) -> Labels:
    """Labels from raw fields, as sidecar files, tables and embedded tags give them.

    Args:
        values: any fields. Names count without regard to case; a field may go by an alias (``caption`` for
            ``description``), and its own name wins over an alias. Unknown fields are ignored, as is a value that does
            not fit its field: empty, "None", a tempo that is no positive number, a key with a comma (several keys).
            Several descriptions of one track are a list in ``description``, a list in ``captions``, or numbered
            fields (``caption_2``).

    Returns:
        The labels, normalised as audiocraft's ``MusicInfo.from_dict`` does.
    """
    by_name = {name.strip().lower(): value for name, value in values.items()}
    descriptions = _descriptions(by_name)
    found: dict[str, Any] = {"description": next(iter(descriptions), None), "captions": descriptions[1:]}
    for field, (aliases, parse) in _READERS.items():
        candidates = (parse(by_name.get(name)) for name in (field, *aliases))
        found[field] = next((value for value in candidates if value), () if parse is _words else None)
    return Labels(**found)


def merge(first: Labels, second: Labels) -> Labels:
    """The fields of ``first``, and of ``second`` where ``first`` has none; the descriptions count as one field."""
    found: dict[str, Any] = {}
    computed = []
    for field in fields(Labels):
        has_it = first.descriptions if field.name in ("description", "captions") else getattr(first, field.name)
        source = first if has_it else second
        found[field.name] = getattr(source, field.name)
        if field.name in source.computed:
            computed.append(field.name)
    return Labels(**{**found, "computed": tuple(computed)})


def field_of(name: str) -> str | None:
    """The field that goes by this name or alias; None where there is none.

    >>> field_of("Tempo")
    'bpm'
    """
    name = name.strip().lower()
    if name in _DESCRIPTION:
        return "description"
    return next((field for field, (aliases, _) in _READERS.items() if name == field or name in aliases), None)


def _descriptions(by_name: Mapping[str, object]) -> tuple[str, ...]:
    """Every description that the fields hold, each once."""
    first = next(filter(None, (_texts(by_name.get(name)) for name in _DESCRIPTION)), ())
    numbered = sorted(
        (int(match[1]), name) for name in by_name if (match := re.fullmatch(r"(?:caption|description)_(\d+)", name))
    )
    further = (_texts(by_name.get(name)) for name in ("captions", "descriptions", *(name for _, name in numbered)))
    return tuple(dict.fromkeys(itertools.chain(first, *further)))


def _texts(value: object) -> tuple[str, ...]:
    """Free texts; the entries of a list stay whole."""
    entries = value if isinstance(value, list | tuple) else (value,)
    return tuple(filter(None, map(_text, entries)))


def _text(value: object) -> str | None:
    """Free text; a list of texts, which audiocraft drops, is joined by commas."""
    if isinstance(value, list | tuple):
        value = ", ".join(filter(None, map(_text, value)))
    if not isinstance(value, str) or value == "None":
        return None
    return value.strip() or None


def _lower_text(value: object) -> str | None:
    text = _text(value)
    return text.lower() if text else None


def _words(value: object) -> tuple[str, ...]:
    """Text is split on commas and on white space; the entries of a list stay whole."""
    entries = re.split(r"[,\s]", value) if isinstance(value, str) else value
    if not isinstance(entries, list | tuple):
        return ()
    return tuple(filter(None, map(_lower_text, entries)))


def _key(value: object) -> str | None:
    key = _lower_text(value)
    return None if key is None or "," in key else key


def _bpm(value: object) -> float | None:
    try:
        bpm = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        return None
    return bpm if 0 < bpm < math.inf else None


_DESCRIPTION = ("description", "caption", "text", "prompt")
_READERS: dict[str, tuple[tuple[str, ...], Callable[[object], Any]]] = {
    # field: its aliases in sidecars, tables and embedded tags (ID3, Vorbis, MP4), of which the first with a value wins
    "title": ((), _text),
    "artist": (("artists",), _text),
    "album": ((), _text),
    "genre": (("genres",), _lower_text),
    "key": (("initialkey", "initial_key", "tkey"), _key),
    "bpm": (("tempo", "tbpm", "tmpo"), _bpm),
    "moods": (("mood",), _words),
    "instrument": (("instruments", "instrumentation"), _lower_text),
    "keywords": (("keyword", "tags"), _words),
}
