"""Adapters in PEFT's format: ``PeftModel.from_pretrained(model, folder)`` on transformers' MusicGen gives our logits.

``adapter_config.json`` and ``adapter_model.safetensors``, under transformers' names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from musicgen_ft.checkpoint.card import FACTS_FILE
from musicgen_ft.checkpoint.names import Pair, State, adapter_pairs, from_ours, to_ours
from musicgen_ft.chroma import generation_null
from musicgen_ft.errors import UserError
from musicgen_ft.files import read_json, write_json
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel, LMConfig
from musicgen_ft.model.lora import AdapterSpec, by_module, is_part, merged, touched_weights
from musicgen_ft.weights import write_safetensors

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# What changes the numbers and is not done here; PEFT's other fields only tell how the adapter was trained.
_REFUSED = (
    *("rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias", "layer_replication", "use_qalora", "use_bdlora"),
    *("trainable_token_indices", "alora_invocation_tokens", "kasa_config", "velora_config", "arrow_config"),
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin that subtract from the base's weights


@dataclass(frozen=True)
class Adapter:
    """What a run trained, to be laid over its base."""

    tensors: State
    """Adapters as ``{module}.lora_A`` and so on, and whole tensors, under our names."""
    spec: AdapterSpec
    """The numbers of the adapters."""
    base: str
    """Whom it was made for: a hub id or a folder's name."""


def write_adapter(folder: Path, adapter: Adapter, config: LMConfig, base: Mapping[str, Tensor]) -> None:
    """Writes both files into an existing folder.

    Args:
        folder: where to.
        adapter: what was trained; dtypes are kept.
        config: of the model.
        base: its tensors under our names.
    """
    pairs = adapter_pairs(config)
    ours_of = {pair.theirs[0]: pair.ours[0] for pair in pairs}
    theirs_of = {ours: theirs for theirs, ours in ours_of.items()}
    tensors = dict(adapter.tensors)
    whole = {theirs_of[name] for name in tensors if not is_part(name)}
    # PEFT tells modules that are trained whole by how their names end: enc_to_dec_proj means audio_enc_to_dec_proj too.
    for theirs, ours in ours_of.items():
        if ours not in tensors and ours in base and any(_module(theirs).endswith(_module(name)) for name in whole):
            tensors[ours] = base[ours]
            whole.add(theirs)
    kept = [pair for pair in pairs if pair.ours[0] in tensors]
    write_safetensors(folder / WEIGHTS_FILE, from_ours(tensors, kept), {"format": "pt"})
    adapted = (f"{module}.weight" for module in by_module(tensors))
    kind = "musicgen" if config.chroma is None else "musicgen_melody"
    model_class = (
        "MusicgenForConditionalGeneration" if config.chroma is None else "MusicgenMelodyForConditionalGeneration"
    )
    auto_mapping = {"base_model_class": model_class, "parent_library": f"transformers.models.{kind}.modeling_{kind}"}
    values = {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": auto_mapping,
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "r": adapter.spec.rank,
        "lora_alpha": adapter.spec.alpha,
        "lora_dropout": adapter.spec.dropout,
        "use_dora": adapter.spec.dora,
        "use_rslora": adapter.spec.rslora,
        "bias": "none",
        "target_modules": sorted(_module(theirs_of[name]) for name in adapted),
        "modules_to_save": sorted({_module(name) for name in whole}) or None,
    }
    write_json(folder / CONFIG_FILE, values)


def read_adapter(folder: Path, config: LMConfig) -> Adapter:
    """An adapter of ours or of PEFT's making.

    Raises:
        UserError: if it is none, is of a kind that is not done here, or was made for a model with other modules.
    """
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"{folder} is no adapter: expected {CONFIG_FILE} and {WEIGHTS_FILE} in it.")
    values = read_json(folder / CONFIG_FILE)
    spec = _read_spec(values, folder / CONFIG_FILE)
    theirs = _read_tensors(folder / WEIGHTS_FILE)
    kept = [pair for pair in adapter_pairs(config) if pair.theirs[0] in theirs]
    _refuse_left_over(theirs, kept, folder)
    return Adapter(to_ours(theirs, kept, where=str(folder)), spec, str(values.get("base_model_name_or_path") or ""))


