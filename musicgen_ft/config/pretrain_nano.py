"""What a user may choose of ``train/pretrain_nano.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from musicgen_ft.config.checks import positive
from musicgen_ft.config.held_out import HELD_OUT_GENRES


@dataclass(frozen=True, kw_only=True)
class PretrainNanoConfig:
    """Makes nano from nothing: corpus, codec, text encoder, language model. What is done already is not done again."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    out: Path
    """Folder for everything that it makes; ``nano/`` in it is the base."""
    tracks: int = 7200
    """Tracks to synthesize, of all genres but those held out."""
    held_out: tuple[str, ...] = HELD_OUT_GENRES
    """Genres to leave out."""
    duration_s: float = 10.0
    """Seconds of each track."""
    codec_tracks: int = 500
    """Tracks that the codec learns from."""
    codec_steps: int = 5000
    """Optimizer steps of the codec."""
    text_steps: int = 1500
    """Optimizer steps of the text encoder."""
    finetune_config: str = "pretrain_nano"
    """Config of finetune for the language model: a name in configs/finetune, or a file."""
    max_steps: int | None = None
    """Optimizer steps of the language model; none means the config's. A run that has begun keeps its own."""
    seed: int = 1
    """Of everything; reports use seeds far from it."""

    def __post_init__(self) -> None:
        positive(self, "tracks", "duration_s", "codec_tracks", "codec_steps", "text_steps")
