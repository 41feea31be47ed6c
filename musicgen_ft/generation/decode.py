"""From a condition to codes, one step at a time, with classifier-free guidance.

B batch, K codebooks, T frames, S sequence steps.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from musicgen_ft.chroma import MelodyStates
from musicgen_ft.generation.sampling import Sampling, SeededNoise, draw
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import KVCache, LanguageModel

_UNKNOWN = -1

Progress = Callable[[int, int], None]
"""Called with the number of steps done and of all steps."""


@torch.no_grad()
def generate_codes(
    lm: LanguageModel,
    text: TextStates,
    *,
    num_frames: int,
    sampling: Sampling,
    seeds: Sequence[int],
    cfg_coef: float = 3.0,
    melody: MelodyStates | None = None,
    prompt: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Generates codes for each row of the text condition.

    Args:
        lm: in ``eval()``.
        text: B rows; a row that is masked whole is unconditional.
        num_frames: T, the prompt's frames included.
        sampling: the rule of drawing.
        seeds: one for each row.
        cfg_coef: guidance scale; 1 switches guidance off.
        melody: B rows, for a model that takes one.
        prompt: int64 [B, K, Tp] with Tp < T: codes to go on from; they begin the result.
        progress: told after every step that holds a new code.

    Returns:
        int64 [B, K, T], values in [0, card).

    Source: audiocraft's ``LMModel.generate`` (spec 6): one batch of conditional and null rows, logits
    ``null + (cond - null) * cfg_coef``.
    """
    B, K, card = text.mask.shape[0], lm.config.n_q, lm.config.card
    if len(seeds) != B:
        raise ValueError(f"{len(seeds)} seeds for {B} rows")
    num_known = 0 if prompt is None else prompt.shape[2]
    if num_known >= num_frames:
        raise ValueError(f"the prompt has {num_known} frames, of {num_frames} in all")
    device = text.mask.device
    codes = torch.full((B, K, num_frames), _UNKNOWN, device=device)
    if prompt is not None:
        codes[:, :, :num_known] = prompt
    sequence = lm.pattern.interleave(codes, lm.config.special_token_id)
    # Unknown places are the same in all rows. The first such step is the first that holds a frame behind the prompt;
    # a step without one is fed together with those after it.
    unknown_steps = (sequence[0] == _UNKNOWN).any(0).nonzero().flatten().tolist()
    guided = cfg_coef != 1.0
    condition: TextStates | None = _with_null(text) if guided else text
    if guided and melody is not None:
        melody = _with_null_melody(melody)
    cache, noise = KVCache(sequence.shape[2]), SeededNoise(seeds)
    for done, step in enumerate(unknown_steps, start=1):
        steps = sequence[:, :, cache.offset : step]
        logits = lm(steps.repeat(2, 1, 1) if guided else steps, condition, cache, melody)[:, :, -1]  # [B, K, card]
        condition, melody = None, None  # their keys and values are in the cache now
        if guided:
            with_text, without = logits.chunk(2)
            logits = without + (with_text - without) * cfg_coef
        drawn = draw(logits[..., :card], sampling, noise)
        sequence[:, :, step] = torch.where(sequence[:, :, step] == _UNKNOWN, drawn, sequence[:, :, step])
        if progress is not None:
            progress(done, len(unknown_steps))
    return lm.pattern.deinterleave(sequence)


def generate_long(
    lm: LanguageModel,
    text: TextStates,
    *,
    num_frames: int,
    window_frames: int,
    stride_frames: int,
    sampling: Sampling,
    seeds: Sequence[int],
    cfg_coef: float = 3.0,
    melody: Callable[[int], MelodyStates] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """As ``generate_codes`` for more frames than the model was trained on: a window that moves by ``stride_frames``.

    Each window goes on from the last ``window_frames - stride_frames`` frames of the one before (audiocraft's
    ``extend_stride``); ``melody`` gives the melody of a window by the window's first frame.

    Returns:
        int64 [B, K, T].
    """
    if not 0 < stride_frames < window_frames:
        raise ValueError(f"stride_frames {stride_frames}: expected in (0, {window_frames})")
    codes: Tensor | None = None
    for window in range(num_frames):
        start = window * stride_frames
        prompt = None if codes is None else codes[:, :, start:]
        part = generate_codes(
            lm,
            text,
            num_frames=min(window_frames, num_frames - start),
            sampling=sampling,
            seeds=[seed + window for seed in seeds] if window else seeds,
            cfg_coef=cfg_coef,
            melody=None if melody is None else melody(start),
            prompt=prompt,
            progress=progress,
        )
        codes = part if codes is None else torch.cat([codes[:, :, :start], part], dim=2)
        if codes.shape[2] >= num_frames:
            return codes
    raise ValueError(f"num_frames {num_frames}: expected at least one")


def _with_null(text: TextStates) -> TextStates:
    """The rows of the condition, then as many null rows."""
    return TextStates(
        torch.cat([text.states, torch.zeros_like(text.states)]), torch.cat([text.mask, torch.zeros_like(text.mask)])
    )


def _with_null_melody(melody: MelodyStates) -> MelodyStates:
    """The rows of the melody, then as many of the null condition in generation: pitch class 0, not masked."""
    null = torch.zeros_like(melody.one_hot)
    null[..., 0] = 1
    return MelodyStates(torch.cat([melody.one_hot, null]), torch.cat([melody.mask, torch.ones_like(melody.mask)]))
