"""audiocraft, entered here and nowhere else: its own loader on a folder, its logits, its generation.

B batch, K codebooks, T frames, F frames of chroma.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from musicgen_ft.errors import UserError
from musicgen_ft.generation.decode import Progress
from musicgen_ft.generation.options import GenerationOptions
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.peers.layers import compute_layer_by_layer
from musicgen_ft.weights import read_pickle

INSTALL = "pip install --no-deps audiocraft==1.3.0 && pip install 'musicgen-ft[audiocraft]'"
_LAYERS = "transformer.layers."


def is_installed() -> bool:
    """Whether audiocraft can be imported."""
    return importlib.util.find_spec("audiocraft") is not None


def open_generator(folder: Path, text_encoder: TextEncoder, *, device: str = "cpu", mapped: bool = False) -> Any:
    """The folder's ``audiocraft.models.MusicGen``, opened by audiocraft's own loader, strict on every key.

    T5 is handed over instead of fetched: audiocraft would take it from the hub by its name, and accepts a fixed list
    of names only. The chroma of a melody model is that of the mix: demucs, which would separate its stems, is neither
    fetched nor run.

    Args:
        folder: the generator folder.
        text_encoder: its T5.
        device: where to.
        mapped: for one forward pass in little memory: the layers' tensors stay in the file until they compute, in fp32
            all the same.

    Raises:
        UserError: if audiocraft is not installed.
    """
    if not is_installed():
        raise UserError(f"audiocraft is not installed. Install it with: {INSTALL}")
    with _quiet():
        from audiocraft.models.musicgen import MusicGen
    with _quiet(), text_encoder_given(text_encoder), without_demucs(), _mapped() if mapped else nullcontext():
        generator = MusicGen.get_pretrained(str(folder), device=device)
    if mapped:
        compute_layer_by_layer(generator.lm.transformer.layers)
    return generator


def logits(
    generator: Any, codes: Tensor, descriptions: Sequence[str | None], chroma: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """audiocraft's prediction of every frame.

    Args:
        generator: from ``open_generator``.
        codes: int64 [B, K, T].
        descriptions: B texts.
        chroma: int64 [B, F] of the melodies, for a melody model; None is no melody.

    Returns:
        float [B, K, T, card], and where it is valid, bool [B, K, T].
    """
    from audiocraft.modules.conditioners import ConditioningAttributes, WavCondition

    conditions = [ConditioningAttributes(text={"description": description}) for description in descriptions]
    conditioner = dict(generator.lm.condition_provider.conditioners.items()).get("self_wav")
    if conditioner is not None:
        for condition in conditions:
            rate, nothing = [generator.sample_rate], torch.zeros(1, 1, 1, device=codes.device)
            condition.wav["self_wav"] = WavCondition(nothing, torch.zeros(1, device=codes.device), rate, [None], [None])
    given: Any = nullcontext()
    if conditioner is not None and chroma is not None:
        one_hot = F.one_hot(chroma, conditioner.chroma.n_chroma).float()
        given = patch.object(conditioner, "_compute_wav_embedding", lambda wav, sample_rate: one_hot)
    with torch.no_grad(), given:
        output = generator.lm.compute_predictions(codes, conditions)
    return output.logits, output.mask


def generate(
    generator: Any,
    descriptions: Sequence[str | None],
    options: GenerationOptions,
    *,
    seed: int,
    melody: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Waveforms float [B, C, L] of one batch. audiocraft draws from torch's global generator: seeded for the batch.

    ``melody`` is a mono waveform float [L] at the generator's sample rate, for all rows. Its two-step guidance takes
    the model's own scale, whatever it is given (spec trap 13): it is set there too.
    """
    generator.lm.cfg_coef = options.cfg_coef
    generator.set_custom_progress_callback(progress)
    generator.set_generation_params(
        use_sampling=options.sampling.temperature > 0,
        top_k=options.sampling.k_of(generator.lm.card),
        top_p=options.sampling.top_p,
        temperature=options.sampling.temperature or 1.0,
        cfg_coef=options.cfg_coef,
        duration=options.duration_s,
        extend_stride=options.stride_s,
        two_step_cfg=options.two_step_cfg,
    )
    torch.manual_seed(seed)
    texts, is_told = [description or "" for description in descriptions], progress is not None
    if melody is None:
        waveforms = generator.generate(texts, progress=is_told)
    else:
        melodies = [melody[None]] * len(texts)
        waveforms = generator.generate_with_chroma(texts, melodies, generator.sample_rate, progress=is_told)
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
def without_demucs() -> Iterator[None]:
    """Makes audiocraft's chroma conditioner take what it hears for the stems."""
    from audiocraft.models import builders
    from audiocraft.modules import conditioners
    from demucs import pretrained

    original = conditioners.ChromaStemConditioner

    class MixConditioner(original):  # type: ignore[misc, valid-type]
        def _get_stemmed_wav(self, wav: Tensor, sample_rate: int) -> Tensor:
            return wav

    demucs: Any = SimpleNamespace(sources=["drums", "bass", "other", "vocals"], to=lambda device: demucs)
    with (
        patch.object(builders, "ChromaStemConditioner", MixConditioner),
        patch.object(pretrained, "get_model", lambda name: demucs),
    ):
        yield


@contextmanager
def _mapped() -> Iterator[None]:
    """Makes audiocraft's loader map its files, and take the layers' tensors as they lie there.

    By itself it reads the whole file, builds a model of random weights in fp32 and copies the one into the other.
    """
    from audiocraft.models import builders, loaders

    original = builders.get_lm_model

    def get_lm_model(config: Any) -> Any:
        with _WithoutMemory():
            lm: Any = original(config)
        load = lm.load_state_dict

        def take(state: dict[str, Tensor]) -> Any:
            taken = {name: value if name.startswith(_LAYERS) else value.float() for name, value in state.items()}
            return load(taken, assign=True)

        lm.load_state_dict = take
        return lm

    def read(folder: Path | str, filename: str, **_: Any) -> dict[str, Any]:
        return read_pickle(Path(folder) / filename)

    with patch.object(builders, "get_lm_model", get_lm_model), patch.object(loaders, "_get_state_dict", read):
        yield


class _WithoutMemory(TorchFunctionMode):
    """Makes modules whose parameters have shapes but no values, and keeps them so where they are sent elsewhere."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.empty:
            kwargs = {**(kwargs or {}), "device": "meta"}
        if func is Tensor.to and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


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
