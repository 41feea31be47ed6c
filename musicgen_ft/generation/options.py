"""What a listener may choose: the same for every engine."""

from dataclasses import dataclass, field

from musicgen_ft.generation.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How one batch of prompts becomes sound; names and defaults are audiocraft's."""

    duration_s: float
    """Seconds of audio."""
    sampling: Sampling = field(default_factory=Sampling)
    """The rule of drawing."""
    cfg_coef: float = 3.0
    """Scale of classifier-free guidance; 1 is none."""
    stride_s: float = 18.0
    """Seconds by which the window moves on, where the duration exceeds what the model was trained on."""
