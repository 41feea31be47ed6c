"""The memory of a training step, found by running the step on tensors that have shapes and no data.

No formula of activations: the module that trains is built and run, with its own loss, clipping, optimizer and average,
under torch's ``FakeTensorMode``; a dispatch mode follows which storages are alive. What a kernel allocates inside
itself is not seen, nor what an allocator loses between its blocks.

The tensors pretend to be on the CPU for a GPU too, since fake CUDA tensors go through autograd only where there is one.
The CPU's fused attention keeps for the backward pass what the GPU's keep (queries, keys, values, output and the
logarithms of the sums), and autocast narrows the same operations. Where the GPU differs it is imitated: dropout's
masks, the backward buffer of flash attention, blocks of 512 bytes.
"""

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel, LMConfig
from musicgen_ft.model.lora import FrozenLinear, choose_trained
from musicgen_ft.shards.batch import Batch
from musicgen_ft.training.ema import trainable
from musicgen_ft.training.module import FinetuneModule
from musicgen_ft.training.optim import build_optimizer, parameter_groups

DeviceType = Literal["cpu", "cuda"]
Part = Literal["weights", "gradients", "optimizer", "average", "activations"]

TEXT_TOKENS = 64
"""Tokens of a caption for which is planned: two or three sentences."""

_CUDA_BLOCK = 512
"""Bytes to which CUDA's caching allocator rounds up."""
_FLASH_ROWS = 128
"""Queries to which flash attention's buffer of the queries' gradient is rounded up."""
_SMALLEST_IN_8_BITS, _BLOCK_IN_8_BITS = 4096, 256
"""Values of a tensor from which on bitsandbytes holds its moments in 8 bits, and those that share a scale."""
_NF4_BLOCK, _NF4_BLOCKS = 64, 256
"""Weights with a scale of 8 bits between them, and scales with one of 32 bits (bitsandbytes, double quantization)."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of each part of a training process's tensors, at the moment when they are most."""

    weights: int
    """Of the language model, as they are held: frozen ones may be narrow."""
    gradients: int
    """Of what is trained."""
    optimizer: int
    """Its state."""
    average: int
    """Of the weights, in fp32."""
    activations: int
    """What the backward pass needs, the weights' copies in half precision, and everything that lives for a moment."""
    text_encoder: int = 0
    """The frozen T5's weights, in fp32."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(dataclasses.astuple(self))

    @property
    def lasting(self) -> int:
        """What no smaller batch and no recomputation takes away."""
        return self.total - self.activations


def training_memory(
    lm_config: LMConfig,
    config: FinetuneConfig,
    *,
    num_frames: int,
    micro_batch: int,
    accumulates: bool,
    device: DeviceType,
    compute_dtype: torch.dtype = torch.float32,
    num_tokens: int = TEXT_TOKENS,
    num_chroma: int = 0,
) -> Memory:
    """The largest memory that one process's training steps take, without the text encoder.

    Args:
        lm_config: of the base.
        config: of the run: its method, what it recomputes, its average and all else that it says of a step.
        num_frames: T of a clip.
        micro_batch: clips at once on the device.
        accumulates: whether a step has further micro-batches, which then meet the gradients of the first.
        device: whose kernels.
        compute_dtype: of matrix products; half precision is autocast's.
        num_tokens: of the longest caption of a micro-batch.
        num_chroma: frames of a clip's melody, for a model that takes one.
    """
    lm_config = dataclasses.replace(
        lm_config, dropout=config.dropout, text_padding=config.text_padding or lm_config.text_padding
    )
    # Whole on each device; and what skips a step looks at values, of which there are none.
    config = dataclasses.replace(config, strategy="ddp", on_nonfinite="stop")
    like_cuda = _CUDA() if device == "cuda" else nullcontext()
    _remember_steps(lm_config, num_frames)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        like_cuda,
        _Storages(device) as storages,
        torch.random.fork_rng(devices=[]),
    ):
        with storages.count_as("weights"):
            lm = _language_model(lm_config, config, compute_dtype)
        with storages.count_as("average"):
            module: Any = FinetuneModule(lm, _no_encoder(micro_batch, num_tokens, lm_config.text_dim), config)
        batch = _batch(lm_config, micro_batch, num_frames, num_chroma)
        is_scaled = compute_dtype == torch.float16
        optimizer: Any = (
            _EightBitMoments(parameter_groups(lm, weight_decay=config.weight_decay))
            if config.optimizer == "adamw8bit"
            else build_optimizer(lm, config, is_scaled=is_scaled)
        )
        if device == "cuda" and is_scaled:
            for group in optimizer.param_groups:  # as torch chooses there
                group.update(foreach=True)
        storages.forget_peak()
        _steps(module, batch, optimizer, storages, accumulates=accumulates, compute_dtype=compute_dtype)
    return Memory(**storages.at_peak)


def _steps(
    module: FinetuneModule,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    storages: "_Storages",
    *,
    accumulates: bool,
    compute_dtype: torch.dtype,
) -> None:
    """The end of a step, and a micro-batch of the next one: in the order in which ``FinetuneModule`` does it."""
    for _, parameter in trainable(module.lm):
        with storages.count_as("gradients"):
            parameter.grad = torch.empty_like(parameter)
        parameter.register_post_accumulate_grad_hook(storages.take_for_gradient)
    module.configure_gradient_clipping(optimizer)
    with storages.count_as("optimizer"):
        optimizer.step()
    if not accumulates:  # else they stand for those of the micro-batches before
        optimizer.zero_grad()
    if module.ema is not None:
        module.ema.update(module.lm)
    with torch.autocast("cpu", compute_dtype, enabled=compute_dtype != torch.float32):
        loss = module.loss(batch).ce
    loss.backward()


def _remember_steps(config: LMConfig, num_frames: int) -> None:
    """Has the pattern's steps made now: they are kept for later calls, which must not find tensors without data."""
    pattern = config.make_pattern()
    pattern.interleave(torch.zeros(1, config.n_q, num_frames, dtype=torch.int64), config.special_token_id)
    pattern.frame_mask(num_frames, device=torch.device("cpu"))


