"""The names of the same tensors in our module, in audiocraft and in transformers: one table for each format.

A rule reads the same in both directions: the inverse converter is derived from the table. Tensors keep their dtype and
their values; packing is ``cat`` on axis 0, unpacking ``chunk``. Every name is consumed, or it is an error.
Source: spec 2.1, 7.3 and 8.2.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LMConfig
from musicgen_ft.weights import LazyTensors, like_of

State = dict[str, Tensor]


class Pair(NamedTuple):
    """The same numbers under our names and under theirs; several names on one side are packed into one on the other."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]


# {i} runs over the layers, {k} over the codebooks, {p} over weight and bias.
_AUDIOCRAFT: tuple[tuple[str | tuple[str, ...], str], ...] = (
    ("embeddings.{k}.weight", "emb.{k}.weight"),
    ("text_proj.{p}", "condition_provider.conditioners.description.output_proj.{p}"),
    ("chroma_proj.{p}", "condition_provider.conditioners.self_wav.output_proj.{p}"),
    (
        tuple(f"layers.{{i}}.self_attn.{x}_proj.weight" for x in "qkv"),
        "transformer.layers.{i}.self_attn.in_proj_weight",
    ),
    ("layers.{i}.self_attn.out_proj.weight", "transformer.layers.{i}.self_attn.out_proj.weight"),
    (
        tuple(f"layers.{{i}}.cross_attn.{x}_proj.weight" for x in "qkv"),
        "transformer.layers.{i}.cross_attention.in_proj_weight",
    ),
    ("layers.{i}.cross_attn.out_proj.weight", "transformer.layers.{i}.cross_attention.out_proj.weight"),
    ("layers.{i}.self_norm.{p}", "transformer.layers.{i}.norm1.{p}"),
    ("layers.{i}.cross_norm.{p}", "transformer.layers.{i}.norm_cross.{p}"),
    ("layers.{i}.ffn_norm.{p}", "transformer.layers.{i}.norm2.{p}"),
    ("layers.{i}.fc1.weight", "transformer.layers.{i}.linear1.weight"),
    ("layers.{i}.fc2.weight", "transformer.layers.{i}.linear2.weight"),
    ("out_norm.{p}", "out_norm.{p}"),
    ("heads.{k}.weight", "linears.{k}.weight"),
)

_LAYER = "decoder.model.decoder.layers.{i}"
_TRANSFORMERS: tuple[tuple[str | tuple[str, ...], str], ...] = (
    ("embeddings.{k}.weight", "decoder.model.decoder.embed_tokens.{k}.weight"),
    ("text_proj.{p}", "enc_to_dec_proj.{p}"),
    ("chroma_proj.{p}", "audio_enc_to_dec_proj.{p}"),
    *(
        (f"layers.{{i}}.{ours}.{x}_proj.weight", f"{_LAYER}.{theirs}.{x}_proj.weight")
        for ours, theirs in (("self_attn", "self_attn"), ("cross_attn", "encoder_attn"))
        for x in ("q", "k", "v", "out")
    ),
    ("layers.{i}.self_norm.{p}", f"{_LAYER}.self_attn_layer_norm.{{p}}"),
    ("layers.{i}.cross_norm.{p}", f"{_LAYER}.encoder_attn_layer_norm.{{p}}"),
    ("layers.{i}.ffn_norm.{p}", f"{_LAYER}.final_layer_norm.{{p}}"),
    ("layers.{i}.fc1.weight", f"{_LAYER}.fc1.weight"),
    ("layers.{i}.fc2.weight", f"{_LAYER}.fc2.weight"),
    ("out_norm.{p}", "decoder.model.decoder.layer_norm.{p}"),
    ("heads.{k}.weight", "decoder.lm_heads.{k}.weight"),
)


def audiocraft_pairs(config: LMConfig) -> list[Pair]:
    """Names of the language model: ours, and those of audiocraft's ``LMModel``."""
    return _expand(_AUDIOCRAFT, config)


def transformers_pairs(config: LMConfig) -> list[Pair]:
    """Names of the language model: ours, and those of transformers' ``MusicgenForConditionalGeneration``.

    Those of ``MusicgenMelodyForConditionalGeneration`` where the model takes a melody.
    """
    return _expand(_TRANSFORMERS, config)


def adapter_pairs(config: LMConfig) -> list[Pair]:
    """Names of all that an adapter may hold: ours, and those in the file that PEFT reads and writes.

    A module trained whole keeps its names; an adapter's tensors stand behind the module's (``model/lora.py``).
    """
    pairs = []
    for (ours,), (theirs,) in transformers_pairs(config):
        module, of_theirs = ours.removesuffix(".weight"), f"base_model.model.{theirs}".removesuffix(".weight")
        pairs.append(Pair((ours,), (f"base_model.model.{theirs}",)))
        if module.startswith("embeddings."):
            parts = {part: f".{part}" for part in ("lora_embedding_A", "lora_embedding_B")}
        elif module != ours and "norm" not in module:
            parts = {"lora_A": ".lora_A.weight", "lora_B": ".lora_B.weight", "magnitude": ".lora_magnitude_vector"}
        else:
            continue
        pairs += [Pair((f"{module}.{part}",), (of_theirs + suffix,)) for part, suffix in parts.items()]
    return pairs


