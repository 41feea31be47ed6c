"""What all tests share: no network, no cache of the user's, one thread; nano; toy language models and texts.

Tests marked ``network`` run with ``--run-network``; those marked ``gpu`` where there is a CUDA device.
"""

import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.checkpoint.base import NANO_FOLDER, open_base
from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.codec import Codec, CodecSpec
from musicgen_ft.corpus.quality import Quality
from musicgen_ft.generation import session
from musicgen_ft.generation.sampling import SeededNoise
from musicgen_ft.model.conditioning import TextEncoder, TextStates
from musicgen_ft.model.lm import LanguageModel, LMConfig
from musicgen_ft.pretraining.nano import write_untrained_lm
from musicgen_ft.pretraining.untrained import NanoSizes
from musicgen_ft.shards.format import Manifest, Split, write_manifest
from musicgen_ft.shards.track import Track
from musicgen_ft.shards.writer import write_shard


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-network", action="store_true", help="run the tests that download from a hub")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "no CUDA device on this machine"
    if not config.getoption("--run-network"):
        reasons["network"] = "downloads weights: give --run-network"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reason}"))


@pytest.fixture(scope="session", autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No cache but the session's own, also for the processes that tests start; torch on one thread."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def roomy_folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder for gigabytes: gone after the test also when it fails, lest the tests after it lack the room."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def nano_folder() -> Path:
    """The files of ``nano``; not to be changed."""
    return NANO_FOLDER


@pytest.fixture(scope="session")
def untrained_base(tmp_path_factory: pytest.TempPathFactory, nano_codec: Codec, text_encoder: TextEncoder) -> Path:
    """nano with a smaller language model of random weights, for what is told by large gradients; not to be changed."""
    folder = tmp_path_factory.mktemp("bases") / "untrained"
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        write_untrained_lm(folder, NanoSizes(dim=128, num_layers=4), nano_codec, text_encoder, seed=2306)
    return folder


@pytest.fixture(scope="session")
def nano_codec(nano_folder: Path) -> Codec:
    """16 kHz, 50 frames per second, 4 codebooks of 256."""
    return open_base(str(nano_folder)).codec()


@pytest.fixture(scope="session")
def text_encoder(nano_folder: Path) -> TextEncoder:
    """nano's T5: width 64."""
    return open_base(str(nano_folder)).text_encoder()


@pytest.fixture(scope="session")
def make_lm() -> Callable[..., LanguageModel]:
    """A function that builds a toy language model, in ``eval()``, no weight of which is 0 or 1; it takes changes."""

    def make(*, seed: int = 0, **changes: Any) -> LanguageModel:
        sizes: dict[str, Any] = {"dim": 24, "num_heads": 3, "num_layers": 2, "ffn_dim": 40, "text_dim": 10}
        codes: dict[str, Any] = {"n_q": 4, "card": 11, "delays": (0, 1, 2, 3)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lm = LanguageModel(LMConfig(**{**sizes, **codes, **changes}))
            lm.init_weights()
            for name, parameter in lm.named_parameters():
                if "norm" in name:
                    parameter.data += 0.3 * torch.randn_like(parameter)
        return lm.eval()

    return make


@pytest.fixture(scope="session")
def make_text() -> Callable[..., TextStates]:
    """A function that makes text states of rows with so many tokens each, padded with noise; 0 is the null row."""

    def make(*lengths: int, dim: int = 10, num_tokens: int | None = None, seed: int = 0) -> TextStates:
        N = num_tokens or max(1, *lengths)
        generator = torch.Generator().manual_seed(seed)
        states = torch.stack([torch.randn(N, dim, generator=generator) for _ in lengths])
        return TextStates(states, torch.arange(N) < torch.tensor(lengths)[:, None])

    return make


@pytest.fixture(scope="session")
def make_quality() -> Callable[..., Quality]:
    """A function that makes the figures of a track that nothing is wrong with; it takes changes."""

    def make(**changes: Any) -> Quality:
        good: dict[str, Any] = {
            "source_sample_rate": 44100, "source_channels": 2, "duration_s": 97.5, "loudness_lufs": -14.0,
            "peak_db": -0.5, "silent_share": 0.0, "head_silence_s": 0.0, "tail_silence_s": 0.0, "fade_out_s": 0.0,
            "clipped_share": 0.0, "dc_offset": 0.0, "bandwidth_khz": 19.0, "stereo_width": 0.5,
        }  # fmt: skip
        return Quality(**{**good, **changes})

    return make


@pytest.fixture(scope="session")
def write_folder() -> Callable[..., Path]:
    """A function that writes a complete shards folder of tracks, and returns it."""

    def write(
        folder: Path,
        codec: CodecSpec,
        tracks: dict[Split, list[Track]],
        *,
        chroma: ChromaSpec | None = None,
        max_samples: int = 4,
        base: str = "nano",
    ) -> Path:
        shards = [
            write_shard(
                folder,
                f"{split}-{start // max_samples:06d}.tar",
                of_split[start : start + max_samples],
                split=split,
                codec=codec,
                chroma=chroma,
            ).shard
            for split, of_split in tracks.items()
            for start in range(0, len(of_split), max_samples)
        ]
        config = {"codec": {"window_s": 30}}
        write_manifest(
            folder,
            Manifest(
                codec=codec, base=base, shards=tuple(shards), config=config, toolkit_version="0.1.0", chroma=chroma
            ),
        )
        return folder

    return write


@pytest.fixture
def rig_loops(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], bool]], list[list[int]]]:
    """A function after which pieces whose seed it is given repeat 5 frames from their first one on, whatever the model.

    It wants ``top_k=0``, which keeps all codes. It gives the seeds of every batch that is played from then on.
    """

    def rig(loops: Callable[[int], bool]) -> list[list[int]]:
        played: list[list[int]] = []

        class LoopingNoise(SeededNoise):
            def __init__(self, seeds: Sequence[int]) -> None:
                super().__init__(seeds)
                played.append(list(seeds))
                self._steps = {row: 0 for row, seed in enumerate(seeds) if loops(seed)}

            def fill(self, noise: Tensor, draws: Sequence[bool]) -> None:
                super().fill(noise, draws)
                for row, step in self._steps.items():
                    noise[row] = 1.0
                    noise[row, :, step % 5] = 1e-30  # the least wins
                    self._steps[row] = step + 1

        monkeypatch.setattr(session, "SeededNoise", LoopingNoise)
        return played

    return rig


@pytest.fixture(scope="session")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLAP of toy size with random weights: windows of 1 s at 8 kHz, 6 wide; not to be changed."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", "slow", "waltz", "with", "piano", "techno", "fast", "a"]
    folder = tmp_path_factory.mktemp("clap")
    text = {
        "vocab_size": len(words), "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 20, "max_position_embeddings": 20, "pad_token_id": 1, "projection_dim": 6,
    }  # fmt: skip
    audio = {
        "window_size": 4, "num_mel_bins": 16, "spec_size": 64, "patch_size": 4, "patch_stride": [4, 4],
        "num_classes": 5, "hidden_size": 32, "projection_dim": 6, "depths": [1, 1], "num_attention_heads": [2, 2],
        "num_hidden_layers": 2, "patch_embeds_hidden_size": 16,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=6))
        for name, parameter in model.named_parameters():
            if "projection" in name and parameter.ndim == 2:
                parameter.data.normal_()  # else all sounds are alike to it
    model.save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=80, max_length_s=1, fft_window_size=256, frequency_max=4000,
        truncation="rand_trunc", padding="repeatpad",
    ).save_pretrained(folder)  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder
