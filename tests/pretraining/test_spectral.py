"""The distance is nothing for the same sound, and grows with what the ear hears."""

import math

import torch

from musicgen_ft.pretraining.spectral import MelLoss

RATE = 8_000


def tone(pitch_hz: float, gain: float = 0.3, phase: float = 0.0) -> torch.Tensor:
    time_s = torch.arange(RATE) / RATE
    return gain * torch.sin(2 * math.pi * pitch_hz * time_s + phase)[None]


def test_a_sound_is_at_no_distance_from_itself() -> None:
    assert MelLoss(RATE)(tone(440.0), tone(440.0)) == 0


def test_what_sounds_farther_off_is_farther_off() -> None:
    distance = MelLoss(RATE)
    near, far, silent = (distance(other, tone(440.0)) for other in (tone(450.0), tone(880.0), torch.zeros(1, RATE)))
    assert 0 < near < far < silent


def test_phase_counts_little_beside_pitch() -> None:
    distance = MelLoss(RATE)
    assert distance(tone(440.0, phase=1.0), tone(440.0)) < 0.2 * distance(tone(880.0), tone(440.0))


def test_it_is_the_mean_over_a_batch_and_has_gradients() -> None:
    distance = MelLoss(RATE)
    sounds = torch.cat([tone(300.0), tone(700.0)])
    references = torch.cat([tone(310.0), tone(600.0)])
    single = [distance(sounds[i : i + 1], references[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(distance(sounds, references), sum(single) / 2)
    sounds.requires_grad_()
    distance(sounds, references).backward()
    assert sounds.grad is not None
    assert sounds.grad.isfinite().all()
    assert sounds.grad.abs().sum() > 0
