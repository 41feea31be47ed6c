"""What a run says of itself: the log that answers whether the loss is normal, early stop, samples on the way."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from musicgen_ft.audio import read
from musicgen_ft.pictures import COLUMNS, ROWS
from musicgen_ft.training.run import RunFolder

Command = Callable[..., Any]

STEPS = ("--max_steps", 4, "--save_every_steps", 2, "--valid_every_steps", 2, "--lr", 1.0e-3, "--warmup_steps", 0)
TRAINING = ("--batch_size", 4, "--segment_s", 1, "--accelerator", "cpu", "--tensorboard", "false")
PROMPTS = ("--sample_prompts", "slow waltz", "--sample_prompts", "techno at 128 bpm")
HEARD = ("--sample_every_steps", 2, "--sample_s", 0.5, *PROMPTS)
FILES = ("000_slow-waltz", "001_techno-at-128-bpm")


def column(run: Path, name: str) -> dict[int, float]:
    with (run / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory, shards: Path, command: Command) -> Path:
    """As the session's run, heard at steps 2 and 4, kept in wandb."""
    out = tmp_path_factory.mktemp("heard") / "run"
    result = command("finetune", shards, "--out", out, *STEPS, *TRAINING, *HEARD, "--wandb", "offline")
    assert result.status == 0, result.err
    return out


# ---- the log ---------------------------------------------------------------------------------------------------------


def test_a_run_measures_what_it_forgets_at_every_validation(run: Path) -> None:
    assert (run / "forgetting.safetensors").is_file()
    delta = column(run, "valid/forgetting_delta")
    assert sorted(delta) == [0, 2, 4]
    assert delta[0] == 0.0
    assert delta[4] == pytest.approx(
        column(run, "valid/forgetting_ce")[4] - column(run, "valid/forgetting_ce")[0], abs=1e-4
    )


def test_the_last_line_says_where_the_loss_stands(shards: Path, tmp_path: Path, command: Command) -> None:
    result = command("finetune", shards, "--out", tmp_path / "run", "--max_steps", 2, *TRAINING)

    assert result.status == 0, result.err
    ce, delta = column(tmp_path / "run", "valid/ce"), column(tmp_path / "run", "valid/forgetting_delta")
    standing = f"validation loss {ce[2]:.3f} (base {ce[0]:.3f}), forgetting {delta[2]:+.3f}"
    assert result.out.splitlines()[-1].endswith(
        f"2 steps, loss {column(tmp_path / 'run', 'train/ce')[2]:.3f}, {standing}"
    )
    assert f"validation loss {ce[0]:.3f} (base {ce[0]:.3f}), forgetting +0.000" in result.err


def test_a_run_without_the_probe_says_nothing_of_it(shards: Path, tmp_path: Path, command: Command) -> None:
    result = command(
        "finetune", shards, "--out", tmp_path / "run", "--max_steps", 1, *TRAINING, "--forgetting_clips", 0
    )

    assert result.status == 0, result.err
    assert "forgetting" not in result.out + result.err
    assert not (tmp_path / "run" / "forgetting.safetensors").exists()
    assert column(tmp_path / "run", "valid/forgetting_ce") == {}


# ---- early stop ------------------------------------------------------------------------------------------------------


