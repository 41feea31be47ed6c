"""The exponential moving average of the trained weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class EMA:
    """Averages trainable parameters only, corrected for its start, as audiocraft's ``ModuleDictEMA`` is (spec 9.1).

    With decay d the n-th update weighs the newest weights by ``1 / (1 + d + ... + d^(n-1))``: the first copies them,
    and from then on the weight falls to ``1 - d``. The average is kept in fp32 on the parameters' device, and is shared
    out among the ranks where they are.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0.0
        self.weights: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in trainable(module)}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Takes in the module's present weights."""
        self.count = self.count * self.decay + 1
        for name, parameter in trainable(module):
            local(self.weights[name]).lerp_(local(parameter).float(), 1 / self.count)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module with the averaged weights, while the block lasts."""
        self.swap(module)
        try:
            yield
        finally:
            self.swap(module)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchanges the module's weights and the average; a second call takes it back, bit for bit in fp32."""
        for name, parameter in trainable(module):
            weights, average = local(parameter), local(self.weights[name])
            own = weights.clone()
            weights.copy_(average)
            average.copy_(own)

    def to(self, device: torch.device) -> None:
        """Moves the average to where the parameters are."""
        self.weights = {name: value.to(device) for name, value in self.weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """For the training checkpoint; export reads ``weights`` of it."""
        return {"decay": self.decay, "count": self.count, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a ``state_dict``.

        Raises:
            ValueError: if it averages other parameters.
        """
        if set(state["weights"]) != set(self.weights):
            raise ValueError("the checkpoint averages other parameters than this run")
        self.count = state["count"]
        for name, value in self.weights.items():
            local(value).copy_(local(state["weights"][name]))


def local(tensor: Tensor) -> Tensor:
    """The values that this process holds, no copy and without a gradient: of a tensor shared out, its rows."""
    with torch.no_grad():
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def trainable(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Names and parameters that are trained."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
