"""Generators to play with, and files to drop."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from musicgen_ft.audio import write_wav
from musicgen_ft.checkpoint import transformers_format
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.model.lm import LanguageModel


@pytest.fixture(scope="session")
def melody_folder(
    tmp_path_factory: pytest.TempPathFactory, make_lm: Callable[..., LanguageModel], nano_folder: Path
) -> Path:
    """A melody generator with nano's codec and T5."""
    folder = tmp_path_factory.mktemp("generators") / "melodious"
    folder.mkdir()
    nano = open_base(str(nano_folder))
    chroma = ChromaSpec(sample_rate=16000, n_fft=4096, hop_length=1024)
    lm = make_lm(conditioning="prefix", chroma=chroma, text_dim=nano.text_encoder().dim, card=256)
    transformers_format.write_folder(folder, lm.state_dict(), lm.config, nano.codec(), nano.text_encoder())
    return folder


@pytest.fixture
def tune(tmp_path: Path) -> Path:
    """0.6 s of a tone at a rate of its own, in stereo."""
    sound = torch.sin(torch.arange(26_460) * 0.05)[None] * 0.3
    write_wav(tmp_path / "tune.wav", torch.cat([sound, sound]), 44_100)
    return tmp_path / "tune.wav"
