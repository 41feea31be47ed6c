"""The generator folder of transformers as hub repositories hold it (spec 8).

``MusicgenForConditionalGeneration``, or ``MusicgenMelodyForConditionalGeneration`` where there is a melody.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    EncodecConfig,
    EncodecFeatureExtractor,
    EncodecModel,
    GenerationConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyFeatureExtractor,
    T5Config,
    T5EncoderModel,
)

from musicgen_ft.checkpoint.names import State, lazily_from_ours, to_ours, transformers_pairs
from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.codec import Codec
from musicgen_ft.errors import UserError
from musicgen_ft.files import read_json
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LMConfig, usual_top_k
from musicgen_ft.weights import read_folder, write_safetensors

# The position table is recomputed by everyone; files from before transformers 5 still carry it.
_STALE = ("model.decoder.embed_positions.weights",)
_TOKENIZERS = ("tokenizer.json", "spiece.model")


Config: TypeAlias = MusicgenConfig | MusicgenMelodyConfig
_CONFIGS: dict[str, type[Config]] = {"musicgen": MusicgenConfig, "musicgen_melody": MusicgenMelodyConfig}
_EXTRACTORS = ("preprocessor_config.json", "processor_config.json")


def read_config(folder: Path) -> Config:
    """The composite config of a generator folder.

    Raises:
        UserError: if the folder holds another model.
    """
    values = read_json(folder / "config.json")
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type not in _CONFIGS:
        raise UserError(
            f"{folder / 'config.json'} describes a model of type {model_type!r}, expected 'musicgen' or "
            "'musicgen_melody'. Use a MusicGen such as facebook/musicgen-small."
        )
    return _CONFIGS[model_type].from_dict(values)


def lm_config(config: Config, folder: Path) -> LMConfig:
    """Our numbers of a transformers config. Dropout is 0, as MusicGen was trained, where transformers says 0.1.

    Args:
        config: of the generator folder.
        folder: the folder, whose feature extractor tells the numbers of a melody's chroma.
    """
    decoder: Any = config.decoder
    if decoder.activation_function != "gelu" or decoder.scale_embedding:
        raise UserError("config.json: expected activation_function 'gelu' and scale_embedding false, as MusicGen has.")
    text: Any = config.text_encoder
    return LMConfig(
        dim=decoder.hidden_size,
        num_heads=decoder.num_attention_heads,
        num_layers=decoder.num_hidden_layers,
        ffn_dim=decoder.ffn_dim,
        n_q=decoder.num_codebooks,
        card=decoder.vocab_size,
        delays=tuple(k // decoder.audio_channels for k in range(decoder.num_codebooks)),
        channels=decoder.audio_channels,
        text_dim=text.d_model,
        text_padding="transformers",
        **(_melody(config, folder) if isinstance(config, MusicgenMelodyConfig) else {}),
    )


def _melody(config: MusicgenMelodyConfig, folder: Path) -> dict[str, Any]:
    """What a melody adds to the numbers of a model."""
    codec: Any = config.audio_encoder
    values: dict[str, Any] = {}
    for name in _EXTRACTORS:
        if (folder / name).is_file():
            values = read_json(folder / name)
            values = values.get("feature_extractor", values)
    spec = ChromaSpec(
        sample_rate=values.get("sampling_rate", codec.sampling_rate),
        n_chroma=config.num_chroma,
        n_fft=values.get("n_fft", ChromaSpec.n_fft),
        hop_length=values.get("hop_length", ChromaSpec.hop_length),
    )
    if spec.num_frames(30 * spec.sample_rate) != config.chroma_length:
        raise UserError(
            f"config.json: chroma_length is {config.chroma_length}, expected {spec.num_frames(30 * spec.sample_rate)} "
            f"for the 30 s that MusicGen was trained on."
        )
    return {"conditioning": "prefix", "chroma": spec}


def read_lm(folder: Path, config: LMConfig) -> State:
    """The language model's tensors under our names."""
    theirs = {f"decoder.{name}": value for name, value in read_folder(folder, "decoder.").items() if name not in _STALE}
    for module in ("enc_to_dec_proj.", *(["audio_enc_to_dec_proj."] if config.chroma is not None else [])):
        theirs |= {module + name: value for name, value in read_folder(folder, module).items()}
    return to_ours(theirs, transformers_pairs(config), where=str(folder))


