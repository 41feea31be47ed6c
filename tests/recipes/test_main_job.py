"""The main job end to end on a synthesized corpus: prepare, finetune, export, sample, each as a user runs it."""

import csv
import hashlib
import json
import math
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from musicgen_ft.audio import write_wav
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.cli import recipe_path
from musicgen_ft.generation.options import GenerationOptions
from musicgen_ft.peers import audiocraft
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.training.run import RunFolder

# What the fixtures of conftest.py give.
Command = Callable[..., Any]
Copy = Callable[[Path], Path]

STEPS = ("--max_steps", 4, "--save_every_steps", 2, "--valid_every_steps", 2, "--lr", 1.0e-3, "--warmup_steps", 0)
TRAINING = ("--batch_size", 4, "--segment_s", 1, "--accelerator", "cpu")
ENGINES = ("native", "audiocraft", "transformers")


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def train_losses(run: Path) -> dict[int, float]:
    """Loss of every step; a step that stands there twice fails."""
    rows = [row for row in metrics(run) if row["train/ce"]]
    assert len({row["step"] for row in rows}) == len(rows)
    return {int(row["step"]): float(row["train/ce"]) for row in rows}


def valid_losses(run: Path) -> dict[int, float]:
    rows = [row for row in metrics(run) if row["valid/ce"]]
    assert len({row["step"] for row in rows}) == len(rows)
    return {int(row["step"]): float(row["valid/ce"]) for row in rows}


def trained(run: Path) -> dict[str, Tensor]:
    """The language model's raw weights at the end of a run."""
    state: dict[str, Tensor] = RunFolder.open(run).read_checkpoint("last")["state_dict"]
    return state


def read_wav(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """Samples float32 [C, L] and their rate."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        return samples.T.astype(np.float32) / np.float32(32768), file.getframerate()


def loudness(samples: npt.NDArray[np.float32], rate: int) -> float:
    import torchaudio

    return float(torchaudio.functional.loudness(torch.from_numpy(samples.copy()), rate))


def bytes_of(folder: Path) -> dict[str, str]:
    """Every file under the folder, hidden ones too, by the hash of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- synthesize and prepare ------------------------------------------------------------------------------------------


def test_prepare_puts_every_track_of_the_corpus_into_shards_with_its_labels(corpus: Path, shards: Path) -> None:
    index = ShardIndex.open(shards, verify=True)
    tracks = [index.split(split).meta(i) for split in ("train", "valid") for i in range(len(index.split(split)))]

    assert sorted(track.relative_path for track in tracks) == sorted(path.name for path in corpus.glob("*.wav"))
    assert all(track.labels.description and track.labels.genre for track in tracks)
    assert {track.num_frames for track in tracks} == {125}  # 2.5 s at 50 frames per second
    assert index.manifest.num_tracks["valid"] > 0


def test_prepare_killed_in_the_middle_and_run_again_gives_the_bytes_of_an_unbroken_run(
    corpus: Path, tmp_path: Path, command: Command, console_script: Path
) -> None:
    # Tracks long enough that it is killed between the first one and the last.
    folder = tmp_path / "long-tracks"
    folder.mkdir()
    for track in corpus.glob("*.wav"):
        samples, rate = read_wav(track)
        write_wav(folder / track.name, torch.from_numpy(np.tile(samples, 4)), rate)
    words = ["prepare", str(folder), "--valid_fraction", "0", "--workers", "1"]
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"

    with subprocess.Popen([console_script, *words, "--out", str(killed)]) as running:
        while running.poll() is None and not list(killed.glob(".work/parts/*.npz")):
            time.sleep(0.01)
        assert running.poll() is None, "it ended before it could be killed"
        running.kill()
    assert not (killed / "manifest.json").exists()
    refused = command("finetune", killed, "--out", tmp_path / "run", *TRAINING)
    again = command(*words, "--out", killed)
    whole = command(*words, "--out", unbroken)

    assert refused.status == 2
    assert "is incomplete: prepare did not finish it" in refused.err
    assert (again.status, whole.status) == (0, 0)
    assert bytes_of(killed) == bytes_of(unbroken)


def tar_hashes(shards: Path) -> list[str]:
    return [shard.sha256 for shard in ShardIndex.open(shards, verify=True).manifest.shards]


def test_prepare_run_again_on_shards_that_another_run_began_encodes_the_rest_only(
    corpus: Path, shards: Path, tmp_path: Path, command: Command
) -> None:
    # What a kill between the two splits leaves: the first shard with its index.
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("train-000000.tar", "train-000000.index.json"):
        (begun / name).write_bytes((shards / name).read_bytes())
    before = (begun / "train-000000.tar").stat().st_mtime_ns

    result = command("prepare", corpus, "--out", begun)

    assert result.status == 0, result.err
    assert (begun / "train-000000.tar").stat().st_mtime_ns == before
    assert tar_hashes(begun) == tar_hashes(shards)


def test_a_broken_file_is_named_and_left_out_and_the_others_are_prepared(
    corpus: Path, tmp_path: Path, command: Command, copy_of: Copy
) -> None:
    folder = copy_of(corpus)
    (folder / "broken.mp3").write_bytes(b"no music at all" * 100)

    result = command("prepare", folder, "--out", tmp_path / "shards")

    assert result.status == 0
    assert "left out: 1 of 9 files" in result.out
    assert "\n  broken.mp3: " in result.out
    manifest = ShardIndex.open(tmp_path / "shards").manifest
    assert [file.relative_path for file in manifest.rejected] == ["broken.mp3"]
    assert sum(manifest.num_tracks.values()) == 8


# ---- finetune --------------------------------------------------------------------------------------------------------


def test_finetune_writes_each_step_once_validates_on_held_out_tracks_and_saves_best_and_the_newest(run: Path) -> None:
    assert sorted(train_losses(run)) == [1, 2, 3, 4]
    assert sorted(valid_losses(run)) == [0, 2, 4]
    assert all(math.isfinite(loss) for loss in [*train_losses(run).values(), *valid_losses(run).values()])
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "best.ckpt",
        "step-000002.ckpt",
        "step-000004.ckpt",
    }
    assert {"config.yaml", "run.json", "probe.safetensors", "tensorboard"} < {path.name for path in run.iterdir()}
    assert RunFolder.open(run).read_checkpoint("last")["global_step"] == 4


