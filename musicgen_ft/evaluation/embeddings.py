"""Embeddings of sound, in which two sets of clips are compared.

C channels, L samples, T frames, N embeddings, D width.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from musicgen_ft.codec import Codec
from musicgen_ft.evaluation.frechet import Moments

WINDOW_S = 1.0
"""Seconds of the frames that are averaged into one embedding."""


class Embedder(Protocol):
    """Whatever turns a clip into embeddings."""

    @property
    def name(self) -> str:
        """What is said of a distance in it: "EnCodec"."""
        ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    def embed(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Float [N, D], N at least 1, of a waveform float [C, L], L at least 1."""
        ...


class EncodecEmbedder:
    """The latents of EnCodec's encoder before they are quantised, means over about a second.

    Every base brings its own codec along, so that these are always at hand. A frame is 20 ms long, and its latents are
    made from more than that on both sides: neighbours are nearly the same number twice. Means over a second are about
    as far apart as VGGish's (0.96 s), so that their count says how much music there was, and what they compare is
    timbre and loudness over a second rather than single strokes. EnCodec was trained to give sound back, not to tell
    music apart: a distance in it finds noise, dullness and wrong instruments, and is deaf to harmony and form.
    """

    def __init__(self, codec: Codec) -> None:
        """Of a codec, on the device where that is."""
        self._codec = codec

    @property
    def name(self) -> str:
        """For figures."""
        return "EnCodec"

    @property
    def dim(self) -> int:
        """D, 128 for the released one."""
        return int(self._codec.model.config.hidden_size)

    @torch.no_grad()
    def embed(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Float32 [N, D] on the CPU; channels are averaged. What is left behind whole seconds counts from half of one.

        Raises:
            ValueError: if the sample rate is not the codec's.
        """
        spec = self._codec.spec
        if sample_rate != spec.sample_rate:
            raise ValueError(f"a waveform at {sample_rate} Hz for a codec at {spec.sample_rate} Hz")
        mono = waveform.to(self._codec.device, torch.float32).mean(0)[None, None]  # [C, L] -> [1, 1, L]
        latents: Tensor = self._codec.model.encoder(mono)[0]  # [D, T]
        return windowed_means(latents.T, round(WINDOW_S * spec.frame_rate)).cpu()


def windowed_means(frames: Tensor, window: int) -> Tensor:
    """Means over windows of frames, float [T, D] -> [N, D]; what is left counts from half a window, or if it is all."""
    parts = list(frames.split(window))
    if len(parts) > 1 and 2 * len(parts[-1]) < window:
        parts.pop()
    return torch.stack([part.mean(0) for part in parts])


def embedding_moments(embedder: Embedder, waveforms: Iterable[Tensor], sample_rate: int) -> Moments:
    """Mean and covariance of all embeddings of clips, float [C, L]; no clip's are kept."""
    found = Moments(embedder.dim)
    for waveform in waveforms:
        found.add(embedder.embed(waveform, sample_rate))
    return found
