"""``plan`` and ``finetune --config auto``, as a user gives them."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from musicgen_ft.cli import parse
from musicgen_ft.config.finetune import FinetuneConfig

# What the fixture of conftest.py gives.
Command = Callable[..., Any]

ON_CPU = ("--device", "cpu", "--segment_s", 1, "--batch_size", 4)
STEPS = ("--batch_size", 4, "--segment_s", 1, "--num_workers", 0, "--accelerator", "cpu", "--max_steps", 2)


def test_a_plan_shows_the_parts_and_a_command_that_is_understood(command: Command) -> None:
    result = command("plan", "--base", "nano", *ON_CPU)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert "nano on this machine's CPU" in lines[0]
    assert [word for word in lines[1].split() if word in ("weights", "gradients", "optimizer", "average")]
    assert lines[2].split()[:2] == ["yes", "full"]
    assert "TFLOP/s" in lines[-2]
    program, name, *words = shlex.split(lines[-1])
    assert (program, name) == ("musicgen-ft", "finetune")
    config = parse(FinetuneConfig, "finetune", words)
    assert (config.base, config.method, config.recompute, config.micro_batch_size) == ("nano", "full", "none", 4)
    assert (config.batch_size, config.segment_s, config.accelerator) == (4, 1.0, "cpu")


def test_a_release_is_planned_for_a_gpu_that_is_elsewhere(command: Command) -> None:
    fixed = ("--method", "lora", "--recompute", "full", "--segment_s", 0.5, "--batch_size", 1)
    result = command("plan", "--base", "small", "--memory_gib", 8, "--device", "gpu", *fixed)
    assert result.status == 0, result.err
    assert "facebook/musicgen-small on " in result.out
    assert "float32 with products in bfloat16" in result.out
    assert "--method lora --recompute full --micro_batch_size 1" in result.out


def test_what_cannot_be_says_what_would_be_needed(command: Command) -> None:
    result = command("plan", "--base", "nano", "--memory_gib", 0.5, *ON_CPU)
    assert result.status == 2
    assert "nothing fits 0.5 GiB" in result.err and "needs a device of" in result.err
    result = command("plan", "--base", "nano", "--method", "qlora", *ON_CPU)
    assert result.status == 2
    assert "--method lora" in result.err


@pytest.fixture(scope="module")
def planned(shards: Path, command: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two steps that was planned with whole layers recomputed, and what it said."""
    out = tmp_path_factory.mktemp("planned") / "run"
    result = command("finetune", shards, "--out", out, "--config", "auto", "--recompute", "full", *STEPS)
    assert result.status == 0, result.err
    return out, result.err


def test_a_run_plans_itself_and_keeps_what_it_chose(planned: tuple[Path, str]) -> None:
    out, err = planned
    assert "planned: method full, recompute full, 4 clips at once, 1 times a step" in err
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["method"], config["recompute"], config["micro_batch_size"]) == ("full", "full", 4)


def test_a_resume_plans_nothing(planned: tuple[Path, str], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musicgen_ft.training.plan.plan", lambda *_, **__: pytest.fail("planned again"))
    result = command("finetune", "--resume", planned[0])
    assert result.status == 0, result.err
    assert "planned" not in result.err
    for word in (("--micro_batch_size", "auto"), ("--config", "auto")):
        result = command("finetune", "--resume", planned[0], *word)
        assert result.status == 2
        assert "--resume" in result.err


def test_a_run_that_fits_nothing_leaves_nothing(
    shards: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgen_ft.devices.total_memory", lambda kind: 10**6)
    result = command("finetune", shards, "--out", tmp_path / "run", "--config", "auto", *STEPS)
    assert result.status == 2
    assert "nothing fits" in result.err
    assert not (tmp_path / "run").exists()