def test_the_same_command_gives_the_same_weights_bit_for_bit(
    run: Path, shards: Path, tmp_path: Path, command: Command
) -> None:
    command("finetune", shards, "--out", tmp_path / "again", *STEPS, *TRAINING)

    first, again = trained(run), trained(tmp_path / "again")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_reading_in_two_worker_processes_changes_no_loss(
    run: Path, shards: Path, tmp_path: Path, command: Command
) -> None:
    result = command("finetune", shards, "--out", tmp_path / "run", *STEPS, *TRAINING, "--num_workers", 2)

    assert result.status == 0, result.err
    assert train_losses(tmp_path / "run") == train_losses(run)


def test_micro_batches_change_the_losses_by_rounding_only(
    run: Path, shards: Path, tmp_path: Path, command: Command
) -> None:
    result = command("finetune", shards, "--out", tmp_path / "run", *STEPS, *TRAINING, "--micro_batch_size", 2)

    assert result.status == 0, result.err
    assert train_losses(tmp_path / "run") == pytest.approx(train_losses(run), abs=1e-4)
    assert valid_losses(tmp_path / "run") == pytest.approx(valid_losses(run), abs=1e-4)


@pytest.fixture
def half_done(shards: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of the fixture ``run``, killed after its third step; the last save was at the second."""
    from musicgen_ft.training.progress import ProgressBar

    class Killed(BaseException):
        """Stands in for SIGKILL: no handler of ours or of Lightning's catches it."""

    def kill_at_3(self: ProgressBar, trainer: Any, *_: Any, **__: Any) -> None:
        if trainer.global_step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "on_train_batch_end", kill_at_3)
        killed = command("finetune", shards, "--out", tmp_path / "half-done", *STEPS, *TRAINING)
    assert killed.status == 1
    assert RunFolder.open(tmp_path / "half-done").read_checkpoint("last")["global_step"] == 2
    return tmp_path / "half-done"


