"""EnCodec's embeddings: means of its latents, one for each second."""

import pytest
import torch
from torch import Tensor

from musicgen_ft.codec import Codec
from musicgen_ft.evaluation.embeddings import EncodecEmbedder, embedding_moments, windowed_means
from musicgen_ft.evaluation.frechet import frechet_distance, moments_of

RATE = 16_000


def sound(seconds: float, *, channels: int = 1, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(channels, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def test_an_embedding_is_the_mean_of_a_seconds_latents_which_are_what_is_quantised(nano_codec: Codec) -> None:
    waveform, embedder = sound(3.0), EncodecEmbedder(nano_codec)
    found = embedder.embed(waveform, RATE)
    assert found.shape == (3, embedder.dim) == (3, 64)
    latents = nano_codec.model.encoder(waveform[None])  # [1, D, T]
    torch.testing.assert_close(found[1], latents[0, :, 50:100].mean(1))
    codes = nano_codec.model.quantizer.encode(latents, nano_codec._bandwidth)  # [K, 1, T]
    assert torch.equal(codes[:, 0], nano_codec.encode(waveform[None])[0])


@pytest.mark.parametrize(("frames", "expected"), [(1, 1), (9, 1), (10, 1), (14, 1), (15, 2), (20, 2), (24, 2)])
def test_a_rest_counts_from_half_a_window_or_if_it_is_all(frames: int, expected: int) -> None:
    values = torch.arange(frames * 3.0).view(frames, 3)
    found = windowed_means(values, 10)
    assert found.shape == (expected, 3)
    torch.testing.assert_close(found[0], values[:10].mean(0))


def test_channels_are_averaged(nano_codec: Codec) -> None:
    embedder, stereo = EncodecEmbedder(nano_codec), sound(1.0, channels=2)
    assert torch.equal(embedder.embed(stereo, RATE), embedder.embed(stereo.mean(0, keepdim=True), RATE))


def test_moments_of_clips_are_those_of_all_their_embeddings(nano_codec: Codec) -> None:
    embedder, clips = EncodecEmbedder(nano_codec), [sound(seconds, seed=n) for n, seconds in enumerate((1.0, 2.0, 1.5))]
    found = embedding_moments(embedder, clips, RATE)
    expected = moments_of(torch.cat([embedder.embed(clip, RATE) for clip in clips]))
    assert found.count == 5
    assert frechet_distance(found, expected) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(found.covariance, expected.covariance)


def test_another_rate_is_refused(nano_codec: Codec) -> None:
    with pytest.raises(ValueError, match="44100 Hz for a codec at 16000"):
        EncodecEmbedder(nano_codec).embed(sound(1.0), 44_100)
