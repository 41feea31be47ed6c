"""nano playing: prompts and seeds to waveforms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.codec import Codec
from musicgen_ft.errors import UserError
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import GenerationOptions
from musicgen_ft.generation.sampling import Sampling
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel

SHORT, LONG = "calm piano", "driving techno with heavy bass and bright strings at 120 bpm"


@pytest.fixture(scope="module")
def generator(nano_folder: Path, nano_codec: Codec, text_encoder: TextEncoder) -> Generator:
    return Generator(open_base(str(nano_folder)).lm(), nano_codec, text_encoder)


@pytest.fixture
def decoded(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The codes of every ``generate``."""
    seen: list[Tensor] = []
    decode = generator.codec.decode

    def spy(codes: Tensor) -> Tensor:
        seen.append(codes)
        return decode(codes)

    monkeypatch.setattr(generator.codec, "decode", spy)
    return seen


@pytest.mark.parametrize(("duration_s", "num_samples"), [(0.02, 320), (0.5, 8000), (0.519, 25 * 320)])
def test_waveforms_have_the_whole_frames_of_the_duration(
    generator: Generator, duration_s: float, num_samples: int
) -> None:
    waveforms = generator.generate([SHORT, None], GenerationOptions(duration_s=duration_s), seeds=[0, 1])
    assert waveforms.shape == (2, 1, num_samples)
    assert waveforms.dtype == torch.float32
    assert waveforms.isfinite().all()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.0), Sampling(top_p=0.9)])
def test_a_prompt_and_a_seed_give_the_same_music_alone_and_in_a_batch(
    generator: Generator, decoded: list[Tensor], sampling: Sampling
) -> None:
    options = GenerationOptions(duration_s=0.5, sampling=sampling)
    together = generator.generate([SHORT, LONG, "", SHORT], options, seeds=[1, 2, 3, 4])
    for row, (prompt, seed) in enumerate([(SHORT, 1), (LONG, 2), (None, 3), (SHORT, 4)]):
        alone = generator.generate([prompt], options, seeds=[seed])
        assert torch.equal(decoded[-1][0], decoded[0][row])
        # Equal codes, decoded in a batch of another size: the same sums in another order.
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
    if sampling.temperature > 0:
        assert not torch.equal(decoded[0][0], decoded[0][3])  # another seed


def test_a_base_of_audiocrafts_is_played_with_masked_text_too(
    make_lm: Callable[..., LanguageModel], nano_codec: Codec, text_encoder: TextEncoder
) -> None:
    lm = make_lm(text_padding="audiocraft", text_dim=64, card=256)
    generator = Generator(lm, nano_codec, text_encoder)
    assert generator.lm.config.text_padding == "transformers"
    assert not any(parameter.requires_grad for parameter in generator.lm.parameters())
    assert not generator.lm.training


def test_pieces_longer_than_the_models_window_are_played_in_windows(
    make_lm: Callable[..., LanguageModel], nano_codec: Codec, text_encoder: TextEncoder
) -> None:
    lm = make_lm(text_dim=64, card=256, max_duration_s=0.4)
    generator = Generator(lm, nano_codec, text_encoder)
    longest: list[int] = []
    lm.register_forward_pre_hook(lambda _, inputs: longest.append(inputs[0].shape[2]))
    calls: list[tuple[int, int]] = []
    options = GenerationOptions(duration_s=1.0, stride_s=0.24)
    waveforms = generator.generate([SHORT], options, seeds=[0], progress=lambda *at: calls.append(at))
    assert waveforms.shape == (1, 1, 16_000)
    assert max(longest) <= 9  # the prompt of a window: 20 - 12 frames and the empty step
    assert calls


@pytest.mark.parametrize(
    ("duration_s", "message"), [(0.0, "less than a frame"), (0.019, "less than a frame of 0.02 s")]
)
def test_less_than_a_frame_is_refused(generator: Generator, duration_s: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generator.generate([SHORT], GenerationOptions(duration_s=duration_s), seeds=[0])


@pytest.mark.parametrize("stride_s", [0.0, 0.01, 0.4, 18.0])
def test_a_stride_that_does_not_fit_the_window_is_refused(
    make_lm: Callable[..., LanguageModel], nano_codec: Codec, text_encoder: TextEncoder, stride_s: float
) -> None:
    generator = Generator(make_lm(text_dim=64, card=256, max_duration_s=0.4), nano_codec, text_encoder)
    with pytest.raises(UserError, match=r"at least a frame of 0\.02 s and less than the model's window of 0\.4 s"):
        generator.generate([SHORT], GenerationOptions(duration_s=1.0, stride_s=stride_s), seeds=[0])


def test_the_text_is_heard(generator: Generator, decoded: list[Tensor]) -> None:
    options = GenerationOptions(duration_s=0.5)
    for prompt in (SHORT, LONG, None):
        generator.generate([prompt], options, seeds=[0])
    assert not torch.equal(decoded[0], decoded[1])
    assert not torch.equal(decoded[0], decoded[2])


def test_moving_moves_all_three(generator: Generator) -> None:
    assert generator.to("cpu") is generator
    devices: set[Any] = {next(generator.lm.parameters()).device.type, generator.codec.device.type}
    assert devices | {generator.text_encoder.device.type} == {"cpu"}


@pytest.mark.gpu
def test_a_seed_means_the_same_on_a_gpu(nano_folder: Path, generator: Generator, decoded: list[Tensor]) -> None:
    base = open_base(str(nano_folder))
    on_gpu = Generator(base.lm(), base.codec(), base.text_encoder()).to("cuda")
    options = GenerationOptions(duration_s=0.5)
    generator.generate([SHORT, LONG], options, seeds=[1, 2])
    torch.backends.cuda.matmul.allow_tf32 = False
    found = on_gpu.generate([SHORT, LONG], options, seeds=[1, 2])
    expected = generator.codec.decode(decoded[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # convolutions sum in another order
