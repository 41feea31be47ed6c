"""A T5 learns what captions say, and its states then tell texts apart by it."""

import math

import torch

from musicgen_ft.corpus.captions import CaptionPolicy
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.pretraining.text import TextTraining, train_text_encoder
from musicgen_ft.pretraining.untrained import NanoSizes, untrained_text_encoder

LABELS = [
    Labels(
        description=f"A {mood} {genre} track at {bpm} bpm", genre=genre, bpm=bpm, key=key, moods=(mood,),
        instrument="piano, drums" if bpm > 100 else "flute",
    )
    for genre, bpm, key, mood in (("techno", 130.0, "a minor", "dark"), ("waltz", 90.0, "c major", "warm"))
]  # fmt: skip


def test_the_loss_falls_and_the_encoder_fits_in_half_precision() -> None:
    torch.manual_seed(0)
    text = untrained_text_encoder(NanoSizes(text_layers=1))
    losses: list[float] = []
    train_text_encoder(
        text,
        LABELS,
        CaptionPolicy(word_dropout=0.1),
        TextTraining(max_steps=40, batch_size=8),
        seed=2,
        report=lambda _, values: losses.append(values["text"]),
    )
    assert len(losses) == 40
    assert losses[-1] < 0.5 * losses[0]
    state = text.encoder.state_dict()
    assert all(torch.equal(value, value.half().to(value.dtype)) for value in state.values())
    assert not any(parameter.requires_grad for parameter in text.encoder.parameters())


def test_labels_without_anything_but_a_description_can_be_learned_from() -> None:
    text = untrained_text_encoder(NanoSizes(text_layers=1))
    losses: list[float] = []
    train_text_encoder(
        text,
        [Labels(description="piano"), Labels(description="drums", genre="rock")],
        CaptionPolicy(),
        TextTraining(max_steps=2, batch_size=3),
        seed=0,
        report=lambda _, values: losses.append(values["text"]),
    )
    assert all(math.isfinite(loss) for loss in losses)
