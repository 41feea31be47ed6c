"""The language model against itself and its definition; against audiocraft and transformers in tests/parity."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import KVCache, LanguageModel, Layer, LMConfig, Recompute, _attention, sinusoidal_positions

MakeLM = Callable[..., LanguageModel]
MakeText = Callable[..., TextStates]

ROUNDING: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}
"""The same sums in another order, in fp32, on logits of order 1; measured below 1e-6."""
PADDINGS = ["audiocraft", "transformers"]


def random_codes(*shape: int, card: int = 11, seed: int = 1) -> Tensor:
    return torch.randint(card, shape, generator=torch.Generator().manual_seed(seed))


# ---- shapes and errors -----------------------------------------------------------------------------------------------


def test_forward_gives_logits_of_every_codebook_and_step(make_lm: MakeLM, make_text: MakeText) -> None:
    assert make_lm()(random_codes(2, 4, 7), make_text(5, 3)).shape == (2, 4, 7, 11)


def test_forward_without_text_needs_a_cache_that_holds_it(make_lm: MakeLM) -> None:
    with pytest.raises(ValueError, match="no cache holds its keys"):
        make_lm()(random_codes(2, 4, 7), None, KVCache(7))


@pytest.mark.parametrize(
    ("changes", "message"), [({"num_heads": 5}, "multiple of num_heads"), ({"n_q": 3}, "do not fit n_q=3")]
)
def test_numbers_that_do_not_fit_one_another_are_refused(
    make_lm: MakeLM, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_lm(**changes)


# ---- the past alone counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 4, 8])
@torch.no_grad()
def test_a_step_never_changes_the_logits_before_it(make_lm: MakeLM, make_text: MakeText, step: int) -> None:
    lm, text, sequence = make_lm(), make_text(5, 3), random_codes(2, 4, 9)
    changed = sequence.clone()
    changed[:, :, step] = (changed[:, :, step] + 1) % 11
    before, after = lm(sequence, text), lm(changed, text)
    torch.testing.assert_close(after[:, :, :step], before[:, :, :step], **ROUNDING)
    assert (after - before)[:, :, step:].abs().amax((0, 1, 3)).min() > 1e-3


@torch.no_grad()
def test_a_frame_changes_only_the_predictions_of_later_steps(make_lm: MakeLM, make_text: MakeText) -> None:
    lm, text, codes = make_lm(), make_text(4), random_codes(1, 4, 9)
    before = lm.predict(codes, text).logits
    changed = codes.clone()
    changed[0, 2, 3] = (changed[0, 2, 3] + 1) % 11  # stands at step 1 + 3 + 2 = 6
    after = lm.predict(changed, text).logits
    for k in range(4):
        unseen = slice(0, 6 - k)  # the prediction of frame t is made at step t + k
        torch.testing.assert_close(after[:, k, unseen], before[:, k, unseen], **ROUNDING)
        seen = (after - before)[:, k, 6 - k : 9 - k]
        assert seen.abs().amax((0, 2)).min() > 1e-4, k


@pytest.mark.parametrize("calls", [[9], [1] * 9, [5, 3, 1], [4, 1, 1, 3], [1, 8]])
@pytest.mark.parametrize("text_padding", PADDINGS)
@torch.no_grad()
def test_steps_through_the_cache_equal_one_forward_pass(
    make_lm: MakeLM, make_text: MakeText, calls: Sequence[int], text_padding: str
) -> None:
    lm, text, sequence = make_lm(text_padding=text_padding), make_text(5, 3, 0), random_codes(3, 4, 9, card=12)
    cache = KVCache(9)
    parts: list[Tensor] = []
    for steps in sequence.split(list(calls), dim=2):
        parts.append(lm(steps, None if parts else text, cache))  # from the second call on the cache holds the text
    assert cache.offset == 9
    torch.testing.assert_close(torch.cat(parts, dim=2), lm(sequence, text), **ROUNDING)


# ---- padding ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_predictions_before_the_padding_do_not_depend_on_its_length(make_lm: MakeLM, make_text: MakeText) -> None:
    lm, text, codes = make_lm(), make_text(4, 2), random_codes(2, 4, 6)
    padded = torch.cat([codes, torch.full((2, 4, 3), 11)], dim=2)  # 11 is the special token
    found, alone = lm.predict(padded, text), lm.predict(codes, text)
    torch.testing.assert_close(found.logits[:, :, :6][:, alone.mask], alone.logits[:, alone.mask], **ROUNDING)
    assert found.logits[:, found.mask].isfinite().all()


@torch.no_grad()
def test_predict_is_nan_exactly_where_its_mask_is_false(make_lm: MakeLM, make_text: MakeText) -> None:
    logits, mask = make_lm().predict(random_codes(2, 4, 7), make_text(4, 2))
    assert logits.shape == (2, 4, 7, 11)
    assert mask.sum(1).tolist() == [7, 6, 5, 4]
    assert torch.equal(logits.isnan().any(-1), ~mask.expand(2, -1, -1))


@torch.no_grad()
def test_transformers_padding_makes_a_row_independent_of_its_neighbours(make_lm: MakeLM, make_text: MakeText) -> None:
    lm, codes = make_lm(text_padding="transformers"), random_codes(2, 4, 7)
    text = make_text(3, 8)
    alone = lm(codes[:1], TextStates(text.states[:1, :3], text.mask[:1, :3]))
    torch.testing.assert_close(lm(codes, text)[:1], alone, **ROUNDING)


@torch.no_grad()
def test_audiocraft_padding_attends_to_the_zeros_of_padded_text(make_lm: MakeLM, make_text: MakeText) -> None:
    lm, codes = make_lm(text_padding="audiocraft"), random_codes(2, 4, 7)
    text = make_text(3, 8)
    alone = lm(codes[:1], TextStates(text.states[:1, :3], text.mask[:1, :3]))
    assert (lm(codes, text)[:1] - alone).abs().max() > 0.01


@pytest.mark.parametrize("text_padding", PADDINGS)
@torch.no_grad()
def test_what_stands_in_masked_text_states_does_not_matter(
    make_lm: MakeLM, make_text: MakeText, text_padding: str
) -> None:
    lm, codes, text = make_lm(text_padding=text_padding), random_codes(3, 4, 7), make_text(3, 8, 0)
    other = TextStates(text.states.masked_fill(~text.mask[..., None], 9.0), text.mask)
    assert torch.equal(lm(codes, text), lm(codes, other))


@pytest.mark.parametrize("text_padding", PADDINGS)
@torch.no_grad()
def test_a_null_row_gets_nothing_from_cross_attention(make_lm: MakeLM, make_text: MakeText, text_padding: str) -> None:
    lm, deaf = make_lm(text_padding=text_padding), make_lm(text_padding=text_padding)
    for layer in deaf.layers:
        assert isinstance(layer, Layer)
        layer.cross_attn.out_proj.weight.zero_()
    codes, text = random_codes(2, 4, 7), make_text(6, 0)
    found, expected = lm(codes, text), deaf(codes, text)
    assert found.isfinite().all()
    torch.testing.assert_close(found[1], expected[1], **ROUNDING)
    assert (found[0] - expected[0]).abs().max() > 0.01


@pytest.mark.parametrize("text_padding", PADDINGS)
def test_a_null_row_gives_finite_gradients_and_none_to_cross_attention(
    make_lm: MakeLM, make_text: MakeText, text_padding: str
) -> None:
    lm = make_lm(text_padding=text_padding)
    lm(random_codes(2, 4, 7), make_text(0, 0, num_tokens=3)).square().mean().backward()
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "cross_attn.v_proj" in name or "text_proj" in name:
            assert not parameter.grad.any(), name


# ---- positions -------------------------------------------------------------------------------------------------------


def exact_positions(num_steps: int, dim: int) -> Tensor:
    """The table's definition in float64: cosines of t / 10000^(j / (D/2 - 1)), then sines."""
    half = dim // 2
    phase = torch.arange(num_steps, dtype=torch.float64)[:, None] / 10000.0 ** (
        torch.arange(half, dtype=torch.float64) / (half - 1)
    )
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def test_positions_are_cosines_then_sines_within_a_thousandth_of_float64() -> None:
    found = sinusoidal_positions(2000, 64, offset=0, device=torch.device("cpu"))
    assert found.dtype == torch.float32
    # fp32 rounds t * frequency at t ~ 2000 to about 1.2e-4; measured 1.3e-4 in all.
    torch.testing.assert_close(found.double(), exact_positions(2000, 64), rtol=0, atol=1e-3)
    assert found[0].tolist() == [1.0] * 32 + [0.0] * 32


