"""Toy generators of both peers, built and saved by their own code, with weights none of which is 0 or 1."""

from pathlib import Path
from typing import Any

import pytest
import torch
from audiocraft.models import builders
from audiocraft.modules.conditioners import ConditioningAttributes
from omegaconf import DictConfig, OmegaConf
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyFeatureExtractor,
    MusicgenMelodyForConditionalGeneration,
)

from musicgen_ft.checkpoint import audiocraft_format, transformers_format
from musicgen_ft.checkpoint.base import Base, open_base
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.peers import audiocraft, transformers
from musicgen_ft.pretraining.untrained import NanoSizes, untrained_text_encoder

# As the released files have them (spec 1.2), with keys that are read by nobody; sizes all differ.
LM_CONFIG = """
solver: musicgen
device: cpu
dtype: float32
sample_rate: 1200
dora: {dir: '/checkpoint/${oc.env:NOT_SET_ANYWHERE}/experiments'}
lm_model: transformer_lm
dataset: {segment_duration: 30}
transformer_lm:
  n_q: 4
  card: 64
  dim: 48
  num_heads: 3
  num_layers: 2
  hidden_scale: 3
  dropout: 0.0
  emb_lr: null
  activation: gelu
  norm_first: true
  bias_ff: false
  bias_attn: false
  bias_proj: false
  past_context: null
  causal: true
  custom: false
  memory_efficient: true
  attention_as_float32: false
  layer_scale: null
  positional_embedding: sin
  xpos: false
  checkpointing: none
  weight_init: gaussian
  depthwise_init: current
  zero_bias_init: true
  norm: layer_norm
  cross_attention: false
  qk_layer_norm: false
  qk_layer_norm_cross: false
  attention_dropout: null
  kv_repeat: 1
  two_step_cfg: false
codebooks_pattern:
  modeling: delay
  delay: {delays: [0, 1, 2, 3], flatten_first: 0, empty_initial: 0}
classifier_free_guidance: {training_dropout: 0.3, inference_coef: 3.0}
attribute_dropout: {}
fuser:
  cross_attention_pos_emb: false
  cross_attention_pos_emb_scale: 1
  sum: []
  prepend: []
  cross: [description]
  input_interpolate: []
conditioners:
  description:
    model: t5
    t5: {name: t5-base, finetune: false, word_dropout: 0.3, normalize_text: false}
interleave_stereo_codebooks: {use: false, per_timestep: false}
"""

CODEC_CONFIG = """
device: cpu
compression_model: encodec
sample_rate: 1200
channels: 1
encodec:
  autoencoder: seanet
  quantizer: rvq
  sample_rate: ${sample_rate}
  channels: ${channels}
  causal: false
  renormalize: false
seanet:
  dimension: 16
  channels: ${channels}
  causal: ${encodec.causal}
  n_filters: 4
  n_residual_layers: 1
  ratios: [4, 3, 2]
  activation: ELU
  activation_params: {alpha: 1.0}
  norm: weight_norm
  norm_params: {}
  kernel_size: 7
  residual_kernel_size: 3
  last_kernel_size: 7
  dilation_base: 2
  pad_mode: constant
  true_skip: true
  compress: 2
  lstm: 2
  disable_norm_outer_blocks: 0
  decoder: {trim_right_ratio: 1.0, final_activation: null, final_activation_params: null}
  encoder: {}
rvq:
  n_q: 4
  q_dropout: false
  bins: 64
  decay: 0.99
  kmeans_init: true
  kmeans_iters: 5
  threshold_ema_dead_code: 2
  orthogonal_reg_weight: 0.0
  orthogonal_reg_active_codes_only: false
"""


def parse(text: str) -> DictConfig:
    config = OmegaConf.create(text)
    assert isinstance(config, DictConfig)
    return config


def perturb(module: torch.nn.Module) -> None:
    """Norms and biases off their initial 1 and 0, so that one which is forgotten or exchanged shows."""
    for name, parameter in module.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.3 * torch.randn_like(parameter)


