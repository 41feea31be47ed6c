"""Sound that leaves while codes are still being made, against the whole decoded at once."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from musicgen_ft.codec import Codec
from musicgen_ft.generation.sound import CONTEXT_FRAMES, SoundStream


def random_codes(codec: Codec, T: int) -> Tensor:
    shape = (1, codec.spec.n_q, T)
    return torch.randint(codec.spec.card, shape, generator=torch.Generator().manual_seed(T))


def streamed(codec: Codec, codes: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    stream, parts = SoundStream(codec), codes.split(list(sizes), dim=2)
    return [stream.decode(part, is_last=number == len(parts) - 1) for number, part in enumerate(parts)]


def released_like_codec(channels: int) -> Codec:
    """The shape of facebook/encodec_32khz with fewer filters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = EncodecConfig(
            target_bandwidths=[2.2], sampling_rate=32_000, num_filters=8, upsampling_ratios=[8, 5, 4, 4],
            codebook_size=64, codebook_dim=32, hidden_size=32, use_causal_conv=False, use_conv_shortcut=False,
        )  # fmt: skip
        model: Any = EncodecModel(config).eval()
        for layer in model.quantizer.layers:
            layer.codebook.embed.normal_()
    return Codec(model, id="like", channels=channels)


SIZES = [[25, 50, 50, 11], [3] * 20, [1] * 30, [60], [5, 2, 40, 1, 1, 70]]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("channels", [1, 2])
def test_chunks_join_to_the_whole_without_a_seam(sizes: list[int], channels: int) -> None:
    codec = released_like_codec(channels)
    codes = random_codes(codec, sum(sizes))
    whole = codec.decode(codes)[0]
    joined = torch.cat(streamed(codec, codes, sizes), dim=1)
    assert joined.shape == whole.shape == (channels, 640 * sum(sizes))
    # -100 dB of the loudest sample, at the joins and elsewhere: sums in another order, no more.
    torch.testing.assert_close(joined, whole, rtol=0, atol=float(whole.abs().max()) * 1e-5)
    assert whole.std() > 0


def test_nanos_codec_streams_without_a_seam_too(nano_codec: Codec) -> None:
    codes = random_codes(nano_codec, 100)
    whole = nano_codec.decode(codes)[0]
    joined = torch.cat(streamed(nano_codec, codes, [25, 50, 25]), dim=1)
    torch.testing.assert_close(joined, whole, rtol=0, atol=float(whole.abs().max()) * 1e-5)


def test_sound_waits_for_the_frames_that_it_depends_on_and_no_longer(nano_codec: Codec) -> None:
    hop = nano_codec.spec.hop_length
    lengths = [part.shape[1] // hop for part in streamed(nano_codec, random_codes(nano_codec, 60), [8, 1, 20, 31])]
    assert 2 * CONTEXT_FRAMES == 8
    assert lengths == [0, 1, 20, 39]
