"""Adapters against the real PEFT, on every variant of MusicGen: logits, files, merged weights."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    MusicgenConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyForConditionalGeneration,
)

from musicgen_ft.checkpoint import transformers_format
from musicgen_ft.checkpoint.adapter import Adapter, load_adapter, read_adapter, write_adapter
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.checkpoint.names import State, adapter_pairs, from_ours, transformers_pairs
from musicgen_ft.chroma import ChromaSpec, MelodyStates, generation_melody
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LanguageModel, LMConfig
from musicgen_ft.model.lora import adapter_spec, choose_trained, merged
from musicgen_ft.peers import transformers
from musicgen_ft.peers.engines import open_mixer
from musicgen_ft.training.ema import trainable

DESCRIPTIONS = ["slow warm piano", None]
TOLERANCE = 1e-5
# A melody of 30 frames: further out the positions of transformers are 1e-5 away from ours by themselves.
CHROMA = ChromaSpec(sample_rate=16000, n_fft=65536, hop_length=16384)

# The released models at toy width: heads and layers in their order of size, the same parts.
SIZES = {
    "small": {"dim": 16, "num_heads": 2, "num_layers": 2, "ffn_dim": 40},
    "medium": {"dim": 24, "num_heads": 3, "num_layers": 3, "ffn_dim": 56},
    "large": {"dim": 32, "num_heads": 4, "num_layers": 3, "ffn_dim": 72},
}
VARIANTS = [
    *("small", "medium", "large", "stereo-small", "stereo-medium", "stereo-large"),
    *("melody", "melody-large", "stereo-melody", "stereo-melody-large"),
]

# What people train: all linear layers of the transformer, attention alone, and, as the dreambooth script for MusicGen
# does, projections, heads and embeddings.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "dora": {"method": "dora"},
    "attention": {"method": "lora", "lora_targets": ("*_attn",), "lora_alpha": 7.0},
    "whole": {
        "method": "lora",
        "lora_targets": ("layers.*.fc1", "heads.1"),
        "lora_whole": ("text_proj", "embeddings.2"),
    },
    "projections": {"method": "dora", "lora_targets": ("*_proj",), "lora_whole": ("out_norm", "*.ffn_norm")},
}


class Variant:
    """A toy of a released model in a folder of transformers', opened by both sides, and what they are compared on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = open_base(str(folder))
        config = self.base.lm_config
        self.config = config
        self._generator = transformers.open_generator(folder)
        generator = torch.Generator().manual_seed(3)
        self.codes = torch.randint(config.card, (2, config.n_q, 9), generator=generator)
        self.chroma = None if config.chroma is None else torch.randint(12, (2, 13), generator=generator)

    def generator(self) -> Any:
        """transformers' model, to change."""
        return copy.deepcopy(self._generator)

    def peft(self, folder: Path) -> Any:
        """PEFT's model of an adapter; a warning, such as of keys that it misses, is an error."""
        generator = self.generator()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            return PeftModel.from_pretrained(generator, str(folder))

    def theirs(self, generator: Any) -> Tensor:
        """Logits of a model of theirs."""
        sequence = self.base.lm_config.make_pattern().interleave(self.codes, self.config.card)
        return transformers.logits(generator, sequence, DESCRIPTIONS, self.chroma)

    @torch.no_grad()
    def ours(self, lm: LanguageModel) -> Tensor:
        """Logits of ours."""
        sequence = lm.pattern.interleave(self.codes, self.config.card)
        melody: MelodyStates | None = None
        if self.chroma is not None:
            assert self.config.chroma is not None
            melody = generation_melody(self.chroma, self.config.chroma, duration_s=self.config.max_duration_s)
        logits: Tensor = lm.eval()(sequence, self.base.text_encoder().encode(DESCRIPTIONS), melody=melody)
        return logits


