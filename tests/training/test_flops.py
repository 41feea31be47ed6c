"""Operations counted from the model's numbers equal those that torch's counter sees in a real step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from musicgen_ft.chroma import ChromaSpec, MelodyStates
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.model.lora import choose_trained
from musicgen_ft.training.flops import Flops, clip_flops, model_flops_per_frame

B, T, N, CHROMA = 3, 19, 7, 5


def counted(lm: LanguageModel, text: TextStates) -> int:
    """What torch's counter sees of forward and backward pass; the fused attentions compute the scores twice."""
    codes = torch.randint(0, 11, (B, 4, T), generator=torch.Generator().manual_seed(0))
    melody = None
    if lm.config.chroma is not None:
        melody = MelodyStates(torch.zeros(B, CHROMA, lm.config.chroma.n_chroma), torch.ones(B, CHROMA).bool())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = lm.train().predict(codes, text, melody).logits
        logits.nan_to_num().sum().backward()
    return int(counter.get_total_flops())


def ours(lm: LanguageModel) -> Flops:
    num_chroma = CHROMA if lm.config.chroma is not None else 0
    return clip_flops(lm, num_frames=T, num_tokens=N, num_chroma=num_chroma)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"freeze": ("embeddings", "text_proj")},
        {"freeze": ("embeddings", "layers.0", "layers.1.*attn", "text_proj")},
        {"method": "lora", "lora_rank": 3},
        {"method": "lora", "lora_rank": 3, "lora_targets": ("layers.1.*.q_proj", "*.fc1")},
        {"method": "lora", "lora_rank": 3, "lora_targets": ("layers.*", "heads.*"), "lora_whole": ("text_proj",)},
    ],
    ids=str,
)
def test_a_clips_operations_are_those_that_torch_counts(
    changes: dict[str, Any], recompute: Any, make_lm: Callable[..., LanguageModel], make_text: Callable[..., TextStates]
) -> None:
    lm = make_lm()
    choose_trained(lm, FinetuneConfig(**changes))
    lm.set_recompute(recompute)
    assert B * ours(lm).hardware == counted(lm, make_text(*[N] * B))


def test_a_melody_models_prefix_counts(
    make_lm: Callable[..., LanguageModel], make_text: Callable[..., TextStates]
) -> None:
    lm = make_lm(conditioning="prefix", chroma=ChromaSpec(n_chroma=12)).requires_grad_(True)
    assert B * ours(lm).hardware == counted(lm, make_text(*[N] * B))


def test_model_operations_do_not_depend_on_how_they_are_computed(make_lm: Callable[..., LanguageModel]) -> None:
    lm = make_lm().requires_grad_(True)
    of = {}
    for recompute in ("none", "selective", "full"):
        lm.set_recompute(recompute)
        of[recompute] = ours(lm)
    assert len({flops.model for flops in of.values()}) == 1
    assert of["none"].hardware < of["selective"].hardware < of["full"].hardware
    # The text's projection alone needs no gradient of its input.
    assert 2 * of["none"].forward - of["none"].backward == 2 * N * 10 * 24
    assert T * model_flops_per_frame(lm, T) == pytest.approx(clip_flops(lm, num_frames=T, num_tokens=0).model)
    assert T * model_flops_per_frame(lm, T) < of["none"].model


def test_a_model_without_data_will_do(make_lm: Callable[..., LanguageModel]) -> None:
    lm = make_lm()
    with torch.device("meta"):
        empty = LanguageModel(lm.config)
    assert ours(empty) == ours(lm.requires_grad_(True))
