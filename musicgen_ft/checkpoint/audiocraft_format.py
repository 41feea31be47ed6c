"""The generator folder of audiocraft: ``state_dict.bin`` and ``compression_state_dict.bin`` (spec 1).

Each is a ``torch.save`` of ``best_state`` (name -> tensor), ``xp.cfg`` (YAML text), ``version`` and ``exported``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from musicgen_ft.checkpoint.audiocraft_pattern import read_pattern, write_pattern
from musicgen_ft.checkpoint.names import State, audiocraft_pairs, codec_pairs, lazily_from_ours, to_ours
from musicgen_ft.checkpoint.transformers_format import load_strictly
from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.codec import Codec
from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LMConfig
from musicgen_ft.weights import read_pickle, write_release

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
T5_FOLDER = "t5"
"""Folder beside the files that holds T5, where it is none of those that audiocraft knows by name."""
KNOWN_T5 = {
    "t5-small": 512, "t5-base": 768, "t5-large": 1024, "t5-3b": 1024, "t5-11b": 1024,
    "google/flan-t5-small": 512, "google/flan-t5-base": 768, "google/flan-t5-large": 1024,
}  # fmt: skip
"""Text encoders that audiocraft 1.3 accepts, and their widths."""
_CHROMA_WINDOW = "condition_provider.conditioners.self_wav.chroma.spec.window"
"""A buffer that melody models carry: the Hann window of their chroma. Dropped when read, made anew when written."""
_VERSION = "1.3.0"
"""Of audiocraft, whose format this is."""
_MIN_DURATION_S = 30.0
"""``MusicGen`` asserts that its extend_stride of 18 s is below this value (spec 1.4): never export less."""


class Package:
    """One opened file: its tensors and its config."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = read_pickle(path)

    @property
    def pretrained(self) -> str | None:
        """The hub id that a codec file may hold instead of weights."""
        value = self.content.get("pretrained")
        return None if value is None else str(value)

    @property
    def state(self) -> State:
        """Name -> tensor."""
        state = self.content.get("best_state")
        if not isinstance(state, dict) or "model" in state:
            raise UserError(
                f"{self.path} holds no exported 'best_state' but the keys {sorted(self.content)[:8]}: expected an "
                "audiocraft release, not a training checkpoint. Export it with audiocraft's export_lm first."
            )
        return state

    def config(self) -> DictConfig:
        """The config, unresolved: released files hold interpolations that need the trainer's environment."""
        text = self.content.get("xp.cfg")
        if not isinstance(text, str):
            raise UserError(f"{self.path} holds 'xp.cfg' of type {type(text).__name__}, expected YAML text.")
        try:
            config = OmegaConf.create(yaml.safe_load(text))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"{self.path}: 'xp.cfg' is not valid: {error}") from error
        assert isinstance(config, DictConfig)
        return config


def lm_config(config: DictConfig, state: State, *, text_dim: int) -> LMConfig:
    """Our numbers of an audiocraft config, refusing what our module does not compute.

    Args:
        config: of ``state_dict.bin``.
        state: its tensors, whose shapes tell ``hidden_scale`` where the config is silent.
        text_dim: width of the text encoder.
    """
    try:
        return _lm_config(config, state, text_dim)
    except (OmegaConfBaseException, KeyError) as error:
        raise UserError(f"{LM_FILE}: 'xp.cfg' is incomplete: {str(error).splitlines()[0]}.") from error


