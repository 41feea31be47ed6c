"""The labels of one track: raw fields under audiocraft's names."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is known of one track, normalised as audiocraft's MusicInfo does (spec 4.3). Unknown fields are empty."""

    description: str | None = None
    """Free text, as it is given to T5."""
    title: str | None = None
    """Title of the track."""
    artist: str | None = None
    """Who made it."""
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value; ``from_dict`` is its inverse."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Labels":
        """Labels from what ``to_dict`` gave."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
