"""Melody: the loudest pitch class of each stretch of a track, and how the melody models take it as a condition.

B batch, C pitch classes, L samples, T frames of codes, F frames of chroma.

Equal to audiocraft's ``ChromaExtractor`` with ``argmax`` and to transformers' ``MusicgenMelodyFeatureExtractor``
(tests/parity); spec section 5. A silent or missing melody is pitch class 0 (C), as in both.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Chroma = npt.NDArray[np.uint8]

DROPPED = -1
"""Stands in a batch's chroma where a frame is padding, or its melody is dropped."""

_FRAMES_AT_ONCE = 64  # 8 s at 32 kHz: the spectrum of one such group is all that is held of a track


@dataclass(frozen=True, kw_only=True)
class ChromaSpec:
    """The numbers of a chromagram; read from the base, the values of all released melody models by default."""

    sample_rate: int = 32000
    """Samples per second."""
    n_chroma: int = 12
    """Pitch classes C, from C on."""
    n_fft: int = 16384
    """Samples of a window."""
    hop_length: int = 4096
    """Samples from one chroma frame to the next."""

    def __post_init__(self) -> None:
        if self.n_fft % 2 or not 0 < 2 * self.hop_length < self.n_fft or not 0 < self.n_chroma < 256:
            raise ValueError(f"{self}: expected an even n_fft above twice the hop_length, and 1 to 255 pitch classes")

    def num_frames(self, num_samples: int) -> int:
        """Chroma frames F of a waveform of so many samples; what is shorter than a window counts as one."""
        return 1 + max(num_samples, self.n_fft) // self.hop_length


