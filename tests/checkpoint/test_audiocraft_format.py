"""audiocraft's files as they are released: what their configs say, leave out, or point to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from musicgen_ft.checkpoint import audiocraft_format
from musicgen_ft.checkpoint.audiocraft_format import CODEC_FILE, LM_FILE, Package, encodec_config, lm_xp_config
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.codec import Codec
from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LanguageModel

EditPackage = Callable[..., None]
STEM = {"sample_rate": 32000, "n_chroma": 12, "radix2_exp": 14, "argmax": True}
MELODY: dict[str, Any] = {
    "self_wav": {"model": "chroma_stem", "chroma_stem": STEM},
    "description": {"model": "t5", "t5": {"name": "t5-base"}},
}


def set_path(values: dict[str, Any], path: str, value: Any) -> None:
    """Sets ``a.b.c``; ``...`` removes it."""
    *parents, last = path.split(".")
    for parent in parents:
        values = values[parent]
    if value is ...:
        del values[last]
    else:
        values[last] = value


# ---- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [LM_FILE, CODEC_FILE])
def test_a_written_file_has_the_four_keys_of_a_release_and_a_config_of_plain_yaml(
    audiocraft_folder: Path, name: str
) -> None:
    package = torch.load(audiocraft_folder / name, weights_only=True)
    assert package.keys() == {"best_state", "xp.cfg", "version", "exported"}
    assert package["exported"] is True
    config = yaml.safe_load(package["xp.cfg"])
    assert OmegaConf.to_container(OmegaConf.create(package["xp.cfg"]), resolve=True) == config


def test_the_config_holds_every_root_that_audiocraft_reads(audiocraft_folder: Path) -> None:
    roots = {"lm_model", "dataset", "transformer_lm", "codebooks_pattern", "classifier_free_guidance"}
    assert roots | {"attribute_dropout", "fuser", "conditioners"} <= set(Package(audiocraft_folder / LM_FILE).config())


def test_a_config_that_is_written_says_again_what_was_read(audiocraft_folder: Path, toy_lm: LanguageModel) -> None:
    config = open_base(str(audiocraft_folder)).lm_config
    assert config == toy_lm.config
    written = OmegaConf.create(lm_xp_config(config, text_encoder_id="t5"))
    state = Package(audiocraft_folder / LM_FILE).state
    assert audiocraft_format.lm_config(written, state, text_dim=64) == config


@pytest.mark.parametrize(("duration_s", "exported_s"), [(5.0, 30.0), (18.0, 30.0), (30.0, 30.0), (60.0, 60.0)])
def test_no_segment_is_exported_that_audiocraft_could_not_open(
    make_lm: Callable[..., LanguageModel], duration_s: float, exported_s: float
) -> None:
    config = make_lm(max_duration_s=duration_s).config
    assert lm_xp_config(config, text_encoder_id="t5")["dataset"]["segment_duration"] == exported_s


def test_a_first_generation_file_without_version_opens(
    audiocraft_folder: Path, edit_package: EditPackage, toy_lm: LanguageModel
) -> None:
    for name in (LM_FILE, CODEC_FILE):
        edit_package(
            audiocraft_folder / name, content=lambda package: (package.pop("version"), package.pop("exported"))
        )
    base = open_base(str(audiocraft_folder))
    assert torch.equal(base.lm().out_norm.weight, toy_lm.out_norm.weight)
    assert base.codec().spec.n_q == 4


def test_half_precision_files_are_read_as_they_are_and_opened_in_fp32(
    audiocraft_folder: Path, edit_package: EditPackage, toy_lm: LanguageModel
) -> None:
    def halve(package: dict[str, Any]) -> None:
        package["best_state"] = {name: value.half() for name, value in package["best_state"].items()}

    edit_package(audiocraft_folder / LM_FILE, content=halve)
    base = open_base(str(audiocraft_folder))
    assert {value.dtype for value in base.lm_state().values()} == {torch.float16}
    for name, value in base.lm().state_dict().items():
        assert torch.equal(value, toy_lm.state_dict()[name].half().float())


def test_a_training_checkpoint_is_told_from_a_release(audiocraft_folder: Path, edit_package: EditPackage) -> None:
    def nest(package: dict[str, Any]) -> None:
        package["best_state"] = {"model": package["best_state"]}

    edit_package(audiocraft_folder / LM_FILE, content=nest)
    with pytest.raises(UserError, match="expected an audiocraft release, not a training checkpoint"):
        _ = open_base(str(audiocraft_folder)).lm_config


@pytest.mark.parametrize("value", [3, None, "a: [", "just words: : :"])
def test_a_config_that_is_no_yaml_text_is_refused(
    audiocraft_folder: Path, edit_package: EditPackage, value: object
) -> None:
    edit_package(audiocraft_folder / LM_FILE, content=lambda package: package.update({"xp.cfg": value}))
    with pytest.raises(UserError, match=r"state_dict\.bin.*'xp\.cfg'"):
        _ = open_base(str(audiocraft_folder)).lm_config


# ---- the language model's config -------------------------------------------------------------------------------------


def test_interpolations_that_need_the_trainers_environment_do_not_matter(
    audiocraft_folder: Path, edit_package: EditPackage, toy_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("USER_NOT_SET", raising=False)

    def add(values: dict[str, Any]) -> None:
        values["dora"] = {"dir": "/checkpoint/${oc.env:USER_NOT_SET}/experiments"}
        values["slurm"] = {"partition": "${unknown.section}"}
        values["interleave_stereo_codebooks"]["per_timestep"] = "${oc.env:USER_NOT_SET}"

    edit_package(audiocraft_folder / LM_FILE, config=add)
    assert open_base(str(audiocraft_folder)).lm_config == toy_lm.config


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("transformer_lm.num_heads", ..., {"num_heads": 8}),  # audiocraft's silent default
        ("transformer_lm.hidden_scale", ..., {"ffn_dim": 40}),  # from the tensors
        ("codebooks_pattern.delay.delays", ..., {"delays": (0, 1, 2, 3)}),
        ("codebooks_pattern.delay.delays", [0, 0, 1, 1], {"delays": (0, 0, 1, 1)}),
        ("codebooks_pattern.modeling", None, {"delays": (0, 1, 2, 3)}),
        ("codebooks_pattern.modeling", "parallel", {"pattern": "parallel", "delays": (0, 0, 0, 0)}),
        ("dataset.segment_duration", 12, {"max_duration_s": 12.0}),
        ("transformer_lm.dropout", 0.4, {"dropout": 0.0}),
        ("conditioners.args", {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5}, {"n_q": 4}),
        ("transformer_lm.q_modeling", None, {"n_q": 4}),
        ("interleave_stereo_codebooks", ..., {"n_q": 4}),
    ],
)
def test_what_a_config_says_or_leaves_out_is_read_as_audiocraft_reads_it(
    audiocraft_folder: Path, edit_package: EditPackage, path: str, value: object, found: dict[str, object]
) -> None:
    edit_package(audiocraft_folder / LM_FILE, config=lambda values: set_path(values, path, value))
    config = open_base(str(audiocraft_folder)).lm_config
    assert {name: getattr(config, name) for name in found} == found


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("transformer_lm.activation", ..., "transformer_lm.activation is 'relu', expected 'gelu'"),
        ("transformer_lm.causal", ..., "transformer_lm.causal is False, expected True"),
        ("transformer_lm.norm_first", False, "transformer_lm.norm_first is False"),
        ("transformer_lm.bias_attn", True, "transformer_lm.bias_attn is True"),
        ("transformer_lm.positional_embedding", "rope", "transformer_lm.positional_embedding is 'rope'"),
        ("transformer_lm.qk_layer_norm", True, "transformer_lm.qk_layer_norm is True"),
        ("codebooks_pattern.modeling", "stack_delay", "modeling is 'stack_delay', expected one of MusicGen's"),
        ("codebooks_pattern.delay.flatten_first", 2, "codebooks_pattern.delay.flatten_first is 2, expected 0"),
        ("codebooks_pattern.delay.empty_initial", 1, "codebooks_pattern.delay.empty_initial is 1, expected 0"),
        ("conditioners", MELODY, "expected text through cross-attention, or melody and text"),
        ("fuser", {"prepend": ["self_wav", "description"], "cross": []}, "expected text through cross-attention"),
        ("interleave_stereo_codebooks", {"use": True, "per_timestep": True}, "per_timestep is true, expected false"),
        ("transformer_lm", ..., "'xp.cfg' is incomplete: .*transformer_lm"),
        ("transformer_lm.n_q", ..., "'xp.cfg' is incomplete: .*n_q"),
        ("fuser", ..., "'xp.cfg' is incomplete: .*fuser"),
    ],
)
def test_what_this_toolkit_does_not_compute_is_refused_in_one_line(
    audiocraft_folder: Path, edit_package: EditPackage, path: str, value: object, message: str
) -> None:
    edit_package(audiocraft_folder / LM_FILE, config=lambda values: set_path(values, path, value))
    with pytest.raises(UserError, match=message) as caught:
        _ = open_base(str(audiocraft_folder)).lm_config
    assert "\n" not in str(caught.value)


MELODY_FUSER = {"prepend": ["self_wav", "description"], "cross": [], "sum": []}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "style", "style": {}}, "self_wav is of model 'style', expected 'chroma_stem'"),
        ({"chroma_stem": {**STEM, "argmax": False}}, "chroma_stem without argmax"),
        ({"chroma_stem": {**STEM, "nfft": 8192}}, "with an nfft of its own"),
        ({"chroma_stem": {}}, "'xp.cfg' is incomplete: .*radix2_exp"),
    ],
)
def test_a_wave_condition_that_is_no_melody_is_refused_in_one_line(
    audiocraft_folder: Path, edit_package: EditPackage, changed: dict[str, Any], message: str
) -> None:
    def change(values: dict[str, Any]) -> None:
        values["conditioners"] = {**MELODY, "self_wav": {**MELODY["self_wav"], **changed}}
        values["fuser"] = MELODY_FUSER

    edit_package(audiocraft_folder / LM_FILE, config=change)
    with pytest.raises(UserError, match=message) as caught:
        _ = open_base(str(audiocraft_folder)).lm_config
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "spec"),
    [
        ({}, ChromaSpec()),
        ({"radix2_exp": 11}, ChromaSpec(n_fft=2048, hop_length=512)),
        ({"winhop": 1000, "n_chroma": 24}, ChromaSpec(n_chroma=24, hop_length=1000)),
    ],
)
def test_the_numbers_of_a_melodys_chroma_are_read(
    audiocraft_folder: Path, edit_package: EditPackage, changed: dict[str, Any], spec: ChromaSpec
) -> None:
    def change(values: dict[str, Any]) -> None:
        stem = {"model": "chroma_stem", "chroma_stem": {**STEM, **changed}}
        values["conditioners"] = {**MELODY, "self_wav": stem}
        values["fuser"] = MELODY_FUSER

    edit_package(audiocraft_folder / LM_FILE, config=change)
    config = open_base(str(audiocraft_folder)).lm_config
    assert (config.conditioning, config.chroma) == ("prefix", spec)


def test_a_missing_tensor_is_listed_with_its_file(audiocraft_folder: Path, edit_package: EditPackage) -> None:
    name = "transformer.layers.1.cross_attention.in_proj_weight"
    edit_package(audiocraft_folder / LM_FILE, content=lambda package: package["best_state"].pop(name))
    with pytest.raises(UserError, match=r"state_dict\.bin .* 1 missing \(transformer\.layers\.1\.cross_attention"):
        open_base(str(audiocraft_folder)).lm()


# ---- T5 --------------------------------------------------------------------------------------------------------------


def test_the_width_of_a_known_t5_needs_no_download(audiocraft_folder: Path, edit_package: EditPackage) -> None:
    (audiocraft_folder / "t5").rename(audiocraft_folder.parent / "t5")
    path = audiocraft_folder / LM_FILE
    edit_package(path, config=lambda values: set_path(values, "conditioners.description.t5.name", "t5-large"))
    base = open_base(str(audiocraft_folder))
    assert (base.t5_id, base.lm_config.text_dim) == ("t5-large", 1024)
    with pytest.raises(UserError, match="base t5-large is neither a folder nor in the local cache"):
        base.text_encoder()


# ---- the codec -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad_mode", ["reflect", "constant"])
def test_the_codecs_pad_mode_is_read_from_the_file(
    audiocraft_folder: Path, edit_package: EditPackage, nano_codec: Codec, pad_mode: str
) -> None:
    edit_package(audiocraft_folder / CODEC_FILE, config=lambda values: set_path(values, "seanet.pad_mode", pad_mode))
    codec = open_base(str(audiocraft_folder)).codec()
    assert codec.model.config.pad_mode == pad_mode
    noise = 0.2 * torch.randn(1, 1, 16_000, generator=torch.Generator().manual_seed(0))
    is_equal = torch.equal(codec.encode(noise), nano_codec.encode(noise))
    assert is_equal == (pad_mode == nano_codec.model.config.pad_mode)


def test_interpolations_inside_the_codecs_config_are_resolved(
    audiocraft_folder: Path, edit_package: EditPackage
) -> None:
    def change(values: dict[str, Any]) -> None:
        values["dora"] = {"dir": "${oc.env:USER_NOT_SET}"}
        values["encodec"] |= {"sample_rate": "${sample_rate}", "channels": "${channels}"}
        values["seanet"] |= {"channels": "${channels}", "causal": "${encodec.causal}"}

    edit_package(audiocraft_folder / CODEC_FILE, config=change)
    assert open_base(str(audiocraft_folder)).codec().spec.sample_rate == 16_000


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seanet.norm", "none", "seanet.norm is 'none', expected 'weight_norm'"),
        ("seanet.activation", "ReLU", "seanet.activation is 'ReLU', expected 'ELU'"),
        ("encodec.causal", True, "is causal, normalises or chunks"),
        ("encodec.renormalize", True, "is causal, normalises or chunks"),
        ("seanet.dimension", 16, "of another shape"),
        ("seanet.lstm", 1, "left over"),
        ("rvq", ..., "xp.cfg of the codec is incomplete: .*rvq"),
        ("seanet.kernel_size", ..., "xp.cfg of the codec is incomplete: .*kernel_size"),
    ],
)
def test_another_codec_is_refused(
    audiocraft_folder: Path, edit_package: EditPackage, path: str, value: object, message: str
) -> None:
    edit_package(audiocraft_folder / CODEC_FILE, config=lambda values: set_path(values, path, value))
    with pytest.raises(UserError, match=message):
        open_base(str(audiocraft_folder)).codec()


def test_the_codecs_config_comes_back_from_what_is_written_of_it(nano_codec: Codec) -> None:
    written = OmegaConf.create(audiocraft_format.codec_xp_config(nano_codec.model.config, n_q=4))
    found, expected = encodec_config(written).to_dict(), nano_codec.model.config.to_dict()
    names = set(found) & set(expected) - {"architectures", "dtype", "transformers_version", "_name_or_path"}
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}


def test_a_codec_file_may_point_to_a_codec_of_transformers(
    audiocraft_folder: Path, tmp_path: Path, nano_codec: Codec
) -> None:
    nano_codec.model.save_pretrained(tmp_path / "encodec_toy")
    pointer = {"pretrained": str(tmp_path / "encodec_toy"), "exported": True, "version": "1.3.0"}
    torch.save(pointer, audiocraft_folder / CODEC_FILE)
    codec = open_base(str(audiocraft_folder)).codec()
    assert codec.spec.id == str(tmp_path / "encodec_toy")
    assert codec.spec.sha256 == nano_codec.spec.sha256


def test_a_pointer_to_nothing_is_told(audiocraft_folder: Path) -> None:
    torch.save({"pretrained": "facebook/encodec_32khz", "exported": True}, audiocraft_folder / CODEC_FILE)
    with pytest.raises(UserError, match="facebook/encodec_32khz is neither a folder nor in the local cache"):
        open_base(str(audiocraft_folder)).codec()
