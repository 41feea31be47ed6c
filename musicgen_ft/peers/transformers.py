"""transformers' MusicGen: its own loader on a folder, its logits, its generation.

B batch, K codebooks, T frames, S sequence steps, F frames of chroma.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LogitsProcessorList,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyFeatureExtractor,
    MusicgenMelodyForConditionalGeneration,
)
from transformers.utils.logging import disable_progress_bar

from musicgen_ft.checkpoint.transformers_format import read_config
from musicgen_ft.generation.decode import Progress
from musicgen_ft.generation.options import GenerationOptions
from musicgen_ft.peers.layers import compute_layer_by_layer


def open_generator(folder: Path, *, device: str = "cpu", layers_dtype: torch.dtype | None = None) -> Any:
    """The folder's ``MusicgenForConditionalGeneration`` in fp32, with its tokenizer, from local files alone.

    The class for melodies, with its feature extractor, where the folder holds one.

    Args:
        folder: the generator folder.
        device: where to.
        layers_dtype: of the file's tensors, for one forward pass in little memory: the decoder's layers stay in the
            file until they compute, in fp32 all the same.
    """
    disable_progress_bar()
    is_melody = isinstance(read_config(folder), MusicgenMelodyConfig)
    model_class: Any = MusicgenMelodyForConditionalGeneration if is_melody else MusicgenForConditionalGeneration
    if layers_dtype is not None:  # what the loader need not convert, it maps
        plan = {"_get_dtype_plan": lambda self, dtype: {"decoder.model.decoder.layers": layers_dtype}}
        model_class = type(model_class.__name__, (model_class,), plan)
    model: Any = model_class.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    model.tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if is_melody:
        model.feature_extractor = MusicgenMelodyFeatureExtractor.from_pretrained(str(folder), local_files_only=True)
    if layers_dtype is not None:
        compute_layer_by_layer(model.decoder.model.decoder.layers)
    return model.to(device).eval()


def logits(
    generator: Any, sequence: Tensor, descriptions: Sequence[str | None], chroma: Tensor | None = None
) -> Tensor:
    """Logits of the step after each step of a delayed sequence int64 [B, K, S]: float [B, K, S, card].

    An empty description has its mask cleared, so that it is the null condition as it is elsewhere (spec 8.3).
    ``chroma``, int64 [B, F], is that of the melodies, for a melody model.
    """
    tokens = _tokens(generator, descriptions)
    if chroma is not None:
        tokens["input_features"] = F.one_hot(chroma, generator.config.num_chroma).to(generator.device, torch.float32)
    B, K, S = sequence.shape
    with torch.no_grad():
        output = generator(**tokens, decoder_input_ids=sequence.reshape(B * K, S))
    result = output.logits.unflatten(0, (B, K))[:, :, -S:]  # behind the prefix, where there is one
    assert isinstance(result, Tensor)
    return result


class _Told:
    """A logits processor that changes nothing and tells the progress: transformers calls it at every step."""

    def __init__(self, progress: Progress, num_steps: int) -> None:
        self._progress, self._num_steps, self._done = progress, num_steps, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._done += 1
        self._progress(self._done, self._num_steps)
        return scores


def generate(
    generator: Any,
    descriptions: Sequence[str | None],
    options: GenerationOptions,
    *,
    seed: int,
    melody: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Waveforms float [B, C, L] of one batch; its draws come from torch's global generator, seeded for the batch.

    ``melody`` is a mono waveform float [L] at the generator's sample rate, for all rows.
    """
    torch.manual_seed(seed)
    num_frames = round(options.duration_s * generator.config.audio_encoder.frame_rate)
    decoder = generator.config.decoder
    num_steps = num_frames + decoder.num_codebooks // decoder.audio_channels - 1  # the last codebook's delay
    told = LogitsProcessorList([_Told(progress, num_steps)] if progress is not None else [])
    greedy = options.sampling.temperature == 0
    drawing = {
        "top_k": options.sampling.k_of(decoder.vocab_size),
        "top_p": options.sampling.top_p or None,
        "temperature": options.sampling.temperature,
    }
    inputs = _tokens(generator, descriptions)
    if melody is not None:
        extractor = generator.feature_extractor
        features = extractor(melody.numpy(), sampling_rate=extractor.sampling_rate, return_tensors="pt")
        inputs["input_features"] = features["input_features"].to(generator.device).repeat(len(descriptions), 1, 1)
    with torch.no_grad():
        waveforms = generator.generate(
            **inputs,
            do_sample=not greedy,
            guidance_scale=options.cfg_coef,
            max_new_tokens=num_steps,
            logits_processor=told,
            **({} if greedy else drawing),
        )
    assert isinstance(waveforms, Tensor)
    return waveforms.cpu()


def _tokens(generator: Any, descriptions: Sequence[str | None]) -> dict[str, Tensor]:
    texts = [(description or "").strip() for description in descriptions]
    tokens = generator.tokenizer(texts, return_tensors="pt", padding=True)
    mask = tokens["attention_mask"]
    mask[[i for i, text in enumerate(texts) if not text]] = 0
    return {"input_ids": tokens["input_ids"].to(generator.device), "attention_mask": mask.to(generator.device)}
