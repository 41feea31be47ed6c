"""``export --from``: a base in the other format, or in stereo, without training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.checkpoint.stereo import stereo_state
from musicgen_ft.peers import audiocraft, parity, transformers

Command = Callable[..., Any]


def test_a_base_goes_to_audiocraft_and_back_bit_for_bit(nano_folder: Path, tmp_path: Path, command: Command) -> None:
    there = command("export", "--from", nano_folder, "--out", tmp_path / "audiocraft", "--format", "audiocraft")
    back = command("export", "--from", tmp_path / "audiocraft", "--out", tmp_path / "back", "--format", "transformers")

    assert (there.status, back.status) == (0, 0), there.err + back.err
    assert "audiocraft opens it" in there.out
    assert "transformers opens it" in back.out
    found, expected = open_base(str(tmp_path / "back")), open_base(str(nano_folder))
    assert found.codec().spec.sha256 == expected.codec().spec.sha256
    states = found.lm_state(), expected.lm_state()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_a_mono_base_is_exported_in_stereo(nano_folder: Path, tmp_path: Path, command: Command) -> None:
    made = command("export", "--from", nano_folder, "--out", tmp_path / "stereo", "--channels", 2)

    assert made.status == 0, made.err
    stereo = open_base(str(tmp_path / "stereo"))
    expected = stereo_state(open_base(str(nano_folder)).lm_state())
    assert stereo.lm_config.channels == 2
    assert all(torch.equal(value, expected[name]) for name, value in stereo.lm_state().items())


def test_the_card_of_a_converted_base_names_where_its_weights_come_from(
    nano_folder: Path, tmp_path: Path, command: Command
) -> None:
    command("export", "--from", nano_folder, "--out", tmp_path / "made", "--dtype", "float16")

    card = (tmp_path / "made" / "README.md").read_text()
    assert f"The weights of **{nano_folder.name}**" in card
    assert str(nano_folder) not in card
    assert all(value.dtype == torch.float16 for value in open_base(str(tmp_path / "made")).lm_state().values())


@torch.no_grad()
def test_a_reader_that_maps_the_layers_has_the_logits_of_one_in_fp32(
    nano_folder: Path, tmp_path: Path, command: Command
) -> None:
    """In half precision too, bit by bit: the layers are widened to fp32 when they compute."""
    made = tmp_path / "made"
    assert command("export", "--from", nano_folder, "--out", made, "--dtype", "float16").status == 0
    text_encoder = open_base(str(made)).text_encoder()
    codes = torch.randint(256, (1, 4, 9), generator=torch.Generator().manual_seed(0))

    found: Any = audiocraft.open_generator(made, text_encoder, mapped=True)
    expected: Any = audiocraft.open_generator(made, text_encoder)
    assert {value.dtype for value in found.lm.transformer.layers.parameters()} == {torch.float16}
    assert {value.dtype for value in expected.lm.parameters()} == {torch.float32}
    logits = [audiocraft.logits(generator, codes, ["slow piano"])[0] for generator in (found, expected)]
    torch.testing.assert_close(*logits, rtol=0, atol=0, equal_nan=True)

    found = transformers.open_generator(made, layers_dtype=torch.float16)
    expected = transformers.open_generator(made)
    layers = found.decoder.model.decoder.layers
    assert {value.dtype for value in layers.parameters()} == {torch.float16}
    assert {value.dtype for value in set(found.parameters()) - set(layers.parameters())} == {torch.float32}
    assert {value.dtype for value in expected.parameters()} == {torch.float32}
    logits = [transformers.logits(generator, codes, ["slow piano"]) for generator in (found, expected)]
    torch.testing.assert_close(*logits, rtol=0, atol=0)


@pytest.mark.parametrize("format", ["audiocraft", "transformers"])
def test_an_export_with_one_other_number_that_no_logit_shows_is_refused(
    nano_folder: Path, tmp_path: Path, command: Command, format: str
) -> None:
    made = tmp_path / "made"
    assert command("export", "--from", nano_folder, "--out", made, "--format", format).status == 0
    base = open_base(str(nano_folder))
    state = base.lm_state()
    embedding = state["embeddings.2.weight"] = state["embeddings.2.weight"].clone()
    embedding[250, 3] += 1e-3
    codes = torch.zeros(1, 4, 5, dtype=torch.int64)  # never code 250

    with pytest.raises(RuntimeError, match=f"the export for {format} does not hold embeddings.2.weight as it is"):
        parity.check_export(made, state, base.lm_config, base.text_encoder(), codes, "music", formats=[format])


@pytest.mark.parametrize("words", [(), ("run", "--from", "nano"), ("run", "--channels", 2)])
def test_a_run_or_a_base_is_expected_and_not_both(words: tuple[object, ...], tmp_path: Path, command: Command) -> None:
    result = command("export", *words, "--out", tmp_path / "made")

    assert result.status == 2
    assert "RUN, or --from BASE" in result.err or "goes with --from" in result.err


def test_the_main_job_in_stereo_plays_two_channels_in_every_engine(
    corpus: Path, tmp_path: Path, command: Command
) -> None:
    shards, run, made = tmp_path / "shards", tmp_path / "run", tmp_path / "made"
    training = ("--max_steps", 1, "--batch_size", 2, "--segment_s", 1, "--accelerator", "cpu")
    steps = [
        command("prepare", corpus, "--out", shards, "--channels", 2),
        command("finetune", shards, "--out", run, *training),
        command("export", run, "--out", made),
        *(
            command(
                "sample", made, "--prompt", "x", "--out", tmp_path / engine, "--duration_s", 0.5, "--engine", engine
            )
            for engine in ("native", "audiocraft", "transformers")
        ),
    ]

    assert [step.status for step in steps] == [0] * 6, [step.err for step in steps]
    import wave

    for engine in ("native", "audiocraft", "transformers"):
        (path,) = (tmp_path / engine).glob("*.wav")
        with wave.open(str(path)) as file:
            assert (file.getnchannels(), file.getnframes()) == (2, 8000)


def test_mono_shards_are_refused_by_a_stereo_base(
    shards: Path, nano_folder: Path, tmp_path: Path, command: Command
) -> None:
    command("export", "--from", nano_folder, "--out", tmp_path / "stereo", "--channels", 2, "--format", "transformers")

    refused = command("finetune", shards, "--base", tmp_path / "stereo", "--out", tmp_path / "run")

    assert refused.status == 2
    assert "is a stereo base, found mono shards: prepare them with --channels 2" in refused.err
    assert not (tmp_path / "run").exists()
