"""Decoding token for token against the real audiocraft and the real transformers, greedily and with guidance."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import audiocraft.utils.utils
import pytest
import torch
from torch import Tensor

from musicgen_ft.checkpoint.base import Base
from musicgen_ft.generation.decode import generate_codes, generate_long
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import GenerationOptions, Request
from musicgen_ft.generation.sampling import Sampling, _keep_top_k, _keep_top_p
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.peers import audiocraft as audiocraft_peer
from musicgen_ft.peers import transformers as transformers_peer

GREEDY = Sampling(temperature=0.0)
LONG = "driving techno with heavy bass and bright strings at 120 bpm"
BATCHES = [[None], ["slow warm piano"], ["slow warm piano", LONG], ["slow warm piano", None, LONG]]


def prompt_codes(B: int, T: int) -> Tensor:
    return torch.randint(64, (B, 4, T), generator=torch.Generator().manual_seed(7))


# ---- audiocraft ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("descriptions", BATCHES)
@pytest.mark.parametrize("num_known", [0, 1, 6])
@pytest.mark.parametrize("cfg_coef", [1.0, 3.0])
def test_greedy_codes_equal_audiocrafts(
    musicgen: Any,
    lm_like_audiocraft: LanguageModel,
    text_encoder: TextEncoder,
    conditions: Any,
    descriptions: list[str | None],
    num_known: int,
    cfg_coef: float,
) -> None:
    prompt = prompt_codes(len(descriptions), num_known) if num_known else None
    expected = musicgen.lm.generate(
        prompt, conditions(descriptions), max_gen_len=23, use_sampling=False, cfg_coef=cfg_coef, check=True
    )
    found = generate_codes(
        lm_like_audiocraft,
        text_encoder.encode(descriptions),
        num_frames=23,
        sampling=GREEDY,
        seeds=[0] * len(descriptions),
        cfg_coef=cfg_coef,
        prompt=prompt,
    )
    assert torch.equal(found, expected)
    assert found[:, :, num_known:].unique().numel() > 5  # else one code for ever would pass


def test_pieces_longer_than_the_window_equal_audiocrafts(
    musicgen: Any,
    lm_like_audiocraft: LanguageModel,
    text_encoder: TextEncoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(musicgen, "max_duration", 0.4)  # 20 frames of 50 Hz
    monkeypatch.setattr(musicgen, "generation_params", {})
    musicgen.set_generation_params(use_sampling=False, cfg_coef=3.0, duration=1.0, extend_stride=0.24)
    attributes, _ = musicgen._prepare_tokens_and_attributes(["slow warm piano", LONG], None)
    expected = musicgen._generate_tokens(attributes, None, False)
    found = generate_long(
        lm_like_audiocraft,
        text_encoder.encode(["slow warm piano", LONG]),
        num_frames=50,
        window_frames=20,
        stride_frames=12,
        sampling=GREEDY,
        seeds=[0, 0],
    )
    assert torch.equal(found, expected)


def test_waveforms_equal_audiocrafts(musicgen: Any, audiocraft_base: Base, text_encoder: TextEncoder) -> None:
    options = GenerationOptions(duration_s=0.5, sampling=GREEDY)
    expected = audiocraft_peer.generate(musicgen, ["slow warm piano"], options, seed=0)
    generator = Generator(audiocraft_base.lm(), audiocraft_base.codec(), text_encoder)
    assert generator.sample_rate == musicgen.sample_rate == 1200
    found = generator.generate(["slow warm piano"], options, seeds=[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # one codec, in two programs


# ---- transformers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def decoded_codes(hf_musicgen: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What transformers' ``generate`` hands to its codec, each [B, K, T]."""
    seen: list[Tensor] = []
    decode = hf_musicgen.audio_encoder.decode

    def spy(codes: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(codes[0])
        return decode(codes, *args, **kwargs)

    monkeypatch.setattr(hf_musicgen.audio_encoder, "decode", spy)
    return seen


@pytest.mark.parametrize("descriptions", [[None], ["slow warm piano"], ["slow warm piano", LONG]])
@pytest.mark.parametrize("cfg_coef", [1.0, 3.0])
def test_greedy_codes_equal_transformers(
    hf_musicgen: Any,
    decoded_codes: list[Tensor],
    lm_like_transformers: LanguageModel,
    text_encoder: TextEncoder,
    descriptions: list[str | None],
    cfg_coef: float,
) -> None:
    options = GenerationOptions(duration_s=0.46, sampling=GREEDY, cfg_coef=cfg_coef)
    transformers_peer.generate(hf_musicgen, descriptions, options, seed=0)
    found = generate_codes(
        lm_like_transformers,
        text_encoder.encode(descriptions),
        num_frames=23,
        sampling=GREEDY,
        seeds=[0] * len(descriptions),
        cfg_coef=cfg_coef,
    )
    assert torch.equal(found, decoded_codes[0])
    assert found.unique().numel() > 5


def test_waveforms_equal_transformers(
    hf_musicgen: Any, transformers_base: Base, transformers_folder: Path, text_encoder: TextEncoder
) -> None:
    options = GenerationOptions(duration_s=0.5, sampling=GREEDY)
    expected = transformers_peer.generate(hf_musicgen, ["slow warm piano", LONG], options, seed=0)
    generator = Generator(transformers_base.lm(), transformers_base.codec(), text_encoder)
    found = generator.generate(["slow warm piano", LONG], options, seeds=[0, 1])
    assert found.shape == expected.shape == (2, 1, 600)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


# ---- rules of drawing ------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn_from(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The probabilities that audiocraft's rules hand to ``multinomial``, which then takes the first."""
    seen: list[Tensor] = []

    def multinomial(probabilities: Tensor, num_samples: int) -> Tensor:
        seen.append(probabilities.clone())
        return torch.zeros(*probabilities.shape[:-1], num_samples, dtype=torch.long)

    monkeypatch.setattr(audiocraft.utils.utils, "multinomial", multinomial)
    return seen


def probabilities(*, tied: bool = False) -> Tensor:
    logits = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(3)) * 2
    return torch.softmax(logits.round() if tied else logits, dim=-1)


