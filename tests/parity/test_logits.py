"""Logits and their gradients against the real audiocraft and the real transformers.

fp32 on the CPU: the same sums, perhaps in another order, on logits of order 1; measured differences stand beside.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from audiocraft.modules.transformer import create_sin_embedding
from torch import Tensor

from musicgen_ft.checkpoint.names import audiocraft_pairs, from_ours
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel, sinusoidal_positions
from musicgen_ft.peers import audiocraft, transformers

LONG = "driving techno with heavy bass and bright strings at 120 bpm"
BATCHES = [
    ["slow warm piano"],
    [None],
    ["slow warm piano", LONG],
    ["slow warm piano", None, LONG, "", "  "],
]
TOLERANCE = 1e-5


def random_codes(B: int, T: int) -> Tensor:
    return torch.randint(64, (B, 4, T), generator=torch.Generator().manual_seed(B))


def largest_difference(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected)[mask.expand(found.shape[:3])].abs().max())


@pytest.mark.parametrize("descriptions", BATCHES)
@torch.no_grad()
def test_logits_equal_audiocrafts(
    musicgen: Any, lm_like_audiocraft: LanguageModel, text_encoder: TextEncoder, descriptions: list[str | None]
) -> None:
    codes = random_codes(len(descriptions), 11)
    # audiocraft strips nothing: "  " is text to it. Ours is the null condition, on purpose; give it the same.
    theirs = [(text or "").strip() for text in descriptions]
    expected, expected_mask = audiocraft.logits(musicgen, codes, theirs)
    logits, mask = lm_like_audiocraft.predict(codes, text_encoder.encode(descriptions))
    assert torch.equal(mask.expand_as(expected_mask), expected_mask)
    assert torch.equal(logits.isnan(), expected.isnan())
    assert largest_difference(logits, expected, mask) < TOLERANCE  # measured 0.0, over 200 frames too
    assert expected[expected_mask].std() > 0.3  # else this tells nothing


@pytest.mark.parametrize("descriptions", BATCHES)
@torch.no_grad()
def test_logits_equal_transformers(
    hf_musicgen: Any, lm_like_transformers: LanguageModel, text_encoder: TextEncoder, descriptions: list[str | None]
) -> None:
    lm, codes = lm_like_transformers, random_codes(len(descriptions), 11)
    sequence = lm.pattern.interleave(codes, 64)
    expected = transformers.logits(hf_musicgen, sequence, descriptions)
    logits = lm(sequence, text_encoder.encode(descriptions))
    assert (
        largest_difference(logits, expected, torch.tensor(True)) < TOLERANCE
    )  # measured 1.9e-6; 6.3e-6 over 200 frames
    assert expected.std() > 0.3


@torch.no_grad()
def test_the_two_paddings_differ_where_prompts_are_unequal(
    musicgen: Any, lm_like_audiocraft: LanguageModel, text_encoder: TextEncoder, make_lm: Callable[..., LanguageModel]
) -> None:
    lm = lm_like_audiocraft
    masked = make_lm(**{**vars(lm.config), "text_padding": "transformers"})
    masked.load_state_dict(lm.state_dict())
    codes, text = random_codes(2, 11), text_encoder.encode(["slow warm piano", LONG])
    mask = lm.predict(codes, text).mask
    difference = (masked.predict(codes, text).logits - lm.predict(codes, text).logits)[:, mask].abs().amax((1, 2))
    assert difference[0] > 0.01  # the padded row
    assert difference[1] < TOLERANCE  # the longest one


def test_gradients_of_the_loss_equal_audiocrafts(
    musicgen: Any, lm_like_audiocraft: LanguageModel, text_encoder: TextEncoder, conditions: Any
) -> None:
    descriptions, codes = ["slow warm piano", None, LONG], random_codes(3, 11)
    theirs, ours = musicgen.lm, lm_like_audiocraft
    for lm in (theirs, ours):
        lm.zero_grad(set_to_none=True)
    expected = theirs.compute_predictions(codes, conditions(descriptions))
    expected.logits[expected.mask].log_softmax(-1)[:, 7].mean().backward()
    logits, mask = ours.predict(codes, text_encoder.encode(descriptions))
    logits[mask.expand(3, -1, -1)].log_softmax(-1)[:, 7].mean().backward()

    found = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}
    gradients = from_ours(found, audiocraft_pairs(ours.config))
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
        assert parameter.grad.abs().max() > 1e-6, name
        parameter.grad = None
    ours.zero_grad(set_to_none=True)


@pytest.mark.parametrize("dim", [24, 1024])
def test_positions_equal_audiocrafts_bit_for_bit(dim: int) -> None:
    expected = create_sin_embedding(torch.arange(1500.0)[None, :, None], dim)[0]
    assert torch.equal(sinusoidal_positions(1500, dim, offset=0, device=torch.device("cpu")), expected)
