"""Decoding with a toy model against the plainest decoding there is; against the peers in tests/parity."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.generation.decode import generate_codes, generate_long
from musicgen_ft.generation.sampling import Sampling
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel

MakeLM = Callable[..., LanguageModel]
MakeText = Callable[..., TextStates]
GREEDY = Sampling(temperature=0.0)
PADDINGS = ["audiocraft", "transformers"]


def random_codes(*shape: int) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def naive_greedy(lm: LanguageModel, text: TextStates, T: int, cfg_coef: float, prompt: Tensor | None = None) -> Tensor:
    """Greedy decoding without a cache: the whole sequence anew for every step, conditional and null apart."""
    B, K = text.mask.shape[0], lm.config.n_q
    null = TextStates(torch.zeros_like(text.states), torch.zeros_like(text.mask))
    codes = torch.full((B, K, T), -1)
    if prompt is not None:
        codes[:, :, : prompt.shape[2]] = prompt
    sequence = lm.pattern.interleave(codes, lm.config.card)
    for step in range(1, sequence.shape[2]):
        unknown = sequence[:, :, step] == -1
        if not unknown.any():
            continue
        past = sequence[:, :, :step]
        with_text, without = lm(past, text)[:, :, -1], lm(past, null)[:, :, -1]
        best = (without + (with_text - without) * cfg_coef).argmax(-1)
        sequence[:, :, step] = best.where(unknown, sequence[:, :, step])
    return lm.pattern.deinterleave(sequence)


@pytest.mark.parametrize("text_padding", PADDINGS)
@pytest.mark.parametrize("cfg_coef", [1.0, 3.0])
@pytest.mark.parametrize("num_known", [0, 1, 2, 7])
def test_cached_decoding_equals_decoding_anew_for_every_step(
    make_lm: MakeLM, make_text: MakeText, text_padding: str, cfg_coef: float, num_known: int
) -> None:
    lm, text = make_lm(text_padding=text_padding), make_text(5, 0, 3)
    prompt = random_codes(3, 4, num_known) if num_known else None
    found = generate_codes(lm, text, num_frames=13, sampling=GREEDY, seeds=[0] * 3, cfg_coef=cfg_coef, prompt=prompt)
    assert torch.equal(found, naive_greedy(lm, text, 13, cfg_coef, prompt))
    assert found[:, :, num_known:].unique().numel() > 3


@pytest.mark.parametrize("delays", [(0, 1, 2, 3), (0, 0, 1, 1), (0, 3, 3, 7), (0, 0, 0, 0), (1, 1, 2, 4)])
@pytest.mark.parametrize("num_frames", [1, 2, 9])
def test_every_frame_is_a_code_whatever_the_delays(
    make_lm: MakeLM, make_text: MakeText, delays: tuple[int, ...], num_frames: int
) -> None:
    lm, text = make_lm(delays=delays), make_text(3, 2)
    codes = generate_codes(lm, text, num_frames=num_frames, sampling=Sampling(top_k=0), seeds=[0, 1])
    assert codes.shape == (2, 4, num_frames)
    assert 0 <= codes.min() <= codes.max() < 11  # never the special token, never unknown


@pytest.mark.parametrize("num_known", [1, 3, 12])
def test_the_prompt_stands_at_the_beginning(make_lm: MakeLM, make_text: MakeText, num_known: int) -> None:
    prompt = random_codes(2, 4, num_known)
    codes = generate_codes(
        make_lm(), make_text(3, 2), num_frames=13, sampling=Sampling(top_k=0), seeds=[0, 1], prompt=prompt
    )
    assert torch.equal(codes[:, :, :num_known], prompt)
    assert codes.shape == (2, 4, 13)


def test_greedy_decoding_goes_on_from_its_own_beginning_as_it_went_on(make_lm: MakeLM, make_text: MakeText) -> None:
    lm, text = make_lm(), make_text(3, 2)
    whole = generate_codes(lm, text, num_frames=13, sampling=GREEDY, seeds=[0, 0])
    again = generate_codes(lm, text, num_frames=13, sampling=GREEDY, seeds=[0, 0], prompt=whole[:, :, :6])
    assert torch.equal(again, whole)


def count_rows(lm: LanguageModel) -> list[int]:
    """Rows of every forward pass from now on."""
    rows: list[int] = []
    lm.embeddings[0].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    return rows


def test_a_guidance_of_one_is_no_guidance_and_costs_none(make_lm: MakeLM, make_text: MakeText) -> None:
    lm, text = make_lm(), make_text(5, 3)
    rows = count_rows(lm)
    none = generate_codes(lm, text, num_frames=9, sampling=Sampling(top_k=0), seeds=[0, 1], cfg_coef=1.0)
    assert set(rows) == {2}
    rows.clear()
    nearly_none = generate_codes(lm, text, num_frames=9, sampling=Sampling(top_k=0), seeds=[0, 1], cfg_coef=1 + 1e-6)
    assert set(rows) == {4}
    assert torch.equal(none, nearly_none)
    guided = generate_codes(lm, text, num_frames=9, sampling=Sampling(top_k=0), seeds=[0, 1], cfg_coef=3.0)
    assert not torch.equal(none, guided)


def test_a_guidance_of_zero_ignores_the_text(make_lm: MakeLM, make_text: MakeText) -> None:
    lm = make_lm()
    codes = [
        generate_codes(lm, make_text(5, seed=seed), num_frames=9, sampling=GREEDY, seeds=[0], cfg_coef=0.0)
        for seed in (0, 1)
    ]
    assert torch.equal(codes[0], codes[1])


def test_masked_text_makes_a_row_independent_of_its_batch(make_lm: MakeLM, make_text: MakeText) -> None:
    lm, text = make_lm(text_padding="transformers"), make_text(3, 8)
    both = generate_codes(lm, text, num_frames=9, sampling=Sampling(top_k=0), seeds=[4, 5])
    alone = TextStates(text.states[:1, :3], text.mask[:1, :3])
    assert torch.equal(generate_codes(lm, alone, num_frames=9, sampling=Sampling(top_k=0), seeds=[4])[0], both[0])


def test_a_seed_gives_the_same_codes_and_another_seed_others(make_lm: MakeLM, make_text: MakeText) -> None:
    lm, text = make_lm(), make_text(3, 3)
    text = TextStates(text.states[[0, 0]], text.mask)
    first, again, other = (
        generate_codes(lm, text, num_frames=9, sampling=Sampling(top_k=0), seeds=seeds)
        for seeds in ((1, 2), (1, 2), (3, 2))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[1], other[1])
    assert not torch.equal(first[0], first[1])


def test_progress_counts_every_step_to_the_end(make_lm: MakeLM, make_text: MakeText) -> None:
    seen: list[tuple[int, int]] = []
    generate_codes(
        make_lm(), make_text(3), num_frames=9, sampling=GREEDY, seeds=[0], prompt=random_codes(1, 4, 2),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    total = 9 + 3 + 1 - 3  # steps of the sequence, less those before the first unknown code
    assert seen == [(step, total) for step in range(1, total + 1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0]}, "1 seeds for 2 rows"),
        ({"prompt": random_codes(2, 4, 9)}, "the prompt has 9 frames, of 9 in all"),
    ],
)
def test_what_does_not_fit_is_refused(
    make_lm: MakeLM, make_text: MakeText, changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"num_frames": 9, "sampling": GREEDY, "seeds": [0, 1], **changes}
    with pytest.raises(ValueError, match=message):
        generate_codes(make_lm(), make_text(3, 2), **arguments)


# ---- long pieces -----------------------------------------------------------------------------------------------------


def long_codes(lm: LanguageModel, text: TextStates, T: int, *, sampling: Sampling, seeds: Sequence[int]) -> Tensor:
    return generate_long(
        lm, text, num_frames=T, window_frames=10, stride_frames=6, sampling=sampling, seeds=seeds, cfg_coef=2.0
    )


@pytest.mark.parametrize("num_frames", [9, 10, 11, 16, 17, 29])
def test_each_window_goes_on_from_the_end_of_the_one_before(
    make_lm: MakeLM, make_text: MakeText, num_frames: int
) -> None:
    lm, text = make_lm(), make_text(5, 3)
    found = long_codes(lm, text, num_frames, sampling=Sampling(top_k=5), seeds=[3, 30])
    expected = generate_codes(
        lm, text, num_frames=min(10, num_frames), sampling=Sampling(top_k=5), seeds=[3, 30], cfg_coef=2.0
    )
    window = 0
    while expected.shape[2] < num_frames:
        window += 1
        start = 6 * window
        part = generate_codes(
            lm,
            text,
            num_frames=min(10, num_frames - start),
            sampling=Sampling(top_k=5),
            seeds=[3 + window, 30 + window],  # else every window would draw the same noise
            cfg_coef=2.0,
            prompt=expected[:, :, start:],
        )
        expected = torch.cat([expected, part[:, :, expected.shape[2] - start :]], dim=2)
    assert found.shape == (2, 4, num_frames)
    assert torch.equal(found, expected)


def test_a_longer_piece_begins_as_the_shorter_one(make_lm: MakeLM, make_text: MakeText) -> None:
    lm, text = make_lm(), make_text(5, 3)
    short, long = (long_codes(lm, text, T, sampling=Sampling(top_k=0), seeds=[3, 30]) for T in (16, 22))
    assert torch.equal(long[:, :, :16], short)


@pytest.mark.parametrize("stride", [0, -1, 10, 11])
def test_a_stride_that_leaves_nothing_to_go_on_from_is_refused(
    make_lm: MakeLM, make_text: MakeText, stride: int
) -> None:
    with pytest.raises(ValueError, match=f"stride_frames {stride}"):
        generate_long(
            make_lm(), make_text(3), num_frames=30, window_frames=10, stride_frames=stride, sampling=GREEDY, seeds=[0]
        )


def test_no_frames_are_refused(make_lm: MakeLM, make_text: MakeText) -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        generate_long(
            make_lm(), make_text(3), num_frames=0, window_frames=10, stride_frames=5, sampling=GREEDY, seeds=[0]
        )
