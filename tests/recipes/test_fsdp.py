"""Runs whose weights are shared out between two processes over gloo: the same as DDP's, killed, stopped, resumed."""

import csv
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_ft.training import sharded
from musicgen_ft.training.checkpoints import saved_steps
from musicgen_ft.training.run import RunFolder
from musicgen_ft.weights import read_pickle

STEPS = 10
TRAINING = [
    *("--batch_size", 4, "--micro_batch_size", 1, "--segment_s", 0.5, "--accelerator", "cpu", "--tensorboard", "false"),
    *("--dropout", 0.1, "--cfg_dropout", 0.3, "--lr", 1.0e-3, "--warmup_steps", 2, "--ema_decay", 0.9),
    *("--valid_every_steps", 4),
]
"""Two micro-batches in each of two processes; clipped at every step, validated after 4, 8 and at the end."""
PATIENCE_S = 120.0
LAST_DIGIT = 1.001e-5
"""Of a loss in ``metrics.csv``, which keeps six."""

Process = Any
Group = Callable[..., list[Process]]
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(shards: Path, start_two: Group, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains on two processes to the end, once for the same words."""
    made: dict[tuple[object, ...], Path] = {}

    def run(strategy: str, *words: object, steps: int = STEPS) -> Path:
        key = (strategy, steps, *words)
        if key not in made:
            out = tmp_path_factory.mktemp(strategy) / "run"
            options = ("--strategy", strategy, "--max_steps", steps, *TRAINING, *words)
            finish(start_two("finetune", shards, "--out", out, *options))
            made[key] = out
        return made[key]

    return run


def finish(processes: list[Process]) -> str:
    """The text of the first, when all have ended well."""
    texts = [process.text() for process in processes if process.status() != 0]
    assert not texts, "\n".join(texts)
    first: str = processes[0].text()
    return first


def rows(run: Path) -> list[dict[str, float]]:
    """Of ``metrics.csv``, without the one metric that is measured by a clock."""
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        whole = [row for row in csv.DictReader(file) if None not in row.values()]
    return [{name: float(value or 0) for name, value in row.items() if name[:4] != "perf"} for row in whole]


def wait_for_step(run: Path, step: int, process: Process) -> None:
    until = time.monotonic() + PATIENCE_S
    while max((row["step"] for row in rows(run)), default=0) < step:
        assert process.runs(), process.text()
        assert time.monotonic() < until, process.text()


def last(run: Path) -> dict[str, Any]:
    """The newest checkpoint, whole."""
    path = list(saved_steps(run / "checkpoints").values())[-1]
    return sharded.read(path) if path.is_dir() else read_pickle(path)


def tensors(tree: object) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    sharded.mapped(tree, lambda key, value: found.update({key: value}))
    return found


def plain(tree: object) -> object:
    """A checkpoint without its tensors."""
    return sharded.mapped(tree, lambda key, value: None)


TRAINED = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "global_step")


def assert_close(found: Path, expected: Path, *, atol: float) -> None:
    """Every number of the metrics, and all that is trained."""
    ours, theirs = rows(found), rows(expected)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, expected_row in zip(ours, theirs, strict=True):
        assert row == pytest.approx(expected_row, abs=LAST_DIGIT)
    mine, other = (tensors({name: last(run)[name] for name in TRAINED}) for run in (found, expected))
    assert mine.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(mine[name], value, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def assert_same(found: Path, expected: Path) -> None:
    """Bit for bit: every number in the metrics, all of the last checkpoint, the average of the best."""
    assert rows(found) == rows(expected)
    ours, theirs = last(found), last(expected)
    assert tensors(ours).keys() == tensors(theirs).keys()
    assert all(torch.equal(value, tensors(theirs)[name]) for name, value in tensors(ours).items())
    assert plain({name: ours[name] for name in ("lr_schedulers", "callbacks", "musicgen_ft")}) == plain(
        {name: theirs[name] for name in ("lr_schedulers", "callbacks", "musicgen_ft")}
    )
    best, expected_best = (RunFolder.open(run).read_checkpoint("best") for run in (found, expected))
    assert best["global_step"] == expected_best["global_step"]
    weights: Mapping[str, torch.Tensor] = expected_best["ema"]["weights"]
    assert all(torch.equal(best["ema"]["weights"][name], weights[name]) for name in weights)


# ---- the same as DDP -------------------------------------------------------------------------------------------------


def test_two_processes_that_share_the_model_out_train_as_two_that_hold_it_whole(train: Train) -> None:
    found, expected = train("fsdp"), train("ddp")
    assert_close(found, expected, atol=1e-5)
    newest = list(saved_steps(found / "checkpoints").values())[-1]
    sizes = [sharded.rank_file(newest, rank, 2).stat().st_size for rank in range(2)]
    assert max(sizes) < 1.01 * min(sizes), "one rank holds more than its share"
    assert plain(last(found)["optimizer_states"]) == plain(last(expected)["optimizer_states"])


@pytest.mark.slow
def test_the_loss_curves_are_equal_over_50_steps(train: Train) -> None:
    found, expected = (rows(train(strategy, "--lr", 1.0e-4, steps=50)) for strategy in ("fsdp", "ddp"))
    assert len(found) == len(expected) >= 50
    assert found[-1]["train/ce"] < found[0]["train/ce"]
    for row, expected_row in zip(found, expected, strict=True):
        assert row["train/ce"] == pytest.approx(expected_row["train/ce"], abs=LAST_DIGIT)


ADAPTERS = ("--method", "lora", "--lora_rank", 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--recompute", "selective"),
        ("--recompute", "full", "--loss_chunk_frames", 7),
        ADAPTERS,
        (*ADAPTERS, "--base_dtype", "bf16"),
        ("--method", "dora", "--lora_rank", 3, "--recompute", "full"),
        (*ADAPTERS, "--lora_targets", "heads.*"),
        ("--freeze", "layers.0", "--freeze", "embeddings", "--freeze", "*norm*"),
        ("--freeze", "layers.*", "--freeze", "embeddings", "--freeze", "text_proj", "--freeze", "*norm*"),
        ("--ema_decay", 0),
        ("--ema_every_steps", 3, "--max_grad_norm", 0.1),
    ],
    ids=lambda words: "-".join(map(str, words)).replace("--", ""),
)
def test_whatever_is_trained_and_recomputed_is_the_same_too(train: Train, words: tuple[object, ...]) -> None:
    found, expected = (train(strategy, *words, steps=6) for strategy in ("fsdp", "ddp"))
    assert_close(found, expected, atol=1e-5)
    begin, end = rows(found)[1]["train/ce"], rows(found)[-2]["train/ce"]
    assert begin != end