def codec_pairs(names: Iterable[str], *, num_residual_layers: int) -> list[Pair]:
    """Names of an EnCodec: transformers' (which are ours) and audiocraft's.

    Args:
        names: the state dict's names in transformers' ``EncodecModel``.
        num_residual_layers: of the codec's config; it tells which decoder layers are transposed convolutions.
    """
    names = list(names)
    decoder_layers = [int(found[1]) for name in names if (found := re.match(r"decoder\.layers\.(\d+)\.", name))]
    # In the decoder: convolution, LSTM, then for each ratio an activation, a transposed convolution and the residual
    # layers; last an activation and a convolution.
    upsampling = set(range(3, max(decoder_layers), 2 + num_residual_layers))

    def audiocraft_name(name: str) -> str:
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        if name.startswith("quantizer."):
            return re.sub(r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", name)
        name = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", name)
        found = re.match(r"decoder\.model\.(\d+)\.conv\.", name)
        kind = "convtr" if found and int(found[1]) in upsampling else "conv"
        return name.replace(".conv.", f".{kind}.{kind}.")

    return [Pair((name,), (audiocraft_name(name),)) for name in names]


def to_ours(theirs: Mapping[str, Tensor], pairs: Iterable[Pair], *, where: str) -> State:
    """Their tensors under our names.

    Args:
        theirs: name -> tensor; every name must stand in ``pairs``, and every one of ``pairs`` here.
        pairs: from one of the functions above.
        where: the file or folder, for the error message.

    Raises:
        UserError: if names are missing or left over; it lists them.
    """
    pairs = list(pairs)
    _check_names(set(theirs), {name for pair in pairs for name in pair.theirs}, where)
    return _convert(theirs, [(pair.theirs, pair.ours) for pair in pairs])


def from_ours(ours: Mapping[str, Tensor], pairs: Iterable[Pair]) -> State:
    """Our tensors under their names: the inverse of ``to_ours``."""
    pairs = list(pairs)
    _check_names(set(ours), {name for pair in pairs for name in pair.ours}, "this model")
    return _convert(ours, [(pair.ours, pair.theirs) for pair in pairs])


def lazily_from_ours(ours: Mapping[str, Tensor], pairs: Iterable[Pair]) -> LazyTensors:
    """``from_ours``, each tensor converted when it is asked for."""
    pairs = list(pairs)
    pair_of = {name: pair for pair in pairs for name in pair.theirs}

    def make(name: str) -> Tensor:
        pair = pair_of[name]
        return from_ours({source: ours[source] for source in pair.ours}, [pair])[name]

    return LazyTensors(from_ours(like_of(ours), pairs), make)


def _convert(tensors: Mapping[str, Tensor], moves: Iterable[tuple[tuple[str, ...], tuple[str, ...]]]) -> State:
    moved: State = {}
    for sources, targets in moves:
        if len(sources) == len(targets):
            moved.update((target, tensors[source]) for source, target in zip(sources, targets, strict=True))
        elif len(targets) == 1:
            moved[targets[0]] = torch.cat([tensors[source] for source in sources])
        else:
            parts = tensors[sources[0]].chunk(len(targets))
            moved.update((target, part.contiguous()) for target, part in zip(targets, parts, strict=True))
    return moved


def _check_names(found: set[str], expected: set[str], where: str) -> None:
    missing, left_over = sorted(expected - found), sorted(found - expected)
    if missing or left_over:
        raise UserError(
            f"{where} does not hold the tensors of a MusicGen of its kind: "
            f"{_listed('missing', missing)}; {_listed('left over', left_over)}. Use an unchanged base."
        )


def _listed(what: str, names: list[str], most: int = 8) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {what}" + (f" ({', '.join(names[:most])}{more})" if names else "")


def _expand(rules: Iterable[tuple[str | tuple[str, ...], str]], config: LMConfig) -> list[Pair]:
    absent = ".cross_" if config.conditioning == "prefix" else "chroma_proj."
    pairs = []
    for ours, theirs in rules:
        names = (ours,) if isinstance(ours, str) else ours
        if absent in names[0]:
            continue
        for i in range(config.num_layers if "{i}" in theirs else 1):
            for k in range(config.n_q if "{k}" in theirs else 1):
                for p in ("weight", "bias") if "{p}" in theirs else ("",):
                    values = {"i": i, "k": k, "p": p}
                    pairs.append(Pair(tuple(n.format(**values) for n in names), (theirs.format(**values),)))
    return pairs
