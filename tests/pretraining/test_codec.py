"""A small EnCodec learns a small world of sounds, the same at every run, and loses nothing in half precision."""

import numpy as np
import pytest
import torch

from musicgen_ft.audio import write_wav
from musicgen_ft.pretraining.codec import Clips, CodecTraining, relative_l1, train_codec
from musicgen_ft.pretraining.untrained import NanoSizes, untrained_encodec

SIZES = NanoSizes(num_filters=4, latent_dim=16)
RATE = 16_000
HOW = CodecTraining(max_steps=30, batch_size=4, clip_s=0.3, continuous_share=1 / 3, warmup_steps=5)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    folder = tmp_path_factory.mktemp("tones")
    paths = [folder / f"{number}.wav" for number in range(3)]
    for number, path in enumerate(paths):
        time_s = torch.arange(RATE) / RATE
        write_wav(path, 0.4 * torch.sin(2 * torch.pi * 220 * (number + 1) * time_s)[None], RATE)
    read: list[None] = []
    found = Clips(paths, sample_rate=RATE, progress=lambda: read.append(None))
    assert len(read) == 3
    return found


def trained(clips: Clips, how: CodecTraining = HOW) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    torch.manual_seed(0)
    model = untrained_encodec(SIZES)
    losses: list[dict[str, float]] = []
    train_codec(model, clips, how, seed=1, report=lambda step, values: losses.append(values | {"step": float(step)}))
    return model, losses


def test_training_brings_the_sound_nearer_and_then_quantizes(clips: Clips) -> None:
    _, losses = trained(clips)
    assert [values["step"] for values in losses] == list(range(1, 31))
    assert losses[9]["spectral"] < losses[0]["spectral"]
    assert ["entries_q4" in values for values in losses] == [False] * 10 + [True] * 20
    assert all(values["commitment"] == 0 for values in losses[:10])
    assert all(values["commitment"] > 0 for values in losses[11:])


def test_the_same_seed_gives_the_same_codec_whose_numbers_fit_in_half_precision(clips: Clips) -> None:
    how = CodecTraining(max_steps=4, batch_size=2, clip_s=0.3, continuous_share=0.5)
    (first, _), (second, _) = (trained(clips, how) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
        assert torch.equal(value, value.half().to(value.dtype)), name
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_the_distance_of_waveforms_is_a_share_of_the_references() -> None:
    time_s = torch.arange(RATE) / RATE
    loud, quiet = (gain * torch.sin(2 * torch.pi * 220 * time_s)[None] for gain in (0.9, 0.01))
    for clip in (loud, quiet):
        assert relative_l1(clip, clip) == 0
        assert float(relative_l1(torch.zeros_like(clip), clip)) == pytest.approx(1.0, abs=0.2)
        assert relative_l1(0.9 * clip, clip) < 0.2
    both, other = torch.cat([loud, quiet]), torch.cat([loud, 0 * quiet])
    assert float(relative_l1(other, both)) == pytest.approx(float(relative_l1(0 * quiet, quiet)) / 2)


def test_clips_are_stretches_of_the_tracks_and_short_tracks_are_padded(clips: Clips) -> None:
    drawn = clips.draw(np.random.default_rng(0), 6, RATE // 10)
    assert drawn.shape == (6, RATE // 10)
    assert 0.35 < drawn.abs().max() <= 0.41
    long = clips.draw(np.random.default_rng(0), 1, 2 * RATE)
    assert long[0, RATE:].abs().max() == 0
    assert long[0, :RATE].abs().max() > 0.35
