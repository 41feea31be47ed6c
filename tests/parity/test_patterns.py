"""Patterns against audiocraft's own providers, made by audiocraft's builder from the section of ``xp.cfg``."""

import dataclasses
from typing import Any

import pytest
import torch
from audiocraft.models.builders import get_codebooks_pattern_provider
from omegaconf import OmegaConf

from musicgen_ft.generation.decode import generate_codes
from musicgen_ft.generation.sampling import Sampling
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.model.patterns import make_pattern

Description = dict[str, Any]
FRAMES = [1, 2, 4, 9, 30]


def delay(*delays: int) -> tuple[Description, Description]:
    """Our description and audiocraft's."""
    return {"pattern": "delay", "delays": delays}, {"delays": list(delays)}


def parallel(n_q: int) -> tuple[Description, Description]:
    return {"pattern": "parallel", "delays": (0,) * n_q}, {}


def unroll(*flattening: int, delays: tuple[int, ...] = ()) -> tuple[Description, Description]:
    delays = delays or (0,) * len(flattening)
    ours = {"pattern": "unroll", "delays": delays, "flattening": flattening}
    return ours, {"flattening": list(flattening), "delays": list(delays)}


def coarse_first(*delays: int) -> tuple[Description, Description]:
    return {"pattern": "coarse_first", "delays": (0, *delays)}, {"delays": list(delays)}


def musiclm(n_q: int, group_by: int) -> tuple[Description, Description]:
    return {"pattern": "musiclm", "delays": (0,) * n_q, "group_by": group_by}, {"group_by": group_by}


OF_FOUR = [
    delay(0, 1, 2, 3),
    delay(0, 1, 1, 1),
    delay(0, 0, 1, 1),
    delay(1, 1, 2, 4),
    delay(0, 2, 5, 11),
    parallel(4),
    ({"pattern": "unroll", "delays": (0, 0, 0, 0)}, {}),
    unroll(0, 1, 1, 1),
    unroll(0, 0, 1, 1),
    unroll(0, 0, 3, 3),
    unroll(1, 1, 1, 4),
    unroll(0, 1, 1, 1, delays=(0, 3, 3, 3)),
    unroll(0, 1, 2, 3, delays=(0, 1, 1, 4)),
    unroll(0, 2, 2, 5, delays=(1, 2, 2, 2)),
    coarse_first(0, 0, 0),
    coarse_first(0, 1, 2),
    coarse_first(1, 1, 6),
    musiclm(4, 2),
    musiclm(4, 1),
]
OF_OTHERS = [
    delay(0),
    delay(0, 0, 1, 1, 2, 2, 3, 3),
    delay(2, 2, 3),
    parallel(1),
    parallel(8),
    unroll(0),
    unroll(2),
    unroll(0, 0, 1, 1, 2, 2, 3, 3),
    unroll(0, 1, 1, delays=(0, 3, 3)),
    unroll(0, 1, delays=(2, 7)),
    coarse_first(0),
    coarse_first(3),
    coarse_first(0, 0, 1, 1, 2, 2, 3),
    musiclm(2, 2),
    musiclm(6, 3),
]


def audiocraft_provider(n_q: int, modeling: str, arguments: Description) -> Any:
    """From a section as ``xp.cfg`` has it."""
    section = OmegaConf.create({"modeling": modeling, modeling: arguments})
    return get_codebooks_pattern_provider(n_q, section)


def name(case: object) -> str:
    return "-".join(str(value).replace(" ", "") for value in case.values()) if isinstance(case, dict) else ""


# One case of each distinct delay, flattening and grouping, with its number of codebooks.
GRID = pytest.mark.parametrize(("ours", "theirs"), [*OF_FOUR, *OF_OTHERS], ids=name)


@GRID
@pytest.mark.parametrize("T", FRAMES)
def test_sequence_masks_and_inverse_equal_audiocrafts(ours: Description, theirs: Description, T: int) -> None:
    K, special = len(ours["delays"]), 99
    codes = torch.randint(90, (2, K, T), generator=torch.Generator().manual_seed(T))
    expected = audiocraft_provider(K, ours["pattern"], theirs).get_pattern(T)
    pattern = make_pattern(ours["pattern"], **{key: value for key, value in ours.items() if key != "pattern"})

    sequence, _, mask = expected.build_pattern_sequence(codes, special)
    assert torch.equal(pattern.interleave(codes, special), sequence)
    assert torch.equal(pattern.step_mask(T), mask)
    found = pattern.deinterleave(sequence)
    assert torch.equal(found, expected.revert_pattern_sequence(sequence, special)[0])
    assert torch.equal(found, codes)

    valid, _, valid_mask = expected.build_pattern_sequence(codes, special, keep_only_valid_steps=True)
    V = pattern.num_valid_steps(T)
    assert torch.equal(pattern.interleave(codes, special)[:, :, :V], valid)
    assert torch.equal(pattern.step_mask(T)[:, :V], valid_mask)
    assert pattern.steps(T).min(1).values.tolist() == [expected.get_first_step_with_timesteps(0, k) for k in range(K)]


