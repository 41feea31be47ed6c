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
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import GenerationOptions, Request
from musicgen_ft.peers import audiocraft, transformers


class Engine(Protocol):
    """Plays one batch of prompts."""

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""
        ...

    def play(
        self, requests: Sequence[Request], *, stride_s: float, two_step_cfg: bool, progress: Progress
    ) -> Sequence[Tensor]:
        """Waveforms float [C, L].

        The peers play batches of one length, rule and melody: those of the first request, from whose seed they draw.
        """
        ...


def open_engine(name: str, base: Base, *, device: torch.device, dtype: str = "auto") -> Engine:
    """The engine ``native``, ``audiocraft`` or ``transformers`` on a base.

    Raises:
        UserError: if the base does not hold the files that the engine opens, or the engine is not installed.
    """
    if name == "native":
        return _Native(Generator.open(base, device=str(device), dtype=dtype))
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
        self, requests: Sequence[Request], *, stride_s: float, two_step_cfg: bool, progress: Progress
    ) -> Sequence[Tensor]:
        return self.generator.play(requests, stride_s=stride_s, two_step_cfg=two_step_cfg, progress=progress)


@dataclass(frozen=True)
class _Audiocraft:
    generator: Any

    @property
    def sample_rate(self) -> int:
        return int(self.generator.sample_rate)

    def play(
        self, requests: Sequence[Request], *, stride_s: float, two_step_cfg: bool, progress: Progress
    ) -> Sequence[Tensor]:
        prompts, options = _of_one_batch(requests, stride_s=stride_s, two_step_cfg=two_step_cfg)
        seed, tune = requests[0].seed, _tune(requests)
        return list(audiocraft.generate(self.generator, prompts, options, seed=seed, melody=tune, progress=progress))


@dataclass(frozen=True)
class _Transformers:
    generator: Any

    @property
    def sample_rate(self) -> int:
        return int(self.generator.config.audio_encoder.sampling_rate)

    def play(
        self, requests: Sequence[Request], *, stride_s: float, two_step_cfg: bool, progress: Progress
    ) -> Sequence[Tensor]:
        prompts, options = _of_one_batch(requests, stride_s=stride_s, two_step_cfg=two_step_cfg)
        seed, tune = requests[0].seed, _tune(requests)
        return list(transformers.generate(self.generator, prompts, options, seed=seed, melody=tune, progress=progress))


def _of_one_batch(
    requests: Sequence[Request], *, stride_s: float, two_step_cfg: bool
) -> tuple[list[str | None], GenerationOptions]:
    first = requests[0]
    options = GenerationOptions(
        duration_s=first.duration_s,
        sampling=first.sampling,
        cfg_coef=first.cfg_coef,
        stride_s=stride_s,
        two_step_cfg=two_step_cfg,
    )
    return [request.prompt for request in requests], options


def _tune(requests: Sequence[Request]) -> Tensor | None:
    melody = requests[0].melody
    return None if melody is None else torch.from_numpy(melody)


def _require(folder: Path, file: str, engine: str) -> None:
    if not (folder / file).is_file():
        raise UserError(f"{folder} holds no {file}, which --engine {engine} opens. Use --engine native.")
