"""Adapters end to end: finetune --method lora or dora, resume, export merged and as an adapter, and on from there."""

import csv
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from musicgen_ft.checkpoint import transformers_format
from musicgen_ft.checkpoint.adapter import load_adapter, read_adapter
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.training.run import RunFolder

Command = Callable[..., Any]

TRAINING = ("--batch_size", 4, "--segment_s", 1, "--num_workers", 0, "--accelerator", "cpu")
STEPS = ("--max_steps", 6, "--save_every_steps", 3, "--valid_every_steps", 3, "--lr", 3.0e-3, "--warmup_steps", 0)


def losses(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.fixture(scope="module", params=["lora", "dora"])
def adapter_run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shards: Path,
    untrained_base: Path,
    command: Command,
) -> Path:
    """Adapters of rank 4 after 6 steps, saved at 3 and 6, with the heads trained whole."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    adapters = ("--method", request.param, "--lora_rank", 4, "--lora_alpha", 8, "--lora_whole", "heads")
    dropped = ("--lora_dropout", 0.1, "--lora_targets", "layers.*_attn", "--lora_targets", "layers.*.fc1")
    base = ("--base", untrained_base)
    result = command("finetune", shards, *base, "--out", folder, *STEPS, *TRAINING, *adapters, *dropped)
    assert result.status == 0, result.err
    assert f"method {request.param}: 0." in result.err
    return folder


@pytest.fixture(scope="module")
def generator(adapter_run: Path, command: Command) -> Path:
    """The run's export in both formats."""
    return made(command, "export", adapter_run, "--out", adapter_run.parent / "generator")


@pytest.fixture(scope="module")
def adapter(adapter_run: Path, command: Command) -> Path:
    """The run's adapter."""
    return made(command, "export", adapter_run, "--out", adapter_run.parent / "adapter", "--format", "adapter")


def made(command: Command, *words: object) -> Path:
    result = command(*words)
    assert result.status == 0, result.err
    (out,) = (word for before, word in itertools.pairwise(words) if before == "--out")
    return Path(str(out))


def test_the_loss_falls_and_only_what_is_trained_is_saved(adapter_run: Path) -> None:
    valid = losses(adapter_run, "valid/ce")
    assert valid[-1] < valid[0] - 0.02
    content = RunFolder.open(adapter_run).read_checkpoint("last")
    names = set(content["state_dict"])
    assert {name.rpartition(".")[2] for name in names} <= {"lora_A", "lora_B", "magnitude", "weight"}
    assert {name for name in names if name.endswith("weight")} == {f"lm.heads.{k}.weight" for k in range(4)}
    assert {f"lm.{name}" for name in content["ema"]["weights"]} == names
    assert len(content["optimizer_states"][0]["state"]) == len(names)
    assert not any(".fc2." in name for name in names)


def test_a_run_goes_on_from_its_middle_as_if_nothing_had_happened(
    adapter_run: Path, tmp_path: Path, command: Command
) -> None:
    cut = Path(shutil.copytree(adapter_run, tmp_path / "cut"))
    for path in (cut / "checkpoints").glob("step-*6.ckpt"):
        path.unlink()
    resumed = command("finetune", "--resume", cut)

    assert resumed.status == 0, resumed.err
    assert "going on from step 3" in resumed.err
    found, expected = (RunFolder.open(run).read_checkpoint("last") for run in (cut, adapter_run))
    assert found["global_step"] == expected["global_step"] == 6
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    assert all(torch.equal(found["state_dict"][name], value) for name, value in expected["state_dict"].items())
    assert all(torch.equal(found["ema"]["weights"][name], value) for name, value in expected["ema"]["weights"].items())


def test_a_merged_export_and_the_adapter_over_the_base_are_the_same_model(
    adapter_run: Path, generator: Path, adapter: Path, untrained_base: Path
) -> None:
    """To the bit, and neither is the base."""
    plain, merged = open_base(str(untrained_base)).lm_state(), open_base(str(generator)).lm_state()
    lm = open_base(str(untrained_base)).lm()
    load_adapter(lm, adapter)

    found = lm.state_dict()
    assert found.keys() == merged.keys()
    assert all(torch.equal(found[name], value) for name, value in merged.items())
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed == {
        name for name in plain if "_attn." in name or name.endswith("fc1.weight") or name.startswith("heads.")
    }


