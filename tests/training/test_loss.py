"""The loss against a naive loop; against audiocraft's and transformers' in tests/parity."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.model.patterns import DelayPattern
from musicgen_ft.training.loss import codebook_cross_entropy, codebook_sums, mean_loss, state_sums

GRID = [(1, 1, 1, 3), (2, 4, 7, 11), (3, 2, 5, 6), (1, 8, 9, 4)]


def sample(B: int, K: int, T: int, card: int, *, share: float = 0.7) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, codes and a mask; NaN and the special token wherever the mask is false."""
    generator = torch.Generator().manual_seed(B * K * T)
    mask = torch.rand(B, K, T, generator=generator) < share
    mask[0, :, 0] = True
    logits = torch.randn(B, K, T, card, generator=generator).where(mask[..., None], torch.nan)
    codes = torch.randint(card, (B, K, T), generator=generator).where(mask, card)
    return logits, codes, mask


def naive_loss(logits: Tensor, codes: Tensor, mask: Tensor) -> tuple[float, list[float]]:
    """Frame by frame, in float64."""
    B, K, T = codes.shape
    of_codebooks = []
    for k in range(K):
        losses = []
        for b in range(B):
            for t in range(T):
                if mask[b, k, t]:
                    row = logits[b, k, t].double()
                    losses.append((row.exp().sum().log() - row[codes[b, k, t]]).item())
        of_codebooks.append(sum(losses) / len(losses))
    return sum(of_codebooks) / K, of_codebooks


@pytest.mark.parametrize("shape", GRID)
@pytest.mark.parametrize("share", [0.2, 0.7, 1.0])
def test_the_loss_equals_a_naive_loop(shape: tuple[int, int, int, int], share: float) -> None:
    logits, codes, mask = sample(*shape, share=share)
    loss = codebook_cross_entropy(logits, codes, mask)
    ce, of_codebooks = naive_loss(logits, codes, mask)
    assert loss.ce.item() == pytest.approx(ce, abs=1e-6)  # fp32 against float64
    assert loss.ce_per_codebook.tolist() == pytest.approx(of_codebooks, abs=1e-6)


def test_each_codebook_counts_alike_however_many_frames_it_has() -> None:
    logits, codes, mask = torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, dtype=torch.long), torch.ones(1, 2, 5).bool()
    mask[0, 1, 1:] = False  # one frame against five
    logits[0, 1, 0, 0] = 50.0  # which it knows for certain
    loss = codebook_cross_entropy(logits, codes, mask)
    assert loss.ce.item() == pytest.approx(math.log(4) / 2)  # a mean over frames would give 5/6 of log 4


def test_neither_nan_nor_the_special_token_reaches_loss_or_gradient() -> None:
    logits, codes, mask = sample(2, 4, 7, 11)
    logits.requires_grad_()
    loss = codebook_cross_entropy(logits, codes, mask)
    loss.ce.backward()
    assert loss.ce.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[~mask].any()
    assert (logits.grad[mask].abs().sum(-1) > 0).all()


def test_a_codebook_without_a_valid_frame_counts_as_zero_and_gives_no_nan() -> None:
    logits, codes, mask = sample(2, 3, 5, 4, share=1.0)
    mask[:, 2] = False
    loss = codebook_cross_entropy(logits.requires_grad_(), codes, mask)
    loss.ce.backward()
    assert loss.ce_per_codebook[2] == 0.0
    assert loss.ce.item() == pytest.approx(loss.ce_per_codebook[:2].sum().item() / 3)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_loss_is_computed_in_fp32_of_half_precision_logits() -> None:
    logits, codes, mask = sample(2, 4, 7, 11)
    half = logits.bfloat16()
    assert codebook_cross_entropy(half, codes, mask).ce.dtype == torch.float32
    expected = codebook_cross_entropy(half.float(), codes, mask).ce
    assert torch.equal(codebook_cross_entropy(half, codes, mask).ce, expected)


