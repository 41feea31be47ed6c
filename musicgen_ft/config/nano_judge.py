"""What a user may choose of ``train/nano_judge.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from musicgen_ft.config.checks import positive


@dataclass(frozen=True, kw_only=True)
class NanoJudgeConfig:
    """Makes the judge that comes with nano: it tells the genres of synthesize."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    out: Path
    """Folder for what it makes; genres.npz is the judge."""
    base: str = "nano"
    """Whose codec it is to hear through."""
    tracks: int = 960
    """Tracks that it learns from, of all genres in turn."""
    test_tracks: int = 240
    """Other tracks, of which it is told how many it is right about."""
    duration_s: float = 10.0
    """Seconds of each."""
    seed: int = 950_000
    """Of the tracks; the next one is that of the others. Training has those below 1000."""

    def __post_init__(self) -> None:
        positive(self, "tracks", "test_tracks")
        if not self.duration_s >= 1:
            raise ValueError(f"duration_s: found {self.duration_s}, expected 1 or more: less tells no genre.")
        if not self.seed >= 1000:
            raise ValueError(f"seed: found {self.seed}, expected 1000 or more: training has those below.")
