"""What a user may choose of ``export``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A run, or another base, becomes a generator folder that audiocraft and transformers open and play."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("run",)
    ALIASES: ClassVar[dict[str, str]] = {"from": "base"}

    run: Path | None = None
    """Folder of the run, from finetune."""
    base: str | None = None
    """In place of a run: a base to convert as it is, also said as --from: a hub id or a folder."""
    out: Path
    """Generator folder to make."""
    format: Literal["both", "audiocraft", "transformers", "adapter"] = "both"
    """Whose loader opens it; adapter: of a lora or dora run only what was trained, in PEFT's format."""
    checkpoint: Literal["best", "last"] = "best"
    """best by validation loss (last where there was no validation), or last."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Averaged or raw weights; auto: averaged where the run has them."""
    dtype: Literal["float32", "float16"] | None = None
    """Of the language model's tensors; none means float32 for a run, and the base's own. Releases are float16."""
    channels: Literal[1, 2] | None = None
    """Of a base: 2 makes a mono one stereo."""

    def __post_init__(self) -> None:
        if (self.run is None) == (self.base is None):
            raise ValueError("expected a RUN, or --from BASE, and not both.")
        if self.run is not None and self.channels is not None:
            raise ValueError("--channels goes with --from: a run has the channels of its shards.")
        if self.run is None and self.format == "adapter":
            raise ValueError("--format adapter goes with a RUN that trained one: a base holds none.")
