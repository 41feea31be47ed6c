"""The optimizer's groups and the schedule's values."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from torch import nn

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.training.optim import build_optimizer, check_optimizer, parameter_groups, warmup_cosine
from musicgen_ft.weights import read_pickle, write_pickle


def names_by_group(lm: LanguageModel) -> list[tuple[float, set[str]]]:
    """Weight decay and names of each group; every trained parameter stands in one."""
    names = {id(parameter): name for name, parameter in lm.named_parameters()}
    groups = parameter_groups(lm, weight_decay=0.1)
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(given) == sorted(id(parameter) for parameter in lm.parameters() if parameter.requires_grad)
    return [(group["weight_decay"], {names[id(p)] for p in group["params"]}) for group in groups]


def test_matrices_decay_and_norms_and_biases_do_not(make_lm: Callable[..., LanguageModel]) -> None:
    embeddings, matrices, others = names_by_group(make_lm())

    assert (embeddings[0], matrices[0], others[0]) == (0.1, 0.1, 0.0)
    assert embeddings[1] == {f"embeddings.{k}.weight" for k in range(4)}
    assert all("norm" in name or name.endswith("bias") for name in others[1])
    assert not any("norm" in name or name.endswith("bias") for name in matrices[1])


def test_frozen_parameters_are_left_out(make_lm: Callable[..., LanguageModel]) -> None:
    lm = make_lm()
    lm.embeddings.requires_grad_(False)

    assert len(names_by_group(lm)) == 2


def test_gradients_that_are_scaled_are_not_unscaled_within_the_step_which_comes_after_clipping(
    make_lm: Callable[..., LanguageModel],
) -> None:
    plain, scaled = (build_optimizer(make_lm(), FinetuneConfig(), is_scaled=is_scaled) for is_scaled in (False, True))

    assert not _optimizer_handles_unscaling(scaled)  # Lightning asks this before it unscales them itself
    assert not _optimizer_handles_unscaling(build_optimizer(make_lm(), MUON, is_scaled=True))
    assert plain.defaults["fused"]


def test_a_step_moves_a_weight_by_the_rate() -> None:
    model = nn.Linear(2, 3, bias=False)
    nn.init.ones_(model.weight)
    optimizer = build_optimizer(model, FinetuneConfig(lr=1e-2, weight_decay=0.0), is_scaled=False)
    model.weight.grad = torch.full((3, 2), 0.3)
    optimizer.step()
    torch.testing.assert_close(model.weight.data, torch.full((3, 2), 0.99), rtol=0, atol=1e-6)  # Adam's first is lr


# ---- 8 bits ----------------------------------------------------------------------------------------------------------


def quadratic(
    steps: int, *, saved: Path | None = None, **changes: Any
) -> tuple[torch.optim.Optimizer, nn.Module, float]:
    """An embedding and a matrix trained towards a target, and how far off they end; begun anew, or as ``saved``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(130, 64), nn.Linear(64, 96))
    target, inputs = torch.randn(130, 96), torch.arange(130)
    optimizer = build_optimizer(model, FinetuneConfig(lr=3e-3, weight_decay=0.01, **changes), is_scaled=False)
    if saved is not None:
        content = read_pickle(saved)
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    loss = torch.tensor(torch.nan)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(inputs) - target).square().mean()
        loss.backward()
        optimizer.step()
    return optimizer, model, loss.item()


def test_in_8_bits_it_learns_what_it_learns_in_32() -> None:
    *_, in_32 = quadratic(150)
    *_, in_8 = quadratic(150, optimizer="adamw8bit")

    assert quadratic(1)[2] > 1.0
    assert in_32 < 0.5
    assert in_8 == pytest.approx(in_32, abs=0.02)
    assert in_8 != in_32


def test_moments_take_8_bits_but_those_of_embeddings_and_of_small_tensors() -> None:
    optimizer, model, _ = quadratic(1, optimizer="adamw8bit")
    dtypes = {name: optimizer.state[parameter]["state1"].dtype for name, parameter in model.named_parameters()}

    assert dtypes == {"0.weight": torch.float32, "1.weight": torch.uint8, "1.bias": torch.float32}


def test_moments_of_8_bits_are_saved_and_taken_up_bit_for_bit(tmp_path: Path) -> None:
    _, unbroken, _ = quadratic(7, optimizer="adamw8bit")
    optimizer, model, _ = quadratic(3, optimizer="adamw8bit")
    write_pickle(tmp_path / "saved", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    _, resumed, _ = quadratic(4, optimizer="adamw8bit", saved=tmp_path / "saved")

    for name, value in unbroken.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


def test_8_bits_need_a_library_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check_optimizer(FinetuneConfig())
    with pytest.raises(UserError, match=r"which --optimizer adamw8bit needs: pip install .* or use --optimizer adamw"):
        check_optimizer(FinetuneConfig(optimizer="adamw8bit"))


# ---- Muon ------------------------------------------------------------------------------------------------------------


MUON = FinetuneConfig(optimizer="muon", lr=1e-2, weight_decay=0.1)


def walk(lm: LanguageModel, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps along gradients that are random, and the same for each number of a step."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in lm.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def is_matrix_of_layer(name: str, parameter: nn.Parameter) -> bool:
    return name.startswith("layers.") and parameter.ndim == 2


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest(make_lm: Callable[..., LanguageModel]) -> None:
    lm = make_lm()
    optimizer = build_optimizer(lm, MUON, is_scaled=False)
    names = {id(parameter): name for name, parameter in lm.named_parameters()}
    muon, *adamw = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]

    assert muon == {name for name, parameter in lm.named_parameters() if is_matrix_of_layer(name, parameter)}
    assert len(muon) == 20  # two layers of twice four projections and two of the feed-forward
    assert sorted([*muon, *(name for group in adamw for name in group)]) == sorted(names.values())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.1, 0.0]