@pytest.fixture(scope="session")
def text_encoder() -> TextEncoder:
    """A T5 of nano's shapes with random weights, by which toy models play more varied codes than by nano's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2306)
        return untrained_text_encoder(NanoSizes())


def build_audiocraft_lm(text_encoder: TextEncoder, config: str) -> Any:
    with audiocraft.text_encoder_given(text_encoder), audiocraft.without_demucs():
        lm = builders.get_lm_model(parse(config))
    perturb(lm)
    return lm.eval()


def build_audiocraft_codec() -> Any:
    codec = builders.get_compression_model(parse(CODEC_CONFIG)).train()
    codec(torch.randn(8, 1, 2400))  # the codebooks start as means of its latents
    return codec.eval()


def release(module: Any, config: str, path: Path) -> None:
    """Saves a module as audiocraft's ``export_lm`` and ``export_encodec`` do."""
    text = OmegaConf.to_yaml(parse(config))
    torch.save({"best_state": module.state_dict(), "xp.cfg": text, "version": "1.3.0", "exported": True}, path)


# The released stereo models: the mono codec on each channel, its codebooks in turn.
STEREO_LM_CONFIG = (
    LM_CONFIG.replace("n_q: 4", "n_q: 8")
    .replace("delays: [0, 1, 2, 3]", "delays: [0, 0, 1, 1, 2, 2, 3, 3]")
    .replace("interleave_stereo_codebooks: {use: false", "interleave_stereo_codebooks: {use: true")
    .replace("sample_rate: 1200", "sample_rate: 1200\nchannels: 2")
)


# The released melody models, with a chroma frame for 128 samples: 282 for 30 s.
MELODY_LM_CONFIG = (
    LM_CONFIG.replace("prepend: []", "prepend: [self_wav, description]")
    .replace("cross: [description]", "cross: []")
    .replace("attribute_dropout: {}", "attribute_dropout: {args: {active_on_eval: false}, wav: {self_wav: 0.5}}")
    .replace("training_dropout: 0.3", "training_dropout: 0.2")
    .replace(
        "conditioners:\n",
        """conditioners:
  self_wav:
    model: chroma_stem
    chroma_stem:
      sample_rate: ${sample_rate}
      n_chroma: 12
      radix2_exp: 9
      argmax: true
      match_len_on_eval: false
      eval_wavs: null
      n_eval_wavs: 100
      cache_path: null
""",
    )
)
MELODY_STEREO_LM_CONFIG = (
    MELODY_LM_CONFIG.replace("n_q: 4", "n_q: 8")
    .replace("delays: [0, 1, 2, 3]", "delays: [0, 0, 1, 1, 2, 2, 3, 3]")
    .replace("interleave_stereo_codebooks: {use: false", "interleave_stereo_codebooks: {use: true")
    .replace("sample_rate: 1200", "sample_rate: 1200\nchannels: 2")
)


def write_audiocraft_folder(folder: Path, text_encoder: TextEncoder, lm_config: str) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        release(build_audiocraft_lm(text_encoder, lm_config), lm_config, folder / "state_dict.bin")
        release(build_audiocraft_codec(), CODEC_CONFIG, folder / "compression_state_dict.bin")
    transformers_format.write_text_encoder(folder / audiocraft_format.T5_FOLDER, text_encoder)
    return folder


@pytest.fixture(scope="session")
def audiocraft_folder(tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder) -> Path:
    """A release of audiocraft's: 48 wide, 3 heads, 2 layers, 64 codes; T5 beside it."""
    return write_audiocraft_folder(tmp_path_factory.mktemp("audiocraft-release"), text_encoder, LM_CONFIG)


@pytest.fixture(scope="session")
def audiocraft_stereo_folder(tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder) -> Path:
    """The same in stereo: 8 codebooks."""
    return write_audiocraft_folder(tmp_path_factory.mktemp("audiocraft-stereo"), text_encoder, STEREO_LM_CONFIG)


@pytest.fixture(scope="session", params=["mono", "stereo"])
def audiocraft_melody_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder
) -> Path:
    """A release of the melody models', in mono and in stereo."""
    config = MELODY_LM_CONFIG if request.param == "mono" else MELODY_STEREO_LM_CONFIG
    return write_audiocraft_folder(tmp_path_factory.mktemp("audiocraft-melody"), text_encoder, config)


@pytest.fixture(scope="session")
def musicgen(audiocraft_folder: Path, text_encoder: TextEncoder) -> Any:
    """audiocraft's ``MusicGen`` on the release, by audiocraft's own loader."""
    return audiocraft.open_generator(audiocraft_folder, text_encoder)