class ChromaStream:
    """The chroma of a track that comes in pieces: memory does not grow with the track's length.

    Frames are computed in groups of fixed size, whatever the sizes of the pieces, so that these change no bit.
    """

    def __init__(self, spec: ChromaSpec) -> None:
        self.spec = spec
        self._window = torch.hann_window(spec.n_fft)
        self._filters = filter_bank(spec)
        self._parts: list[bytes] = []
        self._pending: list[Tensor] = []
        self._num_pending = 0
        self._is_begun = False

    def push(self, samples: npt.NDArray[np.float32]) -> None:
        """Takes the next samples, float32 [L], mono at the chroma's rate."""
        self._pending.append(torch.from_numpy(np.ascontiguousarray(samples)))
        self._num_pending += len(samples)
        if self._num_pending >= self.spec.n_fft + _FRAMES_AT_ONCE * self.spec.hop_length:
            self._compute(self._begun(), all_of_it=False)

    def watch(self, blocks: Iterable[npt.NDArray[np.float32]]) -> Iterator[npt.NDArray[np.float32]]:
        """Passes blocks float32 [C, L] through, and takes the mean of their channels on the way."""
        for block in blocks:
            self.push(block.mean(axis=0))
            yield block

    def finish(self) -> Chroma:
        """The pitch class of every frame, uint8 [F]; the stream ends here."""
        samples = self._begun()
        half = self.spec.n_fft // 2
        self._compute(F.pad(samples[None], (0, half), mode="reflect")[0], all_of_it=True)
        return np.frombuffer(b"".join(self._parts), dtype=np.uint8).copy()

    def _begun(self) -> Tensor:
        """The samples at hand; at the track's start mirrored to the left, so that frame 0 is centred on sample 0."""
        samples = torch.cat(self._pending) if self._pending else torch.zeros(0)
        if not self._is_begun:
            self._is_begun = True
            missing = max(0, self.spec.n_fft - len(samples))
            samples = F.pad(samples, (missing // 2, missing - missing // 2))
            samples = F.pad(samples[None], (self.spec.n_fft // 2, 0), mode="reflect")[0]
        return samples

    def _compute(self, samples: Tensor, *, all_of_it: bool) -> None:
        """Frames of the samples, in whole groups unless the track ends; keeps the samples of those to come."""
        n_fft, hop = self.spec.n_fft, self.spec.hop_length
        while (num_frames := 1 + (len(samples) - n_fft) // hop) >= (1 if all_of_it else _FRAMES_AT_ONCE):
            num_frames = min(num_frames, _FRAMES_AT_ONCE)
            self._parts.append(self._classes(samples[: (num_frames - 1) * hop + n_fft]))
            samples = samples[num_frames * hop :]
        self._pending, self._num_pending = [samples.clone()], len(samples)

    def _classes(self, samples: Tensor) -> bytes:
        n_fft, hop = self.spec.n_fft, self.spec.hop_length
        spectrum = torch.stft(samples, n_fft, hop, window=self._window, center=False, return_complex=True)
        power = (spectrum / self._window.pow(2).sum().sqrt()).abs().pow(2)  # [n_fft / 2 + 1, F]
        chroma = F.normalize(self._filters @ power, p=torch.inf, dim=0, eps=1e-6)  # [C, F]
        # As bytes, which do not lie in malloc's heap: small arrays between the large ones can keep it from being used
        # again (in one process, though not in every one, it grew by 6 MiB for each minute of audio).
        return chroma.argmax(0).to(torch.uint8).numpy().tobytes()


def chromagram(waveform: npt.NDArray[np.float32], spec: ChromaSpec) -> Chroma:
    """The loudest pitch class of every frame of a mono waveform float32 [L]: uint8 [F], the first where two are equal.

    Source: audiocraft's ``ChromaExtractor``: power spectrum of centred Hann windows, mirrored at the ends, through a
    bank of chroma filters. A waveform shorter than a window is padded with silence on both sides.
    """
    stream = ChromaStream(spec)
    stream.push(waveform)
    return stream.finish()


def filter_bank(spec: ChromaSpec) -> Tensor:
    """Weights of each frequency for each pitch class, float32 [C, n_fft / 2 + 1]; librosa's, from transformers."""
    from transformers.audio_utils import chroma_filter_bank

    filters = chroma_filter_bank(spec.n_fft, spec.n_chroma, spec.sample_rate, tuning=0)
    return torch.from_numpy(filters).float()


def crop_chroma(
    chroma: Chroma, spec: ChromaSpec, *, start: int, num_frames: int, segment_frames: int, hop_length: int
) -> Tensor:
    """The chroma of a crop of codes.

    Args:
        chroma: uint8 [F] of the whole track.
        spec: its numbers.
        start: first frame of the codes.
        num_frames: frames of the track in the crop.
        segment_frames: frames of the crop, padding included.
        hop_length: samples of one frame of the codes, at the chroma's sample rate.

    Returns:
        int64 [F'], with ``DROPPED`` where the crop is padding. F' is 234 for 30 s, one less than the chroma of those
        30 s alone would have.

    Source: the chunk that audiocraft's ``ChromaStemConditioner`` takes of a cached chroma, from
    ``int(frame_rate * seek_time)`` on, and its mask by length (spec 5).
    """
    length = segment_frames * hop_length // spec.hop_length
    valid = -(-num_frames * hop_length // spec.hop_length)
    first = start * hop_length // spec.hop_length
    found = chroma[first : first + min(length, valid)]
    crop = torch.full((length,), DROPPED, dtype=torch.int64)
    crop[: len(found)] = torch.from_numpy(found.astype(np.int64))
    return crop


@dataclass(frozen=True)
class MelodyStates:
    """What a melody model is conditioned on, beside the text."""

    one_hot: Tensor
    """float [B, F, C]: 1 at the loudest pitch class."""
    mask: Tensor
    """bool [B, F]: true where the model sees it; elsewhere it sees a zero vector."""

    def to(self, device: torch.device | str) -> "MelodyStates":
        """The same on another device."""
        return MelodyStates(self.one_hot.to(device), self.mask.to(device))


def training_melody(chroma: Tensor, spec: ChromaSpec) -> MelodyStates:
    """The condition in training: zero vectors wherever the chroma, int64 [B, F], is ``DROPPED``."""
    one_hot = F.one_hot(chroma.clamp(min=0), spec.n_chroma).float()
    return MelodyStates(one_hot, chroma >= 0)


def training_null(batch_size: int, spec: ChromaSpec) -> MelodyStates:
    """No melody, in training: the frames of one empty window, 5 zero vectors in the released models."""
    return training_melody(torch.full((batch_size, spec.num_frames(1)), DROPPED), spec)


def generation_melody(chroma: Tensor, spec: ChromaSpec, *, duration_s: float) -> MelodyStates:
    """The condition in generation: repeated or cut to the length that the model was trained on, nothing masked.

    Args:
        chroma: int64 [B, F]; ``DROPPED`` counts as pitch class 0, the null condition.
        spec: its numbers.
        duration_s: seconds that the model was trained on; 30 s are 235 frames.

    Source: ``match_len_on_eval``, which audiocraft's ``MusicGen.get_pretrained`` sets, and the padding of
    transformers' ``MusicgenMelodyForConditionalGeneration`` (spec 5).
    """
    length = spec.num_frames(int(spec.sample_rate * duration_s))
    repeated = chroma.clamp(min=0).repeat(1, -(-length // chroma.shape[1]))[:, :length]
    return training_melody(repeated, spec)


def generation_null(batch_size: int, spec: ChromaSpec, *, duration_s: float) -> MelodyStates:
    """No melody, in generation: pitch class 0 all the time, which is no zero vector (spec trap 17)."""
    return generation_melody(torch.zeros(batch_size, 1, dtype=torch.int64), spec, duration_s=duration_s)
