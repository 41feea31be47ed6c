"""Another frozen text encoder in place of the base's own: from finetune to every engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5EncoderModel

from musicgen_ft.checkpoint import transformers_format
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.model.conditioning import TextEncoder

Command = Callable[..., Any]
TRAINING = ("--max_steps", 2, "--batch_size", 2, "--segment_s", 1, "--accelerator", "cpu", "--lr", 1.0e-3)


@pytest.fixture
def flan(tmp_path: Path, nano_folder: Path) -> Path:
    """A T5 of version 1.1, as flan-T5 is: gated, of another width and with more words than nano's."""
    tokenizer = open_base(str(nano_folder)).text_encoder().tokenizer
    config = T5Config(
        vocab_size=800, d_model=40, d_kv=8, d_ff=72, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = TextEncoder(T5EncoderModel(config), tokenizer, id="flan")
    transformers_format.write_text_encoder(tmp_path / "flan", encoder)
    return tmp_path / "flan"


def test_the_base_takes_another_t5_and_begins_its_projection_anew(nano_folder: Path, flan: Path) -> None:
    own, other = open_base(str(nano_folder)), open_base(str(nano_folder), other_t5=str(flan))

    assert (own.lm_config.text_dim, other.lm_config.text_dim, other.text_encoder().dim) == (64, 40, 40)
    states = own.lm_state(), other.lm_state()
    assert states[1]["text_proj.weight"].shape == (192, 40)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0] if not name.startswith("text_proj"))
    assert torch.equal(states[1]["text_proj.weight"], other.lm_state()["text_proj.weight"])


def test_a_tokenizer_of_more_words_than_its_t5_is_refused(
    shards: Path, nano_folder: Path, tmp_path: Path, command: Command
) -> None:
    tokenizer = open_base(str(nano_folder)).text_encoder().tokenizer
    small = T5EncoderModel(T5Config(vocab_size=600, d_model=40, d_kv=8, d_ff=72, num_layers=1, num_heads=2))
    transformers_format.write_text_encoder(tmp_path / "small", TextEncoder(small, tokenizer, id="small"))
    result = command("finetune", shards, "--out", tmp_path / "run", "--text_encoder", tmp_path / "small", *TRAINING)
    assert result.status == 2
    assert f"the tokenizer knows {len(tokenizer)} tokens, expected at most the 600 of its T5" in result.err
    assert not (tmp_path / "run").exists()


def test_a_run_with_another_t5_is_exported_with_it_and_plays_in_every_engine(
    shards: Path, flan: Path, tmp_path: Path, command: Command
) -> None:
    run, made = tmp_path / "run", tmp_path / "made"
    steps = [
        command("finetune", shards, "--out", run, "--text_encoder", flan, *TRAINING),
        command("export", run, "--out", made),
        command("export", run, "--out", tmp_path / "alone", "--format", "audiocraft"),
        *(
            command(
                "sample", made, "--prompt", "x", "--out", tmp_path / engine, "--duration_s", 0.2, "--engine", engine
            )
            for engine in ("native", "audiocraft", "transformers")
        ),
    ]

    assert [step.status for step in steps] == [0] * 6, [step.err for step in steps]
    for folder in (made, tmp_path / "alone"):
        assert open_base(str(folder)).text_encoder().dim == open_base(str(folder)).lm_config.text_dim == 40


def test_a_text_encoder_that_is_none_is_refused(
    shards: Path, nano_folder: Path, tmp_path: Path, command: Command
) -> None:
    for place, says in ((nano_folder, "describes no T5"), (tmp_path / "nowhere", "no such folder")):
        refused = command("finetune", shards, "--out", tmp_path / "run", "--text_encoder", place, *TRAINING)
        assert refused.status == 2
        assert says in refused.err
        assert not (tmp_path / "run").exists()