def _lm_config(config: DictConfig, state: State, text_dim: int) -> LMConfig:
    lm = config.transformer_lm
    conditioners = [name for name in config.get("conditioners", {}) if name != "args"]
    cross, prepend = list(config.fuser.cross), sorted(config.fuser.get("prepend") or [])
    is_text = (conditioners, cross, prepend) == (["description"], ["description"], [])
    is_melody = (sorted(conditioners), cross, prepend) == (["description", "self_wav"], [], ["description", "self_wav"])
    if not (is_text or is_melody):
        raise UserError(
            f"xp.cfg: conditioners {conditioners}, fused by {OmegaConf.to_container(config.fuser)}: expected text "
            "through cross-attention, or melody and text before the codes. Use small, medium, large or melody."
        )
    _expect(lm, activation="gelu", causal=True, norm_first=True, bias_ff=False, bias_attn=False, bias_proj=False)
    _expect(lm, positional_embedding="sin", qk_layer_norm=False, layer_scale=None, norm="layer_norm")
    return LMConfig(
        dim=lm.dim,
        num_heads=lm.get("num_heads", 8),  # audiocraft's own defaults where an old file is silent (spec 1.2)
        num_layers=lm.num_layers,
        ffn_dim=state["transformer.layers.0.linear1.weight"].shape[0],
        n_q=lm.n_q,
        card=lm.card,
        text_dim=text_dim,
        text_padding="audiocraft",
        channels=channels(config),
        max_duration_s=float(config.dataset.segment_duration),
        **read_pattern(config, lm.n_q),
        conditioning="prefix" if is_melody else "cross",
        chroma=_chroma_spec(config.conditioners.self_wav) if is_melody else None,
    )


def _chroma_spec(conditioner: DictConfig) -> ChromaSpec:
    if conditioner.model != "chroma_stem":
        raise UserError(f"xp.cfg: self_wav is of model {conditioner.model!r}, expected 'chroma_stem'. Use melody.")
    stem = conditioner.chroma_stem
    window = stem.get("winlen") or 2**stem.radix2_exp
    if not stem.get("argmax") or stem.get("nfft") not in (None, window):
        raise UserError(
            "xp.cfg: chroma_stem without argmax, or with an nfft of its own: the melody models have neither."
        )
    return ChromaSpec(
        sample_rate=stem.sample_rate,
        n_chroma=stem.n_chroma,
        n_fft=window,
        hop_length=stem.get("winhop") or window // 4,
    )


def channels(config: DictConfig) -> int:
    """Channels of the audio: 2 where the codebooks are those of left and right in turn.

    Raises:
        UserError: if they are interleaved in another way than the released models'.
    """
    if not OmegaConf.select(config, "interleave_stereo_codebooks.use"):
        return 1
    if OmegaConf.select(config, "interleave_stereo_codebooks.per_timestep"):
        raise UserError("xp.cfg: interleave_stereo_codebooks.per_timestep is true, expected false as in the releases.")
    return 2


def read_lm(package: Package, config: LMConfig) -> State:
    """The language model's tensors under our names, in the file's own dtype."""
    state = dict(package.state)
    if config.chroma is not None:
        state.pop(_CHROMA_WINDOW, None)
    return to_ours(state, audiocraft_pairs(config), where=str(package.path))


def read_codec(package: Package, *, id: str, channels: int) -> Codec:
    """The EnCodec of a file that holds one in full.

    Raises:
        UserError: if it is another architecture than MusicGen's EnCodec, or its tensors do not fit.
    """
    try:
        config = encodec_config(package.config())
    except (OmegaConfBaseException, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{package.path}: xp.cfg of the codec is incomplete: {reason}.") from error
    model = EncodecModel(config)
    pairs = codec_pairs(model.state_dict(), num_residual_layers=config.num_residual_layers)
    load_strictly(model, to_ours(package.state, pairs, where=str(package.path)), where=str(package.path))
    return Codec(model, id=id, channels=channels)


def encodec_config(config: DictConfig) -> EncodecConfig:
    """transformers' config of an audiocraft codec config. ``pad_mode`` is read, never assumed (spec 7.1)."""
    seanet, rvq, encodec = (OmegaConf.to_container(config[name], resolve=True) for name in ("seanet", "rvq", "encodec"))
    assert isinstance(seanet, dict) and isinstance(rvq, dict) and isinstance(encodec, dict)
    for name, value in {"activation": "ELU", "norm": "weight_norm", "disable_norm_outer_blocks": 0}.items():
        if seanet[name] != value:
            raise UserError(f"xp.cfg of the codec: seanet.{name} is {seanet[name]!r}, expected {value!r}.")
    frame_rate = encodec["sample_rate"] // int(torch.tensor(seanet["ratios"]).prod())
    return EncodecConfig(
        target_bandwidths=[bandwidth_kbps(rvq["n_q"], rvq["bins"], frame_rate)],
        sampling_rate=encodec["sample_rate"],
        audio_channels=encodec["channels"],
        normalize=encodec["renormalize"],
        hidden_size=seanet["dimension"],
        num_filters=seanet["n_filters"],
        num_residual_layers=seanet["n_residual_layers"],
        upsampling_ratios=seanet["ratios"],
        kernel_size=seanet["kernel_size"],
        last_kernel_size=seanet["last_kernel_size"],
        residual_kernel_size=seanet["residual_kernel_size"],
        dilation_growth_rate=seanet["dilation_base"],
        use_causal_conv=encodec["causal"],
        pad_mode=seanet["pad_mode"],
        compress=seanet["compress"],
        num_lstm_layers=seanet["lstm"],
        codebook_size=rvq["bins"],
        codebook_dim=seanet["dimension"],
        use_conv_shortcut=not seanet["true_skip"],
    )


def bandwidth_kbps(n_q: int, card: int, frame_rate: int) -> float:
    """The bandwidth by which transformers tells the number of codebooks, e.g. 2.2 for 4 of 2048 at 50 Hz."""
    return n_q * (card - 1).bit_length() * frame_rate / 1000


def lm_xp_config(config: LMConfig, *, text_encoder_id: str) -> dict[str, Any]:
    """The ``xp.cfg`` of a language model: every key that audiocraft reads, or would silently replace (spec 1.2)."""
    conditioners: dict[str, Any] = {
        "description": {
            "model": "t5",
            "t5": {"name": text_encoder_id, "finetune": False, "word_dropout": 0.0, "normalize_text": False},
        }
    }
    if config.chroma is not None:
        conditioners = {
            "self_wav": {"model": "chroma_stem", "chroma_stem": _chroma_stem(config.chroma)},
            **conditioners,
        }
    return {
        "solver": "musicgen",
        "lm_model": "transformer_lm",
        "dataset": {"segment_duration": max(config.max_duration_s, _MIN_DURATION_S)},
        "transformer_lm": {
            "n_q": config.n_q,
            "card": config.card,
            "dim": config.dim,
            "num_heads": config.num_heads,
            "num_layers": config.num_layers,
            "hidden_scale": _whole(config.ffn_dim / config.dim),
            "dropout": config.dropout,
            "emb_lr": None,
            "activation": "gelu",
            "norm": "layer_norm",
            "norm_first": True,
            "bias_ff": False,
            "bias_attn": False,
            "bias_proj": False,
            "past_context": None,
            "causal": True,
            "custom": False,
            "memory_efficient": True,
            "attention_as_float32": False,
            "layer_scale": None,
            "positional_embedding": "sin",
            "xpos": False,
            "checkpointing": "none",
            "weight_init": "gaussian",
            "depthwise_init": "current",
            "zero_bias_init": True,
            "cross_attention": False,
            "qk_layer_norm": False,
            "qk_layer_norm_cross": False,
            "attention_dropout": None,
            "kv_repeat": 1,
            "two_step_cfg": False,
        },
        "codebooks_pattern": write_pattern(config),
        "classifier_free_guidance": {"training_dropout": 0.3 if config.chroma is None else 0.2, "inference_coef": 3.0},
        "attribute_dropout": {} if config.chroma is None else {"text": {}, "wav": {"self_wav": 0.5}},
        "fuser": {
            "cross_attention_pos_emb": False,
            "cross_attention_pos_emb_scale": 1,
            "sum": [],
            "prepend": [] if config.chroma is None else ["self_wav", "description"],
            "cross": ["description"] if config.chroma is None else [],
            "input_interpolate": [],
        },
        "conditioners": conditioners,
        "channels": config.channels,
        "interleave_stereo_codebooks": {"use": config.channels == 2, "per_timestep": False},
    }


def _chroma_stem(spec: ChromaSpec) -> dict[str, Any]:
    if spec.n_fft & (spec.n_fft - 1):
        raise UserError(f"audiocraft's chroma takes windows of 2^n samples, found {spec.n_fft}.")
    return {
        "sample_rate": spec.sample_rate,
        "n_chroma": spec.n_chroma,
        "radix2_exp": spec.n_fft.bit_length() - 1,
        "winhop": spec.hop_length,
        "argmax": True,
        "match_len_on_eval": False,  # as released; MusicGen.get_pretrained switches it on
        "eval_wavs": None,
        "n_eval_wavs": 0,
        "cache_path": None,
    }


def codec_xp_config(config: Any, *, n_q: int) -> dict[str, Any]:
    """The ``xp.cfg`` of an EnCodec: the inverse of ``encodec_config``."""
    return {
        "compression_model": "encodec",
        "sample_rate": config.sampling_rate,
        "channels": config.audio_channels,
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": config.sampling_rate,
            "channels": config.audio_channels,
            "causal": config.use_causal_conv,
            "renormalize": config.normalize,
        },
        "seanet": {
            "dimension": config.hidden_size,
            "channels": config.audio_channels,
            "causal": config.use_causal_conv,
            "n_filters": config.num_filters,
            "n_residual_layers": config.num_residual_layers,
            "ratios": list(config.upsampling_ratios),
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm": "weight_norm",
            "norm_params": {},
            "kernel_size": config.kernel_size,
            "residual_kernel_size": config.residual_kernel_size,
            "last_kernel_size": config.last_kernel_size,
            "dilation_base": config.dilation_growth_rate,
            "pad_mode": config.pad_mode,
            "true_skip": not config.use_conv_shortcut,
            "compress": config.compress,
            "lstm": config.num_lstm_layers,
            "disable_norm_outer_blocks": 0,
            "decoder": {"trim_right_ratio": 1.0, "final_activation": None, "final_activation_params": None},
            "encoder": {},
        },
        "rvq": {
            "n_q": n_q,
            "q_dropout": False,
            "bins": config.codebook_size,
            "decay": 0.99,
            "kmeans_init": True,
            "kmeans_iters": 50,
            "threshold_ema_dead_code": 2,
            "orthogonal_reg_weight": 0.0,
            "orthogonal_reg_active_codes_only": False,
        },
    }