def read_codec(folder: Path, config: EncodecConfig, *, prefix: str, id: str, channels: int) -> Codec:
    """The EnCodec of a folder whose weights' names begin with ``prefix``."""
    model = EncodecModel(config)
    state = {_parametrized(name): value for name, value in read_folder(folder, prefix).items()}
    load_strictly(model, state, where=f"{folder}: EnCodec")
    return Codec(model, id=id, channels=channels)


def read_text_encoder(folder: Path, config: T5Config, *, prefix: str, id: str) -> TextEncoder:
    """The T5 encoder and its tokenizer of a folder whose weights' names begin with ``prefix``."""
    model = T5EncoderModel(config)
    state = read_folder(folder, prefix)
    shared = state.get("shared.weight", state.get("encoder.embed_tokens.weight"))
    if shared is not None:  # one tensor under two names; files hold one or both
        state["shared.weight"] = state["encoder.embed_tokens.weight"] = shared
    state = {name: value for name, value in state.items() if name.startswith(("shared.", "encoder."))}
    load_strictly(model, state, where=f"{folder}: T5")
    tokenizer = read_tokenizer(folder)
    if len(tokenizer) > config.vocab_size:  # else a run would end at the first caption with a word beyond
        raise UserError(
            f"{folder}: the tokenizer knows {len(tokenizer)} tokens, expected at most the {config.vocab_size} of its "
            "T5. The two belong to different models: fetch or save them together."
        )
    return TextEncoder(model, tokenizer, id=id)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, from its own files alone."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):  # transformers would make one without words
        raise UserError(f"{folder} holds no tokenizer, neither {' nor '.join(_TOKENIZERS)}. Fetch the base again.")
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no tokenizer: {str(error).splitlines()[0]} Fetch the base again.") from error


def load_strictly(model: torch.nn.Module, state: State, *, where: str) -> None:
    """Loads a state dict that must have exactly the model's names and shapes.

    Raises:
        UserError: listing what is missing, left over or of another shape.
    """
    own = model.state_dict()
    missing, left_over = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [
        f"{name} {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(state))
        if state[name].shape != own[name].shape
    ]
    if missing or left_over or shapes:
        raise UserError(
            f"{where}: the weights do not fit the config: {len(missing)} missing {missing[:5]}, "
            f"{len(left_over)} left over {left_over[:5]}, {len(shapes)} of another shape {shapes[:5]}."
        )
    model.load_state_dict(state)


