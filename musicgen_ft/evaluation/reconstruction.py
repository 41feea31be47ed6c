"""What a codec loses: a waveform beside what comes back of its codes.

B batch, C channels, L samples, K codebooks, T frames, M mel bands, F frames of a spectrogram.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from musicgen_ft.codec import Codec

MEL_BANDS = 80
WINDOW_S, HOP_S = 0.064, 0.016
FLOOR = 1e-4
"""-80 dB against a sine at full scale: what is below counts as silence."""


def log_mel_distance(reference: Tensor, estimate: Tensor, sample_rate: int) -> Tensor:
    """Mean absolute difference of the natural logarithms of two mel spectrograms, float [...] in nepers.

    Magnitudes (not powers) of a centred STFT with a Hann window of 64 ms every 16 ms, 1 where a sine is at full scale,
    in 80 triangular bands of the HTK mel scale from 0 Hz to half the sample rate; what is below FLOOR is raised to it.
    1 neper is 8.7 dB.

    Args:
        reference: float [..., L], full scale at 1.
        estimate: float [..., L].
        sample_rate: in Hz.

    Source: the distance by which HiFi-GAN (arXiv:2010.05646) is trained and EnCodec-like codecs are compared.
    """
    difference = _log_mel(reference, sample_rate) - _log_mel(estimate, sample_rate)
    return difference.abs().mean((-2, -1))


def si_sdr_db(reference: Tensor, estimate: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio, float [...] in dB; higher is better.

    Args:
        reference: float [..., L].
        estimate: float [..., L].

    Source: Le Roux et al., "SDR - half-baked or well done?" (2019); equal to torchmetrics'
    ``scale_invariant_signal_distortion_ratio``, which does not take the mean away either.
    """
    tiny = torch.finfo(estimate.dtype).eps
    scale = ((estimate * reference).sum(-1, keepdim=True) + tiny) / ((reference**2).sum(-1, keepdim=True) + tiny)
    target = scale * reference
    ratio = ((target**2).sum(-1) + tiny) / (((target - estimate) ** 2).sum(-1) + tiny)
    return 10 * torch.log10(ratio)


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A clip that went through the codec."""

    waveform: Tensor
    """What came back, float32 [C, L] on the CPU."""
    codes: Tensor
    """int64 [K, T] on the CPU."""
    log_mel: float
    """Distance in nepers, see ``log_mel_distance``."""
    si_sdr_db: float
    """See ``si_sdr_db``; both are means over the channels."""


def reconstruct(codec: Codec, waveform: Tensor) -> Reconstruction:
    """Encodes and decodes a clip float [C, L] at the codec's rate and channels."""
    codes = codec.encode(waveform[None])
    back = codec.decode(codes)[0, :, : waveform.shape[1]].cpu()
    reference = waveform.float().cpu()
    return Reconstruction(
        waveform=back,
        codes=codes[0].cpu(),
        log_mel=float(log_mel_distance(reference, back, codec.spec.sample_rate).mean()),
        si_sdr_db=float(si_sdr_db(reference, back).mean()),
    )


@dataclass(frozen=True, kw_only=True)
class CodebookUse:
    """How much of a codebook is used."""

    used: float
    """Share of its entries that occur, in [0, 1]."""
    perplexity: float
    """exp of the entropy of its codes: as many equally frequent entries would carry as much; at most the entries."""


def codebook_use(codes: Iterable[Tensor], card: int) -> list[CodebookUse]:
    """How each of K codebooks is used over clips.

    Args:
        codes: int64 [K, T] each, the same K, T of any length.
        card: entries of a codebook.
    """
    joined = torch.cat(list(codes), dim=1)
    found = []
    for of_codebook in joined:
        counts = torch.bincount(of_codebook, minlength=card).double()
        shares = counts / counts.sum()
        entropy = -torch.special.xlogy(shares, shares).sum()
        found.append(CodebookUse(used=float((counts > 0).double().mean()), perplexity=float(entropy.exp())))
    return found


def _log_mel(waveform: Tensor, sample_rate: int) -> Tensor:
    """Float [..., F, M]."""
    size, hop = round(WINDOW_S * sample_rate), round(HOP_S * sample_rate)
    window = torch.hann_window(size, dtype=waveform.dtype, device=waveform.device)
    flat = waveform.reshape(-1, waveform.shape[-1])
    spectrum = torch.stft(flat, size, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    magnitudes = spectrum.abs().mT * (2 / window.sum())  # [..., F, bins]
    mel = magnitudes @ _mel_bank(size, sample_rate).to(magnitudes)
    return mel.clamp(min=FLOOR).log().reshape(*waveform.shape[:-1], -1, MEL_BANDS)


@cache
def _mel_bank(size: int, sample_rate: int) -> Tensor:
    import torchaudio

    bank: Tensor = torchaudio.functional.melscale_fbanks(
        size // 2 + 1, f_min=0.0, f_max=sample_rate / 2, n_mels=MEL_BANDS, sample_rate=sample_rate, mel_scale="htk"
    )
    return bank
