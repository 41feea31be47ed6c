"""Stereo against the real audiocraft and transformers: logits, greedy sound, and the way round both formats."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.checkpoint import audiocraft_format, transformers_format
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.generation.decode import generate_codes
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import GenerationOptions
from musicgen_ft.generation.sampling import Sampling
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.peers import audiocraft, transformers

DESCRIPTIONS = ["slow warm piano", None]
GREEDY = Sampling(temperature=0.0)


@pytest.fixture
def codes() -> Tensor:
    return torch.randint(64, (2, 8, 19), generator=torch.Generator().manual_seed(3))


def tensors(folder: Path) -> dict[str, Tensor]:
    state = torch.load(folder / audiocraft_format.LM_FILE, weights_only=True)["best_state"]
    assert isinstance(state, dict)
    return state


def test_logits_equal_audiocrafts_stereo_model(
    audiocraft_stereo_folder: Path, text_encoder: TextEncoder, codes: Tensor
) -> None:
    base = open_base(str(audiocraft_stereo_folder))
    expected, mask = audiocraft.logits(
        audiocraft.open_generator(audiocraft_stereo_folder, text_encoder), codes, DESCRIPTIONS
    )
    predicted = base.lm().eval().predict(codes, text_encoder.encode(DESCRIPTIONS))

    assert base.lm_config.delays == (0, 0, 1, 1, 2, 2, 3, 3)
    assert torch.equal(predicted.mask.expand_as(mask), mask)
    assert (predicted.logits - expected)[mask].abs().max() < 1e-5  # measured 0.0


def test_logits_equal_transformers_stereo_model(transformers_stereo_folder: Path, codes: Tensor) -> None:
    base = open_base(str(transformers_stereo_folder))
    lm = base.lm().eval()
    sequence = lm.pattern.interleave(codes, 64)
    expected = transformers.logits(transformers.open_generator(transformers_stereo_folder), sequence, DESCRIPTIONS)

    found = lm(sequence, base.text_encoder().encode(DESCRIPTIONS))

    assert (found - expected).abs().max() < 1e-5  # measured 1.9e-6


def test_greedy_codes_and_sound_equal_audiocrafts(audiocraft_stereo_folder: Path, text_encoder: TextEncoder) -> None:
    base = open_base(str(audiocraft_stereo_folder))
    musicgen = audiocraft.open_generator(audiocraft_stereo_folder, text_encoder)
    musicgen.set_generation_params(use_sampling=False, duration=0.5, cfg_coef=3.0)
    expected_sound, expected = musicgen.generate(["slow warm piano"], return_tokens=True)

    text = text_encoder.encode(["slow warm piano"])
    found = generate_codes(base.lm().eval(), text, num_frames=25, sampling=GREEDY, seeds=[0])
    sound = base.codec().decode(found)

    assert torch.equal(found, expected)
    assert sound.shape == (1, 2, 600)
    assert (sound - expected_sound).abs().max() < 1e-6


def test_greedy_sound_equals_transformers(transformers_stereo_folder: Path) -> None:
    base = open_base(str(transformers_stereo_folder))
    options = GenerationOptions(duration_s=0.5, sampling=GREEDY)
    peer = transformers.open_generator(transformers_stereo_folder)
    expected = transformers.generate(peer, ["slow warm piano"], options, seed=0)

    generator = Generator(base.lm(), base.codec(), base.text_encoder())

    found = generator.generate(["slow warm piano"], options, seeds=[0])
    assert found.shape == expected.shape == (1, 2, 600)
    assert (found - expected).abs().max() < 1e-6


def test_codes_of_left_and_right_equal_audiocrafts(audiocraft_stereo_folder: Path, text_encoder: TextEncoder) -> None:
    waveform = torch.randn(3, 2, 1210, generator=torch.Generator().manual_seed(5))
    theirs: Any = audiocraft.open_generator(audiocraft_stereo_folder, text_encoder).compression_model
    expected, _ = theirs.encode(waveform)

    codec = open_base(str(audiocraft_stereo_folder)).codec()

    assert (codec.spec.channels, codec.spec.n_q) == (2, 8)
    assert torch.equal(codec.encode(waveform), expected)
    assert (codec.decode(expected) - theirs.decode(expected, None)).abs().max() < 1e-6


def test_the_way_round_both_formats_gives_bit_equal_tensors(
    audiocraft_stereo_folder: Path, tmp_path: Path, text_encoder: TextEncoder
) -> None:
    base = open_base(str(audiocraft_stereo_folder))
    there, back = tmp_path / "there", tmp_path / "back"
    there.mkdir()
    back.mkdir()
    transformers_format.write_folder(there, base.lm_state(), base.lm_config, base.codec(), text_encoder)
    again = open_base(str(there))
    audiocraft_format.write_folder(back, again.lm_state(), again.lm_config, again.codec(), text_encoder_id="t5")

    found, expected = tensors(back), tensors(audiocraft_stereo_folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert audiocraft.open_generator(back, text_encoder).audio_channels == 2


def test_a_mono_base_made_stereo_is_what_audiocrafts_recipe_makes(audiocraft_folder: Path, tmp_path: Path) -> None:
    mono, stereo = open_base(str(audiocraft_folder)), open_base(str(audiocraft_folder), channels=2)
    audiocraft_format.write_folder(
        tmp_path, stereo.lm_state(), stereo.lm_config, stereo.codec(), text_encoder_id="t5-base"
    )

    expected: dict[str, Tensor] = {}
    for name, value in tensors(audiocraft_folder).items():  # emb.k and linears.k of stereo: those of k // 2 (spec 5)
        kind, _, rest = name.partition(".")
        if kind in ("emb", "linears"):
            k, _, weight = rest.partition(".")
            expected |= {f"{kind}.{2 * int(k)}.{weight}": value, f"{kind}.{2 * int(k) + 1}.{weight}": value}
        else:
            expected[name] = value
    found = tensors(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert mono.codec().spec.sha256 == stereo.codec().spec.sha256
