"""What a user may choose of ``serve``."""

from dataclasses import dataclass
from typing import ClassVar

from musicgen_ft.config.checks import not_negative, positive


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A page on this machine to type prompts, drop a melody or a clip, and hear two models side by side."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("generator",)

    generator: tuple[str, ...]
    """One or more, the base before the tuned: nano, a hub id, or a folder."""
    adapter: tuple[str, ...] = ()
    """Adapter over the first generator, on a slider; give --adapter again for more. The right side begins with it."""
    host: str = "127.0.0.1"
    """Address to listen at. Any other lets every machine that reaches it play, without a password."""
    port: int = 7860
    """Port to listen at; 0 takes a free one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    max_duration_s: float = 120.0
    """Seconds of the longest piece that the page offers."""
    max_models: int = 2
    """Models kept in memory; the one that has not played for longest goes."""

    def __post_init__(self) -> None:
        positive(self, "max_duration_s", "max_models")
        not_negative(self, "port")
        if self.port > 65535:
            raise ValueError(f"port: found {self.port}, expected at most 65535.")
        if not self.generator:
            raise ValueError("generator: found none, expected at least one, such as nano.")
