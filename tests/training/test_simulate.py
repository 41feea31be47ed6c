"""The simulated memory of a step is what a real one takes: within 10 % of what torch has allocated at the peak."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.model.conditioning import TextEncoder, TextStates
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.model.lora import choose_trained
from musicgen_ft.shards.batch import Batch
from musicgen_ft.training.module import FinetuneModule
from musicgen_ft.training.optim import build_optimizer
from musicgen_ft.training.simulate import Memory, training_memory

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Run = Any
"""tests/training/conftest.py's."""

NUM_TOKENS = 6
WIDE: dict[str, Any] = {"dim": 48, "num_heads": 4, "num_layers": 3, "ffn_dim": 160, "card": 50, "text_dim": 20}


def allocated(before: Iterable[Tensor], work: Callable[[], object]) -> int:
    """The peak of the allocator's bytes while it works, and those of the tensors that were there before."""
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in before}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    profiler: Any = seen.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return sum(held.values()) + most


def simulated(lm: LanguageModel, config: FinetuneConfig, **changes: Any) -> Memory:
    how: dict[str, Any] = {"micro_batch": 2, "accumulates": False, "device": "cpu", "num_tokens": NUM_TOKENS}
    return training_memory(lm.config, config, **{"num_frames": 300, **how, **changes})


@pytest.fixture(scope="module")
def long_shards(make_shards: Callable[..., Path]) -> Path:
    return make_shards(train=(300,) * 4, valid=(40,))  # no clip is padded


@pytest.mark.parametrize("micro_batch", [4, 2])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_real_runs_peak_is_foretold(
    recompute: str, micro_batch: int, long_shards: Path, start_run: Callable[..., Run], text_encoder: TextEncoder
) -> None:
    clips = {"micro_batch_size": micro_batch, "batch_size": 4, "segment_s": 30.0}
    run = start_run(of=long_shards, recompute=recompute, max_steps=2, save_every_steps=2, cfg_dropout=0.0, **clips)
    held = [*run.module.lm.parameters(), *run.module.ema.weights.values()]
    found = allocated(held, lambda: run.trainer.fit(run.module, run.data))
    tokens = text_encoder.tokenize([run.data.train_crops[0].description])[0].shape[1]
    expected = simulated(
        run.module.lm, run.module.config, micro_batch=micro_batch, accumulates=micro_batch < 4, num_tokens=tokens
    )
    assert found == pytest.approx(expected.total, rel=0.1)


CHANGES: list[dict[str, Any]] = [
    {"method": "lora"},
    {"method": "dora", "recompute": "selective"},
    {"method": "lora", "lora_dropout": 0.2, "recompute": "full"},
    {"freeze": ("layers.0", "embeddings"), "ema_decay": 0.0},
    {"dropout": 0.1, "loss_chunk_frames": 128},
    {"text_padding": "transformers"},
    {"optimizer": "adamw8bit"},
    {"optimizer": "muon"},
    {"precision": "bf16"},
    {"precision": "bf16", "method": "lora", "lora_rank": 3},
]


