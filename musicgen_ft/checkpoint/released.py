"""What a training of a base is planned with, known without its weights: architectures and sizes of text encoders."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import T5Config, T5EncoderModel

from musicgen_ft.checkpoint.base import open_base, place_of
from musicgen_ft.checkpoint.stereo import stereo_config
from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LMConfig

_SIZES = {"small": (1024, 16, 24), "medium": (1536, 24, 48), "large": (2048, 32, 48)}
"""Width, heads, layers."""
_NAMES = re.compile(r"(?:facebook/)?(?:musicgen-)?((?:stereo-)?(?:small|medium|large|melody|melody-large))")
_FRAME_RATE = 50
_T5_BASE = T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128)


@dataclass(frozen=True)
class Outline:
    """A base without its weights."""

    place: str
    """What ``open_base`` takes for it."""
    lm_config: LMConfig
    """The numbers of its language model."""
    text_encoder_bytes: int
    """Of its T5 in fp32."""
    frame_rate: int
    """Frames of its codec per second."""


def outline(name: str) -> Outline:
    """A base by its name or folder, as ``open_base`` takes it, or by the short name of a release; downloads nothing.

    Raises:
        UserError: for a hub id that is no release and not in the cache, or what is no base at all.
    """
    release = None if Path(name).expanduser().is_dir() else _NAMES.fullmatch(name)
    if release is not None:
        return Outline(f"facebook/musicgen-{release[1]}", released(release[1]), t5_bytes(_T5_BASE), _FRAME_RATE)
    if name.count("/") == 1 and not Path(name).expanduser().exists() and not _is_cached(name):
        raise UserError(
            f"--base {name}: its numbers are not known before it is fetched, expected a release such as medium or "
            "facebook/musicgen-medium, a folder, or what is in the hub's cache. Fetch it once, or plan with the "
            "release that it was made from."
        )
    base = open_base(name)
    return Outline(place_of(name), base.lm_config, t5_bytes(base.t5_config()), base.codec().spec.frame_rate)


def released(name: str) -> LMConfig:
    """The numbers of a release, by the end of its name: ``small``, ``stereo-melody-large`` (spec 1.1, 1.2, 5).

    ``melody`` alone is as large as medium.
    """
    dim, num_heads, num_layers = next((_SIZES[size] for size in _SIZES if name.endswith(size)), _SIZES["medium"])
    melody: dict[str, Any] = {"conditioning": "prefix", "chroma": ChromaSpec()} if "melody" in name else {}
    mono = LMConfig(
        dim=dim,
        num_heads=num_heads,
        num_layers=num_layers,
        ffn_dim=4 * dim,
        n_q=4,
        card=2048,
        delays=(0, 1, 2, 3),
        text_dim=768,
        text_padding="transformers",  # the format that open_base prefers on the hub
        **melody,
    )
    return stereo_config(mono) if name.startswith("stereo") else mono


def t5_bytes(config: T5Config) -> int:
    """Bytes of a T5 encoder in fp32."""
    with torch.device("meta"):
        encoder = T5EncoderModel(config)
    return 4 * sum(parameter.numel() for parameter in encoder.parameters())


def _is_cached(repo_id: str) -> bool:
    files = ("config.json", "state_dict.bin")
    return any(isinstance(try_to_load_from_cache(repo_id, file), str) for file in files)