def test_positions_from_an_offset_continue_the_table() -> None:
    cpu = torch.device("cpu")
    whole = sinusoidal_positions(50, 12, offset=0, device=cpu)
    assert torch.equal(sinusoidal_positions(7, 12, offset=43, device=cpu), whole[43:])


def test_positions_stay_fp32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sinusoidal_positions(2000, 64, offset=0, device=torch.device("cpu"))
    torch.testing.assert_close(found.double(), exact_positions(2000, 64), rtol=0, atol=1e-3)


@torch.no_grad()
def test_a_bf16_model_rounds_its_positions_but_does_not_compute_them_in_bf16(
    make_lm: MakeLM, make_text: MakeText
) -> None:
    lm = make_lm().bfloat16()
    for parameter in lm.embeddings.parameters():
        parameter.zero_()
    seen: list[Tensor] = []
    lm.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    lm(random_codes(1, 4, 1500), make_text(3))
    # bf16 holds values up to 1 within 2^-9 = 0.002; phases computed in bf16 would be wrong by up to 2.0.
    torch.testing.assert_close(seen[0][0].double(), exact_positions(1500, 24), rtol=0, atol=3e-3)


# ---- initial weights, dropout ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh_lm() -> LanguageModel:
    """Large enough for statistics: the smallest matrix has 256 * 256 numbers, its deviation is known within 1%."""
    torch.manual_seed(0)
    config = LMConfig(dim=256, num_heads=2, num_layers=3, ffn_dim=640, n_q=2, card=300, delays=(0, 1), text_dim=96)
    lm = LanguageModel(config)
    lm.init_weights()
    return lm