def _language_model(config: LMConfig, run: FinetuneConfig, compute_dtype: torch.dtype) -> LanguageModel:
    """A model as the run holds it, nothing in its tensors."""
    with torch.device("meta"):
        lm = LanguageModel(config)
    lm.load_state_dict({name: torch.empty(value.shape) for name, value in lm.state_dict().items()}, assign=True)
    lm.requires_grad_(True)
    fresh = ("text_proj",) if run.text_encoder is not None else ()
    if run.method != "qlora":
        choose_trained(lm, run, fresh=fresh, compute_dtype=compute_dtype)
        return lm.train()
    choose_trained(
        lm, dataclasses.replace(run, method="lora", base_dtype="bf16"), fresh=fresh, compute_dtype=compute_dtype
    )
    for name, linear in list(lm.named_modules()):
        if isinstance(linear, FrozenLinear):
            lm.set_submodule(name, _FourBit(linear.in_features, linear.out_features, compute_dtype))
    return lm.train()


def _batch(config: LMConfig, B: int, T: int, num_chroma: int) -> Batch:
    """Whole clips: none of their frames is padding."""
    chroma = torch.zeros(B, num_chroma, dtype=torch.int64) if config.chroma is not None else None
    return Batch(
        codes=torch.zeros(B, config.n_q, T, dtype=torch.int64),
        mask=torch.ones(B, T, dtype=torch.bool),
        descriptions=("",) * B,
        keys=("",) * B,
        positions=(0,) * B,
        chroma=chroma,
    )


