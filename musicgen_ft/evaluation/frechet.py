"""Frechet distance between two sets of embeddings: FAD, when they are of audio.

N embeddings, D width.
"""

import torch
from torch import Tensor

from musicgen_ft.errors import UserError


class Moments:
    """Mean and covariance of embeddings that come in pieces, in float64: nothing but D x D numbers is held.

    Sums of squares are taken around the running mean (Chan's update), so that a mean far from zero costs no digits.
    """

    def __init__(self, dim: int) -> None:
        """Of no embedding yet, D wide."""
        self.count = 0
        """N so far."""
        self.mean = torch.zeros(dim, dtype=torch.float64)
        """float64 [D]."""
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, embeddings: Tensor) -> None:
        """Takes embeddings, float [N, D], in."""
        N, new = len(embeddings), embeddings.detach().cpu().to(torch.float64)
        if N == 0:
            return
        mean = new.mean(0)
        centred, moved = new - mean, mean - self.mean
        total = self.count + N
        self._scatter += centred.T @ centred + torch.outer(moved, moved) * (self.count * N / total)
        self.mean = self.mean + moved * (N / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """float64 [D, D], divided by N - 1, as ``numpy.cov`` does.

        Raises:
            UserError: if there are fewer than 2 embeddings.
        """
        if self.count < 2:
            raise UserError(
                f"a Frechet distance: found {self.count} embedding{'s' * (self.count != 1)} on one side, expected at "
                "least 2. Give more prompts, or longer pieces."
            )
        return self._scatter / (self.count - 1)


def moments_of(embeddings: Tensor) -> Moments:
    """Mean and covariance of embeddings, float [N, D]."""
    found = Moments(embeddings.shape[1])
    found.add(embeddings)
    return found


def frechet_distance(one: Moments, other: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), at least 0: 0 where mean and covariance are equal.

    Both sides should have several times as many embeddings as these are wide (D is 128 for the released EnCodec, 512
    for CLAP). With fewer the covariances lack rank: the formula still gives a number, which is too high, by the more
    the fewer there are. Compare only distances of equally many embeddings to the same reference.

    Raises:
        UserError: if a side has fewer than 2 embeddings.

    Source: Kilgour et al., arXiv:1812.08466; the formula of frechet_audio_distance and fadtk, which take the root of
    the product by ``scipy.linalg.sqrtm`` and its real part. Here the trace of that root is the sum of the singular
    values of S1^(1/2) S2^(1/2): real and finite for singular covariances, too, which they help by adding 1e-6.
    """
    first, second = one.covariance, other.covariance
    shared = torch.linalg.svdvals(_root(first) @ _root(second)).sum()
    apart = (one.mean - other.mean).square().sum()
    return max(0.0, float(apart + first.trace() + second.trace() - 2 * shared))


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a symmetric matrix without negative eigenvalues, but for those that rounding has made."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
