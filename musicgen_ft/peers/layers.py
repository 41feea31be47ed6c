"""A reader's model that never lies in memory as a whole: its layers stay in their mapped file until they compute."""

import ctypes
import mmap
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def compute_layer_by_layer(layers: Iterable[nn.Module]) -> None:
    """Makes each layer compute in fp32 on its own tensors, widened for that moment, and give their memory back then.

    The result is that of the model in fp32, bit by bit. For one forward pass: what the tensors hold afterwards is
    undefined.

    Args:
        layers: modules that are called once in a forward pass, their parameters of any float dtype, mapped or not.
    """
    stored: dict[str, Tensor] = {}
    # Every layer in turn is widened into the same memory, which allocating it anew would spread over the heap.
    memory: dict[tuple[str, torch.Size], Tensor] = {}

    def widen(layer: nn.Module, _: Any) -> None:
        for name, parameter in layer.named_parameters():
            stored[name] = parameter.data
            if parameter.dtype != torch.float32:
                place = memory.setdefault((name, parameter.shape), torch.empty(0))
                parameter.data = place.resize_(parameter.shape).copy_(parameter.data)

    def forget(layer: nn.Module, *_: Any) -> None:
        for name, parameter in layer.named_parameters():
            parameter.data = stored.pop(name)
            give_back(parameter.data)

    for layer in layers:
        layer.register_forward_pre_hook(widen)
        layer.register_forward_hook(forget)


def give_back(tensor: Tensor) -> None:
    """Gives back the memory of a tensor that is never read again, though its model still holds it.

    Of its own pages only, not of those that it shares with others. Does nothing where the system is not Linux.
    """
    if sys.platform != "linux":
        return
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    begin, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end and tensor.device == torch.device("cpu"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
