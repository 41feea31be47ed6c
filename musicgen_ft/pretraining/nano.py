"""The parts of nano, put together."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from musicgen_ft.checkpoint import transformers_format
from musicgen_ft.checkpoint.nano import NanoSizes, lm_config
from musicgen_ft.codec import Codec
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.scan import scan_corpus
from musicgen_ft.files import atomic_path
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel


def write_untrained_lm(folder: Path, sizes: NanoSizes, codec: Codec, text_encoder: TextEncoder, *, seed: int) -> None:
    """A base folder in transformers format: a trained codec and text encoder, a language model of random weights."""
    config = lm_config(sizes, codec, text_encoder)
    torch.manual_seed(seed)
    lm = LanguageModel(config)
    lm.init_weights()
    transformers_format.write_folder(folder, lm.state_dict(), config, codec, text_encoder)


def store_in_half(folder: Path) -> None:
    """Rewrites the weights of a generator folder in fp16; its config still asks readers to open them in fp32.

    Raises:
        ValueError: if a codec or text encoder was not rounded before: other weights would give other codes.
    """
    path = folder / "model.safetensors"
    tensors = load_file(path)
    halves = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    for name, value in halves.items():
        is_frozen = name.startswith(("audio_encoder.", "text_encoder."))
        if is_frozen and not torch.equal(value.to(tensors[name].dtype), tensors[name]):
            raise ValueError(f"{name} is no half-precision number")
    with atomic_path(path) as temporary:
        save_file(halves, temporary, metadata={"format": "pt"})


def read_labels(corpus: Path) -> list[Labels]:
    """The labels of a corpus, in the order of its files."""
    return [record.labels for record in scan_corpus(corpus, read_tags=False)]
