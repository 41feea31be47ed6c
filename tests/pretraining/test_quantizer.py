"""Codebooks follow the latents, unused entries come back, and gradients pass as if nothing were quantized."""

from typing import Any

import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from musicgen_ft.pretraining.quantizer import QuantizerTraining

CARD, DIM = 16, 6


@pytest.fixture
def quantizer() -> Any:
    """3 codebooks of 16 entries of width 6."""
    model = EncodecModel(
        EncodecConfig(
            target_bandwidths=[0.6], sampling_rate=800, num_filters=4, hidden_size=DIM, upsampling_ratios=[4, 4],
            codebook_size=CARD, codebook_dim=DIM, use_causal_conv=False,
        )
    )  # fmt: skip
    assert len(model.quantizer.layers) == 3
    return model.quantizer


def latents(batch_size: int = 5, num_frames: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch_size, DIM, num_frames, generator=torch.Generator().manual_seed(seed))


def test_quantized_latents_are_what_the_stored_codebooks_give(quantizer: Any) -> None:
    x = latents()
    train = QuantizerTraining(quantizer, decay=1.0, min_share=0.0)  # nothing moves but the first entries
    quantized, _, codes = train(x)
    theirs = quantizer.encode(x)
    assert torch.equal(theirs.flatten(1), torch.stack(codes))
    torch.testing.assert_close(quantized, quantizer.decode(theirs), rtol=0, atol=1e-6)


def test_gradients_pass_unchanged(quantizer: Any) -> None:
    x = latents().requires_grad_()
    quantized, _, _ = QuantizerTraining(quantizer)(x)
    weights = torch.randn_like(quantized)
    (quantized * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights)


def test_commitment_is_the_mean_squared_distance_and_draws_latents_to_their_entries(quantizer: Any) -> None:
    x = latents().requires_grad_()
    train = QuantizerTraining(quantizer, decay=1.0, min_share=0.0)
    train(x)
    _, commitment, _ = train(x)
    commitment.backward()
    assert x.grad is not None
    with torch.no_grad():
        _, nearer, _ = train(x - 0.5 * x.grad * x.numel() / 3)
    assert nearer < commitment
    assert not quantizer.layers[0].codebook.embed.requires_grad


def test_codebooks_come_to_the_centres_of_clusters(quantizer: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    centres = 5 * torch.randn(CARD, DIM, generator=generator)
    train, before = QuantizerTraining(quantizer, decay=0.9), 0.0
    for step in range(150):
        chosen = centres[torch.randint(CARD, (200,), generator=generator)]
        x = chosen + 0.05 * torch.randn(200, DIM, generator=generator)
        torch.manual_seed(step)
        train(x.T[None])
        if step == 0:
            before = left(quantizer, centres)
    assert left(quantizer, centres) < 0.1 * before
    distances = torch.cdist(centres, quantizer.layers[0].codebook.embed).min(1).values
    assert (distances < 0.1).sum() >= 5  # as k-means, it gives two entries to one centre and none to another


def left(quantizer: Any, vectors: torch.Tensor) -> float:
    """Mean square of what all levels leave of vectors [n, DIM]."""
    return float((vectors - quantizer.decode(quantizer.encode(vectors.T[None]))[0].T).square().mean())


def test_an_entry_that_nothing_chooses_is_given_a_latent(quantizer: Any) -> None:
    train = QuantizerTraining(quantizer, decay=0.5, min_share=0.05)
    train(latents())
    codebook = quantizer.layers[0].codebook
    codebook.embed[3] = codebook.embed_avg[3] = 1e3
    for seed in range(8):
        train(latents(seed=seed))
    assert codebook.embed.abs().max() < 10
    assert len(quantizer.encode(latents(seed=9))[0].unique()) > CARD // 2


def test_fewer_latents_than_entries_are_enough_to_begin(quantizer: Any) -> None:
    train = QuantizerTraining(quantizer)
    train(latents(1, 5))
    assert all(layer.codebook.embed.isfinite().all() for layer in quantizer.layers)
