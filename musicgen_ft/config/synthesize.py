"""What a user may choose of ``synthesize``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from musicgen_ft.config.checks import positive


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """A small labelled corpus, made by rule: wav files with a JSON of labels beside each."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    out: Path
    """Folder to make."""
    tracks: int = 32
    """Number of tracks; the genres take turns."""
    duration_s: float = 20.0
    """Seconds of each track."""
    genres: tuple[str, ...] = ()
    """Only these genres; none means all."""
    seed: int = 0
    """Other seeds give other music."""
    workers: int | None = None
    """Processes that share the tracks, the files are the same; none means one for each core, where there are many."""

    def __post_init__(self) -> None:
        positive(self, "tracks", "duration_s")
        if self.workers is not None:
            positive(self, "workers")
