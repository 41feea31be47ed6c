"""The optimizer's groups and the schedule's values."""

import math
from collections.abc import Callable

import pytest
import torch

from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.training.optim import adamw, warmup_cosine


def test_matrices_decay_and_norms_and_biases_do_not(make_lm: Callable[..., LanguageModel]) -> None:
    lm = make_lm()
    optimizer = adamw(lm.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    decaying, others = optimizer.param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in lm.named_parameters()}
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in others["params"])
    assert not any("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in decaying["params"])
    assert sorted(map(id, decaying["params"] + others["params"])) == sorted(names)  # each exactly once
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}


def test_frozen_parameters_are_left_out(make_lm: Callable[..., LanguageModel]) -> None:
    lm = make_lm()
    lm.embeddings.requires_grad_(False)
    optimizer = adamw(lm.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    given = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not given & {id(parameter) for parameter in lm.embeddings.parameters()}


def test_the_rate_rises_in_a_line_then_falls_along_half_a_cosine() -> None:
    shares = [warmup_cosine(step, warmup_steps=4, max_steps=12, min_ratio=0.0) for step in range(13)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(9)])
    assert shares[8] == pytest.approx(0.5)
    assert shares[12] == 0.0


def test_the_first_step_is_never_lost_to_a_rate_of_zero() -> None:
    assert warmup_cosine(0, warmup_steps=50, max_steps=1000, min_ratio=0.0) == 0.02
    assert warmup_cosine(0, warmup_steps=0, max_steps=1000, min_ratio=0.0) == 1.0


@pytest.mark.parametrize("step", [10, 11, 1000])
def test_the_rate_ends_at_its_least_share_and_stays_there(step: int) -> None:
    assert warmup_cosine(step, warmup_steps=2, max_steps=10, min_ratio=0.1) == pytest.approx(0.1)


def test_a_run_that_is_all_warm_up_has_a_schedule_too() -> None:
    shares = [warmup_cosine(step, warmup_steps=5, max_steps=5, min_ratio=0.0) for step in range(6)]
    assert shares == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]


def test_a_step_moves_a_weight_by_the_rate(make_lm: Callable[..., LanguageModel]) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = adamw([weight], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    weight.grad = torch.full((2, 2), 0.3)
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((2, 2), 0.99), rtol=0, atol=1e-6)  # Adam's first step is lr
