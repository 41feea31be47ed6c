"""The delay pattern against its definition; against audiocraft's in tests/parity."""

import pytest
import torch

from musicgen_ft.model.patterns import DelayPattern

SPECIAL = 2048
DELAYS = [(0,), (0, 1), (0, 1, 2, 3), (0, 0, 1, 1, 2, 2), (1, 1, 5), (0, 3, 7)]


def numbered_codes(B: int, K: int, T: int) -> torch.Tensor:
    """A different code at every place."""
    return torch.arange(B * K * T).reshape(B, K, T)


def test_four_frames_of_four_codebooks_interleave_as_the_paper_draws_them() -> None:
    codes = torch.arange(1, 5).expand(1, 4, 4)
    S = SPECIAL
    expected = [
        [S, 1, 2, 3, 4, S, S, S],
        [S, S, 1, 2, 3, 4, S, S],
        [S, S, S, 1, 2, 3, 4, S],
        [S, S, S, S, 1, 2, 3, 4],
    ]
    assert DelayPattern((0, 1, 2, 3)).interleave(codes, S)[0].tolist() == expected


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("T", [1, 2, 5, 13])
def test_deinterleave_takes_interleave_back(delays: tuple[int, ...], T: int) -> None:
    pattern, codes = DelayPattern(delays), numbered_codes(3, len(delays), T)
    sequence = pattern.interleave(codes, SPECIAL)
    assert sequence.shape == (3, len(delays), pattern.num_steps(T)) == (3, len(delays), T + max(delays) + 1)
    assert torch.equal(pattern.deinterleave(sequence), codes)


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("T", [1, 2, 5, 13])
def test_step_mask_is_true_exactly_where_there_is_a_code(delays: tuple[int, ...], T: int) -> None:
    pattern = DelayPattern(delays)
    sequence = pattern.interleave(numbered_codes(1, len(delays), T), SPECIAL)
    assert torch.equal(pattern.step_mask(T), sequence[0] != SPECIAL)


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("T", [1, 2, 5, 13])
def test_frame_mask_leaves_out_each_codebooks_last_delayed_frames(delays: tuple[int, ...], T: int) -> None:
    mask = DelayPattern(delays).frame_mask(T)
    assert mask.sum(1).tolist() == [max(T - delay, 0) for delay in delays]
    assert torch.equal(mask, mask.cummin(1).values)  # true first, then false


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("S", [1, 4, 9])
def test_aligned_logits_come_from_the_step_before_the_frame_and_are_nan_elsewhere(
    delays: tuple[int, ...], S: int
) -> None:
    pattern, K, card = DelayPattern(delays), len(delays), 6
    logits = torch.arange(2 * K * S * card, dtype=torch.float32).reshape(2, K, S, card)
    aligned = pattern.align_logits(logits)
    for k, delay in enumerate(delays):
        for t in range(S):
            step = t + delay  # the frame itself stands at step 1 + t + delay
            expected = logits[:, k, step] if step < S else torch.full((2, card), torch.nan)
            torch.testing.assert_close(aligned[:, k, t], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("delays", DELAYS)
def test_nan_stands_exactly_where_frame_mask_is_false(delays: tuple[int, ...]) -> None:
    pattern, T = DelayPattern(delays), 6
    aligned = pattern.align_logits(torch.zeros(2, len(delays), T, 5))
    assert torch.equal(aligned.isnan().any(-1), ~pattern.frame_mask(T).expand(2, -1, -1))


@pytest.mark.parametrize("delays", [(), (-1, 0), (0, 2, 1)])
def test_delays_that_are_empty_negative_or_falling_are_refused(delays: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not negative and not falling"):
        DelayPattern(delays)


def test_codes_with_another_number_of_codebooks_are_refused() -> None:
    with pytest.raises(ValueError, match="3 codebooks, the pattern has 2 delays"):
        DelayPattern((0, 1)).interleave(numbered_codes(1, 3, 5), SPECIAL)
    with pytest.raises(ValueError, match="3 codebooks, the pattern has 2 delays"):
        DelayPattern((0, 1)).deinterleave(numbered_codes(1, 3, 5))
