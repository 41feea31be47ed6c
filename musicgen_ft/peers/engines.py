"""Three ways to play the same folder: our own decoding, audiocraft's, transformers'; ours with adapters over it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from musicgen_ft.checkpoint import audiocraft_format
from musicgen_ft.checkpoint.adapter import made_for, read_adapter
from musicgen_ft.checkpoint.base import Base
from musicgen_ft.errors import UserError
from musicgen_ft.generation.adapters import AdapterMixer
from musicgen_ft.generation.decode import Progress
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import GenerationOptions, Request
from musicgen_ft.generation.watch import PieceWatch
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.peers import audiocraft, transformers
from musicgen_ft.weights import from_files, state_sha256

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """Plays one batch of prompts."""

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""
        ...

    @property
    def frame_rate(self) -> float:
        """Of the codes, in frames per second."""
        ...

    def play(
        self,
        requests: Sequence[Request],
        *,
        stride_s: float,
        two_step_cfg: bool,
        progress: Progress,
        watches: Sequence[PieceWatch] = (),
    ) -> Sequence[Tensor]:
        """Waveforms float [C, L].

        The peers play batches of one length, rule and melody: those of the first request, from whose seed they draw.
        They show the ``watches`` nothing, and break nothing off: they keep their codes to themselves.
        """
        ...


def open_engine(
    name: str,
    base: Base,
    *,
    device: torch.device,
    dtype: str = "auto",
    adapters: Mapping[Path, float] | None = None,
) -> Engine:
    """The engine ``native``, ``audiocraft`` or ``transformers`` on a base; ``native`` with adapters at these strengths.

    Raises:
        UserError: if the base does not hold the files that the engine opens, the engine is not installed, or an adapter
            is not one of this base.
    """
    if name == "native":
        lm = base.lm()
        if adapters:  # before the generator packs the weights
            mixer = open_mixer(lm, base, {str(folder): folder for folder in adapters})
            mixer.blend({str(folder): strength for folder, strength in adapters.items()})
        return _Native(Generator(lm, base.codec(), base.text_encoder(), dtype=dtype).to(device))
    _require(base.folder, "config.json" if name == "transformers" else audiocraft_format.LM_FILE, name)
    if name == "transformers":
        return _Transformers(transformers.open_generator(base.folder, device=str(device)))
    return _Audiocraft(audiocraft.open_generator(base.folder, base.text_encoder(), device=str(device)))


def open_mixer(lm: LanguageModel, base: Base, folders: Mapping[str, Path]) -> AdapterMixer:
    """A mixer of adapters, none of which plays yet.

    An adapter that tells what it was trained over, as ours do, is refused over other weights. Of one that does not,
    as of PEFT's own, names and shapes decide; that is said aloud.

    Args:
        lm: of the base.
        base: that the adapters lie over.
        folders: name to call it by -> folder in PEFT's format.

    Raises:
        UserError: if one is no adapter, does not fit the base or was trained over another.
    """
    state = from_files(base.lm_state)
    mixer, sha256 = AdapterMixer(lm, state), ""
    for name, folder in folders.items():
        adapter, expected = read_adapter(folder, base.lm_config), made_for(folder)
        if expected is None:
            named = f" It names {adapter.base}." if adapter.base else ""
            logger.info(f"adapter {folder} does not tell the weights it was made for: its shapes fit.{named}")
        else:
            sha256 = sha256 or state_sha256(state)
            if sha256 != expected:
                raise UserError(
                    f"adapter {folder} was made for {adapter.base} with weights {expected[:8]}, found {base.name} with "
                    f"weights {sha256[:8]}. Give the base that it was made for, and adapters of one base at a time."
                )
        mixer.add(name, adapter.tensors, adapter.spec)
    return mixer


@dataclass(frozen=True)
class _Native:
    generator: Generator

    @property
    def sample_rate(self) -> int:
        return self.generator.sample_rate

    @property
    def frame_rate(self) -> float:
        return self.generator.codec.spec.frame_rate

    def play(
        self,
        requests: Sequence[Request],
        *,
        stride_s: float,
        two_step_cfg: bool,
        progress: Progress,
        watches: Sequence[PieceWatch] = (),
    ) -> Sequence[Tensor]:
        return self.generator.play(
            requests, stride_s=stride_s, two_step_cfg=two_step_cfg, progress=progress, watches=watches
        )


@dataclass(frozen=True)
class _Audiocraft:
    generator: Any

    @property
    def sample_rate(self) -> int:
        return int(self.generator.sample_rate)

    @property
    def frame_rate(self) -> float:
        return float(self.generator.frame_rate)

    def play(
        self,
        requests: Sequence[Request],
        *,
        stride_s: float,
        two_step_cfg: bool,
        progress: Progress,
        watches: Sequence[PieceWatch] = (),
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

    @property
    def frame_rate(self) -> float:
        return float(self.generator.config.audio_encoder.frame_rate)

    def play(
        self,
        requests: Sequence[Request],
        *,
        stride_s: float,
        two_step_cfg: bool,
        progress: Progress,
        watches: Sequence[PieceWatch] = (),
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
