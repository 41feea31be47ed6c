"""nano made from nothing, in a few steps of each part: what comes out is a base, and a second call makes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from musicgen_ft import Generator, Request
from musicgen_ft.checkpoint.base import open_base

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORDS = ["--tracks", "10", "--duration_s", "3", "--codec_tracks", "5", "--codec_steps", "3", "--text_steps", "3"]


def pretrain(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train/pretrain_nano.py", "--out", str(out), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_nano_is_made_from_nothing_and_plays(tmp_path: Path) -> None:
    done = pretrain(tmp_path / "work", *WORDS, "--max_steps", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "work" / "nano"
    assert done.stdout.splitlines()[-1].startswith(f"nano: {folder}, ")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 16 * 2**20

    # Half precision in the file, full when opened; the codec is the one that made the shards.
    tensors = load_file(folder / "model.safetensors")
    assert {value.dtype for value in tensors.values() if value.is_floating_point()} == {torch.float16}
    base, before = open_base(str(folder)), open_base(str(tmp_path / "work" / "untrained"))
    assert base.codec().spec.sha256 == before.codec().spec.sha256
    assert {value.dtype for value in base.text_encoder().encoder.state_dict().values()} == {torch.float32}
    (piece,) = Generator.open(str(folder)).play([Request(prompt="a calm waltz", seed=1, duration_s=1.0)])
    assert piece.shape == (1, 16_000)

    # What is done is not done again; what a call that was stopped before the end has left is no obstacle.
    untrained = (tmp_path / "work" / "untrained" / "model.safetensors").stat().st_mtime_ns
    expected = (folder / "model.safetensors").read_bytes()
    folder.rename(tmp_path / "work" / "exported")
    again = pretrain(tmp_path / "work", *WORDS, "--max_steps", "2")
    assert again.returncode == 0, again.stderr[-3000:]
    assert (tmp_path / "work" / "untrained" / "model.safetensors").stat().st_mtime_ns == untrained
    assert (folder / "model.safetensors").read_bytes() == expected


def test_a_number_that_makes_no_sense_is_told_in_one_line(tmp_path: Path) -> None:
    done = pretrain(tmp_path / "work", "--tracks", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["pretrain_nano: tracks: found 0, expected a number above 0."]
    assert not (tmp_path / "work").exists()


def test_a_genre_that_is_misspelled_is_not_silently_trained_on(tmp_path: Path) -> None:
    done = pretrain(tmp_path / "work", "--held_out", "regae")
    assert done.returncode == 2
    assert done.stderr.startswith("pretrain_nano: genre 'regae' is not known, expected one of: techno, ")
    assert not (tmp_path / "work").exists()