def write_folder(
    folder: Path, lm: Mapping[str, Tensor], config: LMConfig, codec: Codec, *, text_encoder_id: str
) -> None:
    """Writes ``state_dict.bin`` and ``compression_state_dict.bin`` into an existing folder.

    Args:
        folder: where to; files of the same names are overwritten.
        lm: the language model under our names, read one tensor at a time; its dtype is kept.
        config: its numbers.
        codec: the frozen EnCodec, written in full, so that nothing has to be fetched to play.
        text_encoder_id: a key of ``KNOWN_T5``, or ``T5_FOLDER``.
    """
    theirs = lazily_from_ours(lm, audiocraft_pairs(config))
    if config.chroma is not None:
        window = torch.hann_window(config.chroma.n_fft)
        theirs |= {_CHROMA_WINDOW: window.to(lm["chroma_proj.weight"].dtype)}
    _save(folder / LM_FILE, theirs, lm_xp_config(config, text_encoder_id=text_encoder_id))
    state = codec.model.state_dict()
    pairs = codec_pairs(state, num_residual_layers=codec.model.config.num_residual_layers)
    _save(
        folder / CODEC_FILE,
        lazily_from_ours(state, pairs),
        codec_xp_config(codec.model.config, n_q=codec.spec.n_q // codec.spec.channels),
    )


def _save(path: Path, state: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    text = yaml.safe_dump(config, sort_keys=False)
    write_release(path, "best_state", state, {"xp.cfg": text, "version": _VERSION, "exported": True})


def _expect(section: DictConfig, **expected: Any) -> None:
    silent = {"activation": "relu", "causal": False}  # audiocraft's defaults differ from what MusicGen has
    for name, value in expected.items():
        found = section.get(name, silent.get(name, value))
        if found != value:
            raise UserError(f"xp.cfg: transformer_lm.{name} is {found!r}, expected {value!r}: no MusicGen base.")


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value