TRUNCATED = 0.9866
"""Standard deviation of a normal distribution cut at 3 sigma."""


@pytest.mark.parametrize("i", [0, 1, 2])
def test_linears_inside_a_layer_start_narrower_with_depth(fresh_lm: LanguageModel, i: int) -> None:
    layer = fresh_lm.layers[i]
    assert isinstance(layer, Layer)
    for linear in (layer.self_attn.out_proj, layer.cross_attn.out_proj, layer.fc1, layer.fc2):
        std = 1 / math.sqrt(linear.in_features * 2 * (i + 1))
        assert linear.weight.std().item() == pytest.approx(TRUNCATED * std, rel=0.02)
        assert linear.weight.abs().max() <= 3 * std


@pytest.mark.parametrize("i", [0, 1, 2])
def test_queries_keys_and_values_start_uniform_at_every_depth(fresh_lm: LanguageModel, i: int) -> None:
    layer = fresh_lm.layers[i]
    assert isinstance(layer, Layer)
    for attention in (layer.self_attn, layer.cross_attn):
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            bound = 1 / math.sqrt(256)
            assert projection.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
            assert projection.weight.abs().max() <= bound


def test_embeddings_and_heads_start_with_the_width_of_the_residual_stream(fresh_lm: LanguageModel) -> None:
    for weight in (*fresh_lm.embeddings.parameters(), *fresh_lm.heads.parameters()):
        assert weight.std().item() == pytest.approx(TRUNCATED / math.sqrt(256), rel=0.02)
    assert [tuple(weight.shape) for weight in fresh_lm.embeddings.parameters()] == [(301, 256)] * 2
    assert [tuple(weight.shape) for weight in fresh_lm.heads.parameters()] == [(300, 256)] * 2


def test_norms_start_as_identity_and_linears_but_the_text_projection_have_no_bias(fresh_lm: LanguageModel) -> None:
    parameters = dict(fresh_lm.named_parameters())
    norms = {name: value for name, value in parameters.items() if "norm" in name}
    assert len(norms) == 2 * (3 * 3 + 1)
    assert all((value == float(name.endswith("weight"))).all() for name, value in norms.items())
    assert [name for name in parameters if name.endswith("bias") and name not in norms] == ["text_proj.bias"]


