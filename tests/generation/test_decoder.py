"""The laid out model against the model itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.chroma import MelodyStates
from musicgen_ft.generation.decoder import Decoder, Place
from musicgen_ft.generation.precision import Precision
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel

MakeLM = Callable[..., LanguageModel]
MakeText = Callable[..., TextStates]
MelodyOf = Callable[[int], MelodyStates]


def random_codes(*shape: int) -> Tensor:
    return torch.randint(12, shape, generator=torch.Generator().manual_seed(5))


def static_place(decoder: Decoder, at: int, length: int, room: int) -> Place:
    index = torch.tensor([at])
    return Place(index, (torch.arange(length) <= index)[None, None, None], decoder.positions(room))


@pytest.mark.parametrize("padding", ["audiocraft", "transformers"])
@pytest.mark.parametrize("precision", [None, "fp32"])
@pytest.mark.parametrize("is_prefix", [False, True])
def test_every_way_through_the_decoder_gives_the_logits_of_the_model(
    make_lm: MakeLM, make_text: MakeText, prefix: dict[str, Any], melody_of: MelodyOf, padding: str,
    precision: Precision | None, is_prefix: bool,
) -> None:  # fmt: skip
    lm = make_lm(text_padding=padding, **(prefix if is_prefix else {}))
    text, codes, melody = make_text(5, 0, 3), random_codes(3, 4, 9), melody_of(3) if is_prefix else None
    with torch.no_grad():
        expected = lm(codes, text, melody=melody)
    decoder = Decoder(lm, precision)
    condition = decoder.condition(text, melody)
    P, room = condition.prefix.shape[1], condition.prefix.shape[1] + 16

    with torch.no_grad():
        whole = decoder.prefill(codes, condition, decoder.cache(3, room), start=0)
        cache = decoder.cache(3, room)
        decoder.prefill(codes[:, :, :4], condition, cache, start=0)
        two = decoder.prefill(codes[:, :, 4:6], condition, cache, start=P + 4)
        static = decoder.step(
            codes[:, :, 6:7], condition.padded(8), cache, static_place(decoder, P + 6, room - 3, room)
        )
        eager = decoder.prefill(codes[:, :, 6:7], condition, cache, start=P + 6)

    torch.testing.assert_close(whole, expected[:, :, -1], rtol=0, atol=1e-5)
    torch.testing.assert_close(two, expected[:, :, 5], rtol=0, atol=1e-5)
    torch.testing.assert_close(eager, expected[:, :, 6], rtol=0, atol=1e-5)
    torch.testing.assert_close(static, expected[:, :, 6], rtol=0, atol=1e-5)
    assert expected[:, :, 6].std() > 0.1


def test_packing_in_fp32_holds_the_weights_once_and_leaves_the_model_usable(
    make_lm: MakeLM, make_text: MakeText
) -> None:
    lm, text, codes = make_lm(), make_text(5), random_codes(1, 4, 6)
    with torch.no_grad():
        before = lm(codes, text)
        state = {name: value.clone() for name, value in lm.state_dict().items()}
        Decoder(lm, "fp32")
        torch.testing.assert_close(lm(codes, text), before, rtol=0, atol=1e-6)
    assert all(torch.equal(value, state[name]) for name, value in lm.state_dict().items())
    q, k = lm.get_submodule("layers.0.self_attn.q_proj").weight, lm.get_submodule("layers.0.self_attn.k_proj").weight
    assert isinstance(q, Tensor)
    assert isinstance(k, Tensor)
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()


@pytest.mark.parametrize(("precision", "largest"), [("bf16", 0.05), ("fp16", 2e-3), ("int8", 0.15)])
def test_packing_in_less_leaves_nothing_behind_and_stays_close(
    make_lm: MakeLM, make_text: MakeText, precision: Precision, largest: float
) -> None:
    sizes = {"dim": 64, "num_heads": 2, "ffn_dim": 96}
    lm, text, codes = make_lm(**sizes), make_text(5), random_codes(1, 4, 6)
    with torch.no_grad():
        expected = lm(codes, text)[:, :, -1]
        decoder = Decoder(lm, precision)
        found = decoder.prefill(codes, decoder.condition(text), decoder.cache(1, 8), start=0)
    assert all(parameter.is_meta for layer in lm.layers for parameter in layer.parameters() if parameter.ndim == 2)
    assert 0 < (found - expected).abs().max() / expected.std() < largest


def test_fp16_on_a_cpu_is_exact_for_weights_that_come_from_fp16(make_lm: MakeLM, make_text: MakeText) -> None:
    lm, text, codes = make_lm(), make_text(5), random_codes(1, 4, 6)
    for layer in lm.layers:
        for parameter in layer.parameters():
            parameter.data = parameter.data.half().float()
    with torch.no_grad():
        expected = lm(codes, text)[:, :, -1]
        decoder = Decoder(lm, "fp16")
        found = decoder.prefill(codes, decoder.condition(text), decoder.cache(1, 8), start=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
