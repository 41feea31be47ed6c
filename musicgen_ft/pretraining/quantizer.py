"""Residual vector quantization that learns: codebooks follow the latents by moving averages.

B batch, D latent dims, T frames, K codebooks, n vectors.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class QuantizerTraining:
    """Quantizes with the codebooks of a transformers ``EncodecModel`` and moves their entries.

    As EnCodec (section 3.2) and VQ-VAE (appendix A.1): each entry is the moving average of the latents that chose
    it; entries that next to nothing chooses are given a latent of the batch.
    """

    def __init__(self, quantizer: Any, *, decay: float = 0.99, min_share: float = 0.05) -> None:
        """Takes the quantizer's own buffers.

        Args:
            quantizer: ``EncodecResidualVectorQuantizer``.
            decay: of the moving averages, per step.
            min_share: entries chosen less often than this share of the mean are replaced.
        """
        self._codebooks = [layer.codebook for layer in quantizer.layers]
        self._decay, self._min_share = decay, min_share
        self.is_initialised = False

    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Quantizes and learns.

        Args:
            latents: float32 [B, D, T].

        Returns:
            The quantized latents float32 [B, D, T], through which gradients pass as if nothing had been done;
            the commitment loss, a scalar: squared distance of each level's input to its entry, mean over levels;
            and the codes of each codebook int64 [n], n = B * T.
        """
        B, D, T = latents.shape
        vectors = latents.transpose(1, 2).reshape(-1, D)
        quantized = torch.zeros_like(vectors)
        commitment = vectors.new_zeros(())
        codes = []
        for codebook in self._codebooks:
            residual = vectors - quantized
            if not self.is_initialised:
                self._initialise(codebook, residual.detach())
            indices = codebook.quantize(residual.detach())
            entries = F.embedding(indices, codebook.embed)
            commitment = commitment + F.mse_loss(residual, entries)
            quantized = quantized + entries
            self._learn(codebook, residual.detach(), indices)
            codes.append(indices)
        self.is_initialised = True
        passed = vectors + (quantized - vectors).detach()
        return passed.reshape(B, T, D).transpose(1, 2), commitment / len(self._codebooks), codes

    @torch.no_grad()
    def _initialise(self, codebook: Any, vectors: Tensor) -> None:
        """Entries are vectors of the first batch, with a little noise where it has fewer than there are entries."""
        card = len(codebook.embed)
        chosen = vectors[torch.randperm(len(vectors))[:card]]
        if len(chosen) < card:
            chosen = vectors[torch.randint(len(vectors), (card,))]
        codebook.embed.copy_(chosen + 1e-3 * vectors.std() * torch.randn_like(chosen))
        codebook.embed_avg.copy_(codebook.embed)
        codebook.cluster_size.fill_(1.0)
        codebook.inited.fill_(1)

    @torch.no_grad()
    def _learn(self, codebook: Any, vectors: Tensor, indices: Tensor) -> None:
        """One step of the moving averages; ``cluster_size`` counts vectors per step."""
        card = len(codebook.embed)
        counts = torch.bincount(indices, minlength=card).float()
        sums = torch.zeros_like(codebook.embed).index_add_(0, indices, vectors)
        codebook.cluster_size.lerp_(counts, 1 - self._decay)
        codebook.embed_avg.lerp_(sums, 1 - self._decay)
        codebook.embed.copy_(codebook.embed_avg / codebook.cluster_size.clamp(min=1e-6)[:, None])

        mean = len(vectors) / card
        unused = codebook.cluster_size < self._min_share * mean
        num_unused = int(unused.sum())
        if num_unused:
            fresh = vectors[torch.randint(len(vectors), (num_unused,))]
            codebook.embed[unused] = fresh
            codebook.cluster_size[unused] = mean
            codebook.embed_avg[unused] = fresh * mean
