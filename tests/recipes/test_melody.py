"""The main job on a melody base: its chroma goes into the shards, is trained on, exported, checked and played."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5EncoderModel

from musicgen_ft.audio import write_wav
from musicgen_ft.checkpoint import transformers_format
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.training.run import RunFolder

Command = Callable[..., Any]

TRAINING = ("--batch_size", "4", "--segment_s", "1", "--num_workers", "0", "--accelerator", "cpu")
SPEC = ChromaSpec(sample_rate=16000, n_fft=4096, hop_length=1024)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, make_lm: Callable[..., LanguageModel], nano_folder: Path) -> Path:
    """A melody base with nano's codec and T5."""
    folder = tmp_path_factory.mktemp("melody-base")
    nano = open_base(str(nano_folder))
    lm = make_lm(conditioning="prefix", chroma=SPEC, text_dim=nano.text_encoder().dim, card=256)
    transformers_format.write_folder(folder, lm.state_dict(), lm.config, nano.codec(), nano.text_encoder())
    return folder


@pytest.fixture(scope="module")
def melody_shards(tmp_path_factory: pytest.TempPathFactory, corpus: Path, base: Path, command: Command) -> Path:
    folder = tmp_path_factory.mktemp("melody") / "shards"
    result = command("prepare", corpus, "--out", folder, "--base", base)
    assert result.status == 0, result.err
    return folder


@pytest.fixture(scope="module")
def melody_run(tmp_path_factory: pytest.TempPathFactory, melody_shards: Path, command: Command) -> Path:
    folder = tmp_path_factory.mktemp("melody") / "run"
    steps = ("--max_steps", 2, "--save_every_steps", 2, "--valid_every_steps", 2, "--lr", 1.0e-3, "--cfg_dropout", 0.2)
    result = command("finetune", melody_shards, "--out", folder, *steps, *TRAINING)
    assert result.status == 0, result.err
    return folder


@pytest.fixture(scope="module")
def melody_generator(tmp_path_factory: pytest.TempPathFactory, melody_run: Path, command: Command) -> Path:
    folder = tmp_path_factory.mktemp("melody") / "generator"
    result = command("export", melody_run, "--out", folder)
    assert result.status == 0, result.err
    assert "audiocraft opens it" in result.out
    assert "transformers opens it" in result.out
    return folder


def test_prepare_stores_the_chroma_that_the_base_takes(melody_shards: Path) -> None:
    index = ShardIndex.open(melody_shards, verify=True)
    split = index.split("train")

    assert index.manifest.chroma == SPEC
    assert len(split.chroma(0)) == SPEC.num_frames(round(split.meta(0).duration_s * 16000))


