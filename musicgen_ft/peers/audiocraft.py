"""audiocraft, entered here and nowhere else: its own loader on a folder, its logits, its generation.

B batch, K codebooks, T frames.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from musicgen_ft.errors import UserError
from musicgen_ft.generation.decode import Progress
from musicgen_ft.generation.options import GenerationOptions
from musicgen_ft.model.conditioning import TextEncoder

INSTALL = "pip install --no-deps audiocraft==1.3.0 && pip install 'musicgen-ft[audiocraft]'"


def is_installed() -> bool:
    """Whether audiocraft can be imported."""
    return importlib.util.find_spec("audiocraft") is not None


def open_generator(folder: Path, text_encoder: TextEncoder, *, device: str = "cpu") -> Any:
    """The folder's ``audiocraft.models.MusicGen``, opened by audiocraft's own loader, strict on every key.

    T5 is handed over instead of fetched: audiocraft would take it from the hub by its name, and accepts a fixed list
    of names only.

    Raises:
        UserError: if audiocraft is not installed.
    """
    if not is_installed():
        raise UserError(f"audiocraft is not installed. Install it with: {INSTALL}")
    with _quiet():
        from audiocraft.models.musicgen import MusicGen
    with _quiet(), text_encoder_given(text_encoder):
        return MusicGen.get_pretrained(str(folder), device=device)


def logits(generator: Any, codes: Tensor, descriptions: Sequence[str | None]) -> tuple[Tensor, Tensor]:
    """audiocraft's prediction of every frame: float [B, K, T, card], and where it is valid, bool [B, K, T]."""
    from audiocraft.modules.conditioners import ConditioningAttributes

    conditions = [ConditioningAttributes(text={"description": description}) for description in descriptions]
    with torch.no_grad():
        output = generator.lm.compute_predictions(codes, conditions)
    return output.logits, output.mask


def generate(
    generator: Any,
    descriptions: Sequence[str | None],
    options: GenerationOptions,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """Waveforms float [B, C, L] of one batch. audiocraft draws from torch's global generator: seeded for the batch."""
    generator.set_custom_progress_callback(progress)
    generator.set_generation_params(
        use_sampling=options.sampling.temperature > 0,
        top_k=options.sampling.top_k,
        top_p=options.sampling.top_p,
        temperature=options.sampling.temperature or 1.0,
        cfg_coef=options.cfg_coef,
        duration=options.duration_s,
        extend_stride=options.stride_s,
    )
    torch.manual_seed(seed)
    waveforms = generator.generate([description or "" for description in descriptions], progress=progress is not None)
    assert isinstance(waveforms, Tensor)
    return waveforms.cpu()


@contextmanager
def text_encoder_given(text_encoder: TextEncoder) -> Iterator[None]:
    """Makes audiocraft's T5 conditioner take this encoder, whatever the config calls it."""
    from audiocraft.models import builders
    from audiocraft.modules import conditioners

    original = conditioners.T5Conditioner

    class GivenT5Conditioner(original):  # type: ignore[misc, valid-type]
        def __init__(self, name: str, **kwargs: Any) -> None:
            self.__class__.MODELS = [name]
            self.__class__.MODELS_DIMS = {name: text_encoder.dim}
            super().__init__(name, **kwargs)

    def given(value: Any) -> SimpleNamespace:
        return SimpleNamespace(from_pretrained=lambda _: value)

    with (
        patch.object(builders, "T5Conditioner", GivenT5Conditioner),
        patch.object(conditioners, "T5Tokenizer", given(text_encoder.tokenizer)),
        patch.object(conditioners, "T5EncoderModel", given(text_encoder.encoder)),
    ):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that audiocraft's import gives on current libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
