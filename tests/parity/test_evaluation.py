"""Metrics are audiocraft's own, on the same sound and the same probabilities."""

import numpy as np
import pytest
import torch
from audiocraft.metrics.chroma_cosinesim import ChromaCosineSimilarityMetric
from audiocraft.metrics.kld import kl_divergence as audiocraft_kl

from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.evaluation.chroma_similarity import chroma_similarity
from musicgen_ft.evaluation.divergence import kl_divergence

SPEC = ChromaSpec()


def tune(seed: int, num_samples: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    hertz = 110 * 2 ** (rng.integers(0, 30, size=num_samples // 9000 + 1) / 12)
    phase = 2 * np.pi * np.cumsum(np.repeat(hertz, 9000)[:num_samples] / SPEC.sample_rate)
    return (0.5 * np.sin(phase) + 0.1 * rng.normal(size=num_samples)).astype(np.float32)


@pytest.mark.parametrize("num_samples", [16_384, 40_961, 10 * SPEC.sample_rate])
def test_chroma_similarity_is_audiocrafts(num_samples: int) -> None:
    metric = ChromaCosineSimilarityMetric(sample_rate=SPEC.sample_rate, n_chroma=12, radix2_exp=14, argmax=True)
    pairs = [(tune(seed, num_samples), tune(seed // 2, num_samples)) for seed in (1, 2, 3, 0)]
    for generated, reference in pairs:
        one, other = (torch.from_numpy(samples)[None, None] for samples in (generated, reference))
        metric.update(one, other, torch.tensor([num_samples]), torch.tensor([SPEC.sample_rate]))

    found = [chroma_similarity(generated, reference, SPEC) for generated, reference in pairs]

    assert np.mean(found) == pytest.approx(metric.compute(), abs=1e-6)
    assert found[-1] == 1 > min(found)


def test_divergence_is_audiocrafts() -> None:
    generator = torch.Generator().manual_seed(0)
    generated, reference = (torch.softmax(4 * torch.randn(7, 5, generator=generator), 1) for _ in range(2))
    expected = audiocraft_kl(generated, reference)
    torch.testing.assert_close(kl_divergence(generated, reference).float(), expected, rtol=1e-4, atol=1e-5)
