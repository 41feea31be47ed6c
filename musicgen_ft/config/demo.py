"""What a user may choose of ``demo``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from musicgen_ft.config.checks import not_negative, positive
from musicgen_ft.config.held_out import HELD_OUT_GENRES


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole job in one go: synthesize, prepare, finetune, export, evaluate, sample."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    out: Path
    """Folder for everything that it makes."""
    corpus: Path | None = None
    """Your own folder of labelled audio; none synthesizes one, and music to judge by."""
    genre: str = HELD_OUT_GENRES[0]
    """What is synthesized: a genre of the rules; nano has never heard reggae and chiptune."""
    base: str = "nano"
    """Model to start from."""
    finetune_config: str = "demo_lora"
    """Config of finetune: a name in configs/finetune, or a file."""
    tracks: int = 192
    """Tracks to synthesize, of 10 s."""
    old_tracks: int = 160
    """Tracks of the genres that nano knows, to train on beside them: without any, they are forgotten."""
    max_steps: int | None = None
    """Optimizer steps; none means the config's."""
    prompt: tuple[str, ...] = ()
    """What to play in the end; none means captions of the corpus."""
    pieces: int = 24
    """Pieces that base and tuned play to be compared, of the genre and of others."""
    duration_s: float = 10.0
    """Seconds of each piece and sample."""
    seed: int = 0
    """Of everything."""

    def __post_init__(self) -> None:
        positive(self, "tracks", "pieces", "duration_s")
        not_negative(self, "old_tracks")
        if self.corpus is None and self.duration_s < 1:
            raise ValueError(f"duration_s: found {self.duration_s}, expected 1 or more: less tells no genre.")
