"""What a user may choose of ``plan``."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from musicgen_ft.config.checks import positive


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Before anything is downloaded: how a base can be trained within a memory, GiB for each part, and the command."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    base: str
    """Model to start from: small, medium, large, melody, stereo-..., nano, a hub id of those, or a folder."""
    memory_gib: float | None = None
    """Memory of a device, in GiB; none means this machine's GPU, or its RAM."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of device; auto: a GPU where there is one or memory_gib is given, else the CPU."""
    devices: int = 1
    """Devices that share a batch, each with so much memory."""
    segment_s: float | None = None
    """Seconds of a clip; none means as finetune_config says."""
    batch_size: int | None = None
    """Clips of one optimizer step; none means as finetune_config says."""
    method: Literal["full", "lora", "dora", "qlora", "auto"] | None = None
    """Only this one; none means as finetune_config says."""
    recompute: Literal["none", "selective", "full", "auto"] | None = None
    """Only this one; none means as finetune_config says."""
    finetune_config: str = "auto"
    """All else of the run: a name in configs/finetune, or a file; auto leaves open what can be chosen."""

    def __post_init__(self) -> None:
        positive(self, "devices")
        for name in ("memory_gib", "segment_s", "batch_size"):
            if getattr(self, name) is not None:
                positive(self, name)
