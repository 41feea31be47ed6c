"""A generator folder: a language model with its base's codec and T5, in the formats of its readers."""

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from musicgen_ft.checkpoint import audiocraft_format, transformers_format
from musicgen_ft.checkpoint.base import Base
from musicgen_ft.codec import Codec
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LMConfig


def formats_of(choice: str) -> list[str]:
    """The readers that ``--format`` means: ``audiocraft``, ``transformers``, or both."""
    return ["audiocraft", "transformers"] if choice == "both" else [choice]


def write_generator(
    folder: Path,
    state: Mapping[str, Tensor],
    config: LMConfig,
    base: Base,
    codec: Codec,
    text_encoder: TextEncoder,
    *,
    formats: Collection[str],
) -> None:
    """Writes everything that the readers need to play into an existing folder.

    Args:
        folder: where to.
        state: the language model under our names, read one tensor at a time; its dtype is kept.
        config: its numbers.
        base: whose codec and T5 they are; it knows the name that audiocraft has for its T5.
        codec: the frozen EnCodec.
        text_encoder: the frozen T5.
        formats: of ``audiocraft`` and ``transformers``.
    """
    if "transformers" in formats:
        transformers_format.write_folder(folder, state, config, codec, text_encoder)
    if "audiocraft" in formats:
        audiocraft_format.write_folder(folder, state, config, codec, text_encoder_id=base.t5_id)
        if "transformers" not in formats and base.t5_id == audiocraft_format.T5_FOLDER:
            transformers_format.write_text_encoder(folder / audiocraft_format.T5_FOLDER, text_encoder)
