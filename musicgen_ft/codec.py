"""Frozen EnCodec: waveforms to codes and back.

B batch, C channels, L samples, K codebooks, T frames.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from musicgen_ft.errors import UserError
from musicgen_ft.weights import state_sha256


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """What has to agree between shards, codec and language model."""

    id: str
    """Where the codec came from: a hub id, a folder's name, or ``nano``."""
    sha256: str
    """Hash over the names and values of its weights: two codecs with the same hash give the same codes."""
    sample_rate: int
    """Samples per second of its waveforms."""
    frame_rate: int
    """Frames of codes per second."""
    channels: int
    """Channels of its waveforms."""
    n_q: int
    """Codebooks."""
    card: int
    """Entries of each codebook; codes lie in [0, card)."""

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.sample_rate // self.frame_rate


class Window(NamedTuple):
    """A stretch of a track with what comes before and after it, and the codes of all of it."""

    samples: np.ndarray
    """float32 [C, L]."""
    codes: Tensor
    """int64 [K, T]."""
    kept: slice
    """Which of the samples count."""
    hop_length: int
    """Samples per frame."""

    @property
    def kept_codes(self) -> np.ndarray:
        """uint16 [K, T'], the codes that count."""
        stop = None if self.kept.stop is None else self.kept.stop // self.hop_length
        return self.codes[:, self.kept.start // self.hop_length : stop].cpu().numpy().astype(np.uint16)


class Codec:
    """transformers' ``EncodecModel``, frozen, in fp32: in bf16 most codes change (spec 7.2).

    No ``nn.Module``, so that it never enters a state dict. Its codes equal those of audiocraft's ``EncodecModel``
    with the same weights (tests/parity). For stereo the mono EnCodec runs on each channel, and the codebooks take
    turns: left 1, right 1, left 2 ... (audiocraft's ``InterleaveStereoCompressionModel``, spec 5).
    """

    def __init__(self, model: Any, *, id: str, channels: int = 1) -> None:
        """Freezes the model.

        Args:
            model: transformers' ``EncodecModel``.
            id: where it came from.
            channels: 1, or 2 for stereo.

        Raises:
            UserError: if it is no EnCodec of MusicGen's.
        """
        config = model.config
        if config.audio_channels != 1 or channels not in (1, 2):
            raise UserError(
                f"codec {id} has {config.audio_channels} channels for {channels}: MusicGen's EnCodec is mono."
            )
        if config.normalize or config.chunk_length_s is not None or config.use_causal_conv:
            raise UserError(f"codec {id} is causal, normalises or chunks its input: MusicGen's EnCodec does not.")
        self.model = model.eval().requires_grad_(False).float()
        self._turn: AbstractContextManager[object] = nullcontext()
        self.spec = CodecSpec(
            id=id,
            sha256=state_sha256(model.state_dict()),
            sample_rate=config.sampling_rate,
            frame_rate=config.frame_rate,
            channels=channels,
            n_q=channels * model.quantizer.get_num_quantizers_for_bandwidth(config.target_bandwidths[-1]),
            card=config.codebook_size,
        )

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        device = next(self.model.parameters()).device
        assert isinstance(device, torch.device)
        return device

    def to(self, device: torch.device | str) -> "Codec":
        """Moves the codec; returns itself. On a GPU one thread at a time uses it: memory is that of one batch."""
        self.model.to(device)
        self._turn = nullcontext() if torch.device(device).type == "cpu" else threading.Lock()
        return self

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """Codes int64 [B, K, T] of a waveform float [B, C, L], T = ceil(L / hop_length)."""
        mono = waveform.to(self.device, torch.float32).flatten(0, 1)[:, None]  # [B, C, L] -> [B * C, 1, L]
        with self._turn:
            codes: Tensor = self.model.encode(mono, bandwidth=self._bandwidth).audio_codes[0]
        # [B * C, K / C, T] -> [B, C, K / C, T] -> [B, K / C, C, T] -> [B, K, T]
        B, C, T = waveform.shape[0], self.spec.channels, codes.shape[-1]
        return codes.view(B, C, -1, T).transpose(1, 2).reshape(B, -1, T)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Waveform float [B, C, L] of codes int64 [B, K, T], L = T * hop_length."""
        B, C, T = codes.shape[0], self.spec.channels, codes.shape[2]
        mono = codes.to(self.device).view(B, -1, C, T).transpose(1, 2).reshape(B * C, -1, T)
        with self._turn:
            waveform: Tensor = self.model.decode(mono[None], [None]).audio_values  # [B * C, 1, L]
        return waveform.view(B, C, -1)

    def encode_track(
        self, blocks: Iterable[np.ndarray], *, window_s: float = 30.0, context_s: float = 2.0, windows_at_once: int = 1
    ) -> np.ndarray:
        """Codes uint16 [K, T] of a whole track, see ``encode_windows``."""
        windows = self.encode_windows(blocks, window_s=window_s, context_s=context_s, windows_at_once=windows_at_once)
        parts = [window.kept_codes for window in windows]
        return np.concatenate(parts, axis=1) if parts else np.zeros((self.spec.n_q, 0), dtype=np.uint16)

    def encode_windows(
        self, blocks: Iterable[np.ndarray], *, window_s: float = 30.0, context_s: float = 2.0, windows_at_once: int = 1
    ) -> "Iterator[Window]":
        """Encodes a track window by window, so that memory does not grow with its length.

        The encoder looks about 4 frames ahead, and its LSTM remembers what came before. So each window carries
        ``context_s`` of audio on both sides, whose codes are thrown away. A track no longer than one window gives
        exactly the codes of ``encode``; of a longer one nearly all codes are those of one piece, the first codebook's
        most of all (tests/test_codec.py).

        Args:
            blocks: float32 [C, L] pieces of the track, of any lengths, at the codec's rate and channels.
            window_s: seconds of codes kept from each window.
            context_s: seconds of audio around them.
            windows_at_once: windows of one batch; only a track's own, so that its codes do not depend on the others.
        """
        frame_rate, hop = self.spec.frame_rate, self.spec.hop_length
        keep, context = round(window_s * frame_rate) * hop, round(context_s * frame_rate) * hop
        waiting: list[tuple[np.ndarray, slice]] = []

        def encoded() -> Iterator[Window]:
            if waiting:
                codes = self.encode(torch.from_numpy(np.stack([samples for samples, _ in waiting])))  # [B, K, T]
                for (samples, kept), of_window in zip(waiting, codes, strict=True):
                    yield Window(samples, of_window, kept, hop)
                waiting.clear()

        for window in _windows(blocks, keep=keep, context=context):
            if waiting and (len(waiting) == windows_at_once or waiting[0][0].shape != window[0].shape):
                yield from encoded()
            waiting.append(window)
        yield from encoded()

    @property
    def _bandwidth(self) -> float:
        return float(self.model.config.target_bandwidths[-1])


def _windows(blocks: Iterable[np.ndarray], *, keep: int, context: int) -> Iterator[tuple[np.ndarray, slice]]:
    """Windows of a stream of samples, float32 [C, L], and which of their samples count.

    Each but the first begins with ``context`` samples of the one before; each but the last ends with ``context``
    samples of the one after. The parts that count join without gap or overlap.
    """
    pending: list[np.ndarray] = []
    num_pending, left = 0, 0  # samples at hand; how many of them are the context of what comes next
    for block in blocks:
        pending.append(block)
        num_pending += block.shape[1]
        while num_pending > left + keep + context:
            samples = np.concatenate(pending, axis=1)
            yield np.ascontiguousarray(samples[:, : left + keep + context]), slice(left, left + keep)
            start = max(left + keep - context, 0)
            pending, num_pending = [samples[:, start:]], samples.shape[1] - start
            left = left + keep - start
    if num_pending:
        yield np.concatenate(pending, axis=1), slice(left, None)
