"""What of a language model is trained: all of it, all but what is frozen, or low-rank adapters on its linear layers.

r rank. LoRA (Hu et al., 2021) adds ``scale B A`` to a frozen matrix W; DoRA (Liu et al., 2024) learns the norms of its
rows too: ``magnitude (W + scale B A) / |W + scale B A|``. QLoRA (Dettmers et al., 2023) holds W in 4 bits. Adapters are
in fp32 whatever W is in. Equal to PEFT's (tests/parity/test_adapter.py).
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.low_bit import bitsandbytes
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.weights import LazyTensors, like_of

PARTS = ("lora_A", "lora_B", "magnitude", "lora_embedding_A", "lora_embedding_B")
"""Names of an adapter's tensors behind that of its module; those of an embedding are only ever read, never trained."""


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """The numbers of an adapter."""

    rank: int
    """r of A [r, in] and B [out, r]."""
    alpha: float
    """The update is scaled by alpha / r."""
    dropout: float = 0.0
    """Probability on the adapters' inputs, in training."""
    dora: bool = False
    """Whether the norms of the rows are learned too."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski, 2023); other people's adapters may."""

    @property
    def scale(self) -> float:
        """What the update B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def adapter_spec(config: FinetuneConfig) -> AdapterSpec | None:
    """The numbers of a run's adapters; None where it trains the weights themselves."""
    if config.method == "full":
        return None
    return AdapterSpec(
        rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout, dora=config.method == "dora"
    )


def is_partial(config: FinetuneConfig) -> bool:
    """Whether a run trains less than the whole model, so that its checkpoints need the base beside them."""
    return config.method != "full" or bool(config.freeze)


# ---- modules ---------------------------------------------------------------------------------------------------------


class FrozenLinear(nn.Linear):
    """A linear layer whose weight may be narrower than its input.

    Inside an autocast region of the weight's dtype the result is that of the fp32 weight, bit for bit, which would be
    rounded there anyway; elsewhere the weight is widened for the moment.
    """

    @classmethod
    def of(cls, linear: nn.Linear, dtype: torch.dtype) -> "FrozenLinear":
        """The same layer, frozen, in another dtype."""
        with torch.device("meta"):
            frozen = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        frozen.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        if linear.bias is not None:
            frozen.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        return frozen

    def forward(self, input: Tensor) -> Tensor:
        """``input`` [..., in] -> [..., out]."""
        weight = self.weight if torch.is_autocast_enabled(input.device.type) else self.weight.to(input.dtype)
        return F.linear(input, weight, self.bias)


class LoRALinear(nn.Module):
    """A frozen linear layer with an adapter, which changes nothing at first: B is zero.

    Dropout is on the adapter's path alone, in DoRA too, where PEFT drops out the layer's own input as well.
    """

    def __init__(self, base: nn.Linear, spec: AdapterSpec, generator: torch.Generator) -> None:
        super().__init__()
        device = base.weight.device
        self.base = base.requires_grad_(False)
        self.scale = spec.scale
        begin = torch.empty(spec.rank, base.in_features)  # drawn on the CPU: the same on every device
        nn.init.kaiming_uniform_(begin, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(begin.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, spec.rank, device=device))
        self.magnitude = nn.Parameter(_row_norms(base.weight.float())) if spec.dora else None
        self.dropout = nn.Dropout(spec.dropout) if spec.dropout else nn.Identity()

    @property
    def weight(self) -> Tensor:
        """The frozen weight; its dtype is what the model asks for."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., in] -> [..., out]."""
        out: Tensor = self.base(x)
        update = self.scale * F.linear(F.linear(self.dropout(x), self.lora_A), self.lora_B)
        if self.magnitude is None:
            return out + update
        # In fp32, and no gradient goes through the norms: the paper's section 4.3.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            norms = _row_norms(self.base.weight.float() + self.scale * (self.lora_B @ self.lora_A))
        bias = 0.0 if self.base.bias is None else self.base.bias
        adapted: Tensor = self.magnitude / norms * (out - bias + update) + bias
        return adapted.to(out.dtype)


