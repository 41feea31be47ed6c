"""The Frechet distance is that of the formula with scipy's square root, and of the closed form where there is one."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import torch

from musicgen_ft.errors import UserError
from musicgen_ft.evaluation.frechet import Moments, frechet_distance, moments_of

Array = npt.NDArray[np.float64]


def embeddings(seed: int, num: int, dim: int = 5, *, shift: float = 0.0) -> Array:
    """Correlated, with a mean of their own."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=(num, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim) + shift)


def by_scipy(one: Array, other: Array) -> float:
    """As frechet_audio_distance and fadtk compute it."""
    product: Any = scipy.linalg.sqrtm(np.cov(one, rowvar=False) @ np.cov(other, rowvar=False))
    apart = one.mean(0) - other.mean(0)
    traces = np.trace(np.cov(one, rowvar=False)) + np.trace(np.cov(other, rowvar=False))
    return float(apart @ apart + traces - 2 * np.trace(product.real))


def distance(one: Array, other: Array) -> float:
    return frechet_distance(moments_of(torch.from_numpy(one)), moments_of(torch.from_numpy(other)))


@pytest.mark.parametrize(("num", "dim"), [(40, 5), (200, 32), (33, 31)])
def test_it_equals_the_formula_with_scipys_square_root(num: int, dim: int) -> None:
    one, other = embeddings(1, num, dim), embeddings(2, num + 7, dim)
    assert distance(one, other) == pytest.approx(by_scipy(one, other), rel=1e-9)


def test_it_equals_the_closed_form_of_diagonal_covariances() -> None:
    """Hadamard's columns are orthogonal, so that covariances are exactly diagonal."""
    columns = torch.from_numpy(scipy.linalg.hadamard(8)[:, 1:4]).double()
    one, other = columns * torch.tensor([1.0, 2.0, 0.5]) + 3, columns * torch.tensor([4.0, 0.0, 0.25]) + 1
    deviations = torch.tensor([[1.0, 2.0, 0.5], [4.0, 0.0, 0.25]]).double() * (8 / 7) ** 0.5
    expected = 3 * 2.0**2 + (deviations[0] - deviations[1]).square().sum().item()
    assert frechet_distance(moments_of(one), moments_of(other)) == pytest.approx(expected, rel=1e-12)


def test_it_is_symmetric_and_zero_for_a_set_and_itself() -> None:
    one, other = embeddings(1, 50), embeddings(2, 60)
    assert distance(one, other) == pytest.approx(distance(other, one), rel=1e-12)
    assert distance(one, one) == pytest.approx(0, abs=1e-10)
    assert distance(one, one[::-1].copy()) == pytest.approx(0, abs=1e-10)
    assert distance(one, one + 2.0) == pytest.approx(5 * 2.0**2, rel=1e-9)


@pytest.mark.parametrize("num", [2, 3, 12])
def test_fewer_embeddings_than_they_are_wide_give_a_finite_number(num: int) -> None:
    """Both covariances lack rank; scipy's root of their product is then real only up to rounding, or not finite."""
    one, other = embeddings(1, num, 24), embeddings(2, num, 24)
    found = distance(one, other)
    assert np.isfinite(found)
    assert found >= np.square(one.mean(0) - other.mean(0)).sum() - 1e-9


def test_few_embeddings_of_one_source_seem_farther_apart_than_many() -> None:
    """Why a distance says nothing without its number of embeddings."""
    source = embeddings(3, 4000, 24)
    few, many = (distance(source[:num], source[num : 2 * num]) for num in (30, 2000))
    assert few > 10 * many


def test_moments_are_numpys_however_the_embeddings_come() -> None:
    rows = embeddings(1, 41, 6, shift=1e6)  # a mean far from zero, where sums of plain squares lose their digits
    found = Moments(6)
    for start, stop in ((0, 1), (1, 20), (20, 20), (20, 41)):
        found.add(torch.from_numpy(rows[start:stop]))
    assert found.count == 41
    np.testing.assert_allclose(found.mean.numpy(), rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(rows, rowvar=False), rtol=1e-7)


def test_embeddings_in_half_precision_are_summed_in_double() -> None:
    rows = torch.from_numpy(embeddings(1, 41)).half()
    assert torch.equal(moments_of(rows).covariance, moments_of(rows.double()).covariance)


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_embeddings_are_refused(num: int) -> None:
    one, other = moments_of(torch.ones(num, 5)), moments_of(torch.randn(9, 5))
    with pytest.raises(UserError, match=f"found {num} embedding.*expected at least 2. Give more prompts"):
        frechet_distance(one, other)