def test_sums_of_batches_add_up_to_the_loss_of_all() -> None:
    logits, codes, mask = sample(4, 2, 5, 6)
    parts = [codebook_sums(logits[i : i + 2], codes[i : i + 2], mask[i : i + 2]) for i in (0, 2)]
    sums, counts = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
    expected = codebook_cross_entropy(logits, codes, mask)
    torch.testing.assert_close(sums / counts, expected.ce_per_codebook, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", ["codes", "mask"])
def test_shapes_that_do_not_fit_are_refused(wrong: str) -> None:
    logits, codes, mask = sample(2, 4, 7, 11)
    tensors = {"logits": logits, "codes": codes, "mask": mask}
    tensors[wrong] = tensors[wrong][:, :, :-1]
    with pytest.raises(ValueError, match="do not fit one another"):
        codebook_cross_entropy(**tensors)


# ---- padding ---------------------------------------------------------------------------------------------------------


def test_padded_frames_are_never_learned(
    make_lm: Callable[..., LanguageModel], make_text: Callable[..., TextStates]
) -> None:
    lm, pattern, num_padded = make_lm(), DelayPattern((0, 1, 2, 3)), 3
    codes = torch.randint(11, (2, 4, 9), generator=torch.Generator().manual_seed(0))
    codes[1, :, -num_padded:] = 11
    audio = codes[:, 0] != 11
    logits = lm(pattern.interleave(codes, 11)[:, :, :9], make_text(3, 2))
    logits.retain_grad()
    mask = audio[:, None] & pattern.frame_mask(9)
    codebook_cross_entropy(pattern.align_logits(logits), codes, mask).ce.backward()
    assert logits.grad is not None
    learned = logits.grad.abs().sum(-1) > 0  # [B, K, S]
    for k in range(4):  # frame t is predicted at step t + k
        assert learned[0, k].tolist() == [k <= step for step in range(9)]
        assert learned[1, k].tolist() == [k <= step < 9 - num_padded + k for step in range(9)]


def test_the_loss_of_a_batch_does_not_depend_on_how_far_it_is_padded(
    make_lm: Callable[..., LanguageModel], make_text: Callable[..., TextStates]
) -> None:
    lm, text = make_lm(), make_text(3, 2)
    codes = torch.randint(11, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    losses = []
    for padding in (3, 8):  # from max_delay on: fewer, and the last frames of later codebooks are not predicted
        padded = torch.cat([codes, torch.full((2, 4, padding), 11)], dim=2)
        logits, mask = lm.predict(padded, text)
        losses.append(codebook_cross_entropy(logits, padded, mask & (padded[:, :1] != 11)).ce)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-6)


# ---- in chunks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_frames", [1, 5, 4096])
@pytest.mark.parametrize("pattern", ["delay", "parallel", "unroll", "coarse_first"])
def test_the_loss_in_chunks_is_that_of_all_logits_and_so_are_its_gradients(
    make_lm: Callable[..., LanguageModel], make_text: Callable[..., TextStates], pattern: str, chunk_frames: int
) -> None:
    lm = make_lm(pattern=pattern, delays=(0, 1, 2) if pattern == "delay" else (0, 0, 0), n_q=3, card=11).train()
    codes = torch.randint(11, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    text = make_text(4, 2)
    mask = torch.ones(2, 3, 9, dtype=torch.bool)
    mask[1, :, 6:] = False

    logits, pattern_mask = lm.predict(codes, text)
    expected = codebook_cross_entropy(logits, codes, mask & pattern_mask)
    expected.ce.backward()
    gradients = {name: parameter.grad for name, parameter in lm.named_parameters()}
    lm.zero_grad()
    states = lm.states(codes, text)
    found = mean_loss(*state_sums(states, lm.heads, codes, mask & states.mask, chunk_frames=chunk_frames))
    found.ce.backward()

    torch.testing.assert_close(found.ce, expected.ce, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.ce_per_codebook, expected.ce_per_codebook, rtol=0, atol=1e-6)
    for name, parameter in lm.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-6)


def test_no_more_than_a_chunks_logits_are_computed_at_once(
    make_lm: Callable[..., LanguageModel], make_text: Callable[..., TextStates]
) -> None:
    lm = make_lm(n_q=3, card=11, delays=(0, 1, 2))
    codes = torch.randint(11, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    sizes: list[int] = []
    for head in lm.heads:
        head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel() // 11))

    states = lm.states(codes, make_text(4, 2))
    sums, counts = state_sums(states, lm.heads, codes, states.mask.expand(2, 3, 9), chunk_frames=4)
    (sums / counts).mean().backward()

    assert max(sizes) == 4
    assert sum(sizes) == int(counts.sum())  # once: the backward pass computes none again


def test_a_codebook_without_a_valid_frame_counts_as_nothing(
    make_lm: Callable[..., LanguageModel], make_text: Callable[..., TextStates]
) -> None:
    lm = make_lm(n_q=3, card=11, delays=(0, 1, 2))
    codes = torch.full((2, 3, 9), 11)
    states = lm.states(codes, make_text(4, 2))

    loss = mean_loss(*state_sums(states, lm.heads, codes, torch.zeros(2, 3, 9, dtype=torch.bool)))

    assert loss.ce.item() == 0
    loss.ce.backward()
    assert all(p.grad is None or not p.grad.any() for p in lm.parameters())