@pytest.fixture(scope="session")
def variant(
    tmp_path_factory: pytest.TempPathFactory, make_lm: Callable[..., LanguageModel], nano_folder: Path
) -> Callable[[str], Variant]:
    """A function that makes a released model's toy, once."""
    made: dict[str, Variant] = {}

    def make(name: str) -> Variant:
        if name not in made:
            channels = 2 if name.startswith("stereo") else 1
            nano = open_base(str(nano_folder), channels=channels)
            changes: dict[str, Any] = SIZES[next((size for size in SIZES if name.endswith(size)), "medium")]
            changes = changes | {"card": 256, "text_dim": 64, "channels": channels, "n_q": 4 * channels}
            changes |= {"delays": tuple(k // channels for k in range(4 * channels))}
            if "melody" in name:
                changes |= {"conditioning": "prefix", "chroma": CHROMA}
            lm = make_lm(**changes)
            folder = tmp_path_factory.mktemp(name)
            transformers_format.write_folder(folder, lm.state_dict(), lm.config, nano.codec(), nano.text_encoder())
            made[name] = Variant(folder)
        return made[name]

    return make


def train(lm: LanguageModel, changes: dict[str, Any], *, seed: int = 7) -> Adapter:
    """What a run would have trained: everything that is trained, walked away from where it began."""
    config = FinetuneConfig(lora_rank=3, **changes)
    choose_trained(lm, config)
    torch.manual_seed(seed)
    for _, parameter in trainable(lm):
        parameter.data += 0.05 * torch.randn_like(parameter)
    spec = adapter_spec(config)
    assert spec is not None
    return Adapter({name: parameter.detach() for name, parameter in trainable(lm)}, spec, "toy")


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


# ---- ours to PEFT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_peft_opens_an_adapter_of_every_variant_with_the_same_logits(
    variant: Callable[[str], Variant], tmp_path: Path, name: str, method: str
) -> None:
    check(variant(name), METHODS[method], tmp_path)


@pytest.mark.parametrize("name", ["small", "stereo-melody"])
@pytest.mark.parametrize("method", ["attention", "whole", "projections"])
def test_peft_opens_an_adapter_of_any_modules_with_the_same_logits(
    variant: Callable[[str], Variant], tmp_path: Path, name: str, method: str
) -> None:
    check(variant(name), METHODS[method], tmp_path)


def check(variant: Variant, changes: dict[str, Any], tmp_path: Path) -> None:
    lm, base = variant.base.lm(), variant.base.lm_state()
    plain = variant.ours(lm)
    adapter = train(lm, changes)
    write_adapter(tmp_path, adapter, variant.config, base)

    expected = variant.ours(lm)
    model = variant.peft(tmp_path)
    assert difference(variant.theirs(model), expected) < TOLERANCE  # measured 3e-6
    assert difference(expected, plain) > 0.05  # else this tells nothing

    # Merged by them and by us: the same weights, bit by bit, and the same logits.
    ours = merged(base, adapter.tensors, adapter.spec)
    theirs: State = model.merge_and_unload().state_dict()
    for pair in transformers_pairs(variant.config):
        (weight,) = from_ours({pair.ours[0]: ours[pair.ours[0]]}, [pair]).values()
        assert torch.equal(theirs[pair.theirs[0]], weight), pair.ours[0]
    again = variant.base.lm()
    load_adapter(again, tmp_path)
    assert difference(variant.ours(again), expected) < TOLERANCE


def test_every_tensor_of_the_file_is_one_that_peft_asks_for(variant: Callable[[str], Variant], tmp_path: Path) -> None:
    """Saved again by PEFT, the file has the same names and bytes."""
    toy = variant("small")
    adapter = train(toy.base.lm(), METHODS["projections"])
    write_adapter(tmp_path, adapter, toy.config, toy.base.lm_state())
    toy.peft(tmp_path).save_pretrained(str(tmp_path / "again"))

    found, expected = (read_adapter(folder, toy.config) for folder in (tmp_path / "again", tmp_path))
    assert found.spec == expected.spec == adapter.spec
    assert found.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in adapter.tensors.items())


# ---- blended ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "stereo-melody"])
def test_adapters_blend_as_by_pefts_add_weighted_adapter(
    variant: Callable[[str], Variant], tmp_path: Path, name: str
) -> None:
    """By its ``cat``, which sums the updates; its ``linear`` sums A and B each, which is another model."""
    toy = variant(name)
    lm, plain = toy.base.lm(), toy.base.lm_state()
    strengths = {"all": 0.8, "attention": 1.3, "fc1": 0.3}
    methods: dict[str, dict[str, Any]] = {
        "all": METHODS["lora"],
        "attention": METHODS["attention"],
        "fc1": {"method": "lora", "lora_targets": ("*.fc1", "heads.2"), "lora_alpha": 5.0},
    }
    for seed, (adapter, changes) in enumerate(methods.items()):
        (tmp_path / adapter).mkdir()
        write_adapter(tmp_path / adapter, train(toy.base.lm(), changes, seed=seed), toy.config, plain)

    mixer = open_mixer(lm, toy.base, {adapter: tmp_path / adapter for adapter in methods})
    mixer.blend(strengths)
    found = toy.ours(lm)

    model = toy.peft(tmp_path / "all")
    for adapter in methods:
        model.load_adapter(str(tmp_path / adapter), adapter)
    model.add_weighted_adapter(list(strengths), list(strengths.values()), "blend", combination_type="cat")
    model.set_adapter("blend")
    assert difference(found, toy.theirs(model)) < TOLERANCE
    for adapter in methods:
        mixer.blend({adapter: 1.0})
        model.set_adapter(adapter)
        assert difference(toy.ours(lm), toy.theirs(model)) < TOLERANCE
        assert difference(toy.ours(lm), found) > 0.05  # else this tells nothing
    mixer.blend({})
    assert all(torch.equal(value, plain[name]) for name, value in lm.state_dict().items())


