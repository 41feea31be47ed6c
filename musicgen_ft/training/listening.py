"""What a run sounds like on its way: the same prompts from the same seeds every few steps, beside the base's playing.

``samples/base`` and ``samples/step-000100`` in the run's folder hold WAV files, each with a JSON that says how it was
made; wandb gets them in a table, with spectrograms. Training does not notice: weights are bit for bit the same with
samples and without (tests/training/test_listening.py).
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from tqdm import tqdm

from musicgen_ft import __version__
from musicgen_ft.audio import normalize_loudness, read, write_wav
from musicgen_ft.codec import Codec
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_folder, write_json
from musicgen_ft.generation.decode import Progress
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import GenerationOptions, requests_of
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.pictures import spectrogram
from musicgen_ft.shards.datamodule import ShardDataModule
from musicgen_ft.terminal import progress_bar, slug
from musicgen_ft.training.checkpoints import highest
from musicgen_ft.training.forgetting import FORGETTING_FILE, sample_base
from musicgen_ft.training.module import FinetuneModule
from musicgen_ft.training.preempt import StopRequests, leave
from musicgen_ft.training.ranks import Heartbeat

SAMPLES_FOLDER = "samples"
BASE = "base"

_NUM_PROMPTS = 4
_BATCH = 4  # prompts at once, as `sample` has it
_TICK_S = 1.0
_PLAYING, _DONE, _FAILED = 0, 1, 2


@contextmanager
def as_generator(
    lm: LanguageModel, codec: Codec, text_encoder: TextEncoder, device: torch.device
) -> Iterator[Generator]:
    """A generator of a model that is in training, which is afterwards as it was, but on ``device``."""
    trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    config, was_training = lm.config, lm.training
    try:
        yield Generator(lm, codec, text_encoder).to(device)
    finally:
        lm.config = config
        lm.train(was_training)
        for parameter in trained:
            parameter.requires_grad_(True)


class Listening(lightning.Callback):
    """Plays on rank zero; the others wait, step by step, so that none believes that it was left alone.

    Weights must be whole on rank zero, as they are on one device and under DDP.
    """

    def __init__(
        self,
        folder: Path,
        config: FinetuneConfig,
        prompts: Sequence[str],
        codec: Codec,
        text_encoder: TextEncoder,
        stop: StopRequests,
    ) -> None:
        """Plays nothing yet.

        Args:
            folder: of the samples.
            config: when, and how long.
            prompts: what to play; the n-th has the run's seed + n.
            codec: makes it audible.
            text_encoder: the run's own.
            stop: a run that is told to stop plays no further; resumed, it begins with what it owes.
        """
        assert config.sample_every_steps is not None
        self._folder, self._prompts, self._stop = folder, tuple(prompts), stop
        self._every_steps, self._seed = config.sample_every_steps, config.seed
        self._options = GenerationOptions(duration_s=config.sample_s)
        self._codec, self._text_encoder = codec, text_encoder

    def play_base(self, trainer: lightning.Trainer, generator: Generator) -> None:
        """Before training, on rank zero: what all samples are to be compared with."""
        if not self._is_made(BASE):
            self._write(BASE, self._waveforms(trainer, generator), step=0, weights="base")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Makes up for samples that a kill has prevented after their step was saved."""
        if trainer.is_global_zero:
            for left in self._folder.glob(".*.tmp-*"):
                shutil.rmtree(left, ignore_errors=True)
        self._listen(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Plays after a step that is due."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._listen(trainer, pl_module)

    def _listen(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """All ranks together; where the one that plays cannot write, none is left waiting.

        Raises:
            OSError: on rank zero, if the files could not be written.
            SystemExit: on the others then, with status 2.
        """
        step = trainer.global_step
        if step == 0 or step % self._every_steps:
            return
        assert isinstance(module, FinetuneModule)
        if trainer.is_global_zero:
            error: OSError | None = None
            try:
                self._play(trainer, module, step)
            except _Stopped:
                pass
            except OSError as caught:
                error = caught
            highest(trainer, _DONE if error is None else _FAILED)
            if error is not None:
                raise error
        else:
            while (status := highest(trainer, _PLAYING)[0]) == _PLAYING:
                _beat(trainer)
            if status == _FAILED:
                leave(trainer, 2)
        module.throughput.pause()

    def _play(self, trainer: lightning.Trainer, module: FinetuneModule, step: int) -> None:
        name, told_at = f"step-{step:06d}", time.monotonic()
        if self._is_made(name):
            return

        def progress(done: int, of: int) -> None:
            nonlocal told_at
            if self._stop.signum:
                raise _Stopped
            if time.monotonic() - told_at >= _TICK_S:
                highest(trainer, _PLAYING)
                _beat(trainer)
                told_at = time.monotonic()

        weights = "averaged" if module.has_average else "raw"
        with (
            module.averaged(),
            as_generator(module.lm, self._codec, self._text_encoder, trainer.strategy.root_device) as generator,
        ):
            waveforms = self._waveforms(trainer, generator, progress)
        self._write(name, waveforms, step=step, weights=weights)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                self._log(logger, name, step)

    def _waveforms(
        self, trainer: lightning.Trainer, generator: Generator, progress: Progress | None = None
    ) -> list[Tensor]:
        """Float [C, L] of each prompt; the model in the precision of its training, the codec in fp32."""
        found: list[Tensor] = []
        for start in range(0, len(self._prompts), _BATCH):
            prompts = self._prompts[start : start + _BATCH]
            seeds = [self._seed + start + number for number in range(len(prompts))]
            with trainer.precision_plugin.forward_context():
                codes = generator.codes(requests_of(prompts, self._options, seeds=seeds), progress=progress)
            with torch.no_grad():
                found += generator.codec.decode(torch.stack(codes)).cpu()
        return found

    def _write(self, name: str, waveforms: Sequence[Tensor], *, step: int, weights: str) -> None:
        rate, options = self._codec.spec.sample_rate, self._options
        how = {"step": step, "weights": weights, "duration_s": options.duration_s, **asdict(options.sampling)}
        how |= {"top_k": options.sampling.k_of(self._codec.spec.card)}
        how |= {"cfg_coef": options.cfg_coef, "sample_rate": rate, "toolkit_version": __version__}
        with atomic_folder(self._folder / name) as folder:
            for number, waveform in enumerate(waveforms):
                path = folder / self._file(number)
                write_wav(path, normalize_loudness(waveform, rate), rate)
                of_piece = {"prompt": self._prompts[number], "seed": self._seed + number}
                write_json(path.with_suffix(".json"), of_piece | how)

    def _log(self, logger: WandbLogger, name: str, step: int) -> None:
        """A table with a row for each prompt, base beside tuned; the tuned ones alone, too, to go through by step."""
        import wandb

        rate = self._codec.spec.sample_rate
        columns: list[str | int] = ["step", "prompt", "base", "tuned", "base's spectrogram", "tuned spectrogram"]
        table: Any = wandb.Table(columns=columns)
        tuned: list[Any] = []
        pictures: list[Any] = []
        for number, prompt in enumerate(self._prompts):
            paths = [self._folder / which / self._file(number) for which in (BASE, name)]
            drawn = [spectrogram(read(path, sample_rate=rate, channels=1), rate).convert("RGB") for path in paths]
            table.add_data(step, prompt, *(wandb.Audio(str(path)) for path in paths), *map(wandb.Image, drawn))
            tuned.append(wandb.Audio(str(paths[1]), caption=prompt))
            pictures.append(wandb.Image(drawn[1], caption=prompt))
        media = {"samples/table": table, "samples/tuned": tuned, "samples/spectrogram": pictures}
        logger.experiment.log({**media, "trainer/global_step": step})

    def _file(self, number: int) -> str:
        return f"{number:03d}_{slug(self._prompts[number])}.wav"

    def _is_made(self, name: str) -> bool:
        return (self._folder / name).is_dir()


class _Stopped(Exception):  # noqa: N818  # no error: the run was told to stop
    pass


def let_base_play(
    trainer: lightning.Trainer,
    module: FinetuneModule,
    codec: Codec,
    text_encoder: TextEncoder,
    listening: Listening | None,
    *,
    has_valid: bool,
) -> None:
    """What the trained weights will be compared with: the base's samples, and the clips of the forgetting probe.

    On rank zero, while the module still has the base's weights; the other ranks wait where all meet. What an earlier
    start of this run has made stays. A new text encoder leaves no base that could hear the captions: no probe then.
    """
    config, lm = module.config, module.lm
    assert config.out is not None
    path, frame_rate = config.out / FORGETTING_FILE, codec.spec.frame_rate
    makes_probe = has_valid and config.forgetting_clips > 0 and config.text_encoder is None and not path.is_file()
    for left in config.out.glob(f".{FORGETTING_FILE}.tmp-*"):  # by a kill
        left.unlink()
    if not makes_probe and listening is None:
        return
    with as_generator(lm, codec, text_encoder, trainer.strategy.root_device) as generator:
        if makes_probe:
            longest_s = min(config.forgetting_s, config.segment_s, lm.config.max_duration_s)
            num_frames = max(1, int(longest_s * frame_rate))
            with (
                progress_bar(total=num_frames, desc="the base plays", unit="step") as bar,
                trainer.precision_plugin.forward_context(),
            ):
                sample_base(
                    generator,
                    path,
                    num_clips=config.forgetting_clips,
                    num_frames=num_frames,
                    progress=lambda done, of: _draw(bar, done),
                )
        if listening is not None:
            listening.play_base(trainer, generator)


def sample_prompts(config: FinetuneConfig, data: ShardDataModule) -> tuple[str, ...]:
    """The config's, or a few captions of held-out tracks; of tracks to train on where none is held out.

    Raises:
        UserError: if there is none, or the samples would be shorter than a frame.
    """
    codec = data.index.manifest.codec
    if config.sample_s * codec.frame_rate < 1:
        raise UserError(f"sample_s {config.sample_s}: found less than a frame of {1 / codec.frame_rate:g} s.")
    if config.sample_prompts:
        return config.sample_prompts
    held_out = [data.valid_crops[number] for number in range(len(data.valid_crops))]
    crops = held_out or [data.train_crops[position] for position in range(8 * _NUM_PROMPTS)]
    captions = list(dict.fromkeys(crop.description for crop in crops if crop.description))
    if not captions:
        raise UserError("--sample_every_steps: no track has a caption to play. Give --sample_prompts TEXT.")
    return tuple(captions[:_NUM_PROMPTS])


def _draw(bar: "tqdm[Any]", done: int) -> None:
    bar.update(done - bar.n)


def _beat(trainer: lightning.Trainer) -> None:
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, Heartbeat):
            callback.beat()
