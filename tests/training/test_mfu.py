"""Operations of training by arithmetic, against torch's own count; the rate of this machine."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from musicgen_ft.config import FinetuneConfig
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.model.lora import choose_trained
from musicgen_ft.training.mfu import flops_per_frame, matrix_rate


def counted(lm: LanguageModel, text: TextStates, num_frames: int) -> float:
    """What torch counts in a forward and a backward pass, for each frame; its fused attention counts nothing."""
    codes = torch.randint(0, 11, (text.mask.shape[0], 4, num_frames))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        lm.predict(codes, text).logits.nan_to_num().sum().backward()
    return float(counter.get_total_flops()) / (text.mask.shape[0] * num_frames)


@pytest.mark.parametrize("num_frames", [60, 240])
def test_the_arithmetic_is_what_torch_counts(
    make_lm: Callable[..., LanguageModel], make_text: Callable[..., Any], num_frames: int
) -> None:
    lm = make_lm(dim=48, ffn_dim=130, num_layers=3)
    # Left out are the text's path and cross-attention's two products with one token.
    assert flops_per_frame(lm, num_frames) == pytest.approx(counted(lm, make_text(1, 1), num_frames), rel=0.01)


def test_frozen_weights_need_no_gradient(make_lm: Callable[..., LanguageModel], make_text: Callable[..., Any]) -> None:
    full, lm = make_lm(dim=48, ffn_dim=130, num_layers=3), make_lm(dim=48, ffn_dim=130, num_layers=3)
    choose_trained(lm, FinetuneConfig(method="lora", lora_rank=1))
    found = flops_per_frame(lm, 60)
    assert found < 0.75 * flops_per_frame(full, 60)
    # The adapters' own products are what is left out here; the lowest layer's activations need no gradient.
    assert found == pytest.approx(counted(lm, make_text(1, 1), 60), rel=0.1)


def test_the_rate_is_measured_once_and_leaves_chance_alone() -> None:
    before = torch.random.get_rng_state()
    rate = matrix_rate(torch.device("cpu"), torch.float32)
    assert rate > 1e8  # a hand-held calculator has less
    assert matrix_rate(torch.device("cpu"), torch.float32) == rate
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.gpu
def test_half_precision_is_faster_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    assert matrix_rate(device, torch.bfloat16) > 1.5 * matrix_rate(device, torch.float32)