class _NoEncoder:
    """Gives states of the right shape in place of T5's, whose own pass comes first and needs little."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def encode(self, descriptions: Sequence[str | None]) -> TextStates:
        return TextStates(torch.zeros(self.shape), torch.ones(self.shape[:2], dtype=torch.bool))


def _no_encoder(*shape: int) -> Any:
    B, N, dim = shape
    return _NoEncoder((B, N, dim))


# ---- what is alive ---------------------------------------------------------------------------------------------------


class _Storages(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, by part, and keeps the counts of the worst moment."""

    def __init__(self, device: DeviceType) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_cuda = device == "cuda"
        self.now: dict[str, int] = dict.fromkeys(("weights", "gradients", "optimizer", "average", "activations"), 0)
        self.at_peak = dict(self.now)
        self._part: Part = "activations"
        self._live: dict[int, tuple[int, str]] = {}  # by the address of the storage: its bytes and part
        self._sum, self._peak = 0, 0

    @contextmanager
    def count_as(self, part: Part) -> Iterator[None]:
        """New storages belong to this part, while the block lasts."""
        before, self._part = self._part, part
        yield
        self._part = before

    def take_for_gradient(self, parameter: Tensor) -> None:
        """After a parameter's gradient was accumulated: its storage is no activation any more."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        size, part = self._live[key]
        self._live[key] = (size, "gradients")
        self.now[part] -= size
        self.now["gradients"] += size

    def forget_peak(self) -> None:
        """Building is over: only from here on does it count."""
        self._peak, self.at_peak = self._sum, dict(self.now)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and takes note of what it has made."""
        args = _without_masks(func, args)
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._follow(value)
        if self.is_cuda and func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
            B, H, S, head_dim = args[1].shape
            rounded = -(-S // _FLASH_ROWS) * _FLASH_ROWS
            self._reach(self._sum + 4 * B * H * rounded * (head_dim + 1))  # fp32, gone when the kernel ends
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes()
        if self.is_cuda:
            size = -(-size // _CUDA_BLOCK) * _CUDA_BLOCK
        self._live[key] = (size, self._part)
        self.now[self._part] += size
        self._sum += size
        weakref.finalize(storage, self._drop, key)
        self._reach(self._sum)

    def _drop(self, key: int) -> None:
        size, part = self._live.pop(key)
        self.now[part] -= size
        self._sum -= size

    def _reach(self, total: int) -> None:
        if total > self._peak:
            self._peak, self.at_peak = total, dict(self.now)
            self.at_peak["activations"] += total - self._sum


_INDEXED: tuple[Callable[..., Any], ...] = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._unsafe_index_put.default,
)


def _without_masks(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Masks among the indices become positions, as if they were true everywhere: the most that there can be."""
    if func not in _INDEXED:
        return args
    indices: list[Tensor | None] = []
    for index in args[1]:
        if index is not None and index.dtype == torch.bool:
            indices += [torch.zeros(index.numel(), dtype=torch.int64)] * index.ndim
        else:
            indices.append(index)
    return (args[0], indices, *args[2:])


# ---- what stands in for a GPU's --------------------------------------------------------------------------------------


class _CUDA(TorchFunctionMode):
    """Dropout as CUDA's: a mask of one byte for each number."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
            if given["training"] and given["p"] > 0:  # as nn.Dropout calls it, with everything given
                return torch.native_dropout(given["input"], given["p"], True)[0]
        return func(*args, **kwargs)


class _EightBitMoments(torch.optim.Optimizer):
    """Holds what bitsandbytes' AdamW in 8 bits does, whose own step looks at values."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"optim_bits": 8})

    def step(self, closure: Any = None) -> Any:
        """Makes the moments: in fp32 where the group says so or a tensor is small, else a scale for each block."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["optim_bits"] == 32 or parameter.numel() < _SMALLEST_IN_8_BITS:
                    self.state[parameter] = {i: torch.empty_like(parameter) for i in range(2)}
                    continue
                blocks = -(-parameter.numel() // _BLOCK_IN_8_BITS)
                moments = {i: torch.empty_like(parameter, dtype=torch.uint8) for i in range(2)}
                self.state[parameter] = moments | {i: torch.empty(blocks) for i in (2, 3)}


class _FourBit(nn.Module):
    """As large as bitsandbytes' NF4 layer with double quantization; it multiplies by a matrix made for the moment."""

    def __init__(self, in_features: int, out_features: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        num_weights = in_features * out_features
        num_blocks = -(-num_weights // _NF4_BLOCK)
        self.shape, self.compute_dtype = (out_features, in_features), compute_dtype
        self.register_buffer("packed", torch.empty(-(-num_weights // 2), dtype=torch.uint8))
        self.register_buffer("scales", torch.empty(num_blocks, dtype=torch.uint8))
        self.register_buffer("scales_of_scales", torch.empty(-(-num_blocks // _NF4_BLOCKS)))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., in] -> [..., out] in the dtype of ``x``, as bitsandbytes' layer gives it."""
        out: Tensor = _FourBitProduct.apply(x.to(self.compute_dtype), self.shape)  # type: ignore[no-untyped-call]
        return out.to(x.dtype)


class _FourBitProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return F.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = grad_outputs
        return gradient @ gradient.new_empty(ctx.shape), None
