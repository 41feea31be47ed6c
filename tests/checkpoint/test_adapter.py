"""The folder of an adapter: written and read back, refused where it would not do what it says, really applied."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from musicgen_ft.checkpoint import adapter as adapter_module
from musicgen_ft.checkpoint.adapter import (
    Adapter,
    load_adapter,
    read_adapter,
    touched,
    write_adapter,
)
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.model.lora import adapter_spec, choose_trained
from musicgen_ft.training.ema import trainable
from musicgen_ft.weights import state_sha256

MakeLM = Callable[..., LanguageModel]
MELODY = {"conditioning": "prefix", "chroma": ChromaSpec(sample_rate=1200, n_fft=512, hop_length=128)}


def trained(lm: LanguageModel, **changes: Any) -> Adapter:
    """An adapter that a run would have trained, none of whose numbers is 0."""
    settings: dict[str, Any] = {"method": "lora", "lora_rank": 2, "lora_alpha": 3.0, "lora_targets": ("*.fc1",)}
    config = FinetuneConfig(**{**settings, **changes})
    choose_trained(lm, config)
    torch.manual_seed(1)
    for _, parameter in trainable(lm):
        parameter.data += 0.1 * torch.randn_like(parameter)
    spec = adapter_spec(config)
    assert spec is not None
    return Adapter({name: parameter.detach() for name, parameter in trainable(lm)}, spec, "somebody/base")


@pytest.fixture
def folder(tmp_path: Path, make_lm: MakeLM) -> Path:
    """An adapter on fc1, with a head trained whole."""
    base = make_lm().state_dict()
    write_adapter(tmp_path, trained(make_lm(), lora_whole=("heads.1",)), make_lm().config, base)
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_the_files_speak_transformers_and_pefts_language(folder: Path) -> None:
    values = json.loads((folder / "adapter_config.json").read_text())
    layers = "decoder.model.decoder.layers"
    assert (values["peft_type"], values["r"], values["lora_alpha"]) == ("LORA", 2, 3.0)
    assert values["target_modules"] == [f"{layers}.0.fc1", f"{layers}.1.fc1"]
    assert values["modules_to_save"] == ["decoder.lm_heads.1"]
    assert values["base_model_name_or_path"] == "somebody/base"
    assert values["auto_mapping"]["base_model_class"] == "MusicgenForConditionalGeneration"
    assert {name: tuple(value.shape) for name, value in load_file(folder / "adapter_model.safetensors").items()} == {
        **{f"base_model.model.{layers}.{i}.fc1.lora_A.weight": (2, 24) for i in (0, 1)},
        **{f"base_model.model.{layers}.{i}.fc1.lora_B.weight": (40, 2) for i in (0, 1)},
        "base_model.model.decoder.lm_heads.1.weight": (11, 24),
    }


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("melody", [{}, MELODY], ids=["text", "melody"])
def test_an_adapter_comes_back_bit_for_bit(
    tmp_path: Path, make_lm: MakeLM, method: str, melody: dict[str, Any]
) -> None:
    lm = make_lm(**melody)
    base = {name: value.clone() for name, value in lm.state_dict().items()}
    expected = trained(lm, method=method, lora_targets=("layers.*", "heads.3"), lora_whole=("out_norm", "embeddings"))
    write_adapter(tmp_path, expected, lm.config, base)

    found = read_adapter(tmp_path, lm.config)
    assert (found.spec, found.base) == (expected.spec, expected.base)
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.tensors.items())


def test_a_melody_models_text_projection_takes_the_other_one_with_it(tmp_path: Path, make_lm: MakeLM) -> None:
    """PEFT means both by ``enc_to_dec_proj``, and would miss the tensors of ``audio_enc_to_dec_proj``."""
    lm = make_lm(**MELODY)
    base = {name: value.clone() for name, value in lm.state_dict().items()}
    write_adapter(tmp_path, trained(lm, lora_whole=("text_proj",)), lm.config, base)

    modules = json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"]
    assert modules == ["audio_enc_to_dec_proj", "enc_to_dec_proj"]
    tensors = read_adapter(tmp_path, lm.config).tensors
    for name in ("chroma_proj.weight", "chroma_proj.bias"):
        assert torch.equal(tensors[name], base[name])


# ---- applied ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("melody", [{}, MELODY], ids=["text", "melody"])
def test_a_loaded_adapter_changes_its_weights_and_no_others(
    tmp_path: Path, make_lm: MakeLM, melody: dict[str, Any]
) -> None:
    lm, base = make_lm(**melody).train(), make_lm(**melody).state_dict()
    write_adapter(tmp_path, trained(make_lm(**melody), lora_whole=("heads.1",)), lm.config, base)
    adapter = load_adapter(lm, tmp_path)

    changed = {name for name, value in lm.state_dict().items() if not torch.equal(value, base[name])}
    assert changed == set(touched(adapter)) == {"layers.0.fc1.weight", "layers.1.fc1.weight", "heads.1.weight"}
    assert lm.training
    assert all(parameter.requires_grad for parameter in lm.parameters())


def test_a_strength_is_a_share_of_the_change(folder: Path, make_lm: MakeLM) -> None:
    plain, half, whole = make_lm(), make_lm(), make_lm()
    load_adapter(half, folder, strength=0.5)
    load_adapter(whole, folder)
    for name in ("layers.1.fc1.weight", "heads.1.weight"):
        before, found, after = (lm.state_dict()[name] for lm in (plain, half, whole))
        torch.testing.assert_close(found, (before + after) / 2)
    nothing = make_lm()
    load_adapter(nothing, folder, strength=0.0)
    assert state_sha256(nothing.state_dict()) == state_sha256(plain.state_dict())


def test_an_adapter_whose_b_is_zero_changes_nothing_and_may(folder: Path, make_lm: MakeLM) -> None:
    def silence(tensors: dict[str, Tensor]) -> None:
        tensors.pop("base_model.model.decoder.lm_heads.1.weight")
        for name in tensors:
            tensors[name] *= "lora_A" in name

    edit_tensors(folder, silence)
    lm = make_lm()
    load_adapter(lm, folder)
    assert state_sha256(lm.state_dict()) == state_sha256(make_lm().state_dict())


def test_an_adapter_that_leaves_the_logits_as_they_are_is_a_fault(
    folder: Path, make_lm: MakeLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the weights that it was merged into were not those that the model computes with."""
    lm = make_lm()
    state = {name: value.clone() for name, value in lm.state_dict().items()}
    monkeypatch.setattr(lm, "state_dict", lambda: state)
    with pytest.raises(RuntimeError, match="changes the weights, but not the logits"):
        load_adapter(lm, folder)


