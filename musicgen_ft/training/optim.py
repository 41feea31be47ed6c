"""The optimizer and its schedule."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.low_bit import bitsandbytes


def build_optimizer(model: nn.Module, config: FinetuneConfig, *, is_scaled: bool) -> torch.optim.Optimizer:
    """The optimizer that the config names, over what is trained.

    Args:
        model: whose parameters are trained where they require gradients.
        config: of the run.
        is_scaled: whether gradients are scaled, as fp16 needs it. A fused optimizer unscales them within its step, and
            then they would be clipped by a norm that is the scale's, not theirs.

    Raises:
        UserError: if bitsandbytes is missing, or nothing is trained that Muon could take.
    """
    betas = (config.beta1, config.beta2)
    if config.optimizer == "muon":
        return MuonAndAdamW(model, lr=config.lr, betas=betas, weight_decay=config.weight_decay)
    groups = parameter_groups(model, weight_decay=config.weight_decay)
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


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon for the matrices of the layers, its AdamW for embeddings, heads, norms and biases.

    Muon moves a matrix along the orthogonal one that is nearest to its momentum (kellerjordan.github.io/posts/muon).
    Its steps are scaled to be as large as AdamW's usually are (arXiv:2502.16982, section 2.2): one rate suits both.
    """

    def __init__(self, model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        """Takes what requires gradients.

        Args:
            model: the language model.
            lr: of both.
            betas: AdamW's.
            weight_decay: of matrices and embeddings.

        Raises:
            UserError: if no matrix of a layer is trained.
        """
        inner = {
            id(parameter)
            for name, parameter in model.named_parameters()
            if name.startswith("layers.") and parameter.ndim == 2 and parameter.requires_grad
        }
        if not inner:
            raise UserError("--optimizer muon: found no matrix of a layer that is trained. Use --optimizer adamw.")
        groups = parameter_groups(model, weight_decay=weight_decay)
        matrices = [parameter for group in groups for parameter in group["params"] if id(parameter) in inner]
        others = [group | {"params": [p for p in group["params"] if id(p) not in inner]} for group in groups]
        others = [group for group in others if group["params"]]
        self._muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, fused=True) if others else None
        rest = [] if self._adamw is None else self._adamw.param_groups
        super().__init__([*self._muon.param_groups, *rest], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both, on the groups and the state that are scheduled, saved and taken up here."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer, groups in ((self._muon, self.param_groups[:1]), (self._adamw, self.param_groups[1:])):
            if optimizer is not None:
                optimizer.param_groups, optimizer.state = groups, self.state
                optimizer.step()  # type: ignore[no-untyped-call]  # of torch's Muon
        return loss


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
