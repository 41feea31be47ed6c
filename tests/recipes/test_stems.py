"""prepare with demucs: the melody of stems, and songs without their vocals, by a tiny model in demucs' own format."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from musicgen_ft.audio import AudioReader
from musicgen_ft.checkpoint import transformers_format
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.chroma import ChromaSpec, ChromaStream
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.stems import Separator, converted

Command = Callable[..., Any]

SPEC = ChromaSpec(sample_rate=16000, n_fft=4096, hop_length=1024)


@pytest.fixture(scope="module")
def demucs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny HTDemucs of four stems, with random weights."""
    states: Any = pytest.importorskip("demucs.states")
    from demucs.htdemucs import HTDemucs

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"channels": 8, "depth": 2, "nfft": 512, "t_layers": 1, "t_heads": 2}
        sizes |= {"bottom_channels": 8, "segment": Fraction(1, 2)}
        model: Any = HTDemucs(sources=["drums", "bass", "other", "vocals"], **sizes)
    folder = tmp_path_factory.mktemp("demucs")
    states.save_with_checksum(states.serialize_model(model.eval(), OmegaConf.create({"epochs": 3})), folder / "tiny.th")
    (path,) = folder.glob("*.th")
    return path


@pytest.fixture(scope="module")
def melody_base(
    tmp_path_factory: pytest.TempPathFactory, make_lm: Callable[..., LanguageModel], nano_folder: Path
) -> Path:
    folder = tmp_path_factory.mktemp("melody-base")
    nano = open_base(str(nano_folder))
    lm = make_lm(conditioning="prefix", chroma=SPEC, text_dim=nano.text_encoder().dim, card=256)
    transformers_format.write_folder(folder, lm.state_dict(), lm.config, nano.codec(), nano.text_encoder())
    return folder


def stems_of(path: Path, demucs_file: Path, which: str, *, channels: int) -> np.ndarray:
    """The wanted stems of a file at 16 kHz, float32 [1, L], by the separator alone."""
    separator = Separator.open(str(demucs_file))
    blocks = AudioReader(path, sample_rate=44100, channels=channels).blocks()
    stems = getattr(separator, which)(blocks)
    return np.concatenate(list(converted(stems, from_rate=44100, to_rate=16000, channels=1)), axis=1)


def test_vocals_are_removed_before_the_codec_hears_the_track(
    corpus: Path, shards: Path, demucs_file: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "shards"

    result = command("prepare", corpus, "--out", out, "--vocals", "remove", "--stems_model", demucs_file)

    assert result.status == 0, result.err
    track = ShardIndex.open(out).split("train").track(0)
    instrumental = stems_of(corpus / track.meta.relative_path, demucs_file, "instrumental", channels=2)
    expected = open_base("nano").codec().encode_track([instrumental])
    np.testing.assert_array_equal(track.codes, expected)
    as_it_is = ShardIndex.open(shards).split("train").track(0)
    assert as_it_is.key == track.key
    assert (as_it_is.codes != track.codes).mean() > 0.5


def test_the_melody_is_that_of_the_stems(
    corpus: Path, melody_base: Path, demucs_file: Path, tmp_path: Path, command: Command
) -> None:
    words = ("prepare", corpus, "--base", melody_base, "--stems_model", demucs_file)

    stems = command(*words, "--out", tmp_path / "stems", "--melody", "stems")
    mix = command(*words, "--out", tmp_path / "mix")

    assert (stems.status, mix.status) == (0, 0), stems.err + mix.err
    of_stems, of_mix = (ShardIndex.open(tmp_path / name).split("train").track(0) for name in ("stems", "mix"))
    stream = ChromaStream(SPEC)
    stream.push(stems_of(corpus / of_stems.meta.relative_path, demucs_file, "melody", channels=1)[0])
    np.testing.assert_array_equal(of_stems.chroma, stream.finish())
    assert of_mix.chroma is not None and of_stems.chroma is not None
    assert (of_mix.chroma != of_stems.chroma).any()
    np.testing.assert_array_equal(of_mix.codes, of_stems.codes)  # what is encoded is the mix


def test_shards_of_the_mix_are_not_gone_on_with_by_stems(
    corpus: Path, melody_base: Path, demucs_file: Path, tmp_path: Path, command: Command
) -> None:
    words = ("prepare", corpus, "--base", melody_base, "--out", tmp_path / "shards")
    assert command(*words).status == 0

    refused = command(*words, "--melody", "stems", "--stems_model", demucs_file)

    assert refused.status == 2
    assert "was begun with another codec, config or corpus" in refused.err
