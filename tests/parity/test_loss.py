"""The loss against the functions of audiocraft's solver and of transformers."""

from typing import Any

import pytest
import torch
from audiocraft.solvers.musicgen import MusicGenSolver

from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.training.loss import codebook_cross_entropy

DESCRIPTIONS = ["slow warm piano", None, "driving techno with heavy bass and bright strings at 120 bpm"]


@pytest.mark.parametrize("num_padded", [(0, 0, 0), (0, 4, 9)])
@torch.no_grad()
def test_the_loss_equals_audiocrafts_predictions_and_solver(
    musicgen: Any,
    lm_like_audiocraft: LanguageModel,
    text_encoder: TextEncoder,
    conditions: Any,
    num_padded: tuple[int, ...],
) -> None:
    B, T = 3, 11
    codes = torch.randint(64, (B, 4, T), generator=torch.Generator().manual_seed(0))
    padding_mask = torch.arange(T) < T - torch.tensor(num_padded)[:, None]  # [B, T]
    codes = codes.where(padding_mask[:, None], 64)  # as audiocraft's padding_with_special_token

    solver = object.__new__(MusicGenSolver)  # its function needs nothing of it
    theirs = musicgen.lm.compute_predictions(codes, conditions(DESCRIPTIONS))
    mask = theirs.mask & padding_mask[:, None]
    ce, ce_per_codebook = solver._compute_cross_entropy(theirs.logits, codes, mask)

    predictions = lm_like_audiocraft.predict(codes, text_encoder.encode(DESCRIPTIONS))
    loss = codebook_cross_entropy(predictions.logits, codes, predictions.mask & padding_mask[:, None])
    torch.testing.assert_close(loss.ce, ce, rtol=0, atol=1e-6)  # measured 0.0 of 4.8
    torch.testing.assert_close(loss.ce_per_codebook, torch.stack(ce_per_codebook), rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_loss_equals_transformers_on_labels_in_its_way(
    hf_musicgen: Any, lm_like_transformers: LanguageModel, text_encoder: TextEncoder
) -> None:
    lm, (B, T) = lm_like_transformers, (2, 11)
    codes = torch.randint(64, (B, 4, T), generator=torch.Generator().manual_seed(0))
    # Delayed, without the empty first step, cut to T steps; special tokens are ignored (spec 8.4).
    labels = lm.pattern.interleave(codes, 64)[:, :, 1 : T + 1].transpose(1, 2)
    labels = labels.masked_fill(labels == 64, -100)
    tokens = hf_musicgen.tokenizer(["calm piano", "heavy techno with bright bells"], return_tensors="pt", padding=True)
    decoder_input = lm.pattern.interleave(codes, 64)[:, :, :T].reshape(B * 4, T)
    expected = hf_musicgen(**tokens, decoder_input_ids=decoder_input, labels=labels).loss

    predictions = lm.predict(codes, text_encoder.encode(["calm piano", "heavy techno with bright bells"]))
    loss = codebook_cross_entropy(predictions.logits, codes, predictions.mask.expand_as(codes))
    torch.testing.assert_close(loss.ce, expected, rtol=0, atol=1e-6)