@torch.no_grad()
def load_adapter(lm: LanguageModel, folder: Path, *, strength: float = 1.0) -> Adapter:
    """Merges an adapter into the weights of a model, in fp32, and makes sure that it is really applied.

    Every tensor of the file finds its module and fits it, or it is an error; and the model's logits change, unless the
    adapter changes no weight.

    Args:
        lm: changed in place.
        folder: in PEFT's format.
        strength: share of the change of every weight; 1 is all of it, as in training.

    Raises:
        UserError: if it does not fit the model.
    """
    adapter = read_adapter(folder, lm.config)
    state = lm.state_dict()
    try:
        new = merged(state, adapter.tensors, adapter.spec)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    before, has_changed = _some_logits(lm), False
    for name in touched(adapter):
        weight = state[name]
        value = torch.lerp(weight.float(), new[name].to(weight.device, torch.float32), strength).to(weight.dtype)
        if not name.startswith("embeddings."):  # of which the codes below may touch no row that was trained
            has_changed |= not torch.equal(value, weight)
        weight.copy_(value)
    if has_changed and torch.equal(_some_logits(lm), before):
        raise RuntimeError(f"the adapter {folder} changes the weights, but not the logits of the model")
    return adapter


def touched(adapter: Adapter) -> list[str]:
    """The weights that it changes, under our names."""
    return touched_weights(adapter.tensors)


def made_for(folder: Path) -> str | None:
    """Hash of the weights that an adapter was trained over (``state_sha256``); None where it does not say.

    Those that ``export`` wrote do; PEFT's format has no place for it.
    """
    facts = read_json(folder / FACTS_FILE) if (folder / FACTS_FILE).is_file() else None
    info = facts.get("info") if isinstance(facts, dict) else None
    found = info.get("base_sha256") if isinstance(info, dict) else None
    return found if isinstance(found, str) else None


def _some_logits(lm: LanguageModel) -> Tensor:
    """Logits on random codes, text and, where it takes one, melody: the same for the same weights."""
    config, weight = lm.config, lm.text_proj.weight
    generator = torch.Generator().manual_seed(0)
    sequence = torch.randint(config.card, (1, config.n_q, 8), generator=generator)
    states = torch.randn(1, 3, config.text_dim, generator=generator)
    text = TextStates(states, torch.ones(1, 3, dtype=torch.bool)).to(weight.device)
    melody = None
    if config.chroma is not None:
        melody = generation_null(1, config.chroma, duration_s=1).to(weight.device)
    was_training = lm.training
    logits: Tensor = lm.eval()(sequence.to(weight.device), text, melody=melody)
    lm.train(was_training)
    return logits


def _read_spec(values: Any, path: Path) -> AdapterSpec:
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        found = values.get("peft_type") if isinstance(values, dict) else values
        raise UserError(f"{path} describes an adapter of type {found!r}, expected 'LORA'.")
    unknown = [name for name in _REFUSED if values.get(name)]
    if values.get("bias", "none") != "none":
        unknown.append("bias")
    if str(values.get("init_lora_weights", True)).startswith(_CHANGES_BASE):
        unknown.append("init_lora_weights")
    if unknown:
        raise UserError(f"{path}: {unknown[0]} is {values[unknown[0]]!r}, which is not supported. Merge it with PEFT.")
    return AdapterSpec(
        rank=int(values["r"]),
        alpha=float(values["lora_alpha"]),
        dropout=float(values.get("lora_dropout") or 0.0),
        dora=bool(values.get("use_dora")),
        rslora=bool(values.get("use_rslora")),
    )


def _refuse_left_over(theirs: Mapping[str, Tensor], kept: list[Pair], folder: Path) -> None:
    left_over = sorted(set(theirs) - {pair.theirs[0] for pair in kept})
    if left_over or not theirs:
        what = f"{len(left_over)} of its {len(theirs)} tensors have no place there, as {left_over[:3]}"
        raise UserError(
            f"the adapter {folder} does not fit this model: {what if theirs else 'it holds nothing'}. "
            "Use the base that it was made for."
        )


def _read_tensors(path: Path) -> State:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}. Fetch it again.") from error


def _module(theirs: str) -> str:
    """``enc_to_dec_proj`` of ``base_model.model.enc_to_dec_proj.weight``."""
    return theirs.removeprefix("base_model.model.").rpartition(".")[0]
