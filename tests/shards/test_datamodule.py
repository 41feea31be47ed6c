"""The data inside real, tiny Lightning runs: 8 steps of 4 crops, saved at step 3, killed at step 5.

This file is also the program that the tests of two processes start.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor

from musicgen_ft.corpus.labels import Labels
from musicgen_ft.errors import UserError
from musicgen_ft.shards.batch import Batch
from musicgen_ft.shards.datamodule import ShardDataModule
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.order import micro_batches_per_step
from musicgen_ft.shards.progress import MicroBatchProgress
from musicgen_ft.shards.track import Track

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers, loggers, resuming

GLOBAL_BATCH, SAVED, KILLED = 4, 3, 5

Steps = dict[int, list[list[Any]]]
"""Per step, for each crop: position, description, sum of its codes."""


class Captions:
    def describe(self, labels: Labels, rng: np.random.Generator) -> str | None:
        return f"{labels.description} {rng.integers(1000)}"

    def plain(self, labels: Labels) -> str | None:
        return labels.description


class KilledError(Exception):
    """Stands in for SIGKILL."""


class Recorder(lightning.LightningModule):
    """Writes down what each step of each rank reads: one JSON line per micro-batch."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Batch) -> Tensor:
        self.write("train", batch)
        return self.weight * batch.codes.float().mean()

    def validation_step(self, batch: Batch) -> None:
        self.write("valid", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def write(self, stage: str, batch: Batch) -> None:
        content = list(zip(batch.positions, batch.descriptions, batch.codes.sum((1, 2)).tolist(), strict=True))
        with (self.folder / f"{stage}-{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([self.global_step, content]) + "\n")


class SaveAndKill(lightning.Callback):
    """Saves once when a step is done, as a checkpoint callback does; dies when another one is."""

    def __init__(self, path: Path, *, save_step: int, kill_step: int | None) -> None:
        self.path, self.save_step, self.kill_step = path, save_step, kill_step
        self.is_saved = False

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self.save_step and not self.is_saved:
            self.is_saved = True
            trainer.save_checkpoint(self.path)
        if trainer.global_step == self.kill_step:
            raise KilledError


def train(
    shards: str,
    folder: str,
    *,
    micro_batch: int = 4,
    num_workers: int = 0,
    num_steps: int = 8,
    devices: int = 1,
    save_step: int = SAVED,
    kill_step: int | None = None,
    ckpt: str | None = None,
    seed: int = 3,
    **trainer_settings: Any,
) -> None:
    """One run that records into ``folder`` and saves ``folder/saved.ckpt``."""
    data = ShardDataModule(
        index=ShardIndex.open(Path(shards)),
        segment_frames=20,
        global_batch=GLOBAL_BATCH,
        micro_batch=micro_batch,
        num_steps=num_steps,
        seed=seed,
        captions=Captions(),
        cfg_dropout=0.3,
        num_workers=num_workers,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        max_steps=num_steps,
        accumulate_grad_batches=micro_batches_per_step(
            global_batch=GLOBAL_BATCH, micro_batch=micro_batch, world=devices
        ),
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[
            SaveAndKill(Path(folder) / "saved.ckpt", save_step=save_step, kill_step=kill_step),
            MicroBatchProgress(),
        ],
        **{"limit_val_batches": 0, **trainer_settings},
    )
    trainer.fit(Recorder(Path(folder)), datamodule=data, ckpt_path=ckpt)
    assert trainer.global_step == num_steps


def read(folder: Path, stage: str = "train") -> Steps:
    """What all ranks read in each step, sorted by position."""
    steps: Steps = {}
    for path in folder.glob(f"{stage}-*.jsonl"):
        for line in path.read_text().splitlines():
            step, content = json.loads(line)
            steps.setdefault(step, []).extend(content)
    return {step: sorted(content) for step, content in sorted(steps.items())}


@pytest.fixture
def fit(shards: Path, tmp_path: Path) -> Callable[..., Steps]:
    """Trains under a name and returns what each step read."""

    def fit(name: str, **settings: Any) -> Steps:
        folder = tmp_path / name
        folder.mkdir()
        if settings.get("devices", 1) > 1:  # processes cannot be forked here: autograd has threads by now
            arguments = json.dumps({"shards": str(shards), "folder": str(folder), **settings})
            subprocess.run([sys.executable, __file__, arguments], check=True, timeout=300)
        elif settings.get("kill_step"):
            with pytest.raises(KilledError):
                train(str(shards), str(folder), **settings)
        else:
            train(str(shards), str(folder), **settings)
        return read(folder)

    return fit


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("micro_batch", [4, 2])
def test_a_resumed_run_reads_what_the_uninterrupted_run_reads(
    fit: Callable[..., Steps], tmp_path: Path, micro_batch: int, num_workers: int
) -> None:
    settings = {"micro_batch": micro_batch, "num_workers": num_workers}
    whole = fit("whole", **settings)

    killed = fit("killed", kill_step=KILLED, **settings)
    resumed = fit("resumed", ckpt=str(tmp_path / "killed/saved.ckpt"), **settings)

    assert {step: [crop[0] for crop in crops] for step, crops in whole.items()} == {
        step: list(range(4 * step, 4 * step + 4)) for step in range(8)
    }
    assert killed == {step: whole[step] for step in range(KILLED)}
    assert resumed == {step: whole[step] for step in range(SAVED, 8)}


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (1, 4), (2, 1)])
def test_a_run_resumed_with_another_accumulation_reads_the_same(
    fit: Callable[..., Steps], tmp_path: Path, before: int, after: int
) -> None:
    whole = fit("whole")

    fit("killed", kill_step=KILLED, micro_batch=before)
    resumed = fit("resumed", ckpt=str(tmp_path / "killed/saved.ckpt"), micro_batch=after)

    assert resumed == {step: whole[step] for step in range(SAVED, 8)}


