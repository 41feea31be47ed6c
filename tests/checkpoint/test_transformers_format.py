"""Folders of transformers as the hub holds them: old spellings, stale keys, other models, damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musicgen_ft.checkpoint import transformers_format
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.codec import Codec
from musicgen_ft.errors import UserError
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "config.json").read_text())
    edit(values)
    (folder / "config.json").write_text(json.dumps(values))


def old_spelling(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        old = name.replace("parametrizations.weight.original0", "weight_g")
        old = old.replace("parametrizations.weight.original1", "weight_v")
        tensors[old] = tensors.pop(name)
    assert any(name.endswith("weight_g") for name in tensors)


def states_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


# ---- what older files look like --------------------------------------------------------------------------------------


def test_the_old_spelling_of_weight_norm_gives_the_same_codec(transformers_folder: Path, nano_codec: Codec) -> None:
    edit_weights(transformers_folder, old_spelling)
    codec = open_base(str(transformers_folder)).codec()
    assert codec.spec.sha256 == nano_codec.spec.sha256
    assert states_equal(codec.model.state_dict(), nano_codec.model.state_dict())


def test_a_stale_position_table_is_ignored(transformers_folder: Path, toy_lm: LanguageModel) -> None:
    key = "decoder.model.decoder.embed_positions.weights"
    edit_weights(transformers_folder, lambda tensors: tensors.update({key: torch.zeros(2048, 24)}))
    assert states_equal(open_base(str(transformers_folder)).lm().state_dict(), toy_lm.state_dict())


def test_pickled_weights_open_like_safetensors(transformers_folder: Path, toy_lm: LanguageModel) -> None:
    safetensors = transformers_folder / "model.safetensors"
    torch.save(load_file(safetensors), transformers_folder / "pytorch_model.bin")
    safetensors.unlink()
    base = open_base(str(transformers_folder))
    assert states_equal(base.lm().state_dict(), toy_lm.state_dict())
    assert base.text_encoder().dim == base.lm_config.text_dim == 64


@pytest.mark.parametrize("name", ["shared.weight", "encoder.embed_tokens.weight"])
def test_t5s_embedding_is_found_under_either_of_its_names(
    transformers_folder: Path, text_encoder: TextEncoder, name: str
) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"text_encoder.{name}"] = tensors.pop("text_encoder.shared.weight")

    edit_weights(transformers_folder, rename)
    found = open_base(str(transformers_folder)).text_encoder()
    assert states_equal(dict(found.encoder.state_dict()), dict(text_encoder.encoder.state_dict()))


def test_dropout_of_a_transformers_config_is_not_taken_over(transformers_folder: Path) -> None:
    edit_config(transformers_folder, lambda values: values["decoder"].update(dropout=0.1))
    assert open_base(str(transformers_folder)).lm_config.dropout == 0.0


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["musicgen_style", "bert", None])
def test_a_config_of_another_model_is_refused(transformers_folder: Path, model_type: str | None) -> None:
    edit_config(transformers_folder, lambda values: values.update(model_type=model_type))
    with pytest.raises(UserError, match=f"model of type {model_type!r}, expected 'musicgen'"):
        _ = open_base(str(transformers_folder)).lm_config


@pytest.mark.parametrize("change", [{"activation_function": "relu"}, {"scale_embedding": True}])
def test_a_decoder_that_computes_something_else_is_refused(transformers_folder: Path, change: dict[str, Any]) -> None:
    edit_config(transformers_folder, lambda values: values["decoder"].update(change))
    with pytest.raises(UserError, match="as MusicGen has"):
        _ = open_base(str(transformers_folder)).lm_config


@pytest.mark.parametrize("content", ["{", "[]", "not json"])
def test_a_damaged_config_is_refused_with_its_name(transformers_folder: Path, content: str) -> None:
    (transformers_folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        _ = open_base(str(transformers_folder)).lm_config


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("lm", "decoder.lm_heads.2.weight"),
        ("lm", "enc_to_dec_proj.bias"),
        ("codec", "audio_encoder.quantizer.layers.1.codebook.embed"),
        ("text_encoder", "text_encoder.encoder.final_layer_norm.weight"),
    ],
)
def test_a_missing_tensor_is_listed(transformers_folder: Path, part: str, name: str) -> None:
    edit_weights(transformers_folder, lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match="1 missing") as caught:
        getattr(open_base(str(transformers_folder)), part)()
    assert name.split(".", 1)[1] in str(caught.value)


@pytest.mark.parametrize(
    ("part", "name"), [("lm", "decoder.model.decoder.extra.weight"), ("codec", "audio_encoder.extra.weight")]
)
def test_a_tensor_left_over_is_listed(transformers_folder: Path, part: str, name: str) -> None:
    edit_weights(transformers_folder, lambda tensors: tensors.update({name: torch.zeros(2)}))
    with pytest.raises(UserError, match=r"1 left over .*extra\.weight"):
        getattr(open_base(str(transformers_folder)), part)()


def test_the_config_does_not_tell_the_folders_that_its_parts_were_read_from(
    transformers_folder: Path, tmp_path: Path
) -> None:
    base = open_base(str(transformers_folder))
    codec, text_encoder = base.codec(), base.text_encoder()
    parts: list[Any] = [codec.model, text_encoder.encoder]
    for part in parts:
        part.config._name_or_path = "/a/secret/place"
    transformers_format.write_folder(tmp_path, base.lm_state(), base.lm_config, codec, text_encoder)
    assert "secret" not in (tmp_path / "config.json").read_text()


def test_a_tensor_of_another_shape_is_listed(transformers_folder: Path) -> None:
    name = "audio_encoder.quantizer.layers.0.codebook.embed"
    edit_weights(transformers_folder, lambda tensors: tensors.update({name: torch.zeros(3, 64)}))
    with pytest.raises(UserError, match=r"1 of another shape .*embed \(3, 64\), expected \(256, 64\)"):
        open_base(str(transformers_folder)).codec()


def test_a_folder_without_its_tokenizer_is_refused(transformers_folder: Path) -> None:
    for file in transformers_folder.glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        open_base(str(transformers_folder)).text_encoder()


def test_a_model_as_wide_as_its_text_encoder_is_not_written(
    make_lm: Callable[..., LanguageModel], nano_codec: Codec, text_encoder: TextEncoder, tmp_path: Path
) -> None:
    lm = make_lm(dim=64, num_heads=4, text_dim=64, card=256)
    with pytest.raises(UserError, match="export with --format audiocraft"):
        transformers_format.write_folder(tmp_path, lm.state_dict(), lm.config, nano_codec, text_encoder)


# ---- what is written -------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_the_hubs_repositories_hold(transformers_folder: Path) -> None:
    names = {file.name for file in transformers_folder.iterdir()}
    expected = {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"}
    assert expected | {"tokenizer.json", "tokenizer_config.json"} <= names
    config = json.loads((transformers_folder / "config.json").read_text())
    assert config["architectures"] == ["MusicgenForConditionalGeneration"]
    assert config["decoder"]["decoder_start_token_id"] == 256
    generation = json.loads((transformers_folder / "generation_config.json").read_text())
    assert generation["do_sample"] is True
    assert (generation["guidance_scale"], generation["top_k"], generation["max_length"]) == (3.0, 31, 1500)


def test_a_half_precision_model_keeps_codec_and_t5_in_fp32(
    tmp_path: Path, toy_lm: LanguageModel, nano_codec: Codec, text_encoder: TextEncoder
) -> None:
    half = {name: value.half() for name, value in toy_lm.state_dict().items()}
    transformers_format.write_folder(tmp_path, half, toy_lm.config, nano_codec, text_encoder)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        dtypes = {(name.split(".")[0], file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118
    assert dtypes == {
        ("decoder", torch.float16),
        ("enc_to_dec_proj", torch.float16),
        ("audio_encoder", torch.float32),
        ("text_encoder", torch.float32),
    }
    base = open_base(str(tmp_path))
    assert {value.dtype for value in base.lm_state().values()} == {torch.float16}
    assert {value.dtype for value in base.lm().state_dict().values()} == {torch.float32}
