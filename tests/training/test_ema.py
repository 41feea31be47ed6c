"""The average of weights by its definition; against audiocraft's in tests/parity."""

import copy

import pytest
import torch
from torch import nn

from musicgen_ft.training.ema import EMA


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2, bias=False))


def walk(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data += torch.randn_like(parameter)


def test_the_average_weighs_by_powers_of_the_decay(module: nn.Module) -> None:
    ema, history = EMA(module, decay=0.8), []
    for _ in range(7):
        walk(module)
        ema.update(module)
        history.append(copy.deepcopy(module.state_dict()))
    powers = [0.8**age for age in reversed(range(7))]
    for name, average in ema.weights.items():
        expected = sum(power * state[name].double() for power, state in zip(powers, history, strict=True)) / sum(powers)
        torch.testing.assert_close(average.double(), expected, rtol=0, atol=1e-6)


def test_the_first_update_copies_the_weights(module: nn.Module) -> None:
    ema = EMA(module, decay=0.99)
    walk(module)
    ema.update(module)
    assert all(torch.equal(ema.weights[name], value) for name, value in module.state_dict().items())


def test_the_average_shares_no_memory_with_the_module(module: nn.Module) -> None:
    ema = EMA(module, decay=0.99)
    before = {name: value.clone() for name, value in ema.weights.items()}
    walk(module)
    assert all(torch.equal(ema.weights[name], value) for name, value in before.items())


def test_frozen_parameters_are_not_averaged(module: nn.Module) -> None:
    next(iter(module.children())).requires_grad_(False)
    assert EMA(module, decay=0.9).weights.keys() == {"1.weight"}


def test_two_swaps_take_everything_back_bit_for_bit(module: nn.Module) -> None:
    ema = EMA(module, decay=0.9)
    walk(module)
    raw, average = copy.deepcopy(module.state_dict()), copy.deepcopy(ema.weights)
    ema.swap(module)
    assert all(torch.equal(value, average[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(value, raw[name]) for name, value in ema.weights.items())
    ema.swap(module)
    assert all(torch.equal(value, raw[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in ema.weights.items())


def test_weights_come_back_when_the_block_raises(module: nn.Module) -> None:
    ema = EMA(module, decay=0.9)
    walk(module)
    raw = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="inside"), ema.applied(module):
        raise RuntimeError("inside")
    assert all(torch.equal(value, raw[name]) for name, value in module.state_dict().items())


def test_a_state_dict_is_taken_up_bit_for_bit(module: nn.Module) -> None:
    ema = EMA(module, decay=0.9)
    for _ in range(3):
        walk(module)
        ema.update(module)
    state = copy.deepcopy(ema.state_dict())
    other = EMA(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2, bias=False)), decay=0.9)
    other.load_state_dict(state)
    walk(module)
    for average in (ema, other):
        average.update(module)
    assert other.count == ema.count
    assert all(torch.equal(other.weights[name], value) for name, value in ema.weights.items())


def test_a_state_dict_of_other_parameters_is_refused(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="other parameters"):
        EMA(module, decay=0.9).load_state_dict(EMA(nn.Linear(3, 5), decay=0.9).state_dict())
