"""How far two waveforms are apart to the ear: mel spectrograms at several window lengths.

B batch, L samples.
"""

from functools import lru_cache

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

_FLOOR = 1e-4
"""Added to mel magnitudes before the logarithm: what is quieter counts as silence."""


class MelLoss(nn.Module):
    """Mean over windows of L1 distance of log-mel and of mel magnitudes (EnCodec, section 3.4, with magnitudes)."""

    def __init__(self, sample_rate: int, windows: tuple[int, ...] = (128, 256, 512, 1024, 2048)) -> None:
        super().__init__()
        self._sample_rate, self._windows = sample_rate, windows

    def forward(self, waveform: Tensor, reference: Tensor) -> Tensor:
        """The distance, a scalar, of two float32 [B, L], L at least the longest window."""
        total = waveform.new_zeros(())
        for window in self._windows:
            ours, theirs = (self._mel(x, window) for x in (waveform, reference))
            total = total + F.l1_loss((ours + _FLOOR).log(), (theirs + _FLOOR).log()) + F.l1_loss(ours, theirs)
        return total / len(self._windows)

    def _mel(self, waveform: Tensor, window: int) -> Tensor:
        hann, bank = _window_and_bank(window, self._sample_rate)
        spectrum = torch.stft(waveform, window, window // 4, window=hann.to(waveform), return_complex=True).abs()
        mel: Tensor = bank.to(waveform).T @ spectrum * (2 / window) ** 0.5
        return mel


@lru_cache
def _window_and_bank(window: int, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Hann window and mel filters float32 [window // 2 + 1, mels]; as many mels as their lowest filters hold bins."""
    mels = min(64, window // 16)
    bank = torchaudio.functional.melscale_fbanks(
        window // 2 + 1, 0.0, sample_rate / 2, mels, sample_rate, norm=None, mel_scale="htk"
    )
    return torch.hann_window(window), bank