def build_config(config: LMConfig, codec: Codec, text_encoder: TextEncoder) -> Config:
    """The composite config of a generator folder.

    Raises:
        UserError: where transformers could not hold the model.
    """
    text: Any = text_encoder.encoder.config
    if text.d_model == config.dim:
        raise UserError(
            f"transformers drops the text projection of a model whose width equals its text encoder's ({config.dim}): "
            "export with --format audiocraft."
        )
    if config.pattern != "delay" or config.delays != tuple(k // config.channels for k in range(config.n_q)):
        raise UserError(
            f"transformers knows no pattern {config.pattern} with delays {config.delays}: use --format audiocraft."
        )
    decoder_class = MusicgenDecoderConfig if config.chroma is None else MusicgenMelodyDecoderConfig
    decoder = decoder_class(
        vocab_size=config.card,
        hidden_size=config.dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        num_codebooks=config.n_q,
        audio_channels=codec.spec.channels,
        dropout=config.dropout,
        pad_token_id=config.card,
        bos_token_id=config.card,
    )
    # No field of transformers' class, but its trainers stop without it (spec 8.4).
    decoder.decoder_start_token_id = config.card
    parts: dict[str, Any] = {
        "text_encoder": _values(text),
        "audio_encoder": _values(codec.model.config),
        "decoder": _values(decoder),
    }
    if config.chroma is None:
        return MusicgenConfig(**parts)
    length = config.chroma.num_frames(int(config.max_duration_s * config.chroma.sample_rate))
    return MusicgenMelodyConfig(**parts, num_chroma=config.chroma.n_chroma, chroma_length=length)


def _values(config: Any) -> dict[str, Any]:
    """Of a part's config, without the folder that it was read from: what is written may be published."""
    values: dict[str, Any] = config.to_dict()
    values.pop("_name_or_path", None)
    return values


def write_folder(
    folder: Path, lm: Mapping[str, Tensor], config: LMConfig, codec: Codec, text_encoder: TextEncoder
) -> None:
    """Writes config, weights, tokenizer, feature extractor and generation defaults into an existing folder.

    Args:
        folder: where to; files of the same names are overwritten.
        lm: the language model under our names, read one tensor at a time; codec and T5 are stored in fp32 whatever its
            dtype.
        config: its numbers.
        codec: the frozen EnCodec.
        text_encoder: the frozen T5.
    """
    composite = build_config(config, codec, text_encoder)
    melody = "" if config.chroma is None else "Melody"
    composite.architectures = [f"Musicgen{melody}ForConditionalGeneration"]
    composite.dtype = "float32"  # also over float16 tensors: else T5 and codec would be opened in half precision
    composite.save_pretrained(folder)
    GenerationConfig(
        do_sample=True,
        guidance_scale=3.0,
        top_k=usual_top_k(config.card),  # transformers' own default is 50 (spec 8.5)
        max_length=round(config.max_duration_s * codec.spec.frame_rate),
        pad_token_id=config.card,
        bos_token_id=config.card,
        decoder_start_token_id=config.card,
    ).save_pretrained(folder)
    state = lazily_from_ours(lm, transformers_pairs(config))
    state |= {f"audio_encoder.{name}": value for name, value in codec.model.state_dict().items()}
    state |= {f"text_encoder.{name}": value for name, value in _untied(text_encoder.encoder.state_dict()).items()}
    write_safetensors(folder / "model.safetensors", state, {"format": "pt"})
    text_encoder.tokenizer.save_pretrained(folder)
    _write_feature_extractor(folder, codec, config)


def write_text_encoder(folder: Path, text_encoder: TextEncoder) -> None:
    """Writes T5 and its tokenizer as a folder of their own, which ``T5EncoderModel.from_pretrained`` opens."""
    folder.mkdir()
    encoder: Any = text_encoder.encoder
    encoder.config.save_pretrained(folder)
    write_safetensors(folder / "model.safetensors", _untied(encoder.state_dict()), {"format": "pt"})
    text_encoder.tokenizer.save_pretrained(folder)


def _untied(t5: State) -> State:
    """T5's tensors, each under one name: its embedding has two."""
    return {name: value for name, value in t5.items() if name != "encoder.embed_tokens.weight"}


def _write_feature_extractor(folder: Path, codec: Codec, config: LMConfig) -> None:
    if (chroma := config.chroma) is not None:
        MusicgenMelodyFeatureExtractor(
            feature_size=chroma.n_chroma,
            num_chroma=chroma.n_chroma,
            sampling_rate=chroma.sample_rate,
            n_fft=chroma.n_fft,
            hop_length=chroma.hop_length,
            chunk_length=round(config.max_duration_s),
        ).save_pretrained(folder)
        return
    EncodecFeatureExtractor(
        feature_size=codec.spec.channels, sampling_rate=codec.spec.sample_rate, padding_side="left", padding_value=0.0
    ).save_pretrained(folder)


def _parametrized(name: str) -> str:
    """Names of weight norm as transformers 5 has them; hub files of 2023 use the older ones."""
    name = name.replace("weight_g", "parametrizations.weight.original0")
    return name.replace("weight_v", "parametrizations.weight.original1")
