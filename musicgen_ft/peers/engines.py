"""Three ways to play the same folder: our own decoding, audiocraft's, transformers'."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from musicgen_ft.checkpoint import audiocraft_format
from musicgen_ft.checkpoint.base import Base
from musicgen_ft.errors import UserError
from musicgen_ft.generation.decode import Progress
from musicgen_ft.generation.generator import Generator, Melody
from musicgen_ft.generation.options import GenerationOptions
from musicgen_ft.peers import audiocraft, transformers


class Engine(Protocol):
    """Plays one batch of prompts."""

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""
        ...

    def play(
        self,
        prompts: Sequence[str],
        options: GenerationOptions,
        *,
        seeds: Sequence[int],
        melody: Melody | None,
        progress: Progress,
    ) -> Tensor:
        """Waveforms float [B, C, L], all with one melody. The peers draw for the whole batch from its first seed."""
        ...


def open_engine(name: str, base: Base, *, device: torch.device) -> Engine:
    """The engine ``native``, ``audiocraft`` or ``transformers`` on a base.

    Raises:
        UserError: if the base does not hold the files that the engine opens, or the engine is not installed.
    """
    if name == "native":
        return _Native(Generator(base.lm(), base.codec(), base.text_encoder()).to(device))
    _require(base.folder, "config.json" if name == "transformers" else audiocraft_format.LM_FILE, name)
    if name == "transformers":
        return _Transformers(transformers.open_generator(base.folder, device=str(device)))
    return _Audiocraft(audiocraft.open_generator(base.folder, base.text_encoder(), device=str(device)))


@dataclass(frozen=True)
class _Native:
    generator: Generator

    @property
    def sample_rate(self) -> int:
        return self.generator.sample_rate

    def play(
        self,
        prompts: Sequence[str],
        options: GenerationOptions,
        *,
        seeds: Sequence[int],
        melody: Melody | None,
        progress: Progress,
    ) -> Tensor:
        melodies = None if melody is None else [melody] * len(prompts)
        return self.generator.generate(prompts, options, seeds=seeds, melodies=melodies, progress=progress)


@dataclass(frozen=True)
class _Audiocraft:
    generator: Any

    @property
    def sample_rate(self) -> int:
        return int(self.generator.sample_rate)

    def play(
        self,
        prompts: Sequence[str],
        options: GenerationOptions,
        *,
        seeds: Sequence[int],
        melody: Melody | None,
        progress: Progress,
    ) -> Tensor:
        tune = None if melody is None else torch.from_numpy(melody)
        return audiocraft.generate(self.generator, prompts, options, seed=seeds[0], melody=tune, progress=progress)


@dataclass(frozen=True)
class _Transformers:
    generator: Any

    @property
    def sample_rate(self) -> int:
        return int(self.generator.config.audio_encoder.sampling_rate)

    def play(
        self,
        prompts: Sequence[str],
        options: GenerationOptions,
        *,
        seeds: Sequence[int],
        melody: Melody | None,
        progress: Progress,
    ) -> Tensor:
        tune = None if melody is None else torch.from_numpy(melody)
        return transformers.generate(self.generator, prompts, options, seed=seeds[0], melody=tune, progress=progress)


def _require(folder: Path, file: str, engine: str) -> None:
    if not (folder / file).is_file():
        raise UserError(f"{folder} holds no {file}, which --engine {engine} opens. Use --engine native.")