@torch.no_grad()
def test_dropout_acts_in_training_alone(make_lm: MakeLM, make_text: MakeText) -> None:
    plain, dropping, codes, text = make_lm(), make_lm(dropout=0.5), random_codes(2, 4, 7), make_text(3, 2)
    assert torch.equal(dropping(codes, text), plain(codes, text))
    torch.manual_seed(0)
    assert (dropping.train()(codes, text) - plain(codes, text)).abs().max() > 0.1


# ---- less memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_what_is_computed_again_gives_the_same_gradients_with_dropout_on(
    make_lm: MakeLM, make_text: MakeText, recompute: Recompute
) -> None:
    lm = make_lm(dropout=0.3).train()
    codes, text = random_codes(2, lm.config.n_q, 9), make_text(4, 2)

    def gradients() -> list[Tensor]:
        torch.manual_seed(5)
        lm.zero_grad()
        lm.states(codes, text).hidden.square().sum().backward()
        return [parameter.grad.clone() for parameter in lm.parameters() if parameter.grad is not None]

    kept = gradients()
    lm.set_recompute(recompute)
    again = gradients()

    assert len(kept) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_recomputing_runs_the_layers_twice_in_training_and_once_without_gradients(
    make_lm: MakeLM, make_text: MakeText
) -> None:
    lm = make_lm()
    codes, text = random_codes(2, lm.config.n_q, 9), make_text(4, 2)
    calls: list[str] = []
    for name, module in lm.named_modules():
        if name.endswith(("fc1", "q_proj")):
            module.register_forward_hook(lambda *_, name=name: calls.append(name.rpartition(".")[2]))

    def counted(recompute: Recompute) -> tuple[int, int]:
        calls.clear()
        lm.set_recompute(recompute)
        lm.states(codes, text).hidden.sum().backward()
        return calls.count("fc1") // len(lm.layers), calls.count("q_proj") // (2 * len(lm.layers))

    assert counted("none") == (1, 1)
    assert counted("selective") == (2, 1)
    assert counted("full") == (2, 2)
    calls.clear()
    with torch.no_grad():
        lm.states(codes, text)
    assert calls.count("fc1") == len(lm.layers)


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("plain_steps", [1024, 6])
def test_on_a_cpu_attention_in_bf16_and_its_gradients_are_near_those_of_fp32(
    monkeypatch: pytest.MonkeyPatch, plain_steps: int, is_masked: bool
) -> None:
    """Of plain products, in blocks of which the last is shorter, and of torch's own over more steps than those."""
    monkeypatch.setattr("musicgen_ft.model.lm.PLAIN_STEPS", plain_steps)
    monkeypatch.setattr("musicgen_ft.model.lm.CAUSAL_BLOCK", 3)
    generator = torch.Generator().manual_seed(0)
    q, keys, values, wanted = (torch.randn(2, 3, 7, 8, generator=generator).bfloat16() for _ in range(4))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 0, 0, 0]]).bool()[:, None, None] if is_masked else None
    found = [x.clone().requires_grad_() for x in (q, keys, values)]
    with torch.autocast("cpu", torch.bfloat16):
        out = _attention(found[0], found[1], found[2], mask=mask, is_causal=not is_masked)
    assert out.dtype == torch.bfloat16
    out.backward(wanted)

    exact = [x.float().requires_grad_() for x in (q, keys, values)]
    expected = F.scaled_dot_product_attention(exact[0], exact[1], exact[2], attn_mask=mask, is_causal=not is_masked)
    expected.backward(wanted.float())
    pairs = [(out, expected), *((ours.grad, theirs.grad) for ours, theirs in zip(found, exact, strict=True))]
    for ours, theirs in pairs:
        assert ours is not None and theirs is not None
        if plain_steps == 6:
            assert torch.equal(ours, theirs.bfloat16())
        assert (ours.float() - theirs).norm() < 0.01 * theirs.norm()  # bf16 keeps 8 bits: half of the last is 0.002