def test_the_logits_that_are_compared_depend_on_every_weight(make_lm: MakeLM) -> None:
    for melody in ({}, MELODY):
        lm = make_lm(**melody)
        before = adapter_module._some_logits(lm)
        assert torch.equal(adapter_module._some_logits(lm), before)
        for name, parameter in lm.named_parameters():
            own = parameter.data.clone()
            parameter.data += 0.1 * torch.randn_like(parameter)
            assert not torch.equal(adapter_module._some_logits(lm), before), name
            parameter.data = own


# ---- refused ---------------------------------------------------------------------------------------------------------


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path, make_lm: MakeLM) -> None:
    with pytest.raises(UserError, match=r"is no adapter: expected adapter_config\.json and adapter_model\.safetensors"):
        read_adapter(tmp_path, make_lm().config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "describes an adapter of type 'LOHA', expected 'LORA'"),
        ({"bias": "all"}, "bias is 'all', which is not supported. Merge it with PEFT"),
        ({"rank_pattern": {"fc1": 7}}, "rank_pattern is {'fc1': 7}, which is not supported"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16', which is not supported"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    folder: Path, make_lm: MakeLM, changes: dict[str, Any], message: str
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_adapter(make_lm(), folder)


def test_what_is_left_over_missing_or_of_another_shape_is_refused(folder: Path, make_lm: MakeLM) -> None:
    head = "base_model.model.decoder.lm_heads"
    fc1 = "base_model.model.decoder.model.decoder.layers.1.fc1"
    steps: list[tuple[Callable[[dict[str, Tensor]], object], str]] = [
        (
            lambda t: t.update({f"{head}.4.weight": t[f"{head}.1.weight"].clone()}),
            "1 of its 6 tensors have no place there",
        ),
        (
            lambda t: (t.pop(f"{head}.4.weight"), t.pop(f"{fc1}.lora_B.weight")),
            r"layers\.1\.fc1 has .* expected .*lora_B",
        ),
        (lambda t: t.update({f"{fc1}.lora_B.weight": torch.ones(41, 2)}), r"\(41, 2\).* expected .*\(40, 2\)"),
        (lambda t: t.clear(), "it holds nothing"),
    ]
    for change, message in steps:
        edit_tensors(folder, change)
        lm = make_lm()
        with pytest.raises(UserError, match=message):
            load_adapter(lm, folder)
        assert state_sha256(lm.state_dict()) == state_sha256(make_lm().state_dict())


def test_a_cut_file_is_refused(folder: Path, make_lm: MakeLM) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is damaged"):
        read_adapter(folder, make_lm().config)


# ---- hash ------------------------------------------------------------------------------------------------------------


def test_the_hash_of_a_model_is_that_of_its_numbers_in_either_format(
    audiocraft_folder: Path, transformers_folder: Path, toy_lm: LanguageModel
) -> None:
    expected = state_sha256(toy_lm.state_dict())
    assert state_sha256(open_base(str(audiocraft_folder)).lm_state()) == expected
    assert state_sha256(open_base(str(transformers_folder)).lm_state()) == expected
    state = {name: value.clone() for name, value in toy_lm.state_dict().items()}
    state["out_norm.bias"][3] += 1e-6
    assert state_sha256(state) != expected
    assert state_sha256({name: value.half() for name, value in state.items()}) != expected