@pytest.mark.parametrize("k", [1, 2, 7, 64])
@pytest.mark.parametrize("tied", [False, True])
def test_top_k_keeps_what_audiocraft_keeps(drawn_from: list[Tensor], k: int, tied: bool) -> None:
    p = probabilities(tied=tied)
    audiocraft.utils.utils.sample_top_k(p.clone(), k)
    kept = _keep_top_k(p, torch.full((2, 1, 1), k), k)
    assert torch.equal(kept > 0, drawn_from[0] > 0)
    torch.testing.assert_close(kept / kept.sum(-1, keepdim=True), drawn_from[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999, 1.0])
def test_top_p_keeps_what_audiocraft_keeps(drawn_from: list[Tensor], top_p: float) -> None:
    p = probabilities()
    audiocraft.utils.utils.sample_top_p(p.clone(), top_p)
    kept = _keep_top_p(p, top_p)
    ordered = kept.sort(dim=-1, descending=True).values
    assert torch.equal(ordered > 0, drawn_from[0] > 0)
    torch.testing.assert_close(ordered / ordered.sum(-1, keepdim=True), drawn_from[0], rtol=1e-5, atol=0)
    assert torch.equal(kept[kept > 0], p[kept > 0])


# ---- other ways to play ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg_coef", [1.0, 2.5])
def test_two_step_guidance_equals_audiocrafts(
    musicgen: Any,
    audiocraft_base: Base,
    text_encoder: TextEncoder,
    conditions: Any,
    monkeypatch: pytest.MonkeyPatch,
    cfg_coef: float,
) -> None:
    monkeypatch.setattr(musicgen.lm, "cfg_coef", cfg_coef)  # the argument is ignored (spec trap 13)
    expected = musicgen.lm.generate(
        None, conditions(["slow warm piano"]), max_gen_len=23, use_sampling=False, two_step_cfg=True
    )
    generator = Generator(audiocraft_base.lm(), audiocraft_base.codec(), text_encoder)
    request = Request(prompt="slow warm piano", duration_s=0.46, sampling=GREEDY, cfg_coef=cfg_coef)
    for two_step_cfg in (False, True):
        (found,) = generator.codes([request], two_step_cfg=two_step_cfg)
        assert torch.equal(found, expected[0])


@pytest.mark.parametrize("duration_s", [0.5, 0.9])
def test_a_continuation_equals_audiocrafts(
    musicgen: Any,
    audiocraft_base: Base,
    text_encoder: TextEncoder,
    monkeypatch: pytest.MonkeyPatch,
    duration_s: float,
) -> None:
    monkeypatch.setattr(musicgen, "max_duration", 0.6)
    monkeypatch.setattr(musicgen, "generation_params", {})
    musicgen.set_generation_params(use_sampling=False, cfg_coef=3.0, duration=duration_s, extend_stride=0.3)
    beginning = 0.5 * torch.randn(1, 300, generator=torch.Generator().manual_seed(2))
    expected = musicgen.generate_continuation(beginning[None], 1200, ["slow warm piano"])
    lm = audiocraft_base.lm()
    lm.config = replace(lm.config, max_duration_s=0.6)
    generator = Generator(lm, audiocraft_base.codec(), text_encoder)
    request = Request(prompt="slow warm piano", duration_s=duration_s, sampling=GREEDY, audio_prompt=beginning)

    (found,) = generator.play([request], stride_s=0.3)
    chunks = list(generator.stream(request, stride_s=0.3, chunk_s=0.1, first_chunk_s=0.1))

    assert found.shape == (1, int(duration_s * 50) * 24)
    torch.testing.assert_close(found[None], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cat(chunks, dim=1)[None], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "auto"])
def test_packed_weights_give_audiocrafts_greedy_codes(
    musicgen: Any, audiocraft_base: Base, text_encoder: TextEncoder, conditions: Any, dtype: str
) -> None:
    expected = musicgen.lm.generate(None, conditions(["slow warm piano"]), max_gen_len=50, use_sampling=False)
    generator = Generator.open(audiocraft_base, device="cpu", dtype=dtype)
    request = Request(prompt="slow warm piano", duration_s=1.0, sampling=GREEDY)
    assert torch.equal(generator.codes([request])[0], expected[0])


def test_each_request_of_a_mixed_batch_equals_audiocrafts_alone(
    musicgen: Any, audiocraft_base: Base, text_encoder: TextEncoder, conditions: Any
) -> None:
    prompt = prompt_codes(1, 6)
    wanted: list[tuple[str, int, float, Tensor | None]] = [
        ("slow warm piano", 23, 3.0, None), (LONG, 31, 1.0, prompt), ("", 12, 5.0, None),
    ]  # fmt: skip
    generator = Generator(audiocraft_base.lm(), audiocraft_base.codec(), text_encoder)
    requests = [
        Request(
            prompt=words, duration_s=T / 50, sampling=GREEDY, cfg_coef=coef,
            audio_prompt=None if known is None else known[0],
        )
        for words, T, coef, known in wanted
    ]  # fmt: skip
    for found, (words, T, coef, known) in zip(generator.codes(requests), wanted, strict=True):
        expected = musicgen.lm.generate(known, conditions([words]), max_gen_len=T, use_sampling=False, cfg_coef=coef)
        assert torch.equal(found, expected[0])
