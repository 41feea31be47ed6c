"""Looks at a piece while it is generated, and says when nothing that follows can save it.

K codebooks, n frames, C channels, L samples.
"""

import math

import torch
from torch import Tensor

from musicgen_ft.codec import Codec
from musicgen_ft.corpus.quality import SILENCE_DB, mean_square_db
from musicgen_ft.generation.collapse import MAX_SILENT_SHARE, Loop, LoopWatcher
from musicgen_ft.generation.sound import SoundStream

LOOK_FRAMES = 50
"""Frames between two looks at a batch: a second of the released codecs."""


class PieceWatch:
    """Sees the codes of one piece as its frames become whole.

    A piece is lost once its verdict at the end is certain, whatever follows: a loop that was found stays found, and
    where more of the seconds are silent than half of those asked for, more of all will be. A pause is none of that, so
    that no piece is broken off that would have passed.
    """

    def __init__(self, frame_rate: float, *, breaks_off: bool = False) -> None:
        """Frames per second; without ``breaks_off`` it looks for loops alone, and no piece is ever lost."""
        self._frame_rate = frame_rate
        self._breaks_off = breaks_off
        self._watcher = LoopWatcher(frame_rate)
        self._silence: _Silence | None = None
        self._num_frames: int | None = None
        self._num_seen = 0
        self._is_lost = False

    @property
    def loops(self) -> tuple[Loop, ...]:
        """Those in the frames that were seen."""
        return self._watcher.found

    @property
    def num_seen(self) -> int:
        """Frames."""
        return self._num_seen

    @property
    def is_lost(self) -> bool:
        """Whether the piece is broken off behind the frames that were seen."""
        return self._is_lost

    @property
    def broken_off_s(self) -> float | None:
        """Seconds of a piece that was broken off; None where it was not."""
        return self._num_seen / self._frame_rate if self._is_lost else None

    def begin(self, num_frames: int, codec: Codec) -> None:
        """Told before the first frame: how many frames are asked for, and what they sound through."""
        self._num_frames = num_frames
        self._silence = _Silence(codec, num_frames) if self._breaks_off else None

    def add(self, codes: Tensor) -> None:
        """Takes the next whole frames, int64 [K, n]; those behind where the piece was broken off are passed over."""
        if self._is_lost or not codes.shape[1]:
            return
        self._watcher.add(codes)
        self._num_seen += codes.shape[1]
        if self._num_frames is None or not self._breaks_off or self._num_seen >= self._num_frames:
            return  # nothing is left to be spared
        if self._silence is not None:
            self._silence.add(codes)
        self._is_lost = self._watcher.has_found or (self._silence is not None and self._silence.is_certain)


class _Silence:
    """Counts the silent seconds of a piece, as ``measure`` does, until the verdict on them is certain.

    Silence has no codes of its own: noise of -70 dB is as varied as music. So they have to be heard; half of a piece
    that sounds is enough to acquit it, so that no more is decoded.
    """

    def __init__(self, codec: Codec, num_frames: int) -> None:
        self._sound = SoundStream(codec)
        self._rate = codec.spec.sample_rate
        self._pending = torch.zeros(codec.spec.channels, 0)
        self._num_seconds = math.ceil(num_frames * codec.spec.hop_length / self._rate)  # the last one may be a part
        self._num_silent = self._num_sounding = 0

    @property
    def is_certain(self) -> bool:
        """Whether more of all the seconds will be silent than may be."""
        return self._num_silent > MAX_SILENT_SHARE * self._num_seconds

    def add(self, codes: Tensor) -> None:
        """Takes the next frames, int64 [K, n]."""
        if self._num_sounding >= (1 - MAX_SILENT_SHARE) * self._num_seconds:
            return
        known = torch.cat([self._pending, self._sound.decode(codes[None], is_last=False)], dim=1)
        for second in known.split(self._rate, dim=1):
            if second.shape[1] < self._rate:
                break
            is_silent = mean_square_db(second.double().square().mean().item()) < SILENCE_DB
            self._num_silent += is_silent
            self._num_sounding += not is_silent
        self._pending = known[:, known.shape[1] // self._rate * self._rate :]
