"""Claims about the loss by codebook: it is the training loss, over all clips, however they are cut into batches."""

from collections.abc import Callable

import pytest
import torch

from musicgen_ft.evaluation.caption_loss import caption_loss
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.training.loss import codebook_cross_entropy


def test_it_is_the_training_loss_of_the_clips_together(
    make_lm: Callable[..., LanguageModel], text_encoder: TextEncoder
) -> None:
    lm = make_lm(text_dim=text_encoder.dim, text_padding="transformers")
    codes = [torch.randint(11, (4, 13), generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    captions = ["slow waltz", None, "techno", "a folk song with flute and banjo", "rock"]

    found = caption_loss(lm, text_encoder, codes, captions, batch_size=2)

    together = torch.stack(codes)
    predictions = lm.predict(together, text_encoder.encode(captions))
    mask = predictions.mask.expand_as(together)
    expected = codebook_cross_entropy(predictions.logits, together, mask).ce_per_codebook
    assert found == pytest.approx(expected.tolist(), rel=1e-5)
    assert caption_loss(lm, text_encoder, codes, [None] * 5) != pytest.approx(found, rel=1e-4)
