"""What a user may choose of ``inspect``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from musicgen_ft.config.checks import not_negative, positive


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What is in a corpus or in shards: hours, labels, quality, duplicates, what would be left out and why."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("place",)

    place: Path
    """Folder of labelled audio, or of shards."""
    out: Path | None = None
    """HTML page to write; none means NAME.html in the working directory."""
    captions: int = 0
    """Print so many captions of each of a few tracks, exactly as training draws them."""
    finetune_config: str | None = None
    """Whose caption settings: a name in configs/finetune, or a file; none means the defaults."""
    prepare_config: str | None = None
    """Whose rules, for a corpus: a name in configs/prepare, or a file; none means the defaults."""
    players: int = 12
    """Tracks to listen to on the page, at most; 0 means none."""
    workers: int | None = None
    """Files measured at once; none means one for each core."""
    seed: int = 0
    """Of the captions."""

    def __post_init__(self) -> None:
        not_negative(self, "captions", "players", "seed")
        if self.workers is not None:
            positive(self, "workers")
