"""In what numbers the layers' weights are kept and multiplied while decoding.

Decoding one piece reads every weight at each step and hardly computes: its speed is that of memory, so that half the
bytes are nearly half the time. On one core with AVX-512 and AMX (benchmarks/RESULTS.md), two rows: fp16 takes 0.68 of
the time of fp32, bf16 0.59, int8 0.33; int8 weights with bf16 activations (torch's ``_weight_int8pack_mm``) 0.63, no
faster than bf16 at three times its error, and left out.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicgen_ft.errors import UserError

Precision = Literal["fp32", "bf16", "fp16", "int8"]
"""fp32: as stored. fp16 on a CPU: weights in fp16, arithmetic in fp32, so that it is exact where the weights come from
fp16, as the released ones do. bf16, and fp16 on a GPU: weights, activations and cache. int8, on a CPU: weights by row
and activations by call in 8 bits, sums in 32."""

Projection = Callable[[Tensor], Tensor]
"""From [..., D_in] to [..., D_out], in the dtype of its input."""


def choose_precision(name: str, weights: Sequence[Tensor], device: torch.device) -> Precision:
    """What ``auto`` means, or the name itself.

    ``auto`` is what costs nothing: on a GPU fp16, which is what audiocraft computes in; on a CPU fp16 where every
    weight is a number of fp16, else fp32.

    Raises:
        UserError: if the device has no such arithmetic.
    """
    if name != "auto":
        if name == "int8" and device.type != "cpu":
            raise UserError(f"--dtype int8: found {device.type}, it is for the CPU. Use auto, bf16 or fp16.")
        if name == "int8" and not _has_fbgemm():
            raise UserError("--dtype int8: this CPU has no FBGEMM kernels (x86 with AVX2). Use auto, fp32 or bf16.")
        return _known(name)
    if device.type == "cuda":
        return "fp16"
    return "fp16" if _has_fbgemm() and all(_is_fp16(weight) for weight in weights) else "fp32"


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Of what goes into a projection and of the cache."""
    if precision == "bf16":
        return torch.bfloat16
    return torch.float16 if precision == "fp16" and device.type == "cuda" else torch.float32


def pack(linears: Sequence[nn.Linear], precision: Precision) -> Projection:
    """One projection that gives what all of the linears give, one behind the other.

    The weights move into it: in fp32 and on a GPU the linears keep views of them, else they are left without.
    """
    weight = torch.cat([linear.weight.detach() for linear in linears])
    device = weight.device
    if precision == "fp32" or device.type == "cuda":
        weight = weight.to(compute_dtype(precision, device))
        parts = weight.split([linear.out_features for linear in linears])
    else:
        parts = tuple(torch.empty_like(linear.weight, device="meta") for linear in linears)
    for linear, part in zip(linears, parts, strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    if precision == "fp32" or device.type == "cuda":
        return lambda x: F.linear(x, weight)
    return _PACKERS[precision](weight)


def _pack_bf16(weight: Tensor) -> Projection:
    """In oneDNN's blocks: 0.66 of the time of a plain bf16 matrix."""
    mkldnn: Any = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available():
        plain = weight.bfloat16()
        return lambda x: F.linear(x, plain)
    packed = mkldnn._reorder_linear_weight(weight.bfloat16())
    return lambda x: mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _pack_fp16(weight: Tensor) -> Projection:
    quantized: Any = torch.ops.quantized
    if not _has_fbgemm():
        plain = weight.half()
        return lambda x: F.linear(x, plain.float())
    packed = _with_fbgemm(lambda: quantized.linear_prepack_fp16(weight.float(), None))
    return lambda x: quantized.linear_dynamic_fp16(x, packed)


def _pack_int8(weight: Tensor) -> Projection:
    quantized: Any = torch.ops.quantized
    scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)
    zero = torch.zeros(len(weight), dtype=torch.long)
    whole = torch.quantize_per_channel(weight.float(), scale, zero, 0, torch.qint8)
    packed = _with_fbgemm(lambda: quantized.linear_prepack(whole, None))
    return lambda x: quantized.linear_dynamic(x, packed, False)


_PACKERS: dict[Precision, Callable[[Tensor], Projection]] = {
    "bf16": _pack_bf16,
    "fp16": _pack_fp16,
    "int8": _pack_int8,
}


def _known(name: str) -> Precision:
    if name not in ("fp32", "bf16", "fp16", "int8"):
        raise UserError(f"--dtype {name}: expected auto, fp32, bf16, fp16 or int8.")
    return name  # type: ignore[return-value]


def _is_fp16(weight: Tensor) -> bool:
    return bool((weight.half().to(weight.dtype) == weight).all())


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def _with_fbgemm(make: Callable[[], Any]) -> Any:
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        return make()
    finally:
        torch.backends.quantized.engine = engine
