"""A mono model made stereo: each codebook stands for left and right in turn."""

import dataclasses
import re

from musicgen_ft.checkpoint.names import State
from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LMConfig


def stereo_config(mono: LMConfig) -> LMConfig:
    """Twice the codebooks; left and right of a codebook have the same delay: 0, 0, 1, 1, 2, 2, 3, 3.

    Raises:
        UserError: if the base has another pattern than delay, for which there is no such recipe.
    """
    if mono.pattern != "delay":
        raise UserError(f"a base with the pattern {mono.pattern!r} cannot be made stereo, expected 'delay'.")
    delays = tuple(delay for delay in mono.delays for _ in range(2))
    return dataclasses.replace(mono, n_q=2 * mono.n_q, delays=delays, channels=2)


def stereo_state(mono: State) -> State:
    """Embedding and head k of the stereo model are those of codebook k // 2; everything else is as it was.

    As the released stereo models began (spec 5). The sum of the embeddings is that of mono twice over, which
    fine-tuning settles.

    Args:
        mono: tensors under our names.
    """
    stereo: State = {}
    for name, value in mono.items():
        found = re.fullmatch(r"(embeddings|heads)\.(\d+)\.weight", name)
        if found is None:
            stereo[name] = value
            continue
        for k in (2 * int(found[2]), 2 * int(found[2]) + 1):
            stereo[f"{found[1]}.{k}.weight"] = value.clone()
    return stereo
