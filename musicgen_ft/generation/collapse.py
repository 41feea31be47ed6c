"""What goes wrong in generated music that nobody has to listen to: it falls silent, or repeats itself exactly.

K codebooks, n frames, C channels, L samples, P periods.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from musicgen_ft.corpus.meters import QualityMeter

MAX_PERIOD_S = 30.0
"""Longest period of a loop: the model sees no more than this, so that it cannot copy from farther back."""
MIN_REPETITIONS = 3
"""A phrase that comes twice is form; a model that has copied every code of it twice goes on so."""
MIN_REPEATED_S = 2.0
"""Seconds that must say nothing new: a held chord, or a rest within the music, is shorter."""
MIN_SILENCE_S = 2.0
"""Seconds of silence at the end that are no last chord ringing out."""
MAX_SILENT_SHARE = 0.5
"""Of the seconds; music with more silence than sound has collapsed, wherever the silence is."""

Run = tuple[int, int, int]
"""First frame, the one after the last, and period."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A stretch of music whose codes, of all codebooks, repeat exactly."""

    start_s: float
    """Where it begins."""
    stop_s: float
    """Where it ends."""
    period_s: float
    """Seconds after which it repeats; a frame's where the model is stuck on one sound."""
    repetitions: int
    """Whole periods in it, the first one too."""


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """What of a piece is silent or repeats itself; silence as of a corpus (``corpus/quality.py``)."""

    duration_s: float
    """Seconds of the piece."""
    loops: tuple[Loop, ...]
    """Exact repetitions, by start; none where the codes are not known."""
    silent_share: float
    """Share of the seconds whose level is below SILENCE_DB, in [0, 1]."""
    ends_silent_s: float
    """Seconds after the last sound above SILENCE_DB; all of them where there is none."""
    is_silent: bool
    """Whether there is no sound at all."""

    @property
    def is_found(self) -> bool:
        """Whether the piece has collapsed, by the limits above."""
        ends_silent = self.ends_silent_s >= MIN_SILENCE_S
        return bool(self.loops) or self.is_silent or ends_silent or self.silent_share > MAX_SILENT_SHARE

    @property
    def lost_s(self) -> float:
        """Seconds that are silent, or that repeat what came before: the greater of both, which may overlap."""
        silent_s = max(self.silent_share * self.duration_s, self.ends_silent_s)
        return max(silent_s, sum(loop.stop_s - loop.start_s - loop.period_s for loop in self.loops))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value, to the millisecond, with the verdict."""
        values = {"is_found": self.is_found, **asdict(self), "loops": [asdict(loop) for loop in self.loops]}
        rounded: dict[str, Any] = _rounded(values)
        return rounded

    def __str__(self) -> str:
        """One line for a terminal: ``falls silent after 4.1 s of 10 s``."""
        parts = []
        if self.is_silent:
            parts.append("is silent throughout")
        elif self.ends_silent_s >= MIN_SILENCE_S:
            parts.append(f"falls silent after {self.duration_s - self.ends_silent_s:.1f} s of {self.duration_s:g} s")
        elif self.silent_share > MAX_SILENT_SHARE:
            parts.append(f"is silent in {self.silent_share:.0%} of its seconds")
        parts += [
            f"repeats {loop.period_s:g} s exactly, {loop.repetitions} times from {loop.start_s:.1f} s on"
            for loop in self.loops
        ]
        return "; ".join(parts) or "has not collapsed"


def measure(samples: npt.NDArray[np.float32], sample_rate: int, *, loops: Sequence[Loop] = ()) -> Collapse:
    """Looks at a whole piece, as the codec gave it: its level must not have been changed.

    Args:
        samples: float32 [C, L], L at least 1; full scale is 1.
        sample_rate: in Hz.
        loops: found in its codes, by ``LoopWatcher``.
    """
    meter = QualityMeter(sample_rate, len(samples))
    meter.push(samples)
    quality, _ = meter.finish()
    is_silent = quality.head_silence_s >= quality.duration_s
    return Collapse(
        duration_s=quality.duration_s,
        loops=tuple(loops),
        silent_share=quality.silent_share,
        ends_silent_s=quality.duration_s if is_silent else quality.tail_silence_s,
        is_silent=is_silent,
    )


class LoopWatcher:
    """Finds exact repetitions in the codes of a piece while it is generated; how they are cut makes no difference.

    For each period it counts for how many frames now every code has been the one of a period before. That is P
    comparisons per frame, at once: linear in the length of the piece.
    """

    def __init__(self, frame_rate: float) -> None:
        """Frames per second."""
        self._frame_rate = frame_rate
        P = math.floor(MAX_PERIOD_S * frame_rate)
        self._periods = np.arange(P, 0, -1)  # in the order of the frames before the newest one
        self._needed = np.maximum((MIN_REPETITIONS - 1) * self._periods, math.ceil(MIN_REPEATED_S * frame_rate))
        self._counts = np.zeros(P, np.int64)
        self._going_on = np.zeros(0, np.int64)  # places of the periods that repeat long enough, now
        self._ended: list[Run] = []
        self._numbers: dict[bytes, int] = {}  # of all codes of a frame
        self._frames = np.full(P, -1)  # their numbers, behind P places that equal none
        self._num_frames = 0

    @property
    def is_looping(self) -> bool:
        """Whether the newest frame belongs to a loop."""
        return len(self._going_on) > 0

    @property
    def has_found(self) -> bool:
        """Whether there is a loop among the frames so far; it stays so."""
        return self.is_looping or bool(self._ended)

    @property
    def found(self) -> tuple[Loop, ...]:
        """The loops so far, by start; those within a longer one, as twice its period is, are left out."""
        runs = [*self._ended, *(self._run(place) for place in self._going_on.tolist())]
        loops, last_stop = [], 0
        for start, stop, period in sorted(runs, key=lambda run: (run[0], -run[1], run[2])):
            if stop > last_stop:
                last_stop = stop
                loops.append(
                    Loop(
                        start_s=start / self._frame_rate,
                        stop_s=stop / self._frame_rate,
                        period_s=period / self._frame_rate,
                        repetitions=(stop - start) // period,
                    )
                )
        return tuple(loops)

    def add(self, codes: Tensor) -> None:
        """Takes the next frames.

        Args:
            codes: int64 [K, n], whole frames: with the delay pattern, those of which every codebook is known.
        """
        P, start = len(self._periods), self._num_frames
        frames = np.ascontiguousarray(codes.detach().cpu().numpy().astype(np.int64).T)  # [n, K]
        numbers = [self._numbers.setdefault(frame.tobytes(), len(self._numbers)) for frame in frames]
        if len(self._frames) < P + start + len(numbers):
            room = np.full(max(len(self._frames), len(numbers)), -1)
            self._frames = np.concatenate([self._frames, room])  # doubled: every frame is moved once, in the mean
        self._frames[P + start : P + start + len(numbers)] = numbers
        for t, number in enumerate(numbers, start=start):
            is_same = self._frames[t : t + P] == number
            if len(self._going_on):
                stays = is_same[self._going_on]
                self._ended += [self._run(place) for place in self._going_on[~stays].tolist()]
                self._going_on = self._going_on[stays]
            self._counts += 1
            self._counts *= is_same
            self._num_frames = t + 1
            begun = np.flatnonzero(self._counts == self._needed)
            if len(begun):
                self._going_on = np.concatenate([self._going_on, begun])

    def _run(self, place: int) -> Run:
        """Of a period that repeats, up to the newest frame."""
        period, stop = int(self._periods[place]), self._num_frames
        return stop - int(self._counts[place]) - period, stop, period


def find_loops(codes: Tensor, frame_rate: float) -> tuple[Loop, ...]:
    """The loops in the codes of a whole piece, int64 [K, T]."""
    watcher = LoopWatcher(frame_rate)
    watcher.add(codes)
    return watcher.found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, 3) if isinstance(value, float) else value
