"""What a user may choose of ``evaluate``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from musicgen_ft.config.checks import not_negative, positive


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A run or a generator is measured and listened to beside its base: one page, and its numbers as JSON."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("model", "shards")

    model: str
    """Folder of a run, or a generator: nano, a hub id, a folder."""
    shards: str | None = None
    """Folder of shards, or the URL of one; none means those that the run was trained on."""
    out: Path
    """Folder to make: index.html, evaluation.json, sounds."""
    base: str | None = None
    """What to compare with; none means what the model was trained from, "none" nothing."""
    checkpoint: Literal["best", "last"] = "best"
    """Of a run: best by validation loss, or last."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Of a run: averaged or raw weights; auto: averaged where it has them."""
    pieces: int = 16
    """Pieces that each model plays, to captions of held-out tracks; distances want many."""
    duration_s: float = 10.0
    """Seconds of each."""
    segment_s: float | None = None
    """Seconds of a clip whose loss is measured; none means as in the run's training."""
    valid_max_clips: int | None = None
    """Clips whose loss is measured, of each split, at most; none means as in the run's validation."""
    clap: str | None = None
    """CLAP for how sound fits its text: a folder, or a hub id, which is fetched; none takes laion/larger_clap_music
    where it is in the cache already."""
    judge: Path | None = None
    """Folder of labelled audio of many genres, none of it trained on: a judge learns them, and hears what is played. Or
    nano: the one that comes with it, of the genres of synthesize; or a file of train/nano_judge.py."""
    others: str | None = None
    """Shards of other music than was trained on: whether it plays that as well as before, too."""
    players: int = 6
    """Prompts to listen to on the page, at most."""
    seed: int = 0
    """Of the first piece; each further one counts up."""
    batch_size: int = 4
    """Pieces, and clips, at once."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    wandb: Literal["off", "auto", "online", "offline"] = "off"
    """auto: online where wandb has an account, else offline."""
    wandb_project: str = "musicgen-ft"
    """Project in wandb."""

    def __post_init__(self) -> None:
        positive(self, "pieces", "duration_s", "batch_size")
        not_negative(self, "players", "seed")
        for name in ("segment_s", "valid_max_clips"):
            if getattr(self, name) is not None:
                positive(self, name)
        if self.judge is not None and self.duration_s < 1:
            raise ValueError(
                f"duration_s: found {self.duration_s} with --judge, expected 1 or more: less tells no genre."
            )
        if self.pieces * self.duration_s < 2:
            raise ValueError(
                f"found {self.pieces} x {self.duration_s:g} s of music, expected at least 2 s for a distance. "
                "Give more --pieces, or a longer --duration_s."
            )