def test_the_adapter_was_opened_by_peft_and_its_card_says_how_to(adapter: Path, generator: Path) -> None:
    differences = json.loads((adapter / "musicgen_ft.json").read_text())["logit_differences"]
    assert differences["peft"] < 1e-5
    assert set(json.loads((generator / "musicgen_ft.json").read_text())["logit_differences"]) == {
        "audiocraft",
        "transformers",
    }
    card = (adapter / "README.md").read_text()
    assert "library_name: peft" in card
    assert 'PeftModel.from_pretrained(base, "adapter")' in card
    assert "| lora_rank | 4 |" in card
    assert {path.name for path in adapter.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md", "musicgen_ft.json")
    }


def test_a_merged_export_is_a_base_again_for_another_adapter(
    generator: Path, shards: Path, tmp_path: Path, command: Command
) -> None:
    steps = ("--max_steps", 1, "--lr", 1.0e-2, "--warmup_steps", 0)
    run = made(
        command,
        "finetune",
        shards,
        "--base",
        generator,
        "--method",
        "lora",
        "--out",
        tmp_path / "run",
        *steps,
        *TRAINING,
    )
    second = made(command, "export", run, "--out", tmp_path / "second", "--format", "adapter", "--dtype", "float16")

    config = open_base(str(generator)).lm_config
    assert read_adapter(second, config).base == "generator"
    assert {value.dtype for value in read_adapter(second, config).tensors.values()} == {torch.float16}


def test_a_base_that_has_changed_is_refused(nano_folder: Path, shards: Path, tmp_path: Path, command: Command) -> None:
    base = made(command, "export", "--from", nano_folder, "--out", tmp_path / "base", "--format", "transformers")
    words = ("--max_steps", 2, "--save_every_steps", 1, "--method", "lora", "--keep_last", 2)
    run = made(command, "finetune", shards, "--base", base, "--out", tmp_path / "run", *words, *TRAINING)
    next((run / "checkpoints").glob("step-*2.ckpt")).unlink()
    weights = load_file(base / "model.safetensors")
    weights["decoder.lm_heads.0.weight"][0, 0] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})

    refused = [
        command("finetune", "--resume", run),
        command("export", run, "--out", tmp_path / "made"),
        command("export", run, "--out", tmp_path / "made", "--format", "adapter"),
    ]

    assert [result.status for result in refused] == [2] * 3, [result.err for result in refused]
    assert all("is not what the run was trained on: found weights" in result.err for result in refused)


def test_a_run_that_froze_parts_is_exported_over_its_base(
    nano_folder: Path, shards: Path, tmp_path: Path, command: Command
) -> None:
    words = ("--freeze", "embeddings", "--freeze", "layers.0", "--base_dtype", "bf16", *STEPS, "--max_steps", 1)
    run = made(command, "finetune", shards, "--out", tmp_path / "run", *words, *TRAINING)
    generator = made(command, "export", run, "--out", tmp_path / "generator", "--weights", "raw")
    refused = command("export", run, "--out", tmp_path / "adapter", "--format", "adapter")

    plain, found = open_base(str(nano_folder)).lm_state(), open_base(str(generator)).lm_state()
    same = {name for name in plain if torch.equal(plain[name], found[name])}
    assert same == {name for name in plain if name.startswith(("embeddings.", "layers.0."))}
    assert refused.status == 2
    assert "trained the weights themselves, and no adapter" in refused.err