# ---- PEFT's to ours --------------------------------------------------------------------------------------------------

DREAMBOOTH = ["enc_to_dec_proj", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"]


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize("name", ["medium", "stereo-melody"])
def test_an_adapter_of_pefts_making_opens_here(
    variant: Callable[[str], Variant], tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    """With the modules that the dreambooth script for MusicGen adapts: heads and embeddings among them."""
    toy = variant(name)
    targets = [*DREAMBOOTH, *(f"lm_heads.{k}" for k in range(4))]
    if "use_dora" not in changes:  # PEFT's DoRA of an embedding is another one
        targets += [f"embed_tokens.{k}" for k in range(4)]
    if "melody" in name:
        targets.append("audio_enc_to_dec_proj")
    config = LoraConfig(r=5, lora_alpha=9, target_modules=targets, **changes)
    model = get_peft_model(toy.generator(), config)
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(str(tmp_path))

    lm = toy.base.lm()
    plain = toy.ours(lm)
    load_adapter(lm, tmp_path)

    assert difference(toy.ours(lm), toy.theirs(model.eval())) < TOLERANCE  # measured 2e-6
    assert difference(toy.ours(lm), plain) > 0.05


def test_an_adapter_on_the_text_encoder_is_refused(variant: Callable[[str], Variant], tmp_path: Path) -> None:
    toy = variant("small")
    config = LoraConfig(r=2, target_modules=["q_proj", "text_encoder.encoder.block.0.layer.0.SelfAttention.q"])
    get_peft_model(toy.generator(), config).save_pretrained(str(tmp_path))

    with pytest.raises(UserError, match=r"does not fit this model: 2 of its \d+ tensors have no place there"):
        load_adapter(toy.base.lm(), tmp_path)


def test_an_adapter_of_another_size_is_refused(variant: Callable[[str], Variant], tmp_path: Path) -> None:
    small, large = variant("small"), variant("large")
    adapter = train(small.base.lm(), METHODS["lora"])
    write_adapter(tmp_path, adapter, small.config, small.base.lm_state())

    with pytest.raises(UserError, match=r"the adapter does not fit the base: .* has .*, expected .*Use the base"):
        load_adapter(large.base.lm(), tmp_path)


# ---- full width ------------------------------------------------------------------------------------------------------

FULL = {"small": (1024, 16), "medium": (1536, 24), "large": (2048, 32)}


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_fit_transformers_models_at_full_width(name: str) -> None:
    """On the meta device, with two of the layers: PEFT makes adapters of the same names and shapes there."""
    dim, num_heads = FULL[next((size for size in FULL if name.endswith(size)), "medium")]
    num_layers = 2
    channels = 2 if name.startswith("stereo") else 1
    melody: dict[str, Any] = {}
    if "melody" in name:
        melody = {"conditioning": "prefix", "chroma": ChromaSpec(sample_rate=32000, n_fft=16384, hop_length=4096)}
    config = LMConfig(
        dim=dim, num_heads=num_heads, num_layers=num_layers, ffn_dim=4 * dim, n_q=4 * channels, card=2048,
        delays=tuple(k // channels for k in range(4 * channels)), text_dim=768, channels=channels, **melody,
    )  # fmt: skip
    decoder = {"hidden_size": dim, "num_attention_heads": num_heads, "num_hidden_layers": num_layers}
    decoder |= {"ffn_dim": 4 * dim, "num_codebooks": 4 * channels, "audio_channels": channels, "vocab_size": 2048}
    parts: dict[str, Any] = {"text_encoder": {"model_type": "t5", "d_model": 768}, "decoder": decoder}
    parts["audio_encoder"] = {"model_type": "encodec"}
    with torch.device("meta"):
        theirs: Any = (
            MusicgenMelodyForConditionalGeneration(MusicgenMelodyConfig(**parts, num_chroma=12))
            if melody
            else MusicgenForConditionalGeneration(MusicgenConfig(**parts))
        )
        lm = LanguageModel(config)
    choose_trained(lm, FinetuneConfig(method="dora", lora_targets=("layers.*", "heads", "*_proj")))
    trained = dict(trainable(lm))
    theirs_of = {pair.ours[0]: pair.theirs[0] for pair in adapter_pairs(config)}
    model = get_peft_model(
        theirs, LoraConfig(r=16, use_dora=False, target_modules=sorted({module(theirs_of[name]) for name in trained}))
    )
    expected = {
        name.replace(".default", ""): value.shape for name, value in model.named_parameters() if "lora_" in name
    }

    found = {theirs_of[name]: value.shape for name, value in trained.items() if not name.endswith("magnitude")}
    assert found == expected
    modules = num_layers * (6 if melody else 10) + 4 * channels + (2 if melody else 1)
    assert len(trained) == 3 * modules


def module(theirs: str) -> str:
    return theirs.removeprefix("base_model.model.").partition(".lora_")[0]
