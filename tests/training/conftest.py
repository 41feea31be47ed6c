"""Real runs on tiny shards: 4 codebooks of 11 codes, 10 frames per second, clips of 1.2 s; a toy model, nano's T5."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest

from musicgen_ft.codec import CodecSpec
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.shards.datamodule import ShardDataModule
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.track import Track, TrackMeta
from musicgen_ft.training.data import build_data, probe
from musicgen_ft.training.module import FinetuneModule
from musicgen_ft.training.preempt import StopRequests
from musicgen_ft.training.run import RunFolder, RunInfo, Saved
from musicgen_ft.training.trainer import build_trainer, place

CODEC = CodecSpec(id="tiny", sha256="c0dec" * 8, sample_rate=320, frame_rate=10, channels=1, n_q=4, card=11)


@dataclass
class Run:
    """All that ``train/finetune.py`` brings together."""

    module: FinetuneModule
    data: ShardDataModule
    trainer: lightning.Trainer
    folder: RunFolder
    saved: Saved | None
    stop: StopRequests

    def fit(self, *, resume: bool = False) -> "Run":
        """Trains, as the recipe does."""
        if resume:
            assert self.saved is not None
            self.trainer.fit(self.module, self.data, ckpt_path=str(self.saved.path), weights_only=True)
        else:
            self.trainer.validate(self.module, self.data, verbose=False)
            self.trainer.fit(self.module, self.data, weights_only=True)
        return self

    def rows(self) -> list[dict[str, str]]:
        """Of ``metrics.csv``, without the metrics of a clock, or of the process's memory."""
        with (self.folder.path / "metrics.csv").open(newline="") as file:
            return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


def track(number: int, num_frames: int) -> Track:
    codes = np.random.default_rng(number).integers(0, CODEC.card, (CODEC.n_q, num_frames)).astype(np.uint16)
    labels = Labels(description=f"calm piano number {number}")
    meta = TrackMeta(labels=labels, relative_path=f"{number}.wav", num_frames=num_frames, duration_s=num_frames / 10)
    return Track(key=f"track_{number:03d}", codes=codes, meta=meta)


@pytest.fixture(scope="session")
def make_shards(tmp_path_factory: pytest.TempPathFactory, write_folder: Callable[..., Path]) -> Callable[..., Path]:
    """A function that writes shards of tracks with so many frames each."""

    def make(*, train: tuple[int, ...], valid: tuple[int, ...]) -> Path:
        lengths: dict[Split, tuple[int, ...]] = {"train": train, "valid": valid}
        tracks = {
            split: [track(number, num_frames) for number, num_frames in enumerate(of_split, start=first)]
            for first, (split, of_split) in zip((0, 100), lengths.items(), strict=True)
        }
        return write_folder(tmp_path_factory.mktemp("shards"), CODEC, tracks)

    return make


@pytest.fixture(scope="session")
def shards(make_shards: Callable[..., Path]) -> Path:
    """Five tracks to train on, one of them shorter than a clip; two held out."""
    return make_shards(train=(31, 5, 44, 12, 27), valid=(26, 9))


@pytest.fixture
def start_run(
    tmp_path: Path, shards: Path, make_lm: Callable[..., LanguageModel], text_encoder: TextEncoder
) -> Callable[..., Run]:
    """A function that brings a run together: 4 clips a step, in two micro-batches; it takes changes of the config."""

    def start(
        name: str = "run", *, of: Path = shards, resume_step: int | None = None, lm_seed: int = 0, **changes: Any
    ) -> Run:
        settings: dict[str, Any] = {"max_steps": 6, "batch_size": 4, "micro_batch_size": 2, "segment_s": 1.2}
        settings |= {"lr": 3.0e-3, "warmup_steps": 2, "save_every_steps": 3, "valid_every_steps": 2}
        settings |= {"accelerator": "cpu", "tensorboard": False, "num_workers": 0, "ema_decay": 0.8}
        config = FinetuneConfig(shards=str(of), out=tmp_path / name, **{**settings, **changes})
        placement = place(config)
        lm = make_lm(seed=lm_seed, text_dim=text_encoder.dim, dropout=config.dropout).train()
        data = build_data(config, ShardIndex.open(of), placement, margin_frames=lm.pattern.num_margin_frames)
        module = FinetuneModule(lm, text_encoder, config)
        folder, stop = RunFolder(tmp_path / name), StopRequests()
        if resume_step is None:
            folder = RunFolder.create(tmp_path / name, config, run_info(), probe(data))
        saved = folder.saved()
        assert resume_step == (None if saved is None else saved.step)
        trainer = build_trainer(config, placement, folder, n_q=CODEC.n_q, has_valid=True, saved=saved, stop=stop)
        return Run(module, data, trainer, folder, saved, stop)

    return start


def run_info() -> RunInfo:
    return RunInfo(
        base="nano", license="mit", shards="shards", codec_sha256=CODEC.sha256, text_padding="transformers",
        channels=1, text_encoder=None,
        train_tracks=5, train_hours=0.1, valid_tracks=2, num_parameters=1, wandb_id="abc", toolkit_version="0.1.0",
    )  # fmt: skip


class Killed(Exception):  # noqa: N818  # no error of the program's
    """Stands in for SIGKILL: Lightning saves nothing on it."""


class _Kill(lightning.Callback):
    def __init__(self, step: int, micro: int) -> None:
        self.step, self.micro = step, micro

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, micro = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if (step, micro) == (self.step, self.micro):
            raise Killed


@pytest.fixture
def kill_at() -> Callable[..., Any]:
    """A context manager in which a run ends after a step and so many micro-batches more, as by a kill."""

    @contextmanager
    def kill(run: Run, *, step: int, micro: int = 0) -> Iterator[None]:
        trainer: Any = run.trainer  # Lightning hides the list's type
        trainer.callbacks.append(_Kill(step, micro))
        with pytest.raises(Killed):
            yield

    return kill
