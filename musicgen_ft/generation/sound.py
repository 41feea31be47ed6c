"""Codes to sound while they are still being made, without seams.

C channels, L samples, K codebooks, T frames.
"""

from typing import Any

import torch
from torch import Tensor

from musicgen_ft.codec import Codec

CONTEXT_FRAMES = 4
"""Frames on both sides of what is decoded. EnCodec's convolutions reach 3 frames back and ahead before its LSTM, and
less behind it (tests/generation/test_sound.py)."""


class SoundStream:
    """Decodes a growing piece: what it gives, joined, equals ``Codec.decode`` of the whole.

    EnCodec's decoder is convolutions, an LSTM, and convolutions again. The LSTM looks back without end, so its state is
    kept; the convolutions see a few frames, so those are decoded again around each chunk. Nothing is cross-faded.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        layers = list(codec.model.decoder.layers)
        (at,) = [number for number, layer in enumerate(layers) if hasattr(layer, "lstm")]
        self._before, self._lstm, self._after = layers[:at], layers[at].lstm, layers[at + 1 :]
        self._state: Any = None
        self._codes: Tensor | None = None  # [C, K/C, T], all so far
        self._hidden: Tensor | None = None  # [C, D, T'], behind the LSTM, T' <= T
        self._num_given = 0

    @torch.no_grad()
    def decode(self, codes: Tensor, *, is_last: bool) -> Tensor:
        """Takes the next codes int64 [1, K, n]; gives the samples float32 [C, L] that they make certain.

        The last frames of what is known wait for those behind them, until ``is_last``.
        """
        device, C = self._codec.device, self._codec.spec.channels
        _, K, n = codes.shape
        mono = codes.to(device).view(K // C, C, n).transpose(0, 1)  # [1, K, n] -> [C, K/C, n]
        self._codes = mono if self._codes is None else torch.cat([self._codes, mono], dim=2)
        T = self._codes.shape[2]
        self._extend_hidden(T if is_last else T - CONTEXT_FRAMES)
        end = T if is_last else T - 2 * CONTEXT_FRAMES
        if end <= self._num_given or self._hidden is None:
            return torch.zeros(C, 0)
        start, self._num_given = self._num_given, end
        left = max(0, start - CONTEXT_FRAMES)
        sound = self._hidden[:, :, left : end + CONTEXT_FRAMES]
        for layer in self._after:
            sound = layer(sound)
        hop = self._codec.spec.hop_length
        kept: Tensor = sound[:, 0, (start - left) * hop : (end - left) * hop]
        return kept.float().cpu()

    def _extend_hidden(self, end: int) -> None:
        """Takes the LSTM on up to frame ``end``."""
        start = 0 if self._hidden is None else self._hidden.shape[2]
        if end <= start:
            return
        assert self._codes is not None
        left = max(0, start - CONTEXT_FRAMES)
        part = self._codes[:, :, left : end + CONTEXT_FRAMES]
        x: Tensor = self._codec.model.quantizer.decode(part.transpose(0, 1))  # [C, D, n]
        for layer in self._before:
            x = layer(x)
        x = x[:, :, start - left : end - left].permute(2, 0, 1)  # [C, D, n] -> [n, C, D]
        remembered, self._state = self._lstm(x, self._state)
        hidden = (remembered + x).permute(1, 2, 0)
        self._hidden = hidden if self._hidden is None else torch.cat([self._hidden, hidden], dim=2)
