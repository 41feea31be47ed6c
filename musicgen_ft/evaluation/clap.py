"""CLAP, where its weights are at hand: how well sound fits its text, and embeddings to compare clips in.

L samples, N windows, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor

from musicgen_ft.errors import UserError
from musicgen_ft.files import read_json
from musicgen_ft.weights import read_folder

DEFAULT_CLAP = "laion/larger_clap_music"

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZERS = ("tokenizer.json", "vocab.json")
_EXTRACTOR = "preprocessor_config.json"
_FILES = ["*.json", "*.txt"]


class Clap:
    """transformers' ``ClapModel`` with its tokenizer and spectrogram, frozen, in fp32.

    Sound is cut into windows of the model's own length (10 s) one after the other, so that nothing is drawn by chance:
    transformers' extractor would take a random 10 s of what is longer. A shorter rest is repeated to fill its window,
    as in training.
    """

    def __init__(self, model: Any, extractor: Any, tokenizer: Any, *, id: str) -> None:
        """Freezes the model.

        Args:
            model: transformers' ``ClapModel``.
            extractor: its ``ClapFeatureExtractor``.
            tokenizer: its tokenizer.
            id: where it came from.
        """
        self.model = model.eval().requires_grad_(False).float()
        self._extractor, self._tokenizer = extractor, tokenizer
        self.id = id

    @property
    def name(self) -> str:
        """For figures."""
        return "CLAP"

    @property
    def dim(self) -> int:
        """D, 512 for the released ones."""
        return int(self.model.config.projection_dim)

    def to(self, device: torch.device | str) -> "Clap":
        """Moves the model; returns itself."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def embed(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Float32 [N, D] of length 1, on the CPU, of a waveform float [C, L]; channels are averaged."""
        mono = waveform.detach().float().mean(0).cpu().numpy()
        windows = self._windows(mono, sample_rate)
        features = self._extractor(windows, sampling_rate=self._extractor.sampling_rate, return_tensors="pt")
        found: Tensor = self.model.get_audio_features(
            features["input_features"].to(self.model.device), is_longer=features["is_longer"].to(self.model.device)
        ).pooler_output
        return F.normalize(found, dim=1).cpu()

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Float32 [texts, D] of length 1, on the CPU; what is longer than the model reads is cut."""
        longest = int(self.model.config.text_config.max_position_embeddings) - 2  # RoBERTa's positions begin at 2
        words = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=min(longest, 512), return_tensors="pt"
        )
        found: Tensor = self.model.get_text_features(
            input_ids=words["input_ids"].to(self.model.device),
            attention_mask=words["attention_mask"].to(self.model.device),
        ).pooler_output
        return F.normalize(found, dim=1).cpu()

    def score(self, waveform: Tensor, sample_rate: int, text: str) -> float:
        """Cosine similarity of a clip and a text, in [-1, 1]: the mean over the clip's windows.

        Source: audiocraft's ``CLAPTextConsistencyMetric``, which takes one window of each clip at random.
        """
        return float((self.embed(waveform, sample_rate) @ self.embed_text([text])[0]).mean())

    def _windows(self, mono: npt.NDArray[np.float32], sample_rate: int) -> list[npt.NDArray[np.float32]]:
        rate, longest = int(self._extractor.sampling_rate), int(self._extractor.nb_max_samples)
        samples = mono if sample_rate == rate else soxr.resample(mono, sample_rate, rate, quality="HQ")
        samples = np.asarray(samples, np.float32)
        parts = [samples[start : start + longest] for start in range(0, len(samples), longest)]
        if len(parts) > 1 and 2 * len(parts[-1]) < longest:
            parts.pop()
        return parts


def open_clap(name: str | None) -> Clap | None:
    """A CLAP from a folder or the hub.

    Args:
        name: a folder in transformers' format, or a hub id, which is fetched once; none takes DEFAULT_CLAP where it is
            in the local cache already, and fetches nothing.

    Returns:
        None where none is asked for and none is at hand.

    Raises:
        UserError: if there is no such CLAP, or what is there is none.
    """
    if name is None:
        folder = _cached()
        return None if folder is None else _read(folder, DEFAULT_CLAP)
    given = Path(name).expanduser()
    return _read(given if given.is_dir() else _fetched(name), name)


def _cached() -> Path | None:
    try:
        folder = Path(snapshot_download(DEFAULT_CLAP, local_files_only=True))
    except OSError:
        return None
    return folder if _weights_in(folder) else None


def _fetched(name: str) -> Path:
    """Configs first; safetensors where there are some, else the pickle, which is read as tensors alone."""
    try:
        for weights in _WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=[*_FILES, weights]))
            if _weights_in(folder):
                return folder
    except (OSError, HFValidationError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--clap {name}: no such folder, and the hub gives none ({line}). Give a folder with a ClapModel in it, or "
            f"a hub id such as {DEFAULT_CLAP}."
        ) from error
    raise UserError(f"--clap {name}: it holds neither {' nor '.join(_WEIGHTS)}. Give one such as {DEFAULT_CLAP}.")


def _weights_in(folder: Path) -> bool:
    return any((folder / weights).is_file() for weights in _WEIGHTS)


def _read(folder: Path, name: str) -> Clap:
    from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel
    from transformers.utils import logging

    config = folder / "config.json"
    values = read_json(config) if config.is_file() else None
    if not isinstance(values, dict) or values.get("model_type") != "clap":
        raise UserError(
            f"--clap {name}: {config} describes no CLAP, expected model_type clap. Give one such as {DEFAULT_CLAP}."
        )
    if not any((folder / file).is_file() for file in _TOKENIZERS) or not (folder / _EXTRACTOR).is_file():
        wanted = f"{' or '.join(_TOKENIZERS)}, and {_EXTRACTOR}"
        raise UserError(f"--clap {name}: {folder} has no tokenizer or preprocessor, expected {wanted}. Fetch it again.")
    clap_config: Any = ClapConfig.from_pretrained(folder, local_files_only=True)
    has_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    loaded: Any = ClapModel.from_pretrained(
        None, config=clap_config, state_dict=read_folder(folder), output_loading_info=True
    )
    model, report = loaded
    if has_bar:
        logging.enable_progress_bar()
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"--clap {name}: {len(missing)} tensors are missing, {missing[0]} first. Fetch it again.")
    extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Clap(model, extractor, tokenizer, id=name)
