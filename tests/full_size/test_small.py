"""A full-size `small` goes through the whole job on a CPU, in bounded memory."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MAX_GIB = 12.0


def run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def peak_gib() -> float:
    """The largest memory that any ended child process held; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def test_full_size_small_opens_trains_a_step_and_exports_within_12_gib(roomy_folder: Path) -> None:
    base, corpus, shards, out, generator = (
        roomy_folder / name for name in ("base", "corpus", "shards", "run", "generator")
    )
    run("tests/full_size/write_small.py", str(base))
    run("data/synthesize.py", "--out", str(corpus), "--tracks", "3", "--duration_s", "6")
    run("data/prepare.py", str(corpus), "--out", str(shards), "--base", str(base))
    after_preparing = peak_gib()
    run(
        "train/finetune.py",
        str(shards),
        "--out",
        str(out),
        "--config",
        "small",
        "--max_steps",
        "1",
        "--batch_size",
        "1",
    )
    after_training = peak_gib()
    run("train/export.py", str(out), "--out", str(generator), "--dtype", "float16")

    print(f"GiB at most: {after_preparing:.1f} preparing, {after_training:.1f} training too, {peak_gib():.1f} in all")
    assert peak_gib() < MAX_GIB
    assert (generator / "state_dict.bin").stat().st_size == pytest.approx(2 * 420_371_456, rel=1e-3)  # spec 1.1
