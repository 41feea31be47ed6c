"""nano playing: prompts and seeds to waveforms."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import musicgen_ft
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.codec import Codec
from musicgen_ft.errors import UserError
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import GenerationOptions, Request
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
    lm.embeddings[0].register_forward_pre_hook(lambda _, inputs: longest.append(inputs[0].shape[1]))
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


# ---- requests --------------------------------------------------------------------------------------------------------


def joined(chunks: Iterable[Tensor]) -> Tensor:
    return torch.cat(list(chunks), dim=1)


def test_requests_of_any_kind_play_at_once_as_alone(generator: Generator) -> None:
    tone = 0.3 * torch.sin(torch.arange(4800) / 9)[None]
    requests = [
        Request(prompt=SHORT, duration_s=0.5, seed=1),
        Request(prompt=LONG, duration_s=0.3, seed=2, negative_prompt=SHORT, cfg_coef=2.0),
        Request(duration_s=0.6, seed=3, audio_prompt=tone, sampling=Sampling(temperature=0.0)),
    ]
    for request, found in zip(requests, generator.play(requests), strict=True):
        (alone,) = generator.play([request])
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
        assert found.shape == (1, int(request.duration_s * 50) * 320)


def test_a_piece_goes_on_from_a_recording_or_from_its_codes(generator: Generator) -> None:
    tone = 0.3 * torch.sin(torch.arange(4800) / 9)[None]
    codes = generator.codec.encode(tone[None])[0]
    (found,) = generator.codes([Request(prompt=SHORT, duration_s=0.6, audio_prompt=tone)])
    assert torch.equal(found[:, :15], codes)
    assert torch.equal(generator.codes([Request(prompt=SHORT, duration_s=0.6, audio_prompt=codes)])[0], found)
    (other,) = generator.codes([Request(prompt=SHORT, duration_s=0.6, audio_prompt=codes.flip(1))])
    assert not torch.equal(other[:, 15:], found[:, 15:])


@pytest.mark.parametrize("audio_prompt", [None, torch.zeros(1, 3200)])
def test_a_stream_joins_to_what_play_gives(generator: Generator, audio_prompt: Tensor | None) -> None:
    request = Request(prompt=SHORT, duration_s=1.5, seed=4, audio_prompt=audio_prompt)
    chunks = list(generator.stream(request, chunk_s=0.4, first_chunk_s=0.1))
    (whole,) = generator.play([request])
    torch.testing.assert_close(joined(chunks), whole, rtol=0, atol=float(whole.abs().max()) * 1e-5)
    assert len(chunks) > 3
    if audio_prompt is None:
        assert chunks[0].shape == (1, 1600)


def test_a_long_piece_streams_too(
    make_lm: Callable[..., LanguageModel], nano_codec: Codec, text_encoder: TextEncoder
) -> None:
    generator = Generator(make_lm(text_dim=64, card=256, max_duration_s=0.4), nano_codec, text_encoder)
    request = Request(prompt=SHORT, duration_s=1.0, audio_prompt=torch.zeros(1, 1600))
    chunks = list(generator.stream(request, stride_s=0.24, chunk_s=0.1, first_chunk_s=0.1))
    (whole,) = generator.play([request], stride_s=0.24)
    assert whole.shape == (1, 16_000)
    torch.testing.assert_close(joined(chunks), whole, rtol=0, atol=float(whole.abs().max()) * 1e-5)
    assert len(chunks) > 4


def test_the_first_chunk_is_there_before_the_piece_is_done(generator: Generator) -> None:
    steps: list[int] = []
    chunks = generator.stream(
        Request(prompt=SHORT, duration_s=3.0), first_chunk_s=0.2, progress=lambda done, of: steps.append(of - done)
    )
    next(chunks)
    assert len(steps) == 10 + 8 + 3  # its frames, those that its sound waits for, the last codebook's delay
    assert steps[-1] > 100


def test_long_and_short_requests_play_at_once(
    make_lm: Callable[..., LanguageModel], nano_codec: Codec, text_encoder: TextEncoder
) -> None:
    generator = Generator(make_lm(text_dim=64, card=256, max_duration_s=0.4), nano_codec, text_encoder)
    requests = [Request(prompt=SHORT, duration_s=s, seed=7) for s in (1.0, 0.2, 1.0, 0.7)]
    found = generator.codes(requests, stride_s=0.24)
    assert [codes.shape[1] for codes in found] == [50, 10, 50, 35]
    for request, codes in zip(requests, found, strict=True):
        assert torch.equal(generator.codes([request], stride_s=0.24)[0], codes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duration_s": -1.0}, "less than a frame"),
        ({"cfg_coef_beta": 5.0}, "cfg_coef_beta sets the prompt against a melody, found none"),
        ({"melody": np.zeros(9, np.float32)}, "this generator takes no melody"),
        ({"audio_prompt": torch.zeros(1, 16_000)}, "found 1 s, expected less than the duration of 0.5 s"),
        ({"audio_prompt": torch.zeros(2, 1600)}, r"a waveform \(2, 1600\), expected \[1, L\] at 16000 Hz"),
        ({"audio_prompt": torch.zeros(3, 9, dtype=torch.long)}, r"codes \(3, 9\), expected \[4, T\]"),
        ({"audio_prompt": torch.full((4, 9), 256)}, r"codes beyond \[0, 256\)"),
    ],
)
def test_a_request_that_cannot_be_played_is_refused_at_once(
    generator: Generator, changes: dict[str, Any], message: str
) -> None:
    request = Request(**{"prompt": SHORT, "duration_s": 0.5, **changes})
    for play in (lambda: generator.play([request]), lambda: generator.stream(request)):
        with pytest.raises(UserError, match=message):
            play()


def test_opening_takes_a_name_and_packs_what_it_plays(nano_folder: Path, generator: Generator) -> None:
    opened = Generator.open(str(nano_folder), device="cpu", dtype="fp32")
    request = Request(prompt=SHORT, duration_s=0.5, seed=1)
    assert torch.equal(opened.codes([request])[0], generator.codes([request])[0])
    assert Generator.open(open_base(str(nano_folder)), device="cpu", dtype="bf16").codes([request])[0].shape == (4, 25)
    with pytest.raises(UserError, match="--dtype int4: expected auto, fp32"):
        Generator.open(str(nano_folder), dtype="int4").codes([request])


def test_the_package_offers_what_five_lines_need_and_imports_no_torch_before() -> None:
    program = (
        "import sys, musicgen_ft; assert 'torch' not in sys.modules; from musicgen_ft import Generator, Request; "
        "print(Generator.__name__, Request.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "Generator Request\n"
    with pytest.raises(AttributeError, match="has no attribute 'Organ'"):
        musicgen_ft.Organ  # noqa: B018
