"""The optimizer and its schedule."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from musicgen_ft.config import FinetuneConfig
from musicgen_ft.low_bit import bitsandbytes


def build_optimizer(model: nn.Module, config: FinetuneConfig, *, is_scaled: bool) -> torch.optim.Optimizer:
    """The optimizer that the config names, over what is trained.

    Args:
        model: whose parameters are trained where they require gradients.
        config: of the run.
        is_scaled: whether gradients are scaled, as fp16 needs it. A fused optimizer unscales them within its step, and
            then they would be clipped by a norm that is the scale's, not theirs.

    Raises:
        UserError: if bitsandbytes is missing.
    """
    groups = parameter_groups(model, weight_decay=config.weight_decay)
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adamw8bit":
        return adamw8bit(groups, lr=config.lr, betas=betas)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=not is_scaled)


def check_optimizer(config: FinetuneConfig) -> None:
    """Refuses what is not installed, before anything is read.

    Raises:
        UserError: if bitsandbytes is missing.
    """
    if config.optimizer == "adamw8bit":
        _bitsandbytes()


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Embeddings, other matrices, and norms with biases: the last do not decay (audiocraft decays everything)."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: Iterable[dict[str, Any]] = (
        {"params": [p for p in trained if id(p) in embeddings], "weight_decay": weight_decay, "optim_bits": 32},
        {"params": [p for p in trained if id(p) not in embeddings and p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def adamw8bit(groups: ParamsT, *, lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW with moments in blocks of 256 with 8 bits a value (arXiv:2110.02861).

    Where a group says so they stay in 32, which the paper's authors advise for embeddings; those of tensors below 4096
    values always do.

    Raises:
        UserError: if bitsandbytes is missing.
    """
    base: Any = _bitsandbytes().optim.AdamW8bit

    class AdamW8bit(base):  # type: ignore[misc]  # of a library that is not always there
        """Its bits may differ by group; the library has an override for the whole process, by identity."""

        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            config: dict[str, Any] = super().get_config(gindex, pindex, group)
            return config | {"optim_bits": group.get("optim_bits", 8)}

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=lr, betas=betas)
    return optimizer


def _bitsandbytes() -> Any:
    return bitsandbytes("--optimizer adamw8bit", instead="--optimizer adamw")


def warmup_cosine(step: int, *, warmup_steps: int, max_steps: int, min_ratio: float) -> float:
    """Share of the peak learning rate at a step, counted from 0: a linear rise, then half a cosine.

    Unlike audiocraft's, the first step is not lost to a rate of 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