@GRID
@pytest.mark.parametrize("keep_only_valid_steps", [True, False])
@pytest.mark.parametrize("T", FRAMES)
def test_alignment_of_logits_equals_audiocrafts(
    ours: Description, theirs: Description, T: int, keep_only_valid_steps: bool
) -> None:
    K, card = len(ours["delays"]), 6
    provider = audiocraft_provider(K, ours["pattern"], theirs)
    pattern = make_pattern(ours["pattern"], **{key: value for key, value in ours.items() if key != "pattern"})
    S = pattern.num_valid_steps(T) if keep_only_valid_steps else pattern.num_steps(T)
    logits = torch.randn(2, K, S, card, generator=torch.Generator().manual_seed(T))
    expected, _, expected_mask = provider.get_pattern(T).revert_pattern_logits(
        logits.permute(0, 3, 1, 2), float("nan"), keep_only_valid_steps=keep_only_valid_steps
    )
    # The last step predicts nothing that is kept: ours is not given it.
    aligned = pattern.align_logits(logits[:, :, :-1], T)
    torch.testing.assert_close(aligned, expected.permute(0, 2, 3, 1), rtol=0, atol=0, equal_nan=True)
    if keep_only_valid_steps:
        assert torch.equal(pattern.frame_mask(T), expected_mask)
    else:
        assert expected_mask.all()


# ---- the model under each pattern -----------------------------------------------------------------------------------

MODELS = pytest.mark.parametrize(("ours", "theirs"), OF_FOUR, ids=name)
PROMPTS = ["slow warm piano", None, "driving techno with heavy bass and bright strings at 120 bpm"]


@pytest.fixture
def musicgen_lm(ours: Description, theirs: Description, musicgen: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """audiocraft's ``LMModel`` with its provider of the pattern."""
    monkeypatch.setattr(musicgen.lm, "pattern_provider", audiocraft_provider(4, ours["pattern"], theirs))
    return musicgen.lm


@pytest.fixture
def lm(ours: Description, lm_like_audiocraft: LanguageModel) -> LanguageModel:
    """Ours, with audiocraft's weights and the same pattern."""
    lm = LanguageModel(dataclasses.replace(lm_like_audiocraft.config, **ours)).eval()
    lm.load_state_dict(lm_like_audiocraft.state_dict())
    return lm


def random_codes(B: int, T: int) -> torch.Tensor:
    return torch.randint(64, (B, 4, T), generator=torch.Generator().manual_seed(B))


@MODELS
@pytest.mark.parametrize("T", [1, 11])
@torch.no_grad()
def test_predictions_equal_audiocrafts(
    musicgen_lm: Any, lm: LanguageModel, text_encoder: TextEncoder, conditions: Any, T: int
) -> None:
    codes = random_codes(3, T)
    expected = musicgen_lm.compute_predictions(codes, conditions(PROMPTS))
    logits, mask = lm.predict(codes, text_encoder.encode(PROMPTS))
    assert torch.equal(mask.expand_as(expected.mask), expected.mask)
    assert torch.equal(logits.isnan(), expected.logits.isnan())
    assert mask.any()
    difference = (logits - expected.logits)[expected.mask].abs().max()
    assert difference < 1e-5  # logits of order 1; the same sums, perhaps in another order


@MODELS
def test_training_feeds_the_valid_steps_but_the_last(
    lm: LanguageModel, text_encoder: TextEncoder, ours: Description, theirs: Description
) -> None:
    fed: list[int] = []
    lm.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].shape[2]))
    lm.predict(random_codes(1, 11), text_encoder.encode([None]))
    assert fed == [len(audiocraft_provider(4, ours["pattern"], theirs).get_pattern(11).valid_layout) - 1]


@MODELS
@pytest.mark.parametrize("num_known", [0, 1, 5])
def test_greedy_codes_equal_audiocrafts(
    musicgen_lm: Any, lm: LanguageModel, text_encoder: TextEncoder, conditions: Any, num_known: int
) -> None:
    prompt = random_codes(3, num_known) if num_known else None
    expected = musicgen_lm.generate(
        prompt, conditions(PROMPTS), max_gen_len=11, use_sampling=False, cfg_coef=3.0, check=True
    )
    text = text_encoder.encode(PROMPTS)
    found = generate_codes(
        lm, text, num_frames=11, sampling=Sampling(temperature=0.0), seeds=[0] * 3, cfg_coef=3.0, prompt=prompt
    )
    assert torch.equal(found, expected)
    assert found[:, :, num_known:].unique().numel() > 5  # else one code for ever would pass
