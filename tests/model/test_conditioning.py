"""Text conditioning on nano's T5."""

import pytest
import torch
from torch import nn

from musicgen_ft.model.conditioning import TextEncoder, TextStates


@pytest.mark.parametrize("description", [None, "", "  ", "\n\t"])
def test_a_missing_or_blank_description_is_the_null_condition(
    text_encoder: TextEncoder, description: str | None
) -> None:
    alone, mixed = text_encoder.encode([description]), text_encoder.encode(["slow warm piano", description])
    assert not alone.mask.any()
    assert mixed.mask.any(1).tolist() == [True, False]
    assert alone.states.isfinite().all()
    assert mixed.states.isfinite().all()


def test_the_mask_is_true_for_the_tokens_and_the_end_token_of_each_row(text_encoder: TextEncoder) -> None:
    descriptions = ["calm piano", "driving techno with heavy bass", None]
    ids, mask = text_encoder.tokenize(descriptions)
    assert ids.shape == mask.shape
    assert mask.dtype == torch.bool
    alone = [text_encoder.tokenize([text])[0].shape[1] for text in descriptions[:2]]
    assert alone[0] < alone[1]  # else this test tells nothing of padding
    assert mask.sum(1).tolist() == [*alone, 0]
    assert [ids[i, n - 1].item() for i, n in enumerate(alone)] == [text_encoder.tokenizer.eos_token_id] * 2


def test_states_of_a_description_do_not_depend_on_longer_neighbours(text_encoder: TextEncoder) -> None:
    alone = text_encoder.encode(["calm piano"])
    padded = text_encoder.encode(["driving techno with heavy bass and bright strings", "calm piano"])
    # T5 masks pads: the same sums in another order, so equal up to fp32 rounding.
    torch.testing.assert_close(padded.states[1][padded.mask[1]], alone.states[0], rtol=0, atol=1e-5)


def test_t5_runs_in_fp32_inside_an_autocast_region(text_encoder: TextEncoder) -> None:
    expected = text_encoder.encode(["calm piano", None])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = text_encoder.encode(["calm piano", None])
    assert found.states.dtype == torch.float32
    assert torch.equal(found.states, expected.states)


def test_nothing_is_truncated(text_encoder: TextEncoder) -> None:
    words = ["piano"] * 600
    states, changed = (text_encoder.encode([" ".join([*words, last])]) for last in ("bass", "drum"))
    assert states.states.shape[1] >= 601
    assert not torch.equal(states.states[0, -1], changed.states[0, -1])


def test_the_encoder_is_in_no_state_dict_and_stays_frozen_in_training(text_encoder: TextEncoder) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text_encoder = text_encoder

    holder = Holder().train()
    assert holder.state_dict() == {}
    assert list(holder.parameters()) == []
    assert not text_encoder.encoder.training
    assert not any(parameter.requires_grad for parameter in text_encoder.encoder.parameters())
    assert {parameter.dtype for parameter in text_encoder.encoder.parameters()} == {torch.float32}


def test_null_is_one_masked_zero_vector_for_each_row(text_encoder: TextEncoder) -> None:
    null = text_encoder.null(3)
    assert null.states.shape == (3, 1, text_encoder.dim) == (3, 1, 64)
    assert not null.states.any()
    assert not null.mask.any()


def test_rows_are_repeated_each_in_place() -> None:
    text = TextStates(torch.randn(2, 5, 3), torch.tensor([[True] * 5, [False] * 5]))
    repeated = text.repeat_interleave(3)
    assert torch.equal(repeated.states[[0, 1, 2]], text.states[[0, 0, 0]])
    assert repeated.mask.any(1).tolist() == [True] * 3 + [False] * 3