def test_a_run_that_learns_nothing_more_ends_and_is_not_gone_on_with(
    shards: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "run"
    words = ("--max_steps", 40, "--valid_every_steps", 2, "--lr", 0.3, "--warmup_steps", 0, "--ema_decay", 0)
    result = command("finetune", shards, "--out", out, *words, *TRAINING, "--early_stop_validations", 2)

    assert result.status == 0, result.err
    step = RunFolder.open(out).read_checkpoint("last")["global_step"]
    ce = column(out, "valid/ce")
    best = min(ce, key=ce.__getitem__)
    assert step == max(ce) == best + 4 < 40
    why = f"stopped early: the validation loss has not fallen for 2 validations (best {ce[best]:.3f} at step {best})"
    assert result.out.splitlines()[-1].endswith(why)

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = command("finetune", "--resume", out)
    assert (again.status, again.err) == (0, "")
    assert again.out == f"run: {out}, {step} steps, {why}: there is nothing to go on with\n"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_early_stop_without_a_held_out_track_is_refused(corpus: Path, tmp_path: Path, command: Command) -> None:
    prepared = command("prepare", corpus, "--out", tmp_path / "shards", "--valid_fraction", 0)
    words = (*TRAINING, "--early_stop_validations", 2)
    result = command("finetune", tmp_path / "shards", "--out", tmp_path / "run", *words)

    assert prepared.status == 0, prepared.err
    assert result.status == 2
    assert result.err.startswith("musicgen-ft finetune: --early_stop_validations needs a validation loss")
    assert not (tmp_path / "run").exists()


# ---- samples ---------------------------------------------------------------------------------------------------------


def samples(folder: Path) -> list[npt.NDArray[np.float32]]:
    return [read(folder / f"{stem}.wav", sample_rate=16_000, channels=1) for stem in FILES]


def test_samples_are_what_the_command_sample_plays_of_the_base_and_of_the_export(
    heard: Path, tmp_path: Path, command: Command
) -> None:
    exported = command("export", heard, "--out", tmp_path / "generator", "--checkpoint", "last")
    assert exported.status == 0, exported.err
    for generator, name in (("nano", "base"), (tmp_path / "generator", "step-000004")):
        prompts = [word.replace("sample_prompts", "prompt") for word in PROMPTS]
        played = command("sample", generator, *prompts, "--out", tmp_path / name, "--duration_s", 0.5)
        assert played.status == 0, played.err
        for found, expected in zip(samples(heard / "samples" / name), samples(tmp_path / name), strict=True):
            assert found.shape == (1, 8000)
            assert np.array_equal(found, expected)
    base, tuned = (samples(heard / "samples" / name) for name in ("base", "step-000004"))
    assert not any(np.array_equal(one, other) for one, other in zip(base, tuned, strict=True))


def test_a_run_that_is_heard_has_the_weights_of_one_that_is_not(run: Path, heard: Path) -> None:
    ours, theirs = (RunFolder.open(of).read_checkpoint("last") for of in (heard, run))
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


def test_wandb_gets_sound_and_pictures_and_a_table_with_base_beside_tuned_all_in_the_runs_folder(heard: Path) -> None:
    (files,) = heard.glob("wandb/offline-run-*/files")
    tables = [json.loads(path.read_text()) for path in files.glob("media/table/samples/*.json")]
    rows = sorted((row for table in tables for row in table["data"]), key=lambda row: (row[0], row[1]))
    columns = ["step", "prompt", "base", "tuned", "base's spectrogram", "tuned spectrogram"]
    assert [table["columns"] for table in tables] == [columns] * 2
    media = ["Audio", "Audio", "Image", "Image"]
    assert rows == [[step, prompt, *media] for step in (2, 4) for prompt in ("slow waltz", "techno at 128 bpm")]

    def sounds(*names: str) -> set[bytes]:
        return {(heard / "samples" / name / f"{stem}.wav").read_bytes() for name in names for stem in FILES}

    # The table's own media wait as an artifact; the tuned ones are there to go through by step, too.
    staged = {path.read_bytes() for path in heard.glob("wandb/artifacts/staging/*")}
    assert sounds("base", "step-000002", "step-000004") <= staged
    assert {path.read_bytes() for path in files.glob("media/audio/samples/*")} == sounds("step-000002", "step-000004")
    pictures = list(files.glob("media/images/samples/*.png"))
    assert len(pictures) == 4
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size == (COLUMNS, ROWS)


@pytest.mark.slow
def test_two_processes_are_heard_by_the_first_and_train_as_if_unheard(
    run: Path, shards: Path, tmp_path: Path, process: Command
) -> None:
    for name, words in (("heard", HEARD), ("unheard", ())):
        result = process("finetune", shards, "--out", tmp_path / name, *STEPS, *TRAINING, "--devices", 2, *words)
        assert result.status == 0, result.err
    ours, theirs = (RunFolder.open(tmp_path / name).read_checkpoint("last") for name in ("heard", "unheard"))
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    assert sorted(path.name for path in (tmp_path / "heard" / "samples").iterdir()) == [
        "base",
        "step-000002",
        "step-000004",
    ]
    for name in ("valid/ce", "valid/forgetting_ce"):
        assert column(tmp_path / "heard", name) == column(tmp_path / "unheard", name)
        assert column(tmp_path / "heard", name) == pytest.approx(column(run, name), abs=1e-4)


@pytest.mark.slow
def test_two_processes_stop_early_together(shards: Path, tmp_path: Path, process: Command) -> None:
    words = ("--max_steps", 40, "--valid_every_steps", 2, "--lr", 0.3, "--warmup_steps", 0, "--ema_decay", 0)
    result = process(
        *("finetune", shards, "--out", tmp_path / "run", *words, *TRAINING),
        *("--early_stop_validations", 2, "--devices", 2),
    )

    assert result.status == 0, result.err
    assert result.out.count("stopped early") == 1
    again = process("finetune", "--resume", tmp_path / "run", "--devices", 2)
    assert again.status == 0, again.err
    assert again.out.count("there is nothing to go on with") == 1