def test_a_killed_run_is_resumed_to_the_weights_and_metrics_of_an_unbroken_one(
    run: Path, half_done: Path, command: Command
) -> None:
    resumed = command("finetune", "--resume", half_done)

    assert resumed.status == 0, resumed.err
    assert "going on from step 2" in resumed.err
    assert train_losses(half_done) == train_losses(run)
    assert valid_losses(half_done) == valid_losses(run)
    unbroken, again = trained(run), trained(half_done)
    assert all(torch.equal(unbroken[name], again[name]) for name in unbroken)


def test_a_run_that_ends_between_two_validations_is_validated_once_more_at_its_end(
    shards: Path, tmp_path: Path, command: Command
) -> None:
    for name, every, at in (("longer", 2, [0, 2, 3]), ("shorter", 100, [0, 3])):
        words = ("--max_steps", 3, "--valid_every_steps", every, "--out", tmp_path / name)
        assert command("finetune", shards, *words, *TRAINING).status == 0
        assert sorted(valid_losses(tmp_path / name)) == at


def test_a_finished_run_is_resumed_without_a_step_and_keeps_what_it_holds(
    run: Path, command: Command, copy_of: Copy
) -> None:
    finished = copy_of(run)

    result = command("finetune", "--resume", finished)

    assert result.status == 0, result.err
    assert "Traceback" not in result.err
    assert train_losses(finished) == train_losses(run)
    assert valid_losses(finished) == valid_losses(run)
    first, again = trained(run), trained(finished)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_run_is_resumed_and_exported_from_another_working_directory_than_it_began_in(
    shards: Path, nano_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    shutil.copytree(shards, tmp_path / "here" / "shards")
    shutil.copytree(nano_folder, tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path / "here")
    began = command("finetune", "shards", "--base", "base", "--out", "run", "--max_steps", 1, *TRAINING)
    assert began.status == 0, began.err
    monkeypatch.chdir(tmp_path / "there")

    resumed = command("finetune", "--resume", "../here/run")
    exported = command("export", "../here/run", "--out", "generator", "--format", "transformers")

    assert resumed.status == 0, resumed.err
    assert exported.status == 0, exported.err


def test_ctrl_c_stops_finetune_with_status_130_and_one_line(shards: Path, tmp_path: Path, console_script: Path) -> None:
    words = [str(word) for word in (*TRAINING, "--max_steps", 100_000, "--save_every_steps", 1)]
    arguments = [str(console_script), "finetune", str(shards), "--out", str(tmp_path / "run"), *words]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        while not (tmp_path / "run" / "checkpoints" / "step-000001.ckpt").exists() and running.poll() is None:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        errors = running.stderr.read()

    assert running.returncode == 130, errors
    assert errors.splitlines()[-1] == "musicgen-ft finetune: stopped by the user"
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").rglob(".*tmp*"))


def test_two_devices_give_the_losses_of_one(run: Path, shards: Path, tmp_path: Path, process: Command) -> None:
    result = process("finetune", shards, "--out", tmp_path / "run", *STEPS, *TRAINING, "--devices", 2)

    assert result.status == 0, result.err
    assert train_losses(tmp_path / "run") == pytest.approx(train_losses(run), abs=1e-4)
    assert valid_losses(tmp_path / "run") == pytest.approx(valid_losses(run), abs=1e-4)
    assert result.out.count("run: ") == 1  # one process speaks
    assert result.err.count("step 4/4") == 1


@pytest.mark.slow
def test_torchrun_gives_the_losses_of_one_device(run: Path, shards: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ("--out", tmp_path / "run", *STEPS, *TRAINING, "--devices", 2)
    done = subprocess.run(
        [*torchrun, recipe_path("finetune"), str(shards), *map(str, words)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert train_losses(tmp_path / "run") == pytest.approx(train_losses(run), abs=1e-4)
    assert valid_losses(tmp_path / "run") == pytest.approx(valid_losses(run), abs=1e-4)


@pytest.mark.slow
def test_a_killed_run_of_one_device_is_resumed_on_two(run: Path, half_done: Path, process: Command) -> None:
    result = process("finetune", "--resume", half_done, "--devices", 2)

    assert result.status == 0, result.err
    assert train_losses(half_done) == pytest.approx(train_losses(run), abs=1e-4)
    assert valid_losses(half_done) == pytest.approx(valid_losses(run), abs=1e-4)


# ---- export ----------------------------------------------------------------------------------------------------------


def test_the_exported_folder_holds_both_formats_a_card_and_where_it_came_from(generator: Path) -> None:
    names = {path.name for path in generator.iterdir()}
    assert names == {
        *("state_dict.bin", "compression_state_dict.bin"),
        *("model.safetensors", "config.json", "generation_config.json", "preprocessor_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "README.md", "musicgen_ft.json"),
    }
    facts = json.loads((generator / "musicgen_ft.json").read_text())
    assert facts["info"]["base"] == "nano"
    assert facts["config"]["max_steps"] == 4
    assert max(facts["logit_differences"].values()) <= 1e-3  # the largest logits are above ten
    card = (generator / "README.md").read_text()
    assert "license: mit" in card
    assert "| corpus | 0.00 h in " in card


def test_transformers_opens_the_export_with_its_processor_and_plays_it(generator: Path) -> None:
    from transformers import AutoProcessor, MusicgenForConditionalGeneration

    opened: Any = MusicgenForConditionalGeneration.from_pretrained(str(generator), output_loading_info=True)
    model, report = opened
    processor = AutoProcessor.from_pretrained(str(generator))
    inputs = processor(text=["a slow waltz"], padding=True, return_tensors="pt")
    torch.manual_seed(0)
    waveform = model.generate(**inputs, max_new_tokens=13)  # 10 frames, and 3 for the delay pattern

    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert waveform.shape == (1, 1, 10 * 320)
    assert processor.feature_extractor.sampling_rate == model.config.audio_encoder.sampling_rate == 16_000
    assert (model.generation_config.guidance_scale, model.generation_config.top_k) == (3.0, 31)


def test_audiocrafts_get_pretrained_opens_the_export_and_plays_it(generator: Path) -> None:
    from musicgen_ft.generation.sampling import Sampling

    opened = audiocraft.open_generator(generator, open_base(str(generator)).text_encoder())
    options = GenerationOptions(duration_s=0.2, sampling=Sampling(temperature=0))
    waveform = audiocraft.generate(opened, ["a slow waltz"], options, seed=0)

    assert opened.sample_rate == 16_000
    assert waveform.shape == (1, 1, 10 * 320)


def test_the_export_holds_the_averaged_weights_or_the_raw_ones(
    run: Path, generator: Path, tmp_path: Path, command: Command
) -> None:
    raw = command(
        *("export", run, "--out", tmp_path / "raw", "--format", "transformers"),
        *("--weights", "raw", "--checkpoint", "last"),
    )
    assert raw.status == 0, raw.err
    assert "step 4, raw weights" in raw.out

    exported, average = open_base(str(tmp_path / "raw")).lm_state(), open_base(str(generator)).lm_state()
    checkpoint = RunFolder.open(run).read_checkpoint("last")
    assert all(torch.equal(exported[name], checkpoint["state_dict"][f"lm.{name}"]) for name in exported)
    best = RunFolder.open(run).read_checkpoint("best")
    assert all(torch.equal(average[name], best["ema"]["weights"][name]) for name in best["ema"]["weights"])
    assert any(not torch.equal(exported[name], average[name]) for name in exported)


def test_half_precision_halves_the_language_model_and_is_verified_too(
    run: Path, generator: Path, tmp_path: Path, command: Command
) -> None:
    result = command("export", run, "--out", tmp_path / "half", "--dtype", "float16")

    assert result.status == 0, result.err
    assert "audiocraft opens it" in result.out
    assert "transformers opens it" in result.out
    half, full = (folder / "state_dict.bin" for folder in (tmp_path / "half", generator))
    assert half.stat().st_size == pytest.approx(full.stat().st_size / 2, rel=0.05)
    assert {value.dtype for value in open_base(str(tmp_path / "half")).lm_state().values()} == {torch.float16}
    assert_plays(tmp_path / "half", tmp_path / "wavs", command)


@pytest.mark.parametrize(
    ("format", "has", "lacks", "engine"),
    [
        ("audiocraft", {"state_dict.bin", "compression_state_dict.bin", "t5"}, {"model.safetensors"}, "audiocraft"),
        ("transformers", {"model.safetensors", "config.json", "tokenizer.json"}, {"state_dict.bin"}, "transformers"),
    ],
)
def test_one_format_alone_is_complete_and_a_base_again(
    format: str,
    has: set[str],
    lacks: set[str],
    engine: str,
    run: Path,
    generator: Path,
    tmp_path: Path,
    command: Command,
) -> None:
    result = command("export", run, "--out", tmp_path / "alone", "--format", format)
    assert result.status == 0, result.err

    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert has <= names
    assert not lacks & names
    alone, both = open_base(str(tmp_path / "alone")), open_base(str(generator))
    assert alone.flavour == format
    ours, theirs = alone.lm_state(), both.lm_state()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert alone.codec().spec.sha256 == both.codec().spec.sha256
    assert_plays(tmp_path / "alone", tmp_path / "wavs", command)
    assert_plays(tmp_path / "alone", tmp_path / "wavs-of-peer", command, "--engine", engine)


@pytest.mark.parametrize("format", ["both", "audiocraft"])
def test_a_generator_folder_is_a_valid_base_for_the_next_run(
    format: str, run: Path, shards: Path, tmp_path: Path, command: Command
) -> None:
    command("export", run, "--out", tmp_path / "base", "--format", format)

    steps = ("--max_steps", 1, "--base", tmp_path / "base")
    begun = command("finetune", shards, "--out", tmp_path / "run", *steps, *TRAINING)
    exported = command("export", tmp_path / "run", "--out", tmp_path / "generator", "--format", format)

    assert begun.status == 0, begun.err
    assert exported.status == 0, exported.err
    # It begins where the first run ended: at the loss of its averaged weights.
    assert valid_losses(tmp_path / "run")[0] == pytest.approx(valid_losses(run)[4], abs=1e-4)
    assert_plays(tmp_path / "generator", tmp_path / "wavs", command)


def test_a_run_without_an_average_exports_its_raw_weights(shards: Path, tmp_path: Path, command: Command) -> None:
    command("finetune", shards, "--out", tmp_path / "run", *STEPS, *TRAINING, "--ema_decay", 0)

    refused = command("export", tmp_path / "run", "--out", tmp_path / "generator", "--weights", "ema")
    result = command("export", tmp_path / "run", "--out", tmp_path / "generator", "--format", "transformers")

    assert refused.status == 2
    assert "the run kept no average" in refused.err
    assert result.status == 0, result.err
    assert "raw weights" in result.out


# ---- sample ----------------------------------------------------------------------------------------------------------


def assert_plays(folder: Path, wavs: Path, command: Command, *words: object) -> None:
    result = command("sample", folder, "--prompt", "a waltz", "--out", wavs, "--duration_s", 0.2, *words)
    assert result.status == 0, result.err
    assert [path.suffix for path in sorted(wavs.iterdir())] == [".json", ".wav"]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_writes_wavs_of_the_right_rate_length_and_loudness_with_a_json_beside(
    engine: str, generator: Path, tmp_path: Path, command: Command
) -> None:
    prompts = ("--prompt", "Slow waltz, strings!", "--prompt", "techno at 128 bpm")
    words = ("--duration_s", 1.5, "--seed", 7, "--engine", engine)
    result = command("sample", generator, *prompts, "--out", tmp_path / "wavs", *words)

    assert result.status == 0, result.err
    stems = ["000_slow-waltz-strings", "001_techno-at-128-bpm"]
    assert sorted(path.name for path in (tmp_path / "wavs").iterdir()) == sorted(
        f"{stem}{suffix}" for stem in stems for suffix in (".json", ".wav")
    )
    for number, stem in enumerate(stems):
        samples, rate = read_wav(tmp_path / "wavs" / f"{stem}.wav")
        assert (rate, samples.shape) == (16_000, (1, 24_000))
        is_limited = bool(np.abs(samples).max() > 0.999)
        assert loudness(samples, rate) == pytest.approx(-14, abs=0.5) or (is_limited and loudness(samples, rate) < -14)
        how = json.loads((tmp_path / "wavs" / f"{stem}.json").read_text())
        assert how["prompt"] == prompts[2 * number + 1]
        assert (how["seed"], how["engine"], how["sample_rate"]) == (7 + number, engine, 16_000)


def test_a_prompt_and_a_seed_give_the_same_wav_in_whatever_batch(
    generator: Path, tmp_path: Path, command: Command
) -> None:
    prompts = [word for name in ("one", "two", "three") for word in ("--prompt", name)]
    for batch_size in (1, 2):
        words = ("--duration_s", 0.5, "--batch_size", batch_size)
        command("sample", generator, *prompts, "--out", tmp_path / str(batch_size), *words)
    command("sample", generator, "--prompt", "three", "--seed", 2, "--out", tmp_path / "alone", "--duration_s", 0.5)

    for name in ("000_one.wav", "001_two.wav", "002_three.wav"):
        one, _ = read_wav(tmp_path / "1" / name)
        two, _ = read_wav(tmp_path / "2" / name)
        assert np.abs(one - two).max() <= 4 / 32768  # the codes are equal; the decoder's sums round by the batch
    alone, _ = read_wav(tmp_path / "alone" / "000_three.wav")
    assert np.abs(alone - one).max() <= 4 / 32768


def test_an_empty_prompt_is_played_without_a_condition_and_said_so(
    generator: Path, tmp_path: Path, command: Command
) -> None:
    result = command("sample", generator, "--prompt", "", "--out", tmp_path / "wavs", "--duration_s", 0.2)

    assert result.status == 0, result.err
    assert "the prompt is empty" in result.out
    assert (tmp_path / "wavs" / "000_unconditional.wav").is_file()


# ---- the console script, in a process of its own ---------------------------------------------------------------------


@pytest.mark.slow
def test_the_console_script_does_the_whole_job_and_says_nothing_but_its_own_lines(
    tmp_path: Path, process: Command
) -> None:
    steps = (
        ("synthesize", "--out", "corpus", "--tracks", 4, "--duration_s", 2),
        ("prepare", "corpus", "--out", "shards"),
        ("finetune", "shards", "--out", "run", "--max_steps", 2, *TRAINING),
        ("export", "run", "--out", "generator"),
        ("sample", "generator", "--prompt", "a waltz", "--out", "wavs", "--duration_s", 0.2),
    )
    said = {words[0]: process(*words, cwd=tmp_path) for words in steps}

    assert {name: result.status for name, result in said.items()} == dict.fromkeys(said, 0), said
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "shards", "run", "generator", "wavs"}
    # No warning of a library reaches the user.
    assert [said[name].err for name in ("synthesize", "prepare", "export", "sample")] == ["", "", "", ""]
    beginnings = ("new run in run", "base nano", "method full", "corpus ", "step 1/2", "step 2/2")
    lines = said["finetune"].err.splitlines()
    assert len(lines) == len(beginnings)
    assert all(line.startswith(beginning) for line, beginning in zip(lines, beginnings, strict=True))
    assert said["sample"].out == "wavs/000_a-waltz.wav\n"


@pytest.mark.slow
def test_the_demo_takes_a_corpus_of_the_users_own(corpus: Path, tmp_path: Path, process: Command) -> None:
    words = ("--corpus", corpus, "--max_steps", 2, "--duration_s", 0.5, "--prompt", "a waltz")
    before = bytes_of(corpus)
    result = process("demo", "--out", tmp_path / "demo", *words)

    assert result.status == 0, result.err
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"shards", "run", "generator", "evaluation", "wavs"}
    assert bytes_of(corpus) == before
