"""The shipped SLURM script, on a machine that pretends to be a cluster: ``srun`` and ``scontrol`` are stubs."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from musicgen_ft.config.shipped import config_folder

SCRIPT = config_folder() / "slurm" / "finetune.sbatch"


@pytest.fixture
def cluster(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Makes ``srun`` behave as said; both stubs write down what they were called with."""

    def make(srun: str) -> dict[str, str]:
        stubs = tmp_path / "bin"
        stubs.mkdir(exist_ok=True)
        for name, does in (("srun", srun), ("scontrol", "exit 0")):
            (stubs / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "{tmp_path}/calls"\n{does}\n')
            (stubs / name).chmod(0o755)
        return {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}

    return make


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_run_that_ends_by_itself_ends_the_job_with_its_status(
    cluster: Callable[[str], dict[str, str]], tmp_path: Path, status: int
) -> None:
    words = ["my shards", str(tmp_path / "run"), "--config", "small"]
    done = subprocess.run(["bash", SCRIPT, *words], env=cluster(f"exit {status}"), check=False)
    assert done.returncode == status
    assert calls(tmp_path) == [f"srun musicgen-ft finetune my shards --out {tmp_path / 'run'} --config small"]


def test_a_run_that_was_told_to_stop_is_queued_again_and_resumed(
    cluster: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").touch()
    done = subprocess.run(["bash", SCRIPT, "shards", run, "--lr", "1e-4"], env=cluster("exit 75"), check=False)
    assert done.returncode == 0
    assert calls(tmp_path) == [f"srun musicgen-ft finetune --resume {run}", "scontrol requeue 4711"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_the_script_outlives_a_signal_until_its_processes_have_saved(
    cluster: Callable[[str], dict[str, str]], tmp_path: Path, signum: int
) -> None:
    env = cluster("sleep 0.5; exit 75")
    with subprocess.Popen(["bash", SCRIPT, "shards", tmp_path / "run"], env=env) as running:
        while not (tmp_path / "calls").exists():
            time.sleep(0.01)
        running.send_signal(signum)
    assert running.returncode == 0
    assert calls(tmp_path)[-1] == "scontrol requeue 4711"


def test_the_script_asks_for_what_it_needs() -> None:
    text = SCRIPT.read_text()
    assert "#SBATCH --signal=USR1@120\n" in text  # to the processes, not to the script
    assert "#SBATCH --requeue\n" in text
    assert "#SBATCH --ntasks-per-node=" in text  # Lightning reads no --ntasks
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "expected SHARDS and RUN" in done.stderr
