"""The parts of nano, put together."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save

from musicgen_ft.checkpoint import transformers_format
from musicgen_ft.checkpoint.card import CARD_NAME, FACTS_FILE
from musicgen_ft.codec import Codec
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.scan import scan_corpus
from musicgen_ft.files import atomic_path
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel, LMConfig
from musicgen_ft.pretraining.untrained import NanoSizes


def write_untrained_lm(folder: Path, sizes: NanoSizes, codec: Codec, text_encoder: TextEncoder, *, seed: int) -> None:
    """Writes a base into an existing folder, in transformers format: with a language model of random weights.

    Args:
        folder: where to.
        sizes: of the language model.
        codec: a trained one.
        text_encoder: a trained one.
        seed: of the weights.
    """
    config = LMConfig(
        dim=sizes.dim,
        num_heads=sizes.dim // sizes.head_dim,
        num_layers=sizes.num_layers,
        ffn_dim=4 * sizes.dim,
        n_q=codec.spec.n_q,
        card=codec.spec.card,
        delays=tuple(range(codec.spec.n_q)),
        text_dim=text_encoder.dim,
    )
    torch.manual_seed(seed)
    lm = LanguageModel(config)
    lm.init_weights()
    transformers_format.write_folder(folder, lm.state_dict(), config, codec, text_encoder)


def make_base(folder: Path) -> None:
    """Makes a generator folder a base: weights in fp16, and nothing of the run, since there was no base before it.

    Its config still asks readers to open the weights in fp32. The card is that of ``make nano-report``.

    Raises:
        ValueError: if a codec or text encoder was not rounded before: other weights would give other codes.
    """
    for name in (FACTS_FILE, CARD_NAME):
        (folder / name).unlink()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    halves = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    for name, value in halves.items():
        is_frozen = name.startswith(("audio_encoder.", "text_encoder."))
        if is_frozen and not torch.equal(value.to(tensors[name].dtype), tensors[name]):
            raise ValueError(f"{name} is no half-precision number")
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(halves, metadata={"format": "pt"}))  # save_file's are their owner's alone to read


def read_labels(corpus: Path) -> list[Labels]:
    """The labels of a corpus, in the order of its files."""
    return [record.labels for record in scan_corpus(corpus, read_tags=False)]
