"""Every released text or melody model at full width, on the meta device: names, shapes and counts, not its memory."""

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
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
)

from musicgen_ft.checkpoint.audiocraft_format import lm_xp_config
from musicgen_ft.checkpoint.names import audiocraft_pairs, from_ours, transformers_pairs
from musicgen_ft.checkpoint.stereo import stereo_config
from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel, LMConfig
from musicgen_ft.peers import audiocraft

# Spec 1.1 and 1.2: width, heads, layers.
SIZES = {"small": (1024, 16, 24), "medium": (1536, 24, 48), "large": (2048, 32, 48)}
# Numbers of each release, from the sizes of its file, which holds two bytes for each.
TEXT_RELEASES = {
    "small": 420_371_456,
    "medium": 1_838_737_920,
    "large": 3_256_956_928,
    "stereo-small": 437_152_768,
    "stereo-medium": 1_863_909_888,
    "stereo-large": 3_290_519_552,
}
MELODY_RELEASES = {
    "melody": 1_385_641_984,
    "melody-large": 2_451_496_960,
    "stereo-melody": 1_410_813_952,
    "stereo-melody-large": 2_485_059_584,
}
CHROMA = ChromaSpec(sample_rate=32000, n_chroma=12, n_fft=16384, hop_length=4096)  # spec 5
WINDOW = "condition_provider.conditioners.self_wav.chroma.spec.window"


def size_of(name: str) -> str:
    """``melody`` alone is as large as medium."""
    return next((size for size in SIZES if name.endswith(size)), "medium")


def release(name: str) -> LMConfig:
    dim, num_heads, num_layers = SIZES[size_of(name)]
    widths: dict[str, Any] = {
        "dim": dim,
        "num_heads": num_heads,
        "num_layers": num_layers,
        "ffn_dim": 4 * dim,
        "text_dim": 768,
    }
    melody: dict[str, Any] = {"conditioning": "prefix", "chroma": CHROMA} if "melody" in name else {}
    mono = LMConfig(**widths, **melody, n_q=4, card=2048, delays=(0, 1, 2, 3))
    return stereo_config(mono) if name.startswith("stereo") else mono


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def ours(config: LMConfig) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return LanguageModel(config).state_dict()


every_release = pytest.mark.parametrize("name", [*TEXT_RELEASES, *MELODY_RELEASES])


@every_release
def test_the_number_of_parameters_is_that_of_the_released_file(name: str) -> None:
    config = release(name)
    numbers = sum(value.numel() for value in ours(config).values())
    if config.chroma is not None:
        numbers += config.chroma.n_fft  # the window of the chroma: a buffer that lies in the file beside the parameters
    assert numbers == {**TEXT_RELEASES, **MELODY_RELEASES}[name]


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
    with audiocraft.text_encoder_given(wide), audiocraft.without_demucs(), torch.device("meta"):
        theirs = builders.get_lm_model(xp).state_dict()

    found = shapes(from_ours(ours(config), audiocraft_pairs(config)))
    if config.chroma is not None:
        found[WINDOW] = (config.chroma.n_fft,)
    assert found == shapes(theirs)


@pytest.mark.parametrize("name", TEXT_RELEASES)
def test_names_and_shapes_equal_those_of_transformers_class(name: str) -> None:
    config = release(name)
    composite = MusicgenConfig(**parts(config, MusicgenDecoderConfig))
    with torch.device("meta"):
        theirs = MusicgenForConditionalGeneration(composite).state_dict()

    assert shapes(from_ours(ours(config), transformers_pairs(config))) == shapes(of_the_lm(theirs))


@pytest.mark.parametrize("name", MELODY_RELEASES)
def test_names_and_shapes_equal_those_of_transformers_melody_class(name: str) -> None:
    config = release(name)
    assert config.chroma is not None
    length = config.chroma.num_frames(30 * config.chroma.sample_rate)
    melody: dict[str, Any] = {"num_chroma": config.chroma.n_chroma, "chroma_length": length}
    composite = MusicgenMelodyConfig(**parts(config, MusicgenMelodyDecoderConfig), **melody)
    with torch.device("meta"):
        theirs = MusicgenMelodyForConditionalGeneration(composite).state_dict()

    assert shapes(from_ours(ours(config), transformers_pairs(config))) == shapes(of_the_lm(theirs))
    assert length == MusicgenMelodyConfig().chroma_length == 235


def parts(config: LMConfig, decoder: Any) -> dict[str, Any]:
    """The configs of transformers' composite; T5 and EnCodec stand there for T5's width alone."""
    return {
        "text_encoder": T5Config(d_model=768, num_layers=1).to_dict(),
        "audio_encoder": EncodecConfig(num_filters=4).to_dict(),
        "decoder": decoder(
            hidden_size=config.dim,
            num_attention_heads=config.num_heads,
            num_hidden_layers=config.num_layers,
            ffn_dim=config.ffn_dim,
            num_codebooks=config.n_q,
            audio_channels=config.channels,
        ).to_dict(),
    }


def of_the_lm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(("text_encoder.", "audio_encoder."))}
