"""Patterns against their definitions; against audiocraft's in tests/parity."""

import itertools
from typing import Any

import pytest
import torch

from musicgen_ft.model.patterns import (
    CoarseFirstPattern,
    DelayPattern,
    MusicLMPattern,
    ParallelPattern,
    Pattern,
    UnrolledPattern,
    make_pattern,
)

SPECIAL = 2048
DELAYS = [(0,), (0, 1), (0, 1, 2, 3), (0, 0, 1, 1, 2, 2), (1, 1, 5), (0, 3, 7)]
FRAMES = [1, 2, 5, 13]
PATTERNS: list[tuple[Pattern, int]] = [  # and its number of codebooks
    *((DelayPattern(delays), len(delays)) for delays in DELAYS),
    (ParallelPattern(1), 1),
    (ParallelPattern(3), 3),
    (UnrolledPattern(4), 4),
    (UnrolledPattern(3, (0, 1, 1)), 3),
    (UnrolledPattern(3, (0, 1, 1), (0, 3, 3)), 3),
    (UnrolledPattern(3, (1, 1, 4), (1, 1, 2)), 3),
    (CoarseFirstPattern(4), 4),
    (CoarseFirstPattern(4, (0, 1, 5)), 4),
    (MusicLMPattern(4), 4),
    (MusicLMPattern(3, 1), 3),
]
EVERY = pytest.mark.parametrize(("pattern", "K"), PATTERNS)


def numbered_codes(B: int, K: int, T: int) -> torch.Tensor:
    """A different code at every place."""
    return torch.arange(B * K * T).reshape(B, K, T)


def sequence_of(pattern: Pattern, K: int, T: int) -> list[list[int]]:
    """The sequence of codes 1 to T in each codebook, 0 where there is none."""
    sequence: list[list[int]] = pattern.interleave(torch.arange(1, T + 1).expand(1, K, T), 0)[0].tolist()
    return sequence


# ---- each pattern, drawn --------------------------------------------------------------------------------------------


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


def test_a_partial_delay_keeps_all_codebooks_but_the_first_together() -> None:
    assert sequence_of(DelayPattern((0, 1, 1)), 3, 3) == [[0, 1, 2, 3, 0], [0, 0, 1, 2, 3], [0, 0, 1, 2, 3]]


def test_parallel_is_a_delay_of_none() -> None:
    assert sequence_of(ParallelPattern(2), 2, 3) == [[0, 1, 2, 3]] * 2


def test_unrolled_codebooks_stand_in_one_step_after_the_other() -> None:
    expected = [[0, 1, 0, 0, 2, 0, 0], [0, 0, 1, 0, 0, 2, 0], [0, 0, 0, 1, 0, 0, 2]]
    assert sequence_of(UnrolledPattern(3), 3, 2) == expected


def test_partly_unrolled_codebooks_share_an_inner_step() -> None:
    assert sequence_of(UnrolledPattern(3, (0, 1, 1)), 3, 2) == [[0, 1, 0, 2, 0], *[[0, 0, 1, 0, 2]] * 2]


def test_unrolled_codebooks_that_lag_stand_before_those_of_later_frames() -> None:
    pattern = UnrolledPattern(3, (0, 1, 1), (0, 3, 3))
    fine = [0, 0, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0]  # in the turns of frames 4 to 7, the last three of which are not there
    assert sequence_of(pattern, 3, 4) == [[0, 1, 2, 3, 0, 4, 0, 0, 0, 0, 0, 0], fine, fine]


def test_an_inner_step_of_no_codebook_is_an_empty_step() -> None:
    assert sequence_of(UnrolledPattern(2, (1, 2)), 2, 2) == [[0, 0, 1, 0, 0, 2, 0], [0, 0, 0, 1, 0, 0, 2]]


def test_coarse_first_ends_the_first_codebook_before_the_others_begin() -> None:
    expected = [[0, 1, 2, 3, 0, 0, 0, 0], [0, 0, 0, 0, 1, 2, 3, 0], [0, 0, 0, 0, 0, 1, 2, 3]]
    assert sequence_of(CoarseFirstPattern(3, (0, 1)), 3, 3) == expected


def test_musiclm_ends_a_group_before_the_next_begins() -> None:
    expected = [
        [0, 1, 0, 2, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 2, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 2, 0],
        [0, 0, 0, 0, 0, 0, 1, 0, 2],
    ]
    assert sequence_of(MusicLMPattern(4), 4, 2) == expected


