"""The delay pattern against audiocraft's DelayedPatternProvider."""

import pytest
import torch
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider

from musicgen_ft.model.patterns import DelayPattern

GRID = [(T, delays) for T in (1, 2, 4, 9) for delays in ((0,), (0, 1, 2, 3), (0, 0, 1, 1, 2, 2), (0, 2, 5), (1, 1, 3))]


@pytest.mark.parametrize(("T", "delays"), GRID)
def test_sequence_mask_and_inverse_equal_audiocrafts(T: int, delays: tuple[int, ...]) -> None:
    K, special = len(delays), 99
    codes = torch.randint(90, (2, K, T), generator=torch.Generator().manual_seed(T))
    pattern = DelayedPatternProvider(K, list(delays)).get_pattern(T)
    expected, _, expected_mask = pattern.build_pattern_sequence(codes, special)
    ours = DelayPattern(delays)
    sequence = ours.interleave(codes, special)
    assert torch.equal(sequence, expected)
    assert torch.equal(ours.step_mask(T), expected_mask)
    assert torch.equal(ours.deinterleave(sequence), pattern.revert_pattern_sequence(expected, special)[0])


@pytest.mark.parametrize(("T", "delays"), [case for case in GRID if case[1][0] == 0])
def test_alignment_of_logits_equals_audiocrafts(T: int, delays: tuple[int, ...]) -> None:
    K, card, special = len(delays), 6, 99
    pattern = DelayedPatternProvider(K, list(delays)).get_pattern(T)
    sequence, _, _ = pattern.build_pattern_sequence(torch.zeros(2, K, T).long(), special, keep_only_valid_steps=True)
    S = sequence.shape[2]
    logits = torch.randn(2, K, S, card, generator=torch.Generator().manual_seed(T))
    expected, _, expected_mask = pattern.revert_pattern_logits(
        logits.permute(0, 3, 1, 2), float("nan"), keep_only_valid_steps=True
    )
    assert S == T + 1
    ours = DelayPattern(delays)
    aligned = ours.align_logits(logits[:, :, :T])  # the last step predicts nothing that is kept
    torch.testing.assert_close(aligned, expected.permute(0, 2, 3, 1), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ours.frame_mask(T), expected_mask)
