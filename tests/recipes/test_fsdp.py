"""Runs whose weights are shared out between two processes over gloo: the same as DDP's, killed, stopped, resumed."""

import csv
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
from musicgen_ft.weights import read_folder, read_pickle

STEPS = 9
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
def train(shards: Path, untrained_base: Path, start_two: Group, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains on two processes to the end, once for the same words."""
    made: dict[tuple[object, ...], Path] = {}

    def run(strategy: str, *words: object, steps: int = STEPS) -> Path:
        key = (strategy, steps, *words)
        if key not in made:
            out = tmp_path_factory.mktemp(strategy) / "run"
            options = ("--base", untrained_base, "--strategy", strategy, "--max_steps", steps, *TRAINING, *words)
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
        assert row == pytest.approx(expected_row, rel=1e-5, abs=LAST_DIGIT)
    mine, other = (tensors({name: last(run).get(name) for name in TRAINED}) for run in (found, expected))
    assert mine.keys() == other.keys()
    for name, value in other.items():
        assert (mine[name] - value).abs().max() <= atol, name


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


@pytest.mark.slow
def test_in_bf16_it_trains_too(train: Train) -> None:
    """A weight that differs in fp32's last digit may be rounded to bf16 the other way."""
    found, expected = (rows(train(strategy, "--precision", "bf16", steps=4)) for strategy in ("fsdp", "ddp"))
    assert len(found) == len(expected)
    for row, expected_row in zip(found, expected, strict=True):
        assert row["train/ce"] == pytest.approx(expected_row["train/ce"], abs=1e-3)


# ---- killed, stopped, resumed ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_killed_goes_on_bit_for_bit_past_a_damaged_shard_told_aloud(
    shards: Path, untrained_base: Path, train: Train, start_two: Group, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ("--base", untrained_base, "--strategy", "fsdp", "--max_steps", STEPS, *TRAINING, "--save_every_steps", 2)
    both = start_two("finetune", shards, "--out", run, *options)
    wait_for_step(run, 7, both[0])
    both[1].kill()
    assert both[1].status() == -signal.SIGKILL
    assert both[0].status() not in (0, 75)
    assert "gone: rank 1 (" in both[0].text()
    before, newest = list(saved_steps(run / "checkpoints").values())[-2:]
    part = sharded.rank_file(newest, 1, 2)
    content = bytearray(part.read_bytes())
    content[-1000] ^= 1
    part.write_bytes(content)
    text = finish(start_two("finetune", "--resume", run))
    assert f"{newest} is damaged (wrong checksum of {part.name}): passed over, for {before.name}" in text
    assert not list((run / "checkpoints").glob(".*"))
    assert_same(run, train("fsdp"))


@pytest.fixture(scope="module")
def stopped(
    shards: Path, untrained_base: Path, start_two: Group, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function that gives a run of two processes of which one was told to stop after its third step or so."""
    made: dict[str, Path] = {}

    def stop(strategy: str) -> Path:
        if strategy not in made:
            run = tmp_path_factory.mktemp("stopped") / "run"
            options = ("--base", untrained_base, "--strategy", strategy, "--max_steps", STEPS, *TRAINING)
            both = start_two("finetune", shards, "--out", run, *options)
            wait_for_step(run, 3, both[0])
            both[1].kill(signal.SIGTERM)
            assert [process.status() for process in both] == [75, 75], both[0].text() + both[1].text()
            assert "SIGTERM: stopped after step" in both[0].text()
            made[strategy] = run
        return made[strategy]

    return stop


@pytest.mark.slow
def test_one_of_two_processes_told_to_stop_saves_on_both_and_they_go_on_bit_for_bit(
    train: Train, stopped: Callable[[str], Path], start_two: Group, copy_of: Callable[[Path], Path]
) -> None:
    run = copy_of(stopped("fsdp"))
    finish(start_two("finetune", "--resume", run))
    assert_same(run, train("fsdp"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "num", "words"),
    [("fsdp", 1, ()), ("fsdp", 4, ()), ("fsdp", 2, ("--strategy", "ddp")), ("ddp", 4, ("--strategy", "fsdp"))],
)
def test_a_run_goes_on_with_another_number_of_processes_or_another_strategy(
    train: Train,
    stopped: Callable[[str], Path],
    start_two: Group,
    copy_of: Callable[[Path], Path],
    before: str,
    num: int,
    words: tuple[str, ...],
) -> None:
    run = copy_of(stopped(before))
    finish(start_two("finetune", "--resume", run, *words, num=num))
    assert list(saved_steps(run / "checkpoints").values())[-1].is_dir() == (num == 4)
    assert (run / "checkpoints" / "best.ckpt").is_dir() == (num == 4)
    assert not list((run / "checkpoints").glob(".*"))
    assert_close(run, train("fsdp"), atol=1e-5)


@pytest.mark.slow
def test_a_disk_full_on_one_rank_ends_all_with_one_line_and_costs_nothing_that_was_saved(
    train: Train, stopped: Callable[[str], Path], start_two: Group, copy_of: Callable[[Path], Path]
) -> None:
    run = copy_of(stopped("fsdp"))
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    both = start_two("finetune", "--resume", run, largest={1: 1_000_000})
    assert [process.status() for process in both] == [2, 2], both[0].text() + both[1].text()
    assert both[0].text().splitlines()[-1].endswith("Free or choose another place, and run again.")
    assert "(rank 1 on " in both[0].text().splitlines()[-1]
    assert "Traceback" not in both[0].text() + both[1].text()
    assert "musicgen-ft finetune:" not in both[1].text()
    assert {path.name for path in (run / "checkpoints").iterdir()} == kept
    finish(start_two("finetune", "--resume", run))
    assert_same(run, train("fsdp"))


# ---- exported --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--checkpoint", "last", "--weights", "raw")])
def test_an_export_is_that_of_the_ddp_run(
    train: Train, command: Callable[..., Any], tmp_path: Path, words: tuple[str, ...]
) -> None:
    exports = []
    for strategy in ("fsdp", "ddp"):
        result = command("export", train(strategy), "--out", tmp_path / strategy, *words)
        assert result.status == 0, result.err
        assert "opens it, logits within" in result.out
        exports.append(read_folder(tmp_path / strategy))
    assert exports[0].keys() == exports[1].keys()
    for name, value in exports[1].items():
        torch.testing.assert_close(exports[0][name], value, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_an_adapter_is_exported_of_a_run_that_was_shared_out(
    train: Train, command: Callable[..., Any], tmp_path: Path
) -> None:
    run = train("fsdp", *ADAPTERS, steps=6)
    for format in ("adapter", "both"):
        result = command("export", run, "--out", tmp_path / format, "--format", format)
        assert result.status == 0, result.err
