"""The average of weights against audiocraft's ModuleDictEMA."""

from typing import Any

import torch
from audiocraft.optim.ema import ModuleDictEMA
from torch import nn

from musicgen_ft.training.ema import EMA


def test_the_average_follows_audiocrafts() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))
    theirs: Any = ModuleDictEMA(nn.ModuleDict({"model": module}), decay=0.9, device="cpu")
    ours = EMA(module, decay=0.9)
    for _ in range(30):
        for parameter in module.parameters():
            parameter.data += torch.randn_like(parameter)
        theirs.step()
        ours.update(module)
        assert ours.count == theirs.count
        for name, value in ours.weights.items():
            # lerp against mul and add: one rounding more or less, of values of order 5.
            torch.testing.assert_close(value, theirs.state["model"][name], rtol=0, atol=5e-6)