def _row_norms(weight: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.norm(weight.detach(), dim=1)
    return norms


# ---- choosing --------------------------------------------------------------------------------------------------------


def choose_trained(
    lm: LanguageModel,
    config: FinetuneConfig,
    *,
    fresh: Collection[str] = (),
    compute_dtype: torch.dtype = torch.float32,
) -> None:
    """Sets what of a model is trained, and how the rest is held: call it once, on a model in fp32.

    Args:
        lm: changed in place: ``requires_grad`` of every parameter; adapters on linear layers; narrow frozen weights.
        config: of the run.
        fresh: modules that know nothing yet, e.g. ``text_proj`` after a change of text encoder; trained whole.
        compute_dtype: of matrix products in training.

    Raises:
        UserError: if a pattern matches nothing, or nothing is left to train.
    """
    modules = [name for name, module in lm.named_modules() if next(module.parameters(recurse=False), None) is not None]
    linears = [name for name in modules if isinstance(lm.get_submodule(name), nn.Linear)]
    frozen = matching(modules, config.freeze, "freeze")
    if untrained := sorted(frozen & set(fresh)):
        raise UserError(
            f"--freeze: {untrained[0]} begins anew with --text_encoder, it has to be trained. Leave it out."
        )
    whole, targets = set(modules) - frozen, set[str]()
    spec = adapter_spec(config)
    if spec is not None:
        whole = (matching(modules, config.lora_whole, "lora_whole") | set(fresh)) - frozen
        targets = matching(linears, config.lora_targets, "lora_targets") - whole - frozen
        if not targets:
            raise UserError("--lora_targets: every module that it names is frozen or trained whole. Name others.")
    for name in modules:
        lm.get_submodule(name).requires_grad_(name in whole)
    if not whole and not targets:
        raise UserError("--freeze: nothing is left to train. Freeze less.")
    _hold_frozen(lm, [name for name in linears if name not in whole], config, compute_dtype)
    if spec is not None:
        generator = torch.Generator().manual_seed(config.seed)
        for name in linears:  # in the model's order, whatever that of the patterns
            if name in targets:
                linear: Any = lm.get_submodule(name)
                lm.set_submodule(name, LoRALinear(linear, spec, generator))


def matching(names: Iterable[str], patterns: Iterable[str], option: str) -> set[str]:
    """The names that a pattern matches, themselves or something that they are part of: ``layers.0`` is all in it.

    Raises:
        UserError: if a pattern matches none; it tells the nearest names.
    """
    names, found = list(names), set[str]()
    for pattern in patterns:
        matched = {name for name in names if any(fnmatchcase(part, pattern) for part in _with_parents(name))}
        if not matched:
            known = dict.fromkeys(part for name in names for part in _with_parents(name))
            near = difflib.get_close_matches(pattern.replace("*", "0"), known, n=3, cutoff=0.3) or list(known)[:3]
            raise UserError(f"--{option} {pattern}: no module of that name. Near ones: {', '.join(near)}.")
        found |= matched
    return found


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def check_method(config: FinetuneConfig, accelerator: str) -> None:
    """Refuses what this machine cannot train, before anything is read.

    Raises:
        UserError: for qlora without a CUDA device, or without bitsandbytes.
    """
    if config.method != "qlora":
        return
    if accelerator != "gpu":
        raise UserError(
            f"--method qlora: weights in 4 bits need a CUDA device, found {accelerator}. Use --method lora."
        )
    bitsandbytes("--method qlora", instead="--method lora")


def _hold_frozen(lm: LanguageModel, names: Iterable[str], config: FinetuneConfig, compute_dtype: torch.dtype) -> None:
    """Holds the layers' frozen matrices in 4 bits, or in bf16; all else stays in fp32, the residual stream too."""
    chosen = "bf16" if config.base_dtype == "auto" and compute_dtype == torch.bfloat16 else config.base_dtype
    for name in names:
        linear = lm.get_submodule(name)
        if not name.startswith("layers.") or not isinstance(linear, nn.Linear):
            continue
        if config.method == "qlora":
            lm.set_submodule(name, in_4_bits(linear, compute_dtype))
        elif chosen == "bf16":
            lm.set_submodule(name, FrozenLinear.of(linear, torch.bfloat16))


def in_4_bits(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Linear:
    """The layer in bitsandbytes' NF4 with double quantization; the weight is quantized when it comes to its device."""
    bnb = bitsandbytes("--method qlora", instead="--method lora")
    with torch.device("meta"):
        quantized: nn.Linear = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=compute_dtype
        )
    weight = linear.weight.detach()
    quantized.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    if linear.bias is not None:
        quantized.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return quantized


# ---- merging ---------------------------------------------------------------------------------------------------------


def adapted_weight(weight: Tensor, parts: Mapping[str, Tensor], scale: float) -> Tensor:
    """A weight with its adapter merged into it, in fp32.

    Args:
        weight: [out, in], or [entries, dim] of an embedding.
        parts: the adapter's tensors by their names in ``PARTS``.
        scale: of the spec.
    """
    parts = {name: part.float() for name, part in parts.items()}
    if "lora_embedding_A" in parts:
        update = (parts["lora_embedding_B"] @ parts["lora_embedding_A"]).T
    else:
        update = parts["lora_B"] @ parts["lora_A"]
    merged = weight.float() + scale * update
    if "magnitude" in parts:
        merged = (parts["magnitude"] / _row_norms(merged))[:, None] * merged
    return merged


def merged(base: Mapping[str, Tensor], trained: Mapping[str, Tensor], spec: AdapterSpec | None) -> LazyTensors:
    """A whole model of what was trained over its base, each tensor made when it is asked for.

    Args:
        base: the base's tensors under our names, in any dtype.
        trained: whole tensors under their own names, and adapters' under ``{module}.{part}``.
        spec: of the adapters; None where there are none.

    Returns:
        The base's names; adapted weights are fp32.

    Raises:
        UserError: if a tensor does not fit the base: every one of ``trained`` is used, or it is an error.
    """
    parts = by_module(trained)
    like = like_of(base)
    _check_fit(like, trained, parts, spec)

    def make(name: str) -> Tensor:
        module = name.removesuffix(".weight")
        if spec is not None and module in parts and name != module:
            return adapted_weight(base[name], parts[module], spec.scale)
        return trained[name] if name in trained else base[name]

    adapted = {f"{module}.weight" for module in parts}
    shapes = {name: value.float() if name in adapted else trained.get(name, value) for name, value in like.items()}
    return LazyTensors(like_of(shapes), make)


def is_part(name: str) -> bool:
    """Whether a name is that of an adapter's tensor, and not of a whole one."""
    return name.rpartition(".")[2] in PARTS


def by_module(trained: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Module -> part -> tensor, of the adapters among what was trained."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in trained.items():
        module, _, part = name.rpartition(".")
        if is_part(name):
            found.setdefault(module, {})[part] = value
    return found


def touched_weights(trained: Mapping[str, Tensor]) -> list[str]:
    """The weights that were trained, whole or by an adapter, sorted."""
    whole = [name for name in trained if not is_part(name)]
    return sorted({*whole, *(f"{module}.weight" for module in by_module(trained))})


def _check_fit(
    base: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    parts: Mapping[str, Mapping[str, Tensor]],
    spec: AdapterSpec | None,
) -> None:
    wrong = []
    whole = {name: value.shape for name, value in trained.items() if not is_part(name)}
    for name, shape in whole.items():
        if name not in base:
            wrong.append(f"{name} has no place in it")
        elif shape != base[name].shape:
            wrong.append(f"{name} is {tuple(shape)}, the base's {tuple(base[name].shape)}")
    for module, of_module in parts.items():
        weight = base.get(f"{module}.weight")
        if weight is None or spec is None:
            wrong.append(f"{module} is no module of it")
            continue
        expected = _shapes(weight, spec, embedding="lora_embedding_A" in of_module)
        found = {name: tuple(part.shape) for name, part in of_module.items()}
        if found != expected:
            wrong.append(f"{module} has {found}, expected {expected}")
    if wrong:
        more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(
            f"the adapter does not fit the base: {'; '.join(wrong[:4])}{more}. Use the base it was made for."
        )


def _shapes(weight: Tensor, spec: AdapterSpec, *, embedding: bool) -> dict[str, tuple[int, ...]]:
    rows, columns = weight.shape
    if embedding:
        return {"lora_embedding_A": (spec.rank, rows), "lora_embedding_B": (columns, spec.rank)}
    shapes: dict[str, tuple[int, ...]] = {"lora_A": (spec.rank, columns), "lora_B": (rows, spec.rank)}
    return shapes | ({"magnitude": (rows,)} if spec.dora else {})