@pytest.mark.parametrize(
    ("pattern", "num_steps"),
    [
        (DelayPattern((0, 1, 2, 3)), 1504),
        (ParallelPattern(4), 1501),
        (UnrolledPattern(4), 6001),
        (UnrolledPattern(4, (0, 1, 1, 1)), 3001),
        (CoarseFirstPattern(4), 3001),
        (MusicLMPattern(4), 6001),
    ],
)
def test_thirty_seconds_take_as_many_steps_as_the_paper_says(pattern: Pattern, num_steps: int) -> None:
    assert pattern.num_steps(1500) == num_steps


# ---- what holds for all ---------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("T", FRAMES)
def test_each_code_has_a_step_behind_the_empty_first_one_and_frames_keep_their_order(
    pattern: Pattern, K: int, T: int
) -> None:
    steps = pattern.steps(T)
    assert steps.dtype == torch.int64
    assert steps.shape == (K, T)
    assert 1 <= steps.min() <= steps.max() < pattern.num_steps(T)
    assert (steps.diff(dim=1) > 0).all()


@EVERY
@pytest.mark.parametrize("T", FRAMES)
def test_deinterleave_takes_interleave_back(pattern: Pattern, K: int, T: int) -> None:
    codes = numbered_codes(3, K, T)
    sequence = pattern.interleave(codes, SPECIAL)
    assert sequence.shape == (3, K, pattern.num_steps(T))
    assert (sequence != SPECIAL).sum() == codes.numel()
    assert torch.equal(pattern.deinterleave(sequence), codes)


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("T", FRAMES)
def test_a_delayed_sequence_is_as_much_longer_as_its_largest_delay(delays: tuple[int, ...], T: int) -> None:
    assert DelayPattern(delays).num_steps(T) == T + max(delays) + 1
    assert DelayPattern(delays).max_delay == max(delays)


@EVERY
@pytest.mark.parametrize("T", FRAMES)
def test_step_mask_is_true_exactly_where_there_is_a_code(pattern: Pattern, K: int, T: int) -> None:
    sequence = pattern.interleave(numbered_codes(1, K, T), SPECIAL)
    assert torch.equal(pattern.step_mask(T), sequence[0] != SPECIAL)


@EVERY
def test_frames_with_a_margin_behind_them_stand_where_they_stand_in_a_longer_sequence(pattern: Pattern, K: int) -> None:
    short, long = 7, 23
    margin = pattern.num_margin_frames
    if margin is None:
        assert not torch.equal(pattern.steps(short), pattern.steps(long)[:, :short])
        return

    cut = short + margin
    assert torch.equal(pattern.steps(cut), pattern.steps(long)[:, :cut])
    assert pattern.frame_mask(cut)[:, :short].all()
    assert pattern.frame_mask(long)[:, :short].all()


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("T", FRAMES)
def test_frame_mask_leaves_out_each_codebooks_last_delayed_frames(delays: tuple[int, ...], T: int) -> None:
    mask = DelayPattern(delays).frame_mask(T)
    assert mask.sum(1).tolist() == [max(T - (delay - delays[0]), 0) for delay in delays]
    assert torch.equal(mask, mask.cummin(1).values)  # true first, then false


