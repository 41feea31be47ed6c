"""What a user may choose of ``sample``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from musicgen_ft.config.checks import not_negative, positive, probability


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Prompts become WAV files, each with a JSON beside it that says how it was made."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("generator",)

    generator: str
    """nano, a hub id, or a folder: a base, or what export wrote."""
    prompt: tuple[str, ...] = ()
    """What to play; give --prompt again for more. An empty one is unconditional."""
    prompts: Path | None = None
    """File with a prompt on each line, or .jsonl with prompt, seed, duration_s, cfg_coef, negative_prompt; run again,
    it goes on where it was stopped."""
    out: Path
    """Folder for the files."""
    melody: Path | None = None
    """Audio file whose melody all prompts follow, for a generator made from a melody base."""
    adapter: tuple[str, ...] = ()
    """FOLDER or FOLDER=STRENGTH of an adapter of this generator, 1 where not said; give it again to blend several."""
    audio_prompt: Path | None = None
    """Audio file that all pieces go on from; it is their beginning, and counts in duration_s."""
    negative_prompt: str = ""
    """What guidance leads away from; an empty one is the usual null condition."""
    duration_s: float = 10.0
    """Seconds of audio; beyond what the model was trained on, by a moving window."""
    top_k: int | None = None
    """Draw from the k most likely codes; 0 means all. Where nothing is said: 250 of 2048, and that share of others."""
    top_p: float = 0.0
    """Draw from the most likely codes that make up p; above 0 it replaces top_k."""
    temperature: float = 1.0
    """Above 1 more adventurous, below 1 safer, 0 always the most likely code."""
    cfg_coef: float = 3.0
    """How closely to follow the prompt; 1 switches guidance off."""
    cfg_coef_beta: float | None = None
    """Double guidance, with a melody: how much more the prompt counts than the melody alone; none is single."""
    two_step_cfg: bool = False
    """Predict with and without the prompt in two passes in place of one: less memory, more time."""
    seed: int = 0
    """Of the first prompt; each further one counts up."""
    batch_size: int = 4
    """Prompts at once."""
    stride_s: float = 18.0
    """Seconds by which the window moves on in long pieces."""
    retry_silent: int = 0
    """Times that a piece is played again that fell silent or into a loop, with seed + 1000000, + 2000000, ...; it is
    broken off as soon as that is certain, but for the last time."""
    engine: Literal["native", "audiocraft", "transformers"] = "native"
    """Whose code plays."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """Of the layers' weights. auto is fp16 on a GPU, and on a CPU where it loses nothing, else fp32; bf16 and int8 are
    faster on a CPU, and no longer give the same codes."""

    def __post_init__(self) -> None:
        positive(self, "duration_s", "batch_size", "stride_s")
        given: dict[str, object] = {"audio_prompt": self.audio_prompt, "negative_prompt": self.negative_prompt.strip()}
        given |= {"cfg_coef_beta": self.cfg_coef_beta, "dtype": self.dtype if self.dtype != "auto" else None}
        if self.engine != "native" and any(given.values()):
            name = next(name for name, value in given.items() if value)
            raise ValueError(f"{name}: found one for --engine {self.engine}, it is for --engine native.")
        not_negative(self, "temperature", "cfg_coef", "seed", "retry_silent")
        if self.top_k is not None:
            not_negative(self, "top_k")
        if self.cfg_coef_beta is not None:
            not_negative(self, "cfg_coef_beta")
        probability(self, "top_p")
        if not self.prompt and self.prompts is None:
            raise ValueError("prompt: found none, expected at least one. Give --prompt TEXT, or --prompts FILE.")
        if self.retry_silent and self.temperature == 0:
            raise ValueError("--retry_silent: at --temperature 0 every seed plays the same. Leave one of them out.")
        if self.adapter and self.engine != "native":
            raise ValueError(
                f"--adapter goes with --engine native, found {self.engine}: that one plays merged exports."
            )
