"""What a listener may choose."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from musicgen_ft.generation.sampling import Sampling

Melody = npt.NDArray[np.float32]
"""A mono waveform [L] at the sample rate of the codec."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How one batch of prompts becomes sound, the same for every engine; names and defaults are audiocraft's."""

    duration_s: float
    """Seconds of audio."""
    sampling: Sampling = field(default_factory=Sampling)
    """The rule of drawing."""
    cfg_coef: float = 3.0
    """Scale of classifier-free guidance; 1 is none."""
    stride_s: float = 18.0
    """Seconds by which the window moves on, where the duration exceeds what the model was trained on."""
    two_step_cfg: bool = False
    """Two passes with half the rows in place of one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One piece to play. It sounds the same alone and beside whatever others."""

    prompt: str | None = None
    """What to play; None or blank is unconditional."""
    duration_s: float = 10.0
    """Seconds of audio, those of ``audio_prompt`` included."""
    seed: int = 0
    """Of the draws."""
    sampling: Sampling = field(default_factory=Sampling)
    """The rule of drawing."""
    cfg_coef: float = 3.0
    """Scale of classifier-free guidance; 1 is none."""
    negative_prompt: str | None = None
    """What guidance leads away from, in place of the null condition."""
    melody: Melody | None = None
    """A tune to follow, for a model that takes one."""
    cfg_coef_beta: float | None = None
    """Double guidance, with a melody: how much more the prompt counts than the melody alone; None is single."""
    audio_prompt: Tensor | None = None
    """Sound to go on from: a waveform, float [C, L] at the generator's sample rate, or codes, int64 [K, T]."""


def requests_of(
    descriptions: Sequence[str | None],
    options: GenerationOptions,
    *,
    seeds: Sequence[int],
    melodies: Sequence[Melody | None] | None = None,
) -> list[Request]:
    """Requests that differ in their words, seeds and melodies alone."""
    return [
        Request(
            prompt=description,
            duration_s=options.duration_s,
            seed=seed,
            sampling=options.sampling,
            cfg_coef=options.cfg_coef,
            melody=melody,
        )
        for description, seed, melody in zip(descriptions, seeds, melodies or [None] * len(descriptions), strict=True)
    ]
