"""What a user may choose of ``train/nano_finetuning.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from musicgen_ft.config.checks import positive
from musicgen_ft.config.held_out import HELD_OUT_GENRES


@dataclass(frozen=True, kw_only=True)
class NanoFinetuningConfig:
    """Whether nano learns a genre that it has never heard: by all weights, by adapters, and not from wrong captions."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    out: Path
    """Folder for everything that it makes; finetuning.json holds the figures."""
    base: str = "nano"
    """What to fine-tune: nano, or a folder of a base that was trained on synthesized music."""
    genre: str = HELD_OUT_GENRES[0]
    """What it is to learn."""
    held_out: tuple[str, ...] = HELD_OUT_GENRES
    """Genres that the base was not trained on; the others are not to be forgotten."""
    tracks: int = 192
    """Tracks of the genre to learn from."""
    old_tracks: int = 160
    """Tracks of the others beside them, in the arms that have them."""
    judge_tracks: int = 240
    """Tracks of all genres that the judge learns from, of another base than nano, whose judge comes with it."""
    duration_s: float = 10.0
    """Seconds of each track."""
    finetune_config: str = "demo"
    """Config of finetune: a name in configs/finetune, or a file."""
    max_steps: int | None = None
    """Optimizer steps; none means the config's."""
    pieces: int = 40
    """Pieces that are played to captions of unseen tracks, of the genre and of the others."""
    piece_s: float = 10.0
    """Seconds of each piece."""
    seed: int = 910_000
    """Of the tracks; the next two are those of the unseen ones and of the judge's."""

    def __post_init__(self) -> None:
        positive(self, "tracks", "old_tracks", "judge_tracks", "duration_s", "pieces", "piece_s")
