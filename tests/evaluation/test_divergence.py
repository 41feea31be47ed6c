"""Divergence of a classifier's probabilities, equal to torch's, torchmetrics' and audiocraft's (tests/parity)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from musicgen_ft.evaluation.divergence import EPSILON, kl_divergence, pairwise_kl

ONE = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
OTHER = torch.tensor([[0.25, 0.25, 0.5], [0.6, 0.3, 0.1]])


def probabilities(seed: int, N: int = 9, C: int = 4) -> Tensor:
    return torch.softmax(3 * torch.randn(N, C, generator=torch.Generator().manual_seed(seed)), 1)


def test_it_is_what_is_computed_by_hand() -> None:
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert kl_divergence(OTHER, ONE)[0].item() == pytest.approx(expected, abs=1e-5)  # EPSILON's part


def test_it_equals_torchs() -> None:
    generated, reference = probabilities(1).double(), probabilities(2).double()
    expected = F.kl_div((generated + EPSILON).log(), reference, reduction="none").sum(1)
    torch.testing.assert_close(kl_divergence(generated, reference), expected)


def test_it_equals_that_of_torchmetrics() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    generated, reference = (0.8 * probabilities(seed).double() + 0.05 for seed in (1, 2))  # it adds no epsilon
    metric = torchmetrics.KLDivergence()
    metric.update(reference, generated)
    assert pairwise_kl(generated, reference).from_reference == pytest.approx(metric.compute().item(), abs=1e-4)


def test_a_class_of_no_probability_is_finite_on_either_side() -> None:
    sure, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert kl_divergence(sure, sure).item() == pytest.approx(0, abs=2 * EPSILON)
    assert kl_divergence(other, sure).item() == pytest.approx(-math.log(EPSILON), rel=1e-6)


def test_both_directions_are_told_apart_and_summed() -> None:
    found, turned = pairwise_kl(OTHER, ONE), pairwise_kl(ONE, OTHER)
    assert found.from_reference == kl_divergence(OTHER, ONE).mean().item()
    assert found.from_generated == turned.from_reference != found.from_reference
    assert found.both == turned.both == found.from_reference + found.from_generated


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(1, 3\)"):
        kl_divergence(ONE, OTHER[:1])
