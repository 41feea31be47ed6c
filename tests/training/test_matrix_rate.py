"""The rate of this machine."""

import pytest
import torch

from musicgen_ft.training.matrix_rate import matrix_rate


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