def test_the_probe_of_a_run_has_its_melody(melody_run: Path) -> None:
    probe = RunFolder.open(melody_run).probe()

    assert probe.chroma is not None
    assert probe.chroma.shape == (1, probe.codes.shape[2] * 320 // 1024)
    assert probe.chroma.dtype == torch.int64


def test_training_moves_the_chroma_projection(base: Path, melody_run: Path) -> None:
    before = open_base(str(base)).lm_state()["chroma_proj.weight"]
    after = RunFolder.open(melody_run).read_checkpoint("last")["state_dict"]["lm.chroma_proj.weight"]

    assert not torch.equal(before, after)


def test_an_export_is_checked_with_the_melody_and_is_a_base_again(melody_generator: Path) -> None:
    differences = json.loads((melody_generator / "musicgen_ft.json").read_text())["logit_differences"]

    assert set(differences) == {"audiocraft", "transformers"}
    assert max(differences.values()) < 5e-5
    assert open_base(str(melody_generator)).lm_config.chroma == SPEC


@pytest.mark.parametrize("engine", ["native", "audiocraft", "transformers"])
def test_every_engine_plays_a_melody(
    tmp_path: Path, melody_generator: Path, corpus: Path, command: Command, engine: str
) -> None:
    tune = sorted(corpus.rglob("*.wav"))[0]
    words = (
        "sample",
        melody_generator,
        "--prompt",
        "piano",
        "--duration_s",
        0.5,
        "--engine",
        engine,
        "--device",
        "cpu",
    )

    followed = command(*words, "--melody", tune, "--out", tmp_path / "followed")
    free = command(*words, "--out", tmp_path / "free")

    assert followed.status == 0, followed.err
    assert free.status == 0, free.err
    (path,) = (tmp_path / "followed").glob("*.json")
    assert json.loads(path.read_text())["melody"] == str(tune)
    (followed_wav,), (free_wav,) = (list((tmp_path / name).glob("*.wav")) for name in ("followed", "free"))
    assert followed_wav.read_bytes() != free_wav.read_bytes()


def test_a_melody_base_is_converted_without_training(tmp_path: Path, base: Path, command: Command) -> None:
    result = command("export", "--from", base, "--out", tmp_path / "converted", "--format", "audiocraft")

    assert result.status == 0, result.err
    assert (tmp_path / "converted" / "state_dict.bin").is_file()


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_a_melody_base_refuses_shards_without_chroma(
    tmp_path: Path, shards: Path, base: Path, command: Command
) -> None:
    result = command("finetune", shards, "--out", tmp_path / "run", "--base", base, "--max_steps", 1, *TRAINING)

    assert result.status == 2
    assert "the shards hold no chroma" in result.err
    assert "Prepare again with this base" in result.err


def test_a_text_base_refuses_a_melody(tmp_path: Path, corpus: Path, command: Command) -> None:
    tune = sorted(corpus.rglob("*.wav"))[0]

    result = command("sample", "nano", "--prompt", "piano", "--melody", tune, "--out", tmp_path / "wavs")

    assert result.status == 2
    assert "nano takes no melody. Use facebook/musicgen-melody" in result.err


def test_a_melody_that_is_no_audio_is_refused(tmp_path: Path, melody_generator: Path, command: Command) -> None:
    (tmp_path / "tune.wav").write_bytes(b"no audio")
    words = ("--prompt", "piano", "--melody", tmp_path / "tune.wav", "--out", tmp_path / "wavs")

    result = command("sample", melody_generator, *words)

    assert result.status == 2
    assert "tune.wav" in result.err
    assert "Give a file that plays" in result.err


@pytest.mark.parametrize("amplitude", [0.0, 2 / 32768])
def test_a_silent_melody_is_refused(tmp_path: Path, base: Path, command: Command, amplitude: float) -> None:
    """No sample at all but 0, and the dither that a recorder without a microphone writes."""
    noise = amplitude * (2 * torch.rand(1, 32_000, generator=torch.Generator().manual_seed(3)) - 1)
    write_wav(tmp_path / "tune.wav", noise, 16_000)
    words = ("--prompt", "piano", "--melody", tmp_path / "tune.wav", "--out", tmp_path / "wavs")

    result = command("sample", base, *words)

    assert result.status == 2
    (line,) = result.err.splitlines()
    assert line.endswith(
        f"--melody {tmp_path / 'tune.wav'} is silent: there is no tune to follow. Give another file, or none."
    )
    assert not (tmp_path / "wavs").exists()


def test_a_melody_base_is_fine_tuned_in_stereo_with_another_t5(
    corpus: Path, base: Path, tmp_path: Path, command: Command
) -> None:
    t5: Any = T5EncoderModel(T5Config(vocab_size=800, d_model=40, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    tokenizer = open_base(str(base)).text_encoder().tokenizer
    transformers_format.write_text_encoder(tmp_path / "t5", TextEncoder(t5, tokenizer, id="t5"))
    shards, run, made = tmp_path / "shards", tmp_path / "run", tmp_path / "made"

    steps = [
        command("prepare", corpus, "--out", shards, "--base", base, "--channels", 2),
        command("finetune", shards, "--out", run, "--max_steps", 1, "--text_encoder", tmp_path / "t5", *TRAINING),
        command("export", run, "--out", made),
    ]

    assert [step.status for step in steps] == [0] * 3, [step.err for step in steps]
    assert "audiocraft opens it" in steps[-1].out
    assert "transformers opens it" in steps[-1].out
    config = open_base(str(made)).lm_config
    assert (config.channels, config.text_dim, config.conditioning) == (2, 40, "prefix")


def test_an_evaluation_gives_the_tune_and_tells_how_closely_it_is_followed(
    melody_run: Path, tmp_path: Path, command: Command
) -> None:
    words = ("--pieces", 3, "--duration_s", 0.8, "--valid_max_clips", 2)
    result = command("evaluate", melody_run, "--out", tmp_path / "e", *words)
    assert result.status == 0, result.err
    models = json.loads((tmp_path / "e" / "evaluation.json").read_text())["models"]
    for name in ("base", "model"):
        assert 0 <= models[name]["sound"]["chroma_similarity"] <= 1
    assert "Fit to the tune" in (tmp_path / "e" / "index.html").read_text()
