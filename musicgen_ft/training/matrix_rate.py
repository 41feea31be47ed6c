"""The arithmetic that a device reaches, measured and not looked up: a card that nobody has listed has a rate too."""

import functools
import time

import torch


@functools.cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on a device: the best of a few tries, a fraction of a second.

    It is what 1 means in model FLOPs utilization (PaLM, arXiv:2204.02311, appendix B).
    """
    is_cuda = device.type == "cuda"
    size, products = (4096, 10) if is_cuda else (512, 1)
    generator = torch.Generator(device).manual_seed(0)  # its own: the training's chance is left alone
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(6):  # the first pays for starting up
        _wait(device)
        since = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b)
        _wait(device)
        seconds.append(time.perf_counter() - since)
    return 2 * size**3 * products / min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
