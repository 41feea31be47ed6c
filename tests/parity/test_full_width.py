"""Every released text model at full width, on the meta device: names, shapes and counts, without its memory."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from audiocraft.models import builders
from audiocraft.modules import conditioners
from omegaconf import OmegaConf
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

from musicgen_ft.checkpoint.audiocraft_format import lm_xp_config
from musicgen_ft.checkpoint.names import audiocraft_pairs, from_ours, transformers_pairs
from musicgen_ft.checkpoint.stereo import stereo_config
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel, LMConfig
from musicgen_ft.peers import audiocraft

# Spec 1.1 and 1.2: width, heads, layers; numbers of the release in mono and stereo, from the sizes of its files.
RELEASES = {
    "small": (1024, 16, 24, 420_371_456, 437_152_768),
    "medium": (1536, 24, 48, 1_838_737_920, 1_863_909_888),
    "large": (2048, 32, 48, 3_256_956_928, 3_290_519_552),
}


def release(name: str) -> LMConfig:
    size, _, channels = name.partition("-")
    dim, num_heads, num_layers, _, _ = RELEASES[size]
    widths: dict[str, Any] = {
        "dim": dim,
        "num_heads": num_heads,
        "num_layers": num_layers,
        "ffn_dim": 4 * dim,
        "text_dim": 768,
    }
    mono = LMConfig(**widths, n_q=4, card=2048, delays=(0, 1, 2, 3))
    return stereo_config(mono) if channels else mono


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def ours(config: LMConfig) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return LanguageModel(config).state_dict()


every_release = pytest.mark.parametrize("name", [f"{size}{kind}" for size in RELEASES for kind in ("", "-stereo")])


@every_release
def test_the_number_of_parameters_is_that_of_the_released_file(name: str) -> None:
    size, _, is_stereo = name.partition("-")
    numbers = sum(value.numel() for value in ours(release(name)).values())
    assert numbers == RELEASES[size][4 if is_stereo else 3]


@every_release
def test_names_and_shapes_equal_those_of_audiocrafts_builder(
    name: str, text_encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditioners, "TorchAutocast", lambda **_: nullcontext())  # knows no meta device
    config = release(name)
    t5: Any = copy.deepcopy(text_encoder.encoder)
    wide = TextEncoder(t5, text_encoder.tokenizer, id="t5-base")
    t5.config.d_model = 768  # audiocraft asks T5 for its width alone
    xp = OmegaConf.create({**lm_xp_config(config, text_encoder_id="t5-base"), "device": "meta", "dtype": "float32"})
    with audiocraft.text_encoder_given(wide), torch.device("meta"):
        theirs = builders.get_lm_model(xp).state_dict()

    assert shapes(from_ours(ours(config), audiocraft_pairs(config))) == shapes(theirs)


@every_release
def test_names_and_shapes_equal_those_of_transformers_class(name: str) -> None:
    config = release(name)
    decoder = MusicgenDecoderConfig(
        hidden_size=config.dim,
        num_attention_heads=config.num_heads,
        num_hidden_layers=config.num_layers,
        ffn_dim=config.ffn_dim,
        num_codebooks=config.n_q,
        audio_channels=config.channels,
    )
    text, codec = T5Config(d_model=768, num_layers=1), EncodecConfig(num_filters=4)
    composite = MusicgenConfig(text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict())
    with torch.device("meta"):
        theirs = MusicgenForConditionalGeneration(composite).state_dict()
    lm = {name: value for name, value in theirs.items() if name.startswith(("decoder.", "enc_to_dec_proj."))}

    assert shapes(from_ours(ours(config), transformers_pairs(config))) == shapes(lm)
