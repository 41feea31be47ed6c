"""The judge that comes with nano, made anew from few tracks: it is tested on others, and written for ``evaluate``."""

import re
import subprocess
import sys
from pathlib import Path

from musicgen_ft.evaluation.judge import saved_judge
from musicgen_ft.synthesis.genres import GENRES

ROOT = Path(__file__).parents[2]


def make(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train/nano_judge.py", "--out", str(out), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_judge_is_made_tested_and_written(tmp_path: Path) -> None:
    done = make(tmp_path / "judge", "--tracks", "24", "--test_tracks", "12", "--duration_s", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in (tmp_path / "judge").iterdir()] == ["genres.npz"]
    judge = saved_judge(tmp_path / "judge" / "genres.npz")
    assert judge is not None
    assert set(judge.classes) == set(GENRES)
    found = re.search(r"right about (\S+)% of 12 unseen clips", done.stdout)
    assert found is not None
    assert float(found[1]) > 25  # chance is 8; two clips of 2 s of each genre do not teach all


def test_seeds_of_training_are_refused(tmp_path: Path) -> None:
    done = make(tmp_path / "judge", "--seed", "999")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["nano_judge: seed: found 999, expected 1000 or more: training has those below."]
    assert not (tmp_path / "judge").exists()