# ---- other models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stereo", "melody", "stereo melody"])
def test_lora_on_the_other_kinds_of_bases(
    corpus: Path, nano_folder: Path, make_lm: Callable[..., LanguageModel], tmp_path: Path, command: Command, kind: str
) -> None:
    """From the corpus to both exports and the adapter, each opened by its readers."""
    channels = 2 if "stereo" in kind else 1
    nano = open_base(str(nano_folder), channels=channels)
    changes: dict[str, Any] = {"n_q": 4 * channels, "delays": tuple(k // channels for k in range(4 * channels))}
    if "melody" in kind:
        chroma = ChromaSpec(sample_rate=16000, n_fft=4096, hop_length=1024)
        changes |= {"conditioning": "prefix", "chroma": chroma}
    lm = make_lm(card=256, text_dim=64, channels=channels, **changes)
    (tmp_path / "base").mkdir()
    transformers_format.write_folder(tmp_path / "base", lm.state_dict(), lm.config, nano.codec(), nano.text_encoder())
    base, words = tmp_path / "base", ("--max_steps", 1, "--lr", 1.0e-2, "--warmup_steps", 0)
    shards = made(command, "prepare", corpus, "--out", tmp_path / "shards", "--base", base)
    run = made(command, "finetune", shards, "--out", tmp_path / "run", "--method", "lora", *words, *TRAINING)
    generator = made(command, "export", run, "--out", tmp_path / "generator")
    adapter = made(command, "export", run, "--out", tmp_path / "adapter", "--format", "adapter")

    plain, tuned = open_base(str(base)).lm_state(), open_base(str(base)).lm()
    load_adapter(tuned, adapter)
    merged = open_base(str(generator)).lm_state()
    assert all(torch.equal(merged[name], value) for name, value in tuned.state_dict().items())
    assert json.loads((adapter / "musicgen_ft.json").read_text())["logit_differences"]["peft"] < 5e-5
    changed = {name for name, value in plain.items() if not torch.equal(value, merged[name])}
    assert changed == {name for name in merged if name.startswith("layers.") and "norm" not in name}


def test_with_another_text_encoder_its_projection_is_trained_whole(
    nano_folder: Path, shards: Path, tmp_path: Path, command: Command
) -> None:
    t5: Any = T5EncoderModel(T5Config(vocab_size=800, d_model=40, d_kv=8, d_ff=72, num_layers=1, num_heads=2))
    tokenizer = open_base(str(nano_folder)).text_encoder().tokenizer
    transformers_format.write_text_encoder(tmp_path / "t5", TextEncoder(t5, tokenizer, id="t5"))
    words = ("--text_encoder", tmp_path / "t5", "--method", "lora", "--max_steps", 1, *TRAINING)
    run = made(command, "finetune", shards, "--out", tmp_path / "run", *words)
    generator = made(command, "export", run, "--out", tmp_path / "generator")
    refused = command("export", run, "--out", tmp_path / "adapter", "--format", "adapter")

    names = set(RunFolder.open(run).read_checkpoint("last")["state_dict"])
    assert {name for name in names if "lora_" not in name} == {"lm.text_proj.weight", "lm.text_proj.bias"}
    assert open_base(str(generator)).lm_config.text_dim == 40
    assert refused.status == 2
    assert "with another text encoder, which no folder holds" in refused.err


def test_adapters_of_a_mono_base_made_stereo_are_exported_merged_only(
    corpus: Path, tmp_path: Path, command: Command
) -> None:
    shards = made(command, "prepare", corpus, "--out", tmp_path / "shards", "--channels", 2)
    words = ("--max_steps", 1, "--method", "dora", *TRAINING)
    run = made(command, "finetune", shards, "--out", tmp_path / "run", *words)
    generator = made(command, "export", run, "--out", tmp_path / "generator")
    refused = command("export", run, "--out", tmp_path / "adapter", "--format", "adapter")

    assert open_base(str(generator)).lm_config.channels == 2
    assert refused.status == 2
    assert "with stereo from mono, which no folder holds" in refused.err


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "qlora"), "--method qlora: weights in 4 bits need a CUDA device, found cpu. Use --method lora."),
        (
            ("--method", "lora", "--lora_targets", "layers.*.qproj"),
            "--lora_targets layers.*.qproj: no module of that name",
        ),
        (("--freeze", "embedings"), "--freeze embedings: no module of that name. Near ones: embeddings"),
        (("--freeze", "*"), "--freeze: nothing is left to train"),
        (("--method", "lora", "--freeze", "layers"), "every module that it names is frozen or trained whole"),
        (("--lora_rank", "0"), "lora_rank: found 0, expected a number above 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    shards: Path, tmp_path: Path, command: Command, words: tuple[str, ...], message: str
) -> None:
    refused = command("finetune", shards, "--out", tmp_path / "run", *words, *TRAINING)

    assert refused.status == 2
    assert message in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_base_holds_no_adapter(tmp_path: Path, command: Command) -> None:
    refused = command("export", "--from", "nano", "--out", tmp_path / "made", "--format", "adapter")

    assert refused.status == 2
    assert "--format adapter goes with a RUN" in refused.err


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_qlora_trains_over_a_base_in_4_bits(shards: Path, tmp_path: Path, command: Command) -> None:
    pytest.importorskip("bitsandbytes")
    words = ("--method", "qlora", *STEPS, "--batch_size", 4, "--segment_s", 1)
    run = made(command, "finetune", shards, "--out", tmp_path / "run", *words)
    made(command, "export", run, "--out", tmp_path / "generator")
    made(command, "export", run, "--out", tmp_path / "adapter", "--format", "adapter")

    assert losses(run, "valid/ce")[-1] < losses(run, "valid/ce")[0]