def test_a_finished_run_goes_on_when_it_is_given_more_steps(fit: Callable[..., Steps], tmp_path: Path) -> None:
    whole = fit("whole")

    fit("first", num_steps=5, save_step=5, micro_batch=2)
    more = fit("more", num_steps=8, micro_batch=2, ckpt=str(tmp_path / "first/saved.ckpt"))

    assert more == {step: whole[step] for step in range(5, 8)}


@pytest.mark.slow  # 4 runs of two processes, which import Lightning anew
def test_a_run_resumed_on_another_number_of_processes_reads_the_same(fit: Callable[..., Steps], tmp_path: Path) -> None:
    whole = fit("one", micro_batch=1)
    assert fit("two", micro_batch=1, devices=2) == whole

    for before, after in ((2, 1), (1, 2), (2, 2)):
        ckpt = str(tmp_path / {1: "one", 2: "two"}[before] / "saved.ckpt")
        resumed = fit(f"{before} to {after}", micro_batch=1, devices=after, ckpt=ckpt)
        assert resumed == {step: whole[step] for step in range(SAVED, 8)}


@pytest.mark.parametrize("micro_batch", [4, 2])
def test_validation_comes_every_so_many_micro_batches_also_after_a_resume(
    fit: Callable[..., Steps], tmp_path: Path, micro_batch: int
) -> None:
    every_2_steps = 2 * GLOBAL_BATCH // micro_batch  # val_check_interval counts micro-batches
    settings = {
        "micro_batch": micro_batch,
        "val_check_interval": every_2_steps,
        "limit_val_batches": None,
    }

    fit("killed", kill_step=KILLED, **settings)
    fit("resumed", ckpt=str(tmp_path / "killed/saved.ckpt"), **settings)

    killed, resumed = read(tmp_path / "killed", "valid"), read(tmp_path / "resumed", "valid")
    assert (list(killed), list(resumed)) == ([2, 4], [4, 6, 8])
    assert [crop[0] for crop in killed[2]] == list(range(8))  # 44 + 12 + 99 frames are 2 + 1 + 5 crops of 20
    assert killed[2] == killed[4] == resumed[8]


@pytest.mark.slow
def test_two_processes_validate_each_crop_once(fit: Callable[..., Steps], tmp_path: Path) -> None:
    fit("two", micro_batch=2, devices=2, limit_val_batches=None, val_check_interval=8)

    assert [crop[0] for crop in read(tmp_path / "two", "valid")[8]] == list(range(8))


def test_a_corpus_without_validation_tracks_trains(
    shards: Path, tracks: dict[Split, list[Track]], make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    index = ShardIndex.open(make_shards(tmp_path / "train only", {"train": tracks["train"]}))
    data = ShardDataModule(
        index=index, segment_frames=20, global_batch=4, micro_batch=4, num_steps=2, seed=3, captions=Captions()
    )
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, use_distributed_sampler=False
    )

    trainer.fit(Recorder(tmp_path), datamodule=data)

    assert data.val_dataloader() == []
    assert (list(read(tmp_path)), read(tmp_path, "valid")) == ([0, 1], {})


def test_a_run_is_not_resumed_on_other_data(fit: Callable[..., Steps], tmp_path: Path) -> None:
    fit("killed", kill_step=KILLED)

    with pytest.raises(UserError, match="the data of the run to resume has changed: seed is 4, was 3"):
        fit("resumed", ckpt=str(tmp_path / "killed/saved.ckpt"), seed=4)


def test_a_global_batch_that_cannot_be_shared_is_refused_before_training(shards: Path) -> None:
    data = ShardDataModule(
        index=ShardIndex.open(shards),
        segment_frames=20,
        global_batch=5,
        micro_batch=2,
        num_steps=2,
        seed=3,
        captions=Captions(),
    )

    with pytest.raises(ValueError, match="global batch of 5 is not a multiple of 2"):
        data.train_dataloader()


if __name__ == "__main__":
    train(**json.loads(sys.argv[1]))
