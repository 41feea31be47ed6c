"""Whether an adapter plays what was trained: read back by us, and opened by PEFT where it is installed."""

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from musicgen_ft.checkpoint.adapter import Adapter, read_adapter
from musicgen_ft.checkpoint.base import Base, stream_lm
from musicgen_ft.chroma import generation_melody
from musicgen_ft.model.lm import LMConfig
from musicgen_ft.model.lora import merged
from musicgen_ft.peers import transformers
from musicgen_ft.peers.parity import TOLERANCE

logger = logging.getLogger(__name__)


def is_installed() -> bool:
    """Whether PEFT can be imported."""
    return importlib.util.find_spec("peft") is not None


@torch.no_grad()
def check_adapter(
    folder: Path,
    adapter: Adapter,
    config: LMConfig,
    base: Base,
    base_state: Mapping[str, Tensor],
    codes: Tensor,
    description: str,
    *,
    chroma: Tensor | None = None,
) -> dict[str, float]:
    """Compares an adapter's folder with what was trained: its tensors, its effect, and its logits by PEFT.

    PEFT is passed over, aloud, where it is not installed, or where the base is in audiocraft's format.

    Args:
        folder: the written adapter.
        adapter: what was trained.
        config: of the model.
        base: that the adapter lies over.
        base_state: its tensors under our names.
        codes: int64 [1, K, T] of real audio.
        description: its text.
        chroma: int64 [1, F], its melody, for a model that takes one; None is no melody.

    Returns:
        ``{"peft": largest absolute difference of a logit}``, or nothing where PEFT was passed over.

    Raises:
        RuntimeError: if the difference exceeds ``TOLERANCE``, a tensor was not written as it is, or it has no effect.
    """
    found = read_adapter(folder, config)
    if found.spec != adapter.spec or any(
        not torch.equal(found.tensors[name], value) for name, value in adapter.tensors.items()
    ):
        raise RuntimeError("the adapter's folder does not hold what was trained. Nothing was kept.")
    melody = None
    if config.chroma is not None:
        chroma = torch.zeros(1, 1, dtype=torch.int64) if chroma is None else chroma  # the null condition
        melody = generation_melody(chroma, config.chroma, duration_s=config.max_duration_s)
    text = base.text_encoder().encode([description])
    sequence = config.make_pattern().interleave(codes, config.special_token_id)[:, :, : codes.shape[2]]
    states = {"plain": base_state, "adapted": merged(base_state, found.tensors, found.spec)}
    logits = {}
    for name, state in states.items():
        lm = stream_lm(config, state, where="the adapter")
        logits[name] = lm(sequence, text, melody=melody)
        del lm
    if torch.equal(logits["plain"], logits["adapted"]):
        raise RuntimeError("the adapter does not change the logits of its base. Nothing was kept.")
    if not is_installed() or base.flavour != "transformers":
        why = "PEFT is not installed" if not is_installed() else "its base is in audiocraft's format"
        logger.warning(f"the adapter was written and read back, but not opened by PEFT: {why}")
        return {}
    difference = float(
        (_peft_logits(folder, base.folder, sequence, description, chroma) - logits["adapted"]).abs().max()
    )
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"PEFT opens the adapter, but its logits differ from the trained model's by {difference:.2e}, "
            f"expected at most {TOLERANCE:.0e}. Nothing was kept."
        )
    return {"peft": difference}


def _peft_logits(folder: Path, base: Path, sequence: Tensor, description: str, chroma: Tensor | None) -> Tensor:
    from peft import PeftModel

    model = PeftModel.from_pretrained(transformers.open_generator(base), str(folder))
    return transformers.logits(model, sequence, [description], chroma)
