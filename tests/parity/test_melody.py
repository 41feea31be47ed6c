"""The melody models against the real audiocraft and the real transformers: logits, tokens, files.

fp32 on the CPU; the prefix of 282 chroma frames lets rounding differ more than in the text models (spec 8.3).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audiocraft.modules.conditioners import ClassifierFreeGuidanceDropout, ConditioningAttributes, WavCondition
from torch import Tensor

from musicgen_ft.checkpoint import audiocraft_format, transformers_format
from musicgen_ft.checkpoint.base import Base, open_base
from musicgen_ft.chroma import (
    DROPPED,
    ChromaSpec,
    MelodyStates,
    chromagram,
    crop_chroma,
    generation_melody,
    generation_null,
    training_melody,
    training_null,
)
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import GenerationOptions
from musicgen_ft.generation.sampling import Sampling
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.peers import audiocraft, transformers
from musicgen_ft.peers.parity import check_export

LONG = "driving techno with heavy bass and bright strings at 120 bpm"
BATCHES = [["slow warm piano"], [None], ["slow warm piano", LONG], ["slow warm piano", None, LONG]]
TOLERANCE = 5e-5
SPEC = ChromaSpec(sample_rate=1200, n_chroma=12, n_fft=512, hop_length=128)
GREEDY = Sampling(temperature=0.0)


@pytest.fixture
def musicgen(audiocraft_melody_folder: Path, text_encoder: TextEncoder) -> Any:
    return audiocraft.open_generator(audiocraft_melody_folder, text_encoder)


@pytest.fixture
def ours(audiocraft_melody_folder: Path) -> Base:
    return open_base(str(audiocraft_melody_folder))


@pytest.fixture
def hf(transformers_melody_folder: Path) -> Any:
    return transformers.open_generator(transformers_melody_folder)


@pytest.fixture
def ours_of_hf(transformers_melody_folder: Path) -> Base:
    return open_base(str(transformers_melody_folder))


def codes_of(base: Base, B: int, T: int) -> Tensor:
    return torch.randint(64, (B, base.lm_config.n_q, T), generator=torch.Generator().manual_seed(B))


def tune(seconds: float, seed: int = 3) -> np.ndarray:
    """A melody that changes its note eight times a second."""
    num_samples = int(seconds * 1200)
    notes = np.random.default_rng(seed).integers(0, 24, size=num_samples // 150 + 1)
    hertz = np.repeat(110 * 2 ** (notes / 12), 150)[:num_samples]
    return np.sin(2 * np.pi * np.cumsum(hertz) / 1200).astype(np.float32)


def chroma_of(B: int, F: int) -> Tensor:
    return torch.randint(12, (B, F), generator=torch.Generator().manual_seed(F))


def largest_difference(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    assert found.shape == expected.shape
    assert expected[mask.expand(found.shape[:3])].std() > 0.3  # else this tells nothing
    return float((found - expected)[mask.expand(found.shape[:3])].abs().max())


def given(F: int | None, B: int) -> tuple[Tensor | None, MelodyStates]:
    """Chroma for the peer, and the condition in generation for ours; None is no melody."""
    if F is None:
        return None, generation_null(B, SPEC, duration_s=30.0)
    return chroma_of(B, F), generation_melody(chroma_of(B, F), SPEC, duration_s=30.0)


# ---- logits ----------------------------------------------------------------------------------------------------------


def test_the_numbers_of_both_formats_are_read(ours: Base, ours_of_hf: Base) -> None:
    for base in (ours, ours_of_hf):
        assert (base.lm_config.conditioning, base.lm_config.chroma) == ("prefix", SPEC)
        assert SPEC.num_frames(int(base.lm_config.max_duration_s * 1200)) == 282


@pytest.mark.parametrize("F", [None, 31, 282, 300])
@pytest.mark.parametrize("descriptions", BATCHES)
@torch.no_grad()
def test_logits_in_generation_equal_audiocrafts(
    musicgen: Any, ours: Base, text_encoder: TextEncoder, descriptions: list[str | None], F: int | None
) -> None:
    codes = codes_of(ours, len(descriptions), 11)
    chroma, melody = given(F, len(descriptions))
    expected, expected_mask = audiocraft.logits(musicgen, codes, descriptions, chroma)

    logits, mask = ours.lm().eval().predict(codes, text_encoder.encode(descriptions), melody)

    assert torch.equal(mask.expand_as(expected_mask), expected_mask)
    assert torch.equal(logits.isnan(), expected.isnan())
    assert largest_difference(logits, expected, mask) < TOLERANCE


@pytest.mark.parametrize("F", [None, 31, 281])
@pytest.mark.parametrize("descriptions", BATCHES)
@torch.no_grad()
def test_logits_equal_transformers(
    hf: Any, ours_of_hf: Base, text_encoder: TextEncoder, descriptions: list[str | None], F: int | None
) -> None:
    lm, codes = ours_of_hf.lm().eval(), codes_of(ours_of_hf, len(descriptions), 11)
    chroma, melody = given(F, len(descriptions))
    sequence = lm.pattern.interleave(codes, 64)
    expected = transformers.logits(hf, sequence, descriptions, chroma)

    logits = lm(sequence, text_encoder.encode(descriptions), melody=melody)

    assert largest_difference(logits, expected, torch.ones(()).bool()) < TOLERANCE


@pytest.mark.parametrize("num_frames", [11, 7])
@torch.no_grad()
def test_logits_in_training_equal_audiocrafts(
    musicgen: Any, ours: Base, text_encoder: TextEncoder, num_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A crop of 400 frames, of which the first has its end beyond the track: audiocraft masks by length.
    T, valid, descriptions = 400, (400, num_frames * 20), ["slow warm piano", LONG]
    codes = codes_of(ours, 2, T)
    chroma = torch.stack(
        [
            crop_chroma(chromagram(tune(60), SPEC), SPEC, start=33, num_frames=n, segment_frames=T, hop_length=24)
            for n in valid
        ]
    )
    conditioner = musicgen.lm.condition_provider.conditioners["self_wav"]
    monkeypatch.setattr(conditioner, "_use_masking", True)
    monkeypatch.setattr(conditioner, "match_len_on_eval", False)
    one_hot = training_melody(chroma, SPEC).one_hot
    monkeypatch.setattr(conditioner, "_compute_wav_embedding", lambda wav, rate: one_hot)
    conditions = []
    for description, n in zip(descriptions, valid, strict=True):
        wav = WavCondition(torch.zeros(1, 1, T * 24), torch.tensor([n * 24]), [1200], [None], [None])
        conditions.append(ConditioningAttributes(text={"description": description}, wav={"self_wav": wav}))
    expected = musicgen.lm.compute_predictions(codes, conditions)

    logits, mask = ours.lm().eval().predict(codes, text_encoder.encode(descriptions), training_melody(chroma, SPEC))

    assert (chroma[0] >= 0).all()
    assert (chroma[1] == DROPPED).any()
    assert largest_difference(logits, expected.logits, mask) < TOLERANCE


@torch.no_grad()
def test_logits_of_a_step_that_trains_the_null_condition_equal_audiocrafts(
    musicgen: Any, ours: Base, text_encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = codes_of(ours, 2, 11)
    conditioner = musicgen.lm.condition_provider.conditioners["self_wav"]
    monkeypatch.setattr(conditioner, "_use_masking", True)
    monkeypatch.setattr(conditioner, "match_len_on_eval", False)
    wav = WavCondition(torch.randn(1, 1, 5000), torch.tensor([5000]), [1200], [None], [None])
    conditions = [ConditioningAttributes(text={"description": "techno"}, wav={"self_wav": wav}) for _ in range(2)]
    expected = musicgen.lm.compute_predictions(codes, ClassifierFreeGuidanceDropout(p=1.0)(conditions))

    null = text_encoder.null(2)
    logits, mask = ours.lm().eval().predict(codes, null, training_null(2, SPEC))

    assert largest_difference(logits, expected.logits, mask) < TOLERANCE


# ---- generation ------------------------------------------------------------------------------------------------------


def decoded(generator: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What transformers' ``generate`` hands to its codec, each [B, K, T]."""
    seen: list[Tensor] = []
    decode = generator.audio_encoder.decode

    def spy(codes: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(codes[0])
        return decode(codes, *args, **kwargs)

    monkeypatch.setattr(generator.audio_encoder, "decode", spy)
    return seen


@pytest.mark.parametrize("seconds", [None, 3.0])
@pytest.mark.parametrize("descriptions", [["slow warm piano"], ["slow warm piano", "slow warm piano"], [None]])
@pytest.mark.parametrize("cfg_coef", [1.0, 3.0])
def test_a_greedy_piece_equals_audiocrafts(
    musicgen: Any, ours: Base, text_encoder: TextEncoder, seconds: float | None, descriptions: list[str | None],
    cfg_coef: float,
) -> None:  # fmt: skip
    melody = None if seconds is None else tune(seconds)
    options = GenerationOptions(duration_s=0.5, sampling=GREEDY, cfg_coef=cfg_coef)
    given = None if melody is None else torch.from_numpy(melody)
    expected = audiocraft.generate(musicgen, descriptions, options, seed=0, melody=given)
    generator = Generator(ours.lm(), ours.codec(), text_encoder)

    found = generator.generate(
        descriptions, options, seeds=[0] * len(descriptions), melodies=[melody] * len(descriptions)
    )

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # one codec, in two programs: one code off shows
    assert expected.std() > 0


def test_each_window_of_a_long_piece_has_its_part_of_the_melody_as_in_audiocraft(
    musicgen: Any, ours: Base, text_encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    melody = tune(13.7)
    options = GenerationOptions(duration_s=32.0, sampling=GREEDY, stride_s=18.0)
    expected = audiocraft.generate(musicgen, ["techno"], options, seed=0, melody=torch.from_numpy(melody))

    found = Generator(ours.lm(), ours.codec(), text_encoder).generate(["techno"], options, seeds=[0], melodies=[melody])

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seconds", [None, 3.0])
@pytest.mark.parametrize("descriptions", [["slow warm piano"], ["slow warm piano", "slow warm piano"], [None]])
@pytest.mark.parametrize("cfg_coef", [1.0, 3.0])
def test_a_greedy_piece_equals_that_of_transformers(
    hf: Any, ours_of_hf: Base, text_encoder: TextEncoder, seconds: float | None, descriptions: list[str | None],
    cfg_coef: float,
) -> None:  # fmt: skip
    melody = None if seconds is None else tune(seconds)
    options = GenerationOptions(duration_s=0.5, sampling=GREEDY, cfg_coef=cfg_coef)
    given = None if melody is None else torch.from_numpy(melody)
    expected = transformers.generate(hf, descriptions, options, seed=0, melody=given)
    generator = Generator(ours_of_hf.lm(), ours_of_hf.codec(), text_encoder)

    found = generator.generate(
        descriptions, options, seeds=[0] * len(descriptions), melodies=[melody] * len(descriptions)
    )

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_melody_changes_what_is_played(ours: Base, text_encoder: TextEncoder) -> None:
    options = GenerationOptions(duration_s=0.5, sampling=GREEDY)
    generator = Generator(ours.lm(), ours.codec(), text_encoder)

    pieces = generator.generate(
        ["piano"] * 3, options, seeds=[0] * 3, melodies=[None, tune(2, seed=1), tune(2, seed=2)]
    )

    assert not pieces[0].equal(pieces[1])
    assert not pieces[1].equal(pieces[2])


def test_a_prompt_plays_the_same_in_whatever_batch(ours: Base, text_encoder: TextEncoder) -> None:
    options = GenerationOptions(duration_s=0.5, sampling=Sampling(top_k=20))
    generator = Generator(ours.lm(), ours.codec(), text_encoder)

    alone = generator.generate(["piano"], options, seeds=[5], melodies=[tune(2)])
    beside = generator.generate([LONG, "piano"], options, seeds=[9, 5], melodies=[None, tune(2)])

    torch.testing.assert_close(beside[1:], alone, rtol=0, atol=1e-6)


# ---- files -----------------------------------------------------------------------------------------------------------


def write(folder: Path, base: Base, flavour: str, dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir()
    state = {name: value.to(dtype) for name, value in base.lm_state().items()}
    config, codec, text_encoder = base.lm_config, base.codec(), base.text_encoder()
    if flavour == "transformers":
        transformers_format.write_folder(folder, state, config, codec, text_encoder)
    else:
        audiocraft_format.write_folder(folder, state, config, codec, text_encoder_id="t5")
        transformers_format.write_text_encoder(folder / "t5", text_encoder)
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    state = torch.load(folder / "state_dict.bin", weights_only=True)["best_state"]
    assert isinstance(state, dict)
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_way_round_both_formats_gives_bit_equal_tensors(
    audiocraft_melody_folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    base = open_base(str(audiocraft_melody_folder))
    there = write(tmp_path / "transformers", base, "transformers", dtype)
    back = write(tmp_path / "audiocraft", open_base(str(there)), "audiocraft", dtype)

    expected = {name: value.to(dtype) for name, value in tensors(audiocraft_melody_folder).items()}
    found = tensors(back)

    assert found.keys() == expected.keys()
    assert "condition_provider.conditioners.self_wav.chroma.spec.window" in found
    for name, value in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value), name
    assert open_base(str(back)).lm_config.chroma == base.lm_config.chroma


def assert_plays_alike_in_both_readers(base: Base, folder: Path, text_encoder: TextEncoder, F: int | None) -> None:
    write(folder, base, "audiocraft")
    state, config = base.lm_state(), base.lm_config
    transformers_format.write_folder(folder, state, config, base.codec(), text_encoder)

    differences = check_export(
        folder, state, config, text_encoder, codes_of(base, 1, 40), "slow warm piano",
        formats=["audiocraft", "transformers"], chroma=None if F is None else chroma_of(1, F),
    )  # fmt: skip

    assert set(differences) == {"audiocraft", "transformers"}
    assert max(differences.values()) < TOLERANCE
    assert open_base(str(folder)).lm_config.chroma == SPEC


@pytest.mark.parametrize("F", [None, 31])
def test_an_export_of_audiocrafts_release_plays_alike_in_both_readers(
    ours: Base, tmp_path: Path, text_encoder: TextEncoder, F: int | None
) -> None:
    assert_plays_alike_in_both_readers(ours, tmp_path / "both", text_encoder, F)


@pytest.mark.parametrize("F", [None, 31])
def test_an_export_of_a_transformers_folder_plays_alike_in_both_readers(
    ours_of_hf: Base, tmp_path: Path, text_encoder: TextEncoder, F: int | None
) -> None:
    assert_plays_alike_in_both_readers(ours_of_hf, tmp_path / "both", text_encoder, F)


def test_an_export_that_hears_the_melody_otherwise_is_found_out(
    ours: Base, tmp_path: Path, text_encoder: TextEncoder
) -> None:
    folder = write(tmp_path / "wrong", ours, "audiocraft")
    state = ours.lm_state()
    state["chroma_proj.weight"] = state["chroma_proj.weight"].flip(1)

    with pytest.raises(RuntimeError, match="its logits differ"):
        check_export(
            folder, state, ours.lm_config, text_encoder, codes_of(ours, 1, 40), "piano",
            formats=["audiocraft"], chroma=chroma_of(1, 31),
        )  # fmt: skip
