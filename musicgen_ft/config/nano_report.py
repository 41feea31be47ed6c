"""What a user may choose of ``train/nano_report.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from musicgen_ft.config.checks import not_negative, positive
from musicgen_ft.config.held_out import HELD_OUT_GENRES


@dataclass(frozen=True, kw_only=True)
class NanoReportConfig:
    """How good the bundled base is: its codec, its losses and what captions steer, on music that no training saw."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    out: Path
    """Folder to make: report.json, and report.html to look at and listen to."""
    base: str = "nano"
    """What to measure: nano, or a folder of a base that was trained on synthesized music."""
    card: bool = False
    """Write the figures into the model card, README.md in the base's folder."""
    finetuning: Path | None = None
    """Folder of train/nano_finetuning.py, whose figures then stand in the report, too."""
    held_out: tuple[str, ...] = HELD_OUT_GENRES
    """Genres that the base was not trained on: none of its clips is asked for them."""
    clips: int = 30
    """Unseen clips of each genre, for the codec, and to be generated."""
    judge_clips: int = 30
    """Other unseen clips of each genre, to train the judge of genres."""
    duration_s: float = 10.0
    """Seconds of each clip; tempo is heard from 5 on."""
    top_k: int | None = None
    """As of sample."""
    temperature: float = 1.0
    """As of sample."""
    cfg_coef: float = 3.0
    """As of sample."""
    batch_size: int = 8
    """Clips at once."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 900_000
    """Of the judge's clips; the next one is that of the unseen clips. Training has those below 1000."""

    def __post_init__(self) -> None:
        positive(self, "clips", "batch_size")
        not_negative(self, "temperature", "cfg_coef")
        if self.top_k is not None:
            not_negative(self, "top_k")
        if not self.duration_s >= 1:
            raise ValueError(f"duration_s: found {self.duration_s}, expected 1 or more: less tells no genre.")
        if not self.judge_clips >= 2:
            raise ValueError(f"judge_clips: found {self.judge_clips}, expected 2 or more.")
        if not self.seed >= 1000:
            raise ValueError(f"seed: found {self.seed}, expected 1000 or more: training has those below.")
