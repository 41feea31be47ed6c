"""The melody models: chroma and text stand before the codes."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.chroma import DROPPED, ChromaSpec, MelodyStates, training_melody
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import KVCache, LanguageModel, LMConfig, sinusoidal_positions

MakeLM = Callable[..., LanguageModel]
MakeText = Callable[..., TextStates]

SPEC = ChromaSpec(sample_rate=800, n_chroma=7, n_fft=64, hop_length=16)
ROUNDING: Any = {"rtol": 0.0, "atol": 1e-5}  # fp32, other orders of the same sums
RELEASES = {  # spec 1.1: numbers of each file, from its size; one of them is the chroma's window of 16384
    "melody": (1536, 24, 48, 4, 1_385_641_984),
    "melody-large": (2048, 32, 48, 4, 2_451_496_960),
    "stereo-melody": (1536, 24, 48, 8, 1_410_813_952),
    "stereo-melody-large": (2048, 32, 48, 8, 2_485_059_584),
}


@pytest.fixture
def lm(make_lm: MakeLM) -> LanguageModel:
    return make_lm(conditioning="prefix", chroma=SPEC)


def melody_of(B: int, F: int) -> MelodyStates:
    return training_melody(torch.randint(7, (B, F), generator=torch.Generator().manual_seed(F)), SPEC)


def random_codes(B: int, T: int, card: int = 11) -> Tensor:
    return torch.randint(card, (B, 4, T), generator=torch.Generator().manual_seed(T))


@pytest.mark.parametrize("name", RELEASES)
def test_the_number_of_parameters_is_that_of_the_released_file(name: str) -> None:
    dim, num_heads, num_layers, n_q, numbers = RELEASES[name]
    config = LMConfig(
        dim=dim, num_heads=num_heads, num_layers=num_layers, ffn_dim=4 * dim, text_dim=768, n_q=n_q, card=2048,
        delays=tuple(range(n_q)), conditioning="prefix", chroma=ChromaSpec(),
    )  # fmt: skip
    with torch.device("meta"):
        found = sum(value.numel() for value in LanguageModel(config).state_dict().values())

    assert found + 16384 == numbers


def test_there_is_no_cross_attention(lm: LanguageModel) -> None:
    assert not [name for name in lm.state_dict() if "cross" in name]
    assert lm.state_dict()["chroma_proj.weight"].shape == (24, 7)


@pytest.mark.parametrize("calls", [[9], [1] * 9, [5, 3, 1], [1, 8]])
@torch.no_grad()
def test_steps_through_the_cache_equal_one_forward_pass(
    lm: LanguageModel, make_text: MakeText, calls: Sequence[int]
) -> None:
    text, melody, sequence = make_text(5, 3, 0), melody_of(3, 6), random_codes(3, 9, card=12)
    cache = KVCache(9)
    parts: list[Tensor] = []

    for steps in sequence.split(list(calls), dim=2):
        parts.append(lm(steps, cache=cache) if parts else lm(steps, text, cache, melody))

    assert (cache.offset, cache.length, cache.num_prefix) == (9, 20, 11)
    torch.testing.assert_close(torch.cat(parts, dim=2), lm(sequence, text, melody=melody), **ROUNDING)


@torch.no_grad()
def test_logits_are_those_of_the_codes_alone(lm: LanguageModel, make_text: MakeText) -> None:
    predictions = lm.predict(random_codes(2, 9), make_text(5, 3), melody_of(2, 6))

    assert predictions.logits.shape == (2, 4, 9, 11)
    assert torch.equal(predictions.logits.isnan().any(-1), ~predictions.mask.expand(2, -1, -1))


@pytest.mark.parametrize("changed", ["melody", "text"])
@torch.no_grad()
def test_every_frame_sees_the_melody_and_the_text(lm: LanguageModel, make_text: MakeText, changed: str) -> None:
    codes, text, melody = random_codes(1, 9), make_text(5), melody_of(1, 6)
    before = lm.predict(codes, text, melody)
    other_melody = MelodyStates(melody.one_hot.roll(1, -1), melody.mask) if changed == "melody" else melody
    other_text = make_text(5, seed=1) if changed == "text" else text

    after = lm.predict(codes, other_text, other_melody)

    assert (after.logits - before.logits)[:, before.mask].abs().amax(-1).min() > 1e-4


@torch.no_grad()
def test_a_dropped_frame_is_a_zero_vector_that_is_seen(lm: LanguageModel, make_text: MakeText) -> None:
    codes, text = random_codes(1, 9), make_text(5)
    chroma = torch.tensor([[3, DROPPED, 5, DROPPED]])
    melody = training_melody(chroma, SPEC)
    whatever = MelodyStates(melody.one_hot.where(melody.mask[..., None], 7.7), melody.mask)
    shorter = training_melody(torch.tensor([[3, 5]]), SPEC)

    logits, mask = lm.predict(codes, text, melody)

    assert torch.equal(lm.predict(codes, text, whatever).logits[:, mask], logits[:, mask])
    assert (lm.predict(codes, text, shorter).logits - logits)[:, mask].abs().max() > 1e-4  # it has its place


@torch.no_grad()
def test_the_melody_stands_first_then_the_text_then_the_codes(lm: LanguageModel, make_text: MakeText) -> None:
    text, melody = make_text(5), melody_of(1, 6)
    seen: list[Tensor] = []
    lm.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    lm(random_codes(1, 9, card=12), text, melody=melody)

    prefix = torch.cat([lm.chroma_proj(melody.one_hot), lm.text_proj(text.states)], dim=1)
    positions = sinusoidal_positions(11, 24, offset=0, device=prefix.device)
    torch.testing.assert_close(seen[0][:, :11], prefix + positions, **ROUNDING)
    assert seen[0].shape == (1, 20, 24)


def test_a_melody_model_without_melody_is_refused(lm: LanguageModel, make_text: MakeText) -> None:
    with pytest.raises(ValueError, match="conditioned on a melody too, expected one or its null condition"):
        lm.predict(random_codes(2, 9), make_text(5, 3))
    with pytest.raises(ValueError, match="no cache holds its keys and values"):
        lm(random_codes(2, 9))


@pytest.mark.parametrize("wrong", [{"conditioning": "prefix"}, {"chroma": SPEC}])
def test_a_prefix_needs_chroma_and_chroma_a_prefix(make_lm: MakeLM, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="does not fit chroma"):
        make_lm(**wrong)


def test_both_projections_learn(lm: LanguageModel, make_text: MakeText) -> None:
    logits, mask = lm.predict(random_codes(2, 9), make_text(5, 3), melody_of(2, 6))
    logits[:, mask].square().sum().backward()

    for parameter in lm.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