def test_both_move_as_torchs_own_do(make_lm: Callable[..., LanguageModel]) -> None:
    lm, alone = make_lm(), make_lm()
    walk(lm, build_optimizer(lm, MUON, is_scaled=False), range(3))
    matrices = [parameter for name, parameter in alone.named_parameters() if is_matrix_of_layer(name, parameter)]
    kept = {id(parameter) for parameter in matrices}
    muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = parameter_groups(alone, weight_decay=0.1)
    others = [group | {"params": [p for p in group["params"] if id(p) not in kept]} for group in groups]
    adamw = torch.optim.AdamW(others, lr=1e-2, betas=(MUON.beta1, MUON.beta2), fused=True)
    adamw.register_step_post_hook(lambda *_: muon.step())
    walk(alone, adamw, range(3))

    for name, value in alone.state_dict().items():
        torch.testing.assert_close(lm.state_dict()[name], value, rtol=0, atol=0)
        assert not torch.equal(value, make_lm().state_dict()[name])


def test_a_step_of_muon_is_as_large_as_adamw_usually_makes_it(make_lm: Callable[..., LanguageModel]) -> None:
    lm, before = make_lm(), make_lm().state_dict()
    config = FinetuneConfig(optimizer="muon", lr=1e-2, weight_decay=0.0)
    walk(lm, build_optimizer(lm, config, is_scaled=False), range(1))

    for name in ("layers.1.self_attn.q_proj.weight", "layers.0.fc1.weight", "layers.0.fc2.weight"):
        moved = (lm.state_dict()[name] - before[name]).square().mean().sqrt().item()
        assert moved == pytest.approx(0.2e-2, rel=0.2), name  # a fifth of the rate: arXiv:2502.16982, section 2.2


def test_a_schedule_moves_the_rate_of_both(make_lm: Callable[..., LanguageModel]) -> None:
    lm = make_lm()
    optimizer = build_optimizer(lm, MUON, is_scaled=False)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    walk(lm, optimizer, range(2))

    for name, value in lm.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_muons_momentum_and_adamws_moments_are_saved_and_taken_up_bit_for_bit(
    make_lm: Callable[..., LanguageModel], tmp_path: Path
) -> None:
    unbroken, broken, resumed = make_lm(), make_lm(), make_lm(seed=5)
    walk(unbroken, build_optimizer(unbroken, MUON, is_scaled=False), range(5))
    optimizer = build_optimizer(broken, MUON, is_scaled=False)
    walk(broken, optimizer, range(3))
    write_pickle(tmp_path / "saved", {"model": broken.state_dict(), "optimizer": optimizer.state_dict()})
    saved = read_pickle(tmp_path / "saved")
    resumed.load_state_dict(saved["model"])
    again = build_optimizer(resumed, MUON, is_scaled=False)
    again.load_state_dict(saved["optimizer"])
    walk(resumed, again, range(3, 5))

    for name, value in unbroken.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


def test_muon_wants_a_matrix_of_a_layer_and_needs_nothing_else(make_lm: Callable[..., LanguageModel]) -> None:
    lm = make_lm()
    lm.requires_grad_(False)
    lm.layers[1].fc1.requires_grad_(True)
    assert len(build_optimizer(lm, MUON, is_scaled=False).param_groups) == 1
    lm.requires_grad_(False)
    lm.embeddings.requires_grad_(True)
    with pytest.raises(UserError, match="no matrix of a layer"):
        build_optimizer(lm, MUON, is_scaled=False)


# ---- schedule --------------------------------------------------------------------------------------------------------


def test_the_rate_rises_in_a_line_then_falls_along_half_a_cosine() -> None:
    shares = [warmup_cosine(step, warmup_steps=4, max_steps=12, min_ratio=0.0) for step in range(13)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(9)])
    assert shares[8] == pytest.approx(0.5)
    assert shares[12] == 0.0


def test_the_first_step_is_never_lost_to_a_rate_of_zero() -> None:
    assert warmup_cosine(0, warmup_steps=50, max_steps=1000, min_ratio=0.0) == 0.02
    assert warmup_cosine(0, warmup_steps=0, max_steps=1000, min_ratio=0.0) == 1.0


@pytest.mark.parametrize("step", [10, 11, 1000])
def test_the_rate_ends_at_its_least_share_and_stays_there(step: int) -> None:
    assert warmup_cosine(step, warmup_steps=2, max_steps=10, min_ratio=0.1) == pytest.approx(0.1)


def test_a_run_that_is_all_warm_up_has_a_schedule_too() -> None:
    shares = [warmup_cosine(step, warmup_steps=5, max_steps=5, min_ratio=0.0) for step in range(6)]
    assert shares == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