@pytest.fixture(scope="session")
def conditions() -> Any:
    """A function from descriptions to audiocraft's conditions."""
    return lambda descriptions: [ConditioningAttributes(text={"description": text}) for text in descriptions]


@pytest.fixture(scope="session")
def audiocraft_base(audiocraft_folder: Path) -> Base:
    """The release, opened by us."""
    return open_base(str(audiocraft_folder))


@pytest.fixture(scope="session")
def lm_like_audiocraft(audiocraft_base: Base) -> LanguageModel:
    """Ours, with audiocraft's weights and audiocraft's padded text."""
    return audiocraft_base.lm().eval()


@pytest.fixture(scope="session")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder) -> Path:
    """A generator folder of transformers': 36 wide, 2 heads, 3 layers, 64 codes."""
    return write_transformers_folder(tmp_path_factory.mktemp("transformers-release"), text_encoder, channels=1)


@pytest.fixture(scope="session")
def transformers_stereo_folder(tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder) -> Path:
    """The same in stereo: 8 codebooks."""
    return write_transformers_folder(tmp_path_factory.mktemp("transformers-stereo"), text_encoder, channels=2)


@pytest.fixture(scope="session", params=["mono", "stereo"])
def transformers_melody_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder
) -> Path:
    """A generator folder of transformers' melody class, in mono and in stereo."""
    channels = 1 if request.param == "mono" else 2
    folder = tmp_path_factory.mktemp("transformers-melody")
    return write_transformers_folder(folder, text_encoder, channels=channels, melody=True)


def write_transformers_folder(folder: Path, text_encoder: TextEncoder, *, channels: int, melody: bool = False) -> Path:
    t5: Any = text_encoder.encoder
    sizes: dict[str, Any] = {"num_hidden_layers": 3, "ffn_dim": 100, "num_attention_heads": 2, "hidden_size": 36}
    special: dict[str, Any] = dict.fromkeys(("pad_token_id", "bos_token_id", "decoder_start_token_id"), 64)
    decoder = (MusicgenMelodyDecoderConfig if melody else MusicgenDecoderConfig)(
        vocab_size=64, num_codebooks=4 * channels, audio_channels=channels, **sizes, **special
    )
    codec = EncodecConfig(
        target_bandwidths=[1.2], sampling_rate=1200, num_filters=4, hidden_size=16, codebook_size=64, codebook_dim=16,
        upsampling_ratios=[4, 3, 2], use_causal_conv=False, use_conv_shortcut=False,
    )  # fmt: skip
    parts = {"text_encoder": t5.config.to_dict(), "audio_encoder": codec.to_dict(), "decoder": decoder.to_dict()}
    config: Any = MusicgenMelodyConfig(**parts, chroma_length=282) if melody else MusicgenConfig(**parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any = (MusicgenMelodyForConditionalGeneration if melody else MusicgenForConditionalGeneration)(config)
        perturb(model.decoder)
        projections = [model.enc_to_dec_proj.weight, *([model.audio_enc_to_dec_proj.weight] if melody else [])]
        for parameter in [*model.decoder.parameters(), *projections]:
            if parameter.ndim == 2:  # transformers begins with 0.02: all logits would be small
                parameter.data.normal_(std=0.2)
        for name, buffer in model.audio_encoder.named_buffers():
            if name.endswith("codebook.embed"):
                buffer.normal_()
    model.text_encoder.load_state_dict(t5.state_dict())
    for name, value in special.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    text_encoder.tokenizer.save_pretrained(folder)
    if melody:
        perturb(model.audio_enc_to_dec_proj)
        model.save_pretrained(folder)
        numbers: dict[str, Any] = {"sampling_rate": 1200, "n_fft": 512, "hop_length": 128}
        MusicgenMelodyFeatureExtractor(**numbers).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hf_musicgen(transformers_folder: Path) -> Any:
    """transformers' ``MusicgenForConditionalGeneration`` on the folder, by its own loader."""
    return transformers.open_generator(transformers_folder)


@pytest.fixture(scope="session")
def transformers_base(transformers_folder: Path) -> Base:
    """The folder, opened by us."""
    return open_base(str(transformers_folder))


@pytest.fixture(scope="session")
def lm_like_transformers(transformers_base: Base) -> LanguageModel:
    """Ours, with transformers' weights and transformers' padded text."""
    return transformers_base.lm().eval()