@EVERY
@pytest.mark.parametrize("T", FRAMES)
def test_aligned_logits_come_from_the_step_before_the_frame_and_are_nan_elsewhere(
    pattern: Pattern, K: int, T: int
) -> None:
    S, card, steps = pattern.num_valid_steps(T) - 1, 6, pattern.steps(T)
    logits = torch.arange(2 * K * S * card, dtype=torch.float32).reshape(2, K, S, card)
    aligned = pattern.align_logits(logits)
    assert aligned.shape == (2, K, T, card)
    for k, t in itertools.product(range(K), range(T)):
        step = int(steps[k, t]) - 1
        expected = logits[:, k, step] if step < S else torch.full((2, card), torch.nan)
        torch.testing.assert_close(aligned[:, k, t], expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(aligned.isnan().any(-1), ~pattern.frame_mask(T).expand(2, -1, -1))


@EVERY
def test_the_whole_sequence_predicts_every_frame(pattern: Pattern, K: int) -> None:
    logits = torch.zeros(2, K, pattern.num_steps(5) - 1, 6)
    assert not pattern.align_logits(logits, 5).isnan().any()


@EVERY
def test_a_code_that_no_step_predicts_gets_no_gradient(pattern: Pattern, K: int) -> None:
    T = 6
    logits = torch.zeros(1, K, pattern.num_valid_steps(T) - 1, 3, requires_grad=True)
    mask = pattern.frame_mask(T)
    pattern.align_logits(logits)[:, mask].sum().backward()
    assert logits.grad is not None
    assert logits.grad.sum() == 3 * mask.sum()
    assert set(logits.grad.unique().tolist()) <= {0.0, 1.0}


def test_training_may_follow_a_validation_of_the_same_length() -> None:
    pattern = UnrolledPattern(2, (0, 1), (0, 3))  # used by no other test: its steps are not kept yet
    with torch.inference_mode():
        pattern.align_logits(torch.zeros(1, 2, pattern.num_valid_steps(7) - 1, 3))
    logits = torch.zeros(1, 2, pattern.num_valid_steps(7) - 1, 3, requires_grad=True)
    pattern.align_logits(logits).nansum().backward()  # autograd refuses to keep an inference tensor


def test_no_frames_are_an_empty_sequence_and_back() -> None:
    for pattern, K in PATTERNS:
        sequence = pattern.interleave(numbered_codes(2, K, 0), SPECIAL)
        assert (sequence == SPECIAL).all()
        assert pattern.deinterleave(sequence).shape == (2, K, 0)


# ---- descriptions in plain data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"name": "delay", "delays": (0, 1, 1, 1)}, DelayPattern((0, 1, 1, 1))),
        ({"name": "parallel", "delays": (0, 0, 0)}, ParallelPattern(3)),
        ({"name": "unroll", "delays": (0, 0, 0)}, UnrolledPattern(3, (0, 1, 2), (0, 0, 0))),
        ({"name": "unroll", "delays": (0, 2, 2), "flattening": (0, 1, 1)}, UnrolledPattern(3, (0, 1, 1), (0, 2, 2))),
        ({"name": "coarse_first", "delays": (0, 0, 1)}, CoarseFirstPattern(3, (0, 1))),
        ({"name": "musiclm", "delays": (0, 0, 0, 0)}, MusicLMPattern(4, 2)),
        ({"name": "musiclm", "delays": (0, 0, 0), "group_by": 3}, MusicLMPattern(3, 3)),
    ],
)
def test_a_pattern_is_made_from_plain_data(arguments: dict[str, Any], expected: Pattern) -> None:
    assert make_pattern(**arguments) == expected


@pytest.mark.parametrize("delays", [(), (-1, 0), (0, 2, 1)])
def test_delays_that_are_empty_negative_or_falling_are_refused(delays: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not negative and not falling"):
        DelayPattern(delays)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "braid", "delays": (0,)}, "pattern 'braid': expected one of delay, parallel, unroll"),
        ({"name": "parallel", "delays": (0, 1)}, "parallel with delays"),
        ({"name": "musiclm", "delays": (0, 1)}, "musiclm with delays"),
        ({"name": "coarse_first", "delays": (1, 1)}, "expected 0 for the first codebook"),
        ({"name": "coarse_first", "delays": (0,)}, "at least 2 codebooks"),
        ({"name": "coarse_first", "delays": (0, 2, 1)}, "not falling"),
        ({"name": "delay", "delays": (0, 1), "flattening": (0, 1)}, "only unroll has one"),
        ({"name": "delay", "delays": (0, 1), "group_by": 2}, "only musiclm has it"),
        ({"name": "unroll", "delays": (0, 1), "flattening": (0,)}, r"flattening \(0,\): expected 2"),
        ({"name": "unroll", "delays": (0, 1), "flattening": (1, 0)}, "flattening .* not falling"),
        ({"name": "unroll", "delays": (0, 1), "flattening": (0, 0)}, "codebooks of one inner step need one delay"),
        ({"name": "musiclm", "delays": (0, 0, 0)}, "group_by 2: expected a divisor of n_q=3"),
    ],
)
def test_a_description_that_does_not_fit_together_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_pattern(**arguments)


@pytest.mark.parametrize("pattern", [DelayPattern((0, 1)), ParallelPattern(2), UnrolledPattern(2)])
def test_codes_with_another_number_of_codebooks_are_refused(pattern: Pattern) -> None:
    with pytest.raises(ValueError, match="codes have 3 codebooks, the pattern has 2"):
        pattern.interleave(numbered_codes(1, 3, 5), SPECIAL)
    with pytest.raises(ValueError, match="codes have 3 codebooks, the pattern has 2"):
        pattern.deinterleave(numbered_codes(1, 3, 5))


def test_a_sequence_of_no_number_of_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="6 steps fit no number of frames: expected 1 and 2 for each"):
        UnrolledPattern(2).deinterleave(numbered_codes(1, 2, 6))
    with pytest.raises(ValueError, match="2 steps fit no number of frames: expected 4 and 1 for each"):
        DelayPattern((0, 3)).deinterleave(numbered_codes(1, 2, 2))
