"""The rules of drawing; their supports against audiocraft's in tests/parity."""

from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.generation.sampling import Rules, Sampling, SeededNoise

B, K, CARD = 3, 4, 11


def random_logits(seed: int = 0) -> Tensor:
    return torch.randn(B, K, CARD, generator=torch.Generator().manual_seed(seed))


def draw(logits: Tensor, sampling: Sampling, noise: SeededNoise) -> Tensor:
    rules = Rules([sampling] * len(logits), logits.shape[2])
    return rules.draw(logits, noise.exponential(*logits.shape[1:]) if rules.needs_noise else torch.empty(0))


def drawn_codes(logits: Tensor, sampling: Sampling, *, times: int = 200) -> Tensor:
    """int64 [times, B, K]."""
    noise = SeededNoise(range(len(logits)))
    return torch.stack([draw(logits, sampling, noise) for _ in range(times)])


def test_temperature_zero_takes_the_most_likely_code_and_no_noise() -> None:
    logits, noise = random_logits(), SeededNoise([0, 1, 2])
    assert torch.equal(draw(logits, Sampling(temperature=0.0), noise), logits.argmax(-1))
    untouched = SeededNoise([0, 1, 2])
    assert torch.equal(noise.exponential(K, CARD), untouched.exponential(K, CARD))


@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_k_draws_the_k_most_likely_codes_and_all_of_them(k: int) -> None:
    logits = random_logits()
    codes = drawn_codes(logits, Sampling(top_k=k, temperature=3.0), times=400)
    for b in range(B):
        for q in range(K):
            allowed = set(logits[b, q].topk(k).indices.tolist())
            assert set(codes[:, b, q].tolist()) == allowed  # at temperature 3 no code of eleven is rare


@pytest.mark.parametrize("k", [0, CARD, 250])
def test_a_k_of_zero_or_beyond_the_codes_takes_all(k: int) -> None:
    codes = drawn_codes(torch.zeros(B, K, CARD), Sampling(top_k=k), times=200)
    assert set(codes.flatten().tolist()) == set(range(CARD))


def test_codes_as_likely_as_the_last_one_kept_are_kept_too() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]).expand(1, 1, 5)
    assert set(drawn_codes(logits, Sampling(top_k=2)).flatten().tolist()) == {0, 1, 2, 3}


def test_top_p_draws_the_codes_before_whom_at_most_p_is_used_up() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().expand(1, 1, 4)
    for top_p, allowed in ((0.3, {1}), (0.6, {1, 3}), (0.8, {1, 3, 2}), (0.99, {0, 1, 2, 3})):
        assert set(drawn_codes(logits, Sampling(top_p=top_p)).flatten().tolist()) == allowed, top_p


def test_top_p_replaces_top_k() -> None:
    codes = drawn_codes(torch.zeros(B, K, CARD), Sampling(top_k=1, top_p=1.0))
    assert set(codes.flatten().tolist()) == set(range(CARD))


def test_codes_are_drawn_as_often_as_they_are_likely() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    codes = drawn_codes(probabilities.log().expand(2, 5, 4), Sampling(top_k=0), times=2000)
    shares = torch.bincount(codes.flatten(), minlength=4) / codes.numel()
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.015)  # 20000 draws: 4 deviations of 0.0035


def test_a_low_temperature_sharpens_and_a_high_one_flattens() -> None:
    logits = torch.tensor([1.0, 0.0]).expand(1, 4, 2)
    for temperature in (0.5, 1.0, 2.0):
        share = (drawn_codes(logits, Sampling(top_k=0, temperature=temperature), times=2000) == 0).float().mean().item()
        assert share == pytest.approx(torch.sigmoid(torch.tensor(1 / temperature)).item(), abs=0.022)


def test_a_row_draws_the_same_alone_and_in_a_batch() -> None:
    logits = random_logits()
    together, alone = SeededNoise([7, 8, 9]), SeededNoise([8])
    for _ in range(5):
        assert torch.equal(draw(logits, Sampling(top_k=0), together)[1:2], draw(logits[1:2], Sampling(top_k=0), alone))


def test_rows_with_other_seeds_draw_otherwise_and_with_equal_seeds_alike() -> None:
    noise = SeededNoise([1, 2, 1]).exponential(K, CARD)
    assert noise.shape == (B, K, CARD)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("wrong", [{"top_k": -1}, {"top_p": 1.1}, {"top_p": -0.1}, {"temperature": -1.0}])
def test_rules_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected top_k >= 0"):
        Sampling(**wrong)


def test_the_defaults_are_audiocrafts() -> None:
    assert Sampling() == Sampling(top_k=None, top_p=0.0, temperature=1.0)
    assert Sampling().k_of(2048) == 250
    assert Sampling(top_k=7).k_of(2048) == 7
    assert Sampling(top_k=0).k_of(2048) == 0


@pytest.mark.parametrize(("card", "k"), [(1024, 125), (256, 31), (5, 1), (2, 1)])
def test_of_smaller_codebooks_as_large_a_share_is_drawn_from(card: int, k: int) -> None:
    assert Sampling().k_of(card) == k
    assert Rules([Sampling(), Sampling(top_k=3)], card).top_k.flatten().tolist() == [k, 3]
