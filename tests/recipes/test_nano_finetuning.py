"""The proof runs from corpora to a table; what it proves needs a base that has learned, not the tests' random one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from musicgen_ft.checkpoint.base import NANO_FOLDER

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TINY = ("--tracks", 4, "--old_tracks", 3, "--duration_s", 2.5, "--max_steps", 2, "--pieces", 3)


@pytest.mark.parametrize("is_own", [False, True], ids=["nano", "a base of one's own"])
def test_each_arm_is_trained_on_its_corpus_and_heard_by_one_judge(is_own: bool, tmp_path: Path) -> None:
    out = tmp_path / "proof"
    words = [str(word) for word in (*TINY, "--piece_s", 1.0)]
    if is_own:  # whose codec the judge that comes with nano need not know
        words += ["--base", str(shutil.copytree(NANO_FOLDER, tmp_path / "mine")), "--judge_tracks", "24"]
    command = [sys.executable, "train/nano_finetuning.py", "--out", str(out), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    assert (out / "corpora" / "judge").is_dir() is is_own
    report = json.loads((out / "finetuning.json").read_text())
    assert report["genre"] == "reggae"
    assert list(report["arms"]) == [
        "beside old genres",
        "the same, by adapters",
        "the genre alone",
        "captions shuffled",
    ]
    for row in report["arms"].values():
        assert row["base"] == report["arms"]["the genre alone"]["base"]  # the same prompts, seeds and judge
        for figures in row.values():
            assert 0 <= figures["genre"] <= 1
            assert 0 <= figures["others"] <= 1
            assert 0 <= figures["uncalled"] <= 1 - figures["others"]  # of pieces that are heard as one genre each
            assert figures["loss"] > 0
    losses = {row["model"]["loss"] for row in report["arms"].values()}
    assert len(losses) == 4
    assert "captions shuffled" in done.stdout.splitlines()[-1]
    genres = {json.loads(path.read_text())["genre"] for path in (out / "corpora" / "new").glob("*.json")}
    assert genres == {"reggae"}
    others = {json.loads(path.read_text())["genre"] for path in (out / "corpora" / "others").glob("*.json")}
    assert not others & {"chiptune", "reggae"}
