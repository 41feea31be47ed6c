"""Claims about what a codec loses: the distances are the ones they are named after, and the counts are right."""

import math

import pytest
import torch
from torchmetrics.functional import scale_invariant_signal_distortion_ratio

from musicgen_ft.codec import Codec
from musicgen_ft.evaluation.reconstruction import (
    FLOOR,
    codebook_use,
    log_mel_distance,
    reconstruct,
    si_sdr_db,
)

RATE = 16_000


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_si_sdr_equals_torchmetrics() -> None:
    reference = noise(3, 2, 5000)
    estimate = 0.7 * reference + 0.3 * noise(3, 2, 5000, seed=1) + 0.01
    expected = scale_invariant_signal_distortion_ratio(estimate, reference)
    torch.testing.assert_close(si_sdr_db(reference, estimate), expected)
    silence = torch.zeros(5000)
    torch.testing.assert_close(si_sdr_db(silence, silence), scale_invariant_signal_distortion_ratio(silence, silence))


def test_si_sdr_knows_no_level_and_counts_noise_in_decibels() -> None:
    time = torch.arange(RATE) / RATE
    sine, cosine = torch.sin(2 * torch.pi * 440 * time), torch.cos(2 * torch.pi * 440 * time)
    assert float(si_sdr_db(sine, 5 * (sine + 0.1 * cosine))) == pytest.approx(20.0, abs=0.01)


def test_log_mel_distance_of_a_sound_to_itself_at_another_level_is_the_logarithm_of_the_gain() -> None:
    sound = noise(2, RATE)
    assert log_mel_distance(sound, sound, RATE).tolist() == [0, 0]
    of_half = log_mel_distance(sound, sound / 2, RATE)
    assert of_half.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-3)
    assert log_mel_distance(sound[0], sound[0] / 2, RATE).item() == pytest.approx(of_half[0].item())


@pytest.mark.parametrize("rate", [16_000, 32_000])
def test_log_mel_distance_does_not_hear_what_is_below_its_floor(rate: int) -> None:
    silence, hiss = torch.zeros(rate), 1e-6 * noise(rate)
    assert float(log_mel_distance(silence, hiss, rate)) == 0
    loud = torch.sin(2 * torch.pi * 1000 * torch.arange(rate) / rate)
    assert 0 < float(log_mel_distance(silence, loud, rate)) < -math.log(FLOOR)


def test_a_sine_at_full_scale_reaches_1_in_its_band() -> None:
    """What the docstring says of the scale: half of it is log(2) away from it in that band, and no more anywhere."""
    sine = torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)
    near_floor = log_mel_distance(sine, FLOOR * sine, RATE)
    assert 0 < float(near_floor) < -math.log(FLOOR)


def test_a_reconstruction_has_the_length_of_its_clip(nano_codec: Codec) -> None:
    clip = noise(1, 1234)
    back = reconstruct(nano_codec, clip)
    assert back.waveform.shape == clip.shape
    assert back.codes.shape == (4, math.ceil(1234 / 320))
    expected = nano_codec.decode(nano_codec.encode(clip[None]))[0, :, :1234]
    torch.testing.assert_close(back.waveform, expected)
    assert back.si_sdr_db == pytest.approx(float(si_sdr_db(clip, expected).mean()))
    assert back.log_mel == pytest.approx(float(log_mel_distance(clip, expected, RATE).mean()))


def test_a_codebook_whose_codes_are_all_as_frequent_has_their_number_for_perplexity() -> None:
    codes = [torch.tensor([[0, 1, 2, 3], [5, 5, 5, 5]]), torch.tensor([[4, 5], [5, 5]])]
    even, constant = codebook_use(codes, card=8)
    assert [even.used, even.perplexity] == pytest.approx([6 / 8, 6.0])
    assert [constant.used, constant.perplexity] == pytest.approx([1 / 8, 1.0])


def test_rare_codes_count_little_for_perplexity() -> None:
    (use,) = codebook_use([torch.tensor([[0] * 3 + [1]])], card=4)
    assert use.perplexity == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
