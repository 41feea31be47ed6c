"""Model FLOPs utilization: how much of a device's arithmetic the training's own products take.

Chowdhery et al., 2022 (PaLM), appendix B. The device's rate is measured, not looked up: it is what a large matrix
product reaches on it in the training's own precision. So 1 can be reached, and a card that nobody has listed has a
rate too.
"""

import functools
import time

import torch

from musicgen_ft.model.lm import LanguageModel


def flops_per_frame(lm: LanguageModel, num_frames: int) -> float:
    """Floating-point operations that training needs for one frame of a clip of ``num_frames``.

    Two for each weight of a matrix that a frame passes through, forward; as many backward for the activations, and for
    the weights that are trained. Attention adds 12 D for each layer and frame of the clip. Left out are the embeddings,
    the text's and a melody's own path, and what recomputation does twice: those are no use of the model.
    """
    D, L = lm.config.dim, lm.config.num_layers
    cross = 2 * D * D if lm.config.conditioning == "cross" else 0  # queries and output; keys and values are the text's
    passed = L * (4 * D * D + cross + 2 * D * lm.config.ffn_dim) + lm.config.n_q * D * lm.config.card
    parts = (*lm.layers.parameters(), *lm.heads.parameters())
    trained = sum(parameter.numel() for parameter in parts if parameter.requires_grad)
    return 4.0 * passed + 2.0 * min(trained, passed) + 12.0 * L * D * num_frames


@functools.cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a matrix product on a device: the best of a few tries, in under 0.2 s."""
    is_cuda = device.type == "cuda"
    size, products = (4096, 10) if is_cuda else (384, 1)
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