class Encoder:
    """In place of T5."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def encode(self, descriptions: tuple[str, ...]) -> TextStates:
        B = len(descriptions)
        mask = torch.ones(B, NUM_TOKENS, dtype=torch.bool, device=self.device)
        return TextStates(torch.zeros(B, NUM_TOKENS, 20, device=self.device), mask)


def batch(lm: LanguageModel, *, B: int = 2, T: int = 300) -> Batch:
    codes = torch.randint(0, 50, (B, lm.config.n_q, T))
    return Batch(codes, torch.ones(B, T, dtype=torch.bool), ("",) * B, ("",) * B, (0,) * B)


def train(module: Any, of: Batch, dtype: torch.dtype, device: str = "cpu") -> None:
    """Two steps, as the module makes them."""
    optimizer = build_optimizer(module.lm, module.config, is_scaled=False)
    for _ in range(2):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = module.loss(of).ce
        loss.backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        if module.ema is not None:
            module.ema.update(module.lm)


def dtype_of(config: FinetuneConfig) -> torch.dtype:
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_real_steps_peak_is_foretold_for_every_method(
    changes: dict[str, Any], make_lm: Callable[..., LanguageModel]
) -> None:
    config = FinetuneConfig(**changes)
    dtype = dtype_of(config)
    lm = make_lm(**WIDE, dropout=config.dropout, text_padding=config.text_padding or "audiocraft").train()
    expected = simulated(lm, config, compute_dtype=dtype)
    choose_trained(lm, config, compute_dtype=dtype)
    encoder: Any = Encoder()
    module = FinetuneModule(lm, encoder, config)
    held = [*lm.parameters(), *(module.ema.weights.values() if module.ema is not None else [])]
    of = batch(lm)
    found = allocated([*held, of.codes, of.mask], lambda: train(module, of, dtype))
    assert found == pytest.approx(expected.total, rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [{}, {"precision": "bf16"}, *CHANGES[:2], *CHANGES[4:], {"method": "qlora", "precision": "bf16"}],
    ids=str,
)
def test_a_gpus_peak_is_foretold(changes: dict[str, Any], make_lm: Callable[..., LanguageModel]) -> None:
    config = FinetuneConfig(**changes)
    dtype = dtype_of(config)
    wide = {**WIDE, "dim": 256, "ffn_dim": 1024, "card": 500}  # else the workspaces of the libraries are most of it
    lm = make_lm(**wide, dropout=config.dropout, text_padding=config.text_padding or "audiocraft").train()
    expected = simulated(lm, config, micro_batch=4, num_frames=600, device="cuda", compute_dtype=dtype)
    choose_trained(lm, config, compute_dtype=dtype)
    encoder: Any = Encoder("cuda")
    module = FinetuneModule(lm.cuda(), encoder, config)
    if module.ema is not None:
        module.ema.to(torch.device("cuda"))
    of = batch(lm, B=4, T=600).to("cuda")
    # What cuBLAS keeps for itself is counted with the process.
    workspace = torch.cuda.memory_allocated()
    torch.mm(*torch.ones(2, 64, 64, device="cuda", dtype=dtype))
    workspace = torch.cuda.memory_allocated() - workspace
    torch.cuda.reset_peak_memory_stats()
    train(module, of, dtype, "cuda")
    assert torch.cuda.max_memory_allocated() - workspace == pytest.approx(expected.total, rel=0.1)


# ---- the parts -------------------------------------------------------------------------------------------------------


def test_parts_are_told_apart(make_lm: Callable[..., LanguageModel]) -> None:
    lm = make_lm(**WIDE)
    weights = 4 * sum(parameter.numel() for parameter in lm.parameters())
    num_tensors = len(list(lm.parameters()))
    memory = simulated(lm, FinetuneConfig(), accumulates=True)
    assert (memory.weights, memory.gradients, memory.average) == (weights, weights, weights)
    assert memory.optimizer == 2 * weights + 4 * num_tensors  # two moments, and the steps of each tensor
    assert memory.activations > 0
    assert memory.lasting == memory.total - memory.activations == 5 * weights + 4 * num_tensors


def test_four_bits_and_an_average_that_is_not_kept(make_lm: Callable[..., LanguageModel]) -> None:
    lm, common = make_lm(**{**WIDE, "dim": 256, "ffn_dim": 1024}), {"device": "cuda", "compute_dtype": torch.bfloat16}
    lora = simulated(lm, FinetuneConfig(method="lora", ema_decay=0.0), **common)
    qlora = simulated(lm, FinetuneConfig(method="qlora", ema_decay=0.0), **common)
    frozen = sum(p.numel() for name, p in lm.layers.named_parameters() if p.ndim == 2)
    assert lora.average == qlora.average == 0
    # bf16 against 4 bits, a byte for 64 of them, four for 64 * 256; in blocks of 512 bytes.
    assert lora.weights - qlora.weights == pytest.approx(frozen * (2 - 0.5 - 1 / 64 - 4 / 64 / 256), rel=0.02)


def test_memory_grows_with_the_batch_and_shrinks_with_recomputation(make_lm: Callable[..., LanguageModel]) -> None:
    lm = make_lm(**WIDE)
    kept = [simulated(lm, FinetuneConfig(recompute=how)).activations for how in ("none", "selective", "full")]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 3
    one, two, three = (simulated(lm, FinetuneConfig(), micro_batch=B).activations for B in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=0.02)


def test_dropouts_masks_are_of_bytes_on_cuda(make_lm: Callable[..., LanguageModel]) -> None:
    lm = make_lm(**WIDE)
    without, on_cuda, on_cpu = (
        simulated(lm, FinetuneConfig(dropout=p), device=device).activations
        for p, device in ((0.0, "cuda"), (0.1, "cuda"), (0.1, "cpu"))
    )
    assert without < on_cuda < on_cpu


def test_what_is_trained_afterwards_has_its_data(
    make_lm: Callable[..., LanguageModel], make_text: Callable[..., TextStates]
) -> None:
    lm = make_lm(**WIDE)
    simulated(lm, FinetuneConfig(), num_frames=23)
    hidden = lm.states(torch.zeros(1, 4, 23, dtype=torch.int64), make_text(3, dim=20)).hidden
    assert type(hidden) is Tensor and bool(hidden.isfinite().all())
