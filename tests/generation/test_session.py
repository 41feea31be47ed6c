"""Batches of pieces of any kind: each as it would be alone, in every mode and by plain definitions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.chroma import MelodyStates
from musicgen_ft.generation.decode import Conditions, Engine, Piece
from musicgen_ft.generation.decoder import Decoder
from musicgen_ft.generation.sampling import Sampling
from musicgen_ft.generation.session import Mode, Sessions
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel

MakeLM = Callable[..., LanguageModel]
MakeText = Callable[..., TextStates]
MelodyOf = Callable[[int], MelodyStates]
GREEDY = Sampling(temperature=0.0)


def engine_of(lm: LanguageModel, mode: Mode = "eager") -> Engine:
    decoder = Decoder(lm)
    return Engine(decoder, Sessions(decoder, mode))


def random_codes(*shape: int) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(5))


def null_of(text: TextStates) -> TextStates:
    return TextStates(torch.zeros_like(text.states), torch.zeros_like(text.mask))


def last(lm: LanguageModel, past: Tensor, text: TextStates, melody: MelodyStates | None = None) -> Tensor:
    """Logits of the step behind a sequence, by the model itself."""
    logits: Tensor = lm(past, text, melody=melody)[:, :, -1]
    return logits


@torch.no_grad()
def naive_codes(
    predict: Callable[[Tensor], Tensor], lm: LanguageModel, T: int, sampling: Sampling, seed: int
) -> Tensor:
    """One piece, the whole sequence anew for every step, drawn as the toolkit has drawn since its first version."""
    generator = torch.Generator().manual_seed(seed)
    sequence = lm.pattern.interleave(torch.full((1, lm.config.n_q, T), -1), lm.config.card)
    for step in range(1, sequence.shape[2]):
        logits = predict(sequence[:, :, :step])
        drawn = logits.argmax(-1)
        if sampling.temperature:
            p = torch.softmax(logits.float() / sampling.temperature, dim=-1)
            if sampling.top_p > 0:
                ordered, indices = p.sort(dim=-1, descending=True)
                ordered = ordered.where(ordered.cumsum(-1) - ordered <= sampling.top_p, 0.0)
                p = torch.zeros_like(p).scatter(-1, indices, ordered)
            elif k := sampling.k_of(lm.config.card):
                least = p.topk(min(k, p.shape[-1]), dim=-1).values[..., -1:]
                p = p.where(p >= least, 0.0)
            drawn = (p / torch.empty(p.shape[1:]).exponential_(generator=generator)).argmax(-1)
        now = sequence[:, :, step]
        sequence[:, :, step] = drawn.where(now == -1, now)
    return lm.pattern.deinterleave(sequence)[0]


MIXED = [
    Piece(num_frames=13, seed=3, sampling=Sampling(top_k=5, temperature=0.9)),
    Piece(num_frames=9, seed=4, sampling=GREEDY, cfg_coef=2.0),
    Piece(num_frames=40, seed=5, sampling=Sampling(top_p=0.8), cfg_coef=1.0),
    Piece(num_frames=11, seed=3, sampling=Sampling(top_k=0), prompt=random_codes(4, 6)),
    Piece(num_frames=1, seed=6),
]


@pytest.mark.parametrize("mode", ["eager", "static"])
def test_pieces_with_other_lengths_prompts_and_rules_play_together_as_alone(
    make_lm: MakeLM, make_text: MakeText, mode: Mode
) -> None:
    lm, text = make_lm(text_padding="transformers"), make_text(5, 3, 7, 0, 2)
    together = engine_of(lm, mode).codes(Conditions(text), MIXED)
    for row, piece in enumerate(MIXED):
        alone = TextStates(text.states[row : row + 1], text.mask[row : row + 1])
        (expected,) = engine_of(lm).codes(Conditions(alone), [piece])
        assert torch.equal(together[row], expected), row
        assert together[row].shape == (4, piece.num_frames)
        assert 0 <= together[row].min() <= together[row].max() < 11


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(top_k=5, temperature=0.9), Sampling(top_p=0.7), Sampling(top_k=0)]
)
@pytest.mark.parametrize("mode", ["eager", "static"])
def test_seeds_give_the_music_that_they_have_always_given(
    make_lm: MakeLM, make_text: MakeText, sampling: Sampling, mode: Mode
) -> None:
    lm, text = make_lm(), make_text(5)

    def predict(past: Tensor) -> Tensor:
        with_text, without = last(lm, past, text), last(lm, past, null_of(text))
        return without + (with_text - without) * 3.0

    piece = Piece(num_frames=40, seed=8, sampling=sampling)  # more than one block of noise
    (found,) = engine_of(lm, mode).codes(Conditions(text), [piece])
    assert torch.equal(found, naive_codes(predict, lm, 40, sampling, 8))


@pytest.mark.parametrize("pattern", ["parallel", "unroll", "coarse_first", "musiclm"])
@pytest.mark.parametrize("mode", ["eager", "static"])
def test_other_patterns_play_in_both_modes(make_lm: MakeLM, make_text: MakeText, pattern: str, mode: Mode) -> None:
    lm, text = make_lm(pattern=pattern, delays=(0, 0, 0, 0)), make_text(5, 3)
    pieces = [Piece(num_frames=T, seed=T, sampling=Sampling(top_k=4), cfg_coef=1.0) for T in (7, 5)]
    found = engine_of(lm, mode).codes(Conditions(text), pieces)
    for row, piece in enumerate(pieces):
        alone = TextStates(text.states[row : row + 1], text.mask[row : row + 1])
        expected = naive_codes(partial(last, lm, text=alone), lm, piece.num_frames, piece.sampling, piece.seed)
        assert torch.equal(found[row], expected)


@pytest.mark.parametrize("mode", ["eager", "static"])
@pytest.mark.parametrize("two_step", [False, True])
def test_a_negative_prompt_takes_the_place_of_the_null_condition(
    make_lm: MakeLM, make_text: MakeText, mode: Mode, two_step: bool
) -> None:
    lm, text, negative = make_lm(text_padding="transformers"), make_text(5), make_text(3, num_tokens=5, seed=9)

    def predict(past: Tensor) -> Tensor:
        away = last(lm, past, negative)
        return away + (last(lm, past, text) - away) * 2.5

    piece = Piece(num_frames=15, seed=8, sampling=GREEDY, cfg_coef=2.5)
    (found,) = engine_of(lm, mode).codes(Conditions(text, None, negative), [piece], two_step=two_step)
    assert torch.equal(found, naive_codes(predict, lm, 15, GREEDY, 0))
    (without,) = engine_of(lm).codes(Conditions(text), [piece])
    assert not torch.equal(found, without)


@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize("mode", ["eager", "static"])
def test_double_guidance_is_what_audiocraft_defines(
    make_lm: MakeLM, make_text: MakeText, prefix: dict[str, Any], melody_of: MelodyOf, two_step: bool, mode: Mode
) -> None:
    lm, text, melody = make_lm(**prefix), make_text(5), melody_of(1)
    null = Conditions(text, melody).rows(2)[1]
    assert null is not None
    no_melody = type(null)(null.one_hot[1:], null.mask[1:])

    def predict(past: Tensor) -> Tensor:
        full, tune = (last(lm, past, t, melody) for t in (text, null_of(text)))
        nothing = last(lm, past, null_of(text), no_melody)
        return nothing + 3.0 * (tune + 5.0 * (full - tune) - nothing)  # audiocraft's main branch, spec 4.4

    piece = Piece(num_frames=15, seed=8, sampling=GREEDY, cfg_coef_beta=5.0)
    (found,) = engine_of(lm, mode).codes(Conditions(text, melody), [piece], two_step=two_step)
    assert torch.equal(found, naive_codes(predict, lm, 15, GREEDY, 0))


def test_single_and_double_guidance_play_together_as_alone(
    make_lm: MakeLM, make_text: MakeText, prefix: dict[str, Any], melody_of: MelodyOf
) -> None:
    lm, text, melody = make_lm(**prefix), make_text(5, 5), melody_of(2)
    pieces = [Piece(num_frames=9, seed=1, cfg_coef_beta=5.0), Piece(num_frames=9, seed=2)]
    together = engine_of(lm).codes(Conditions(text, melody), pieces)
    for row, piece in enumerate(pieces):
        rows = slice(row, row + 1)
        alone = Conditions(
            TextStates(text.states[rows], text.mask[rows]), type(melody)(melody.one_hot[rows], melody.mask[rows])
        )
        assert torch.equal(engine_of(lm).codes(alone, [piece])[0], together[row])


@pytest.mark.parametrize("mode", ["eager", "static"])
def test_a_session_is_taken_up_again_and_remembers_nothing(make_lm: MakeLM, make_text: MakeText, mode: Mode) -> None:
    lm, engine = make_lm(text_padding="transformers"), None
    for length, T, seed in ((5, 20, 1), (3, 12, 2), (4, 20, 3)):
        text = make_text(length, seed=length)
        piece = Piece(num_frames=T, seed=seed)
        engine = engine or engine_of(lm, mode)
        before = engine._sessions._idle[:]
        (found,) = engine.codes(Conditions(text), [piece])
        assert torch.equal(found, engine_of(lm).codes(Conditions(text), [piece])[0])
        assert not before or engine._sessions._idle == before  # the same buffers


def test_two_streams_at_once_do_not_disturb_each_other(make_lm: MakeLM, make_text: MakeText) -> None:
    engine, text = engine_of(make_lm()), make_text(5)
    pieces = [Piece(num_frames=15, seed=seed) for seed in (1, 2)]
    expected = [engine.codes(Conditions(text), [piece])[0] for piece in pieces]
    streams = [engine.stream(Conditions(text), piece, chunk_frames=lambda given: 4) for piece in pieces]
    found: Sequence[list[Tensor]] = [[], []]
    for chunks in zip(*streams, strict=True):
        for parts, chunk in zip(found, chunks, strict=True):
            parts.append(chunk[0])
    assert all(torch.equal(torch.cat(parts, 1), codes) for parts, codes in zip(found, expected, strict=True))


@pytest.mark.parametrize("num_known", [0, 6])
def test_a_stream_hands_out_whole_frames_as_they_come(make_lm: MakeLM, make_text: MakeText, num_known: int) -> None:
    engine, text = engine_of(make_lm()), make_text(5)
    piece = Piece(num_frames=20, seed=1, prompt=random_codes(4, num_known) if num_known else None)
    (whole,) = engine.codes(Conditions(text), [piece])
    steps: list[int] = []
    chunks = engine.stream(
        Conditions(text), piece, chunk_frames=lambda given: 2 if given == num_known else 5,
        progress=lambda done, of: steps.append(done),
    )  # fmt: skip
    first = next(chunks)
    assert first.shape == (1, 4, 2)
    assert len(steps) == 2 + 3  # the last codebook lags behind by three steps
    rest = list(chunks)
    assert torch.equal(torch.cat([first, *rest], dim=2)[0], whole[:, num_known:])
    assert {chunk.shape[2] for chunk in rest[:-1]} == {5}


def test_a_stream_that_is_left_gives_its_buffers_back(make_lm: MakeLM, make_text: MakeText) -> None:
    engine, text = engine_of(make_lm()), make_text(5)
    chunks: Any = engine.stream(Conditions(text), Piece(num_frames=20, seed=1), chunk_frames=lambda given: 2)
    next(chunks)
    assert engine._sessions._idle == []
    chunks.close()
    assert len(engine._sessions._idle) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_recorded_step_gives_the_tokens_of_the_eager_one(
    make_lm: MakeLM, make_text: MakeText, precision: Any
) -> None:
    sizes = {"dim": 64, "num_heads": 2, "ffn_dim": 96}
    text = make_text(5, 3, 0).to("cuda")
    pieces = [Piece(num_frames=T, seed=T, sampling=GREEDY) for T in (300, 40, 9)]  # 300: more than one bucket
    found = {}
    for mode in ("eager", "static", "graph"):
        decoder = Decoder(make_lm(**sizes).to("cuda"), precision)
        engine = Engine(decoder, Sessions(decoder, mode))
        for _ in range(2):  # the second plays the first one's records
            found[mode] = engine.codes(Conditions(text), pieces)
    for row in range(3):
        assert torch.equal(found["static"][row], found["graph"][row])  # the same kernels
        if precision == "fp32":
            assert torch.equal(found["eager"][row], found["graph"][row])


@pytest.mark.gpu
def test_recorded_steps_draw_what_a_cpu_draws(make_lm: MakeLM, make_text: MakeText) -> None:
    text, lm = make_text(5, 3), make_lm()
    pieces = [Piece(num_frames=80, seed=seed, sampling=Sampling(top_k=5)) for seed in (1, 2)]
    expected = engine_of(lm).codes(Conditions(text), pieces)
    found = engine_of(make_lm().to("cuda"), "graph").codes(Conditions(text.to("cuda")), pieces)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
