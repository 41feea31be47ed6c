"""One process of a group of one: what is shared out, and that its checkpoints are one process's own.

Two processes and more: tests/recipes/test_fsdp.py.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.shards.batch import Batch
from musicgen_ft.training import sharded
from musicgen_ft.training.ema import EMA, local
from musicgen_ft.training.fsdp import ShardedRanks, check_sharding, clip_grad_norm, is_sharded
from musicgen_ft.training.module import FinetuneModule


@pytest.fixture
def strategy() -> Iterator[ShardedRanks]:
    """In a group of one process."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    made = ShardedRanks(timedelta(minutes=1))
    made.mesh = init_device_mesh("cpu", (1,))
    made.cluster_environment = SimpleNamespace(global_rank=lambda: 0, world_size=lambda: 1)  # type: ignore[assignment]
    yield made
    dist.destroy_process_group()


@pytest.fixture
def module(make_lm: Callable[..., LanguageModel], text_encoder: TextEncoder) -> FinetuneModule:
    config = FinetuneConfig(shards="shards", out=Path("run"), strategy="fsdp")
    return FinetuneModule(make_lm(text_dim=text_encoder.dim), text_encoder, config)


def test_layers_are_shared_out_each_and_all_else_together(strategy: ShardedRanks, module: FinetuneModule) -> None:
    names = [name for name, _ in module.named_parameters()]
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    strategy.shard(module, module.lm, "_sums", bf16=False)
    strategy.shard(module, module.lm, "_sums", bf16=False)
    assert is_sharded(module)
    assert [name for name, _ in module.named_parameters()] == names
    for name, parameter in module.named_parameters():
        assert isinstance(parameter, DTensor)
        assert torch.equal(local(parameter), before[name])
    groups = [part for part in module.modules() if type(part).__name__.startswith("FSDP")]
    assert groups == [module, *module.lm.layers]


def test_the_average_of_rows_is_that_of_the_whole(
    strategy: ShardedRanks, make_lm: Callable[..., LanguageModel]
) -> None:
    whole, shared = make_lm(seed=1), make_lm(seed=1)
    strategy.shard(shared, shared, "states", bf16=False)
    averages = EMA(whole, 0.7), EMA(shared, 0.7)
    for factor in (1.5, 0.3):
        for lm, average in zip((whole, shared), averages, strict=True):
            with torch.no_grad():
                for parameter in lm.parameters():
                    local(parameter).mul_(factor)
            average.update(lm)
    for lm, average in zip((whole, shared), averages, strict=True):
        average.swap(lm)
    for name, value in averages[0].weights.items():
        assert isinstance(averages[1].weights[name], DTensor)
        assert torch.equal(local(averages[1].weights[name]), value)
        assert torch.equal(local(shared.get_parameter(name)), whole.get_parameter(name))


def test_gradients_are_clipped_as_those_of_the_whole(strategy: ShardedRanks) -> None:
    whole, shared = nn.Linear(5, 7), nn.Linear(5, 7)
    shared.load_state_dict(whole.state_dict())
    fully_shard(shared, mesh=strategy.mesh)
    inputs = torch.randn(3, 5)
    norms: list[Any] = []
    for layer in (whole, shared):
        layer(inputs).square().sum().backward()
        norms.append(clip_grad_norm(layer.parameters(), 0.25))
    assert norms[0] > 0.25
    assert norms[1] == pytest.approx(norms[0])
    for parameter, expected in zip(shared.parameters(), whole.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(local(parameter.grad), expected.grad)


def test_a_checkpoint_of_shared_weights_is_read_as_it_was(strategy: ShardedRanks, tmp_path: Path) -> None:
    layer = nn.Linear(5, 7)
    fully_shard(layer, mesh=strategy.mesh)
    weight = local(layer.weight).clone()
    for step in (1, 2):  # the second takes the place of the first
        strategy.save_checkpoint({"state_dict": layer.state_dict(), "global_step": step}, tmp_path / "best.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    assert torch.equal(sharded.read(tmp_path / "best.ckpt")["state_dict"]["weight"], weight)
    loaded = strategy.load_checkpoint(tmp_path / "best.ckpt")
    assert loaded["global_step"] == 2
    with torch.no_grad():
        local(layer.weight).zero_()
    layer.load_state_dict(loaded["state_dict"])
    assert torch.equal(local(layer.weight), weight)


@pytest.mark.gpu
def test_on_a_gpu_layers_are_gathered_in_bf16_and_all_else_in_fp32(module: FinetuneModule) -> None:
    dist.init_process_group("nccl", store=HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0))
    try:
        strategy = ShardedRanks(timedelta(minutes=1))
        strategy.mesh = init_device_mesh("cuda", (1,))
        module.lm.set_recompute("selective")
        seen: dict[str, torch.dtype] = {}
        first: Any = module.lm.layers[0]
        first.register_forward_pre_hook(lambda layer, args: seen.update(layer=layer.fc1.weight.dtype))
        strategy.shard(module, module.lm, "_sums", bf16=True)
        last: Any = module.lm.out_norm
        last.register_forward_pre_hook(lambda norm, args: seen.update(norm=norm.weight.dtype, stream=args[0].dtype))
        card, n_q = module.lm.config.card, module.lm.config.n_q
        codes = torch.randint(card, (2, n_q, 9), device="cuda")
        mask = torch.ones(2, 9, dtype=torch.bool, device="cuda")
        batch = Batch(codes=codes, mask=mask, descriptions=("a", None), keys=("a", "b"), positions=(0, 1))
        module._text_encoder.to(torch.device("cuda"))
        with torch.autocast("cuda", torch.bfloat16):
            sums, _ = module._sums(batch, module._text_encoder.encode(batch.descriptions))
        sums.sum().backward()
    finally:
        dist.destroy_process_group()
    assert seen == {"layer": torch.bfloat16, "norm": torch.float32, "stream": torch.float32}
    for parameter in module.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "fp16"}, "--precision fp16"),
        ({"method": "qlora"}, "qlora"),
        ({"optimizer": "adamw8bit"}, "8bit"),
        ({"optimizer": "muon"}, "whole matrices"),
        ({"sample_every_steps": 2}, "no process holds a whole model"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_sharding(FinetuneConfig(strategy="fsdp", **changes))
