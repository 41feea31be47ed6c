"""Patterns: in which order K parallel codebooks become one sequence of steps, and back.

B batch, K codebooks, T frames, S sequence steps. Step 0 is empty, and each code (k, t) stands at exactly one later
step: ``Pattern.steps`` says at which. Every other place of the sequence holds the special token. All else follows:
interleaving scatters the codes to their steps, its inverse gathers them, and the logits that predict a code are those
of the step before it. Source: MusicGen (arXiv:2306.05284) section 2.2; each pattern equals the audiocraft provider
that its docstring names (tests/parity); spec section 3.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

PatternName = Literal["delay", "parallel", "unroll", "coarse_first", "musiclm"]
"""audiocraft's words, as ``codebooks_pattern.modeling`` has them."""


class Pattern(ABC):
    """A place in the sequence for each code; patterns that are equal have equal hashes."""

    @abstractmethod
    def steps(self, num_frames: int) -> Tensor:
        """The step of each code of ``num_frames`` frames: int64 [K, T], at least 1, rising along each codebook."""

    @abstractmethod
    def num_steps(self, num_frames: int) -> int:
        """Steps of the whole sequence of ``num_frames`` frames, the empty first one included."""

    @property
    def num_last_steps(self) -> int:
        """Steps at the end of a sequence for the rest of the delayed codebooks alone: training leaves them out."""
        return 0

    def num_valid_steps(self, num_frames: int) -> int:
        """Steps of the sequence as training cuts it: audiocraft's ``keep_only_valid_steps``."""
        return self.num_steps(num_frames) - self.num_last_steps

    @property
    def num_margin_frames(self) -> int | None:
        """Frames of padding that a sequence must keep after its last frame to predict that as a longer one would.

        None where the steps depend on T: no shorter sequence is part of a longer one.
        """
        return self.num_last_steps

    def interleave(self, codes: Tensor, special_token_id: int) -> Tensor:
        """The whole sequence of the codes.

        Args:
            codes: int64 [B, K, T].
            special_token_id: stands wherever the pattern holds no code.

        Returns:
            int64 [B, K, S] with S = ``num_steps(T)``.
        """
        B, K, T = codes.shape
        steps = self._steps_on(codes.device, K, T)
        sequence = codes.new_full((B, K, self.num_steps(T)), special_token_id)
        return sequence.scatter_(2, steps.expand(B, K, T), codes)

    def deinterleave(self, sequence: Tensor) -> Tensor:
        """The codes of a whole sequence, the inverse of ``interleave``: int64 [B, K, S] -> [B, K, T]."""
        B, K, S = sequence.shape
        T = _num_frames(S, self.num_steps)
        return sequence.gather(2, self._steps_on(sequence.device, K, T).expand(B, K, T))

    def align_logits(self, logits: Tensor, num_frames: int | None = None) -> Tensor:
        """Moves each codebook's logits from the step that predicts a frame to that frame.

        Args:
            logits: float [B, K, S, card], of the first S steps; those of step s predict step s + 1.
            num_frames: T; by default that of a training sequence, which feeds ``num_valid_steps(T) - 1`` steps.

        Returns:
            float [B, K, T, card]; NaN where no step predicts the frame, so that a loss that forgets ``frame_mask``
            shows at once.
        """
        B, K, S, card = logits.shape
        T = _num_frames(S + 1, self.num_valid_steps) if num_frames is None else num_frames
        before = self._steps_on(logits.device, K, T) - 1
        rows = before.clamp(max=S - 1) + S * torch.arange(K, device=logits.device)[:, None]
        # Whole rows of card logits at once: forward and backward take 48 ms where slices of each codebook take 83
        # (logits [2, 4, 500, 2048] on one CPU core).
        aligned = logits.flatten(1, 2).index_select(1, rows.flatten()).view(B, K, T, card)
        return aligned.masked_fill_((before >= S)[..., None], torch.nan)

    def frame_mask(self, num_frames: int, *, device: torch.device | str = "cpu") -> Tensor:
        """True where the valid steps of ``num_frames`` frames predict a frame: bool [K, T]."""
        return _steps(self, num_frames, torch.device(device)) < self.num_valid_steps(num_frames)

    def step_mask(self, num_frames: int) -> Tensor:
        """True where the whole sequence of ``num_frames`` frames holds a code: bool [K, S]."""
        steps = _steps(self, num_frames, torch.device("cpu"))
        mask = torch.zeros(steps.shape[0], self.num_steps(num_frames), dtype=torch.bool)
        return mask.scatter_(1, steps, True)

    def _steps_on(self, device: torch.device, num_codebooks: int, num_frames: int) -> Tensor:
        """``steps``, kept from call to call; refuses codes with another number of codebooks than the pattern's."""
        steps = _steps(self, num_frames, device)
        if num_codebooks != steps.shape[0]:
            raise ValueError(f"codes have {num_codebooks} codebooks, the pattern has {steps.shape[0]}")
        return steps


@dataclass(frozen=True)
class DelayPattern(Pattern):
    """Each codebook lags behind the first: frame t of codebook k stands at step 1 + t + delays[k].

    The released models have it: (0, 1, 2, 3), in stereo (0, 0, 1, 1, 2, 2, 3, 3). The paper's partial delay is
    (0, 1, 1, 1). audiocraft: ``DelayedPatternProvider``.
    """

    delays: tuple[int, ...]
    """Steps, one for each codebook, not falling."""

    def __post_init__(self) -> None:
        _check_delays(self.delays)

    @property
    def max_delay(self) -> int:
        """Steps that the last codebook lags behind."""
        return self.delays[-1]

    @property
    def num_last_steps(self) -> int:
        """Steps that the last codebook lags behind the first."""
        return self.delays[-1] - self.delays[0]

    def steps(self, num_frames: int) -> Tensor:
        """Int64 [K, T]."""
        return 1 + torch.arange(num_frames) + torch.tensor(self.delays)[:, None]

    def num_steps(self, num_frames: int) -> int:
        """S = T + max_delay + 1."""
        return num_frames + self.max_delay + 1


@dataclass(frozen=True)
class ParallelPattern(Pattern):
    """All codebooks of a frame in one step, which predicts each without the others.

    audiocraft: ``ParallelPatternProvider``.
    """

    n_q: int
    """Codebooks K."""

    def steps(self, num_frames: int) -> Tensor:
        """Int64 [K, T]."""
        return (1 + torch.arange(num_frames)).repeat(self.n_q, 1)

    def num_steps(self, num_frames: int) -> int:
        """S = T + 1."""
        return num_frames + 1


@dataclass(frozen=True)
class UnrolledPattern(Pattern):
    """The codebooks of a frame in one step after the other, so that each is predicted from all before it.

    That is the paper's flattening. It may be partial (codebooks share an inner step), and inner steps may lag behind.
    audiocraft: ``UnrolledPatternProvider``.
    """

    n_q: int
    """Codebooks K."""
    flattening: tuple[int, ...] = ()
    """The inner step of each codebook within its frame, not falling; an inner step that none has is an empty step.
    Empty: 0, 1, ..., K - 1, full flattening."""
    delays: tuple[int, ...] = ()
    """Frames that each codebook lags behind, not falling; equal where the inner step is. Empty: none lags behind."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "flattening", self.flattening or tuple(range(self.n_q)))
        object.__setattr__(self, "delays", self.delays or (0,) * self.n_q)
        _check_delays(self.delays, num=self.n_q)
        _check_delays(self.flattening, num=self.n_q, name="flattening")
        if len(set(zip(self.flattening, self.delays, strict=True))) != len(set(self.flattening)):
            raise ValueError(
                f"flattening {self.flattening}, delays {self.delays}: codebooks of one inner step need one delay"
            )

    @property
    def num_last_steps(self) -> int:
        """Frames that the last codebook lags behind the first; audiocraft counts as many steps."""
        return self.delays[-1] - self.delays[0]

    def steps(self, num_frames: int) -> Tensor:
        """Int64 [K, T].

        An inner step of frame t comes up in turn t + its delay. In each turn the empty steps come first, then the
        inner steps from the earliest frame to the latest.
        """
        delays, inner = torch.tensor(self.delays), torch.tensor(self.flattening)
        turns = torch.arange(num_frames) + delays[:, None]  # [K, T]
        group_inner, group_delays = torch.tensor(list(self._groups.items())).T
        comes_first = (group_delays > delays[:, None]) | (
            (group_delays == delays[:, None]) & (group_inner < inner[:, None])
        )
        # Before each code: an inner step of each group for each turn since its first, the present one's if it is first
        before = (turns[..., None] - group_delays + comes_first[:, None].long()).clamp(min=0).sum(-1)
        steps: Tensor = 1 + before + self._num_empty * (turns + 1)
        return steps

    def num_steps(self, num_frames: int) -> int:
        """S = 1 + (T + largest delay) for each inner step, less the delay of its codebooks; K T + 1 if none lags."""
        turns = num_frames + self.delays[-1]
        return 1 + turns * self._num_empty + sum(turns - delay for delay in self._groups.values())

    @property
    def _groups(self) -> dict[int, int]:
        """Inner step -> delay of its codebooks."""
        return dict(zip(self.flattening, self.delays, strict=True))

    @property
    def _num_empty(self) -> int:
        return self.flattening[-1] + 1 - len(self._groups)


@dataclass(frozen=True)
class CoarseFirstPattern(Pattern):
    """The whole first codebook, then the others side by side.

    The step of a fine code depends on T: generate as many frames as the model was trained on.
    audiocraft: ``CoarseFirstPattern``.
    """

    n_q: int
    """Codebooks K, at least 2."""
    delays: tuple[int, ...] = ()
    """Steps, one for each codebook but the first, not falling. Empty: none lags behind."""

    def __post_init__(self) -> None:
        if self.n_q < 2:
            raise ValueError(f"coarse first with n_q={self.n_q}: expected at least 2 codebooks")
        object.__setattr__(self, "delays", self.delays or (0,) * (self.n_q - 1))
        _check_delays(self.delays, num=self.n_q - 1)

    @property
    def num_last_steps(self) -> int:
        """Steps that the last codebook lags behind the second."""
        return self.delays[-1] - self.delays[0]

    @property
    def num_margin_frames(self) -> None:
        """None."""
        return None

    def steps(self, num_frames: int) -> Tensor:
        """Int64 [K, T]."""
        begins = torch.tensor([0, *(num_frames + delay for delay in self.delays)])
        return 1 + torch.arange(num_frames) + begins[:, None]

    def num_steps(self, num_frames: int) -> int:
        """S = 2 T + 1 + the largest delay."""
        return 2 * num_frames + 1 + self.delays[-1]


@dataclass(frozen=True)
class MusicLMPattern(Pattern):
    """Groups of codebooks: the whole first group, flattened, then the next.

    As with ``CoarseFirstPattern``, steps depend on T. audiocraft: ``MusicLMPattern``.
    """

    n_q: int
    """Codebooks K."""
    group_by: int = 2
    """Codebooks of a group; a divisor of K."""

    def __post_init__(self) -> None:
        if self.group_by < 1 or self.n_q % self.group_by:
            raise ValueError(f"group_by {self.group_by}: expected a divisor of n_q={self.n_q}")

    @property
    def num_margin_frames(self) -> None:
        """None."""
        return None

    def steps(self, num_frames: int) -> Tensor:
        """Int64 [K, T]."""
        k = torch.arange(self.n_q)[:, None]
        groups_before = k // self.group_by * self.group_by * num_frames
        return 1 + groups_before + torch.arange(num_frames) * self.group_by + k % self.group_by

    def num_steps(self, num_frames: int) -> int:
        """S = K T + 1."""
        return self.n_q * num_frames + 1


def make_pattern(
    name: PatternName, delays: tuple[int, ...], *, flattening: tuple[int, ...] = (), group_by: int = 0
) -> Pattern:
    """The pattern of a description in plain data.

    Args:
        name: its kind.
        delays: one for each codebook: K of them, whatever the kind. All 0 for ``parallel`` and ``musiclm``, and the
            first 0 for ``coarse_first``.
        flattening: of ``unroll``, where it is not full.
        group_by: of ``musiclm``.

    Raises:
        ValueError: if a part does not belong to the kind, or is not well formed.
    """
    n_q = len(delays)
    if flattening and name != "unroll":
        raise ValueError(f"pattern {name} with flattening {flattening}: only unroll has one")
    if group_by and name != "musiclm":
        raise ValueError(f"pattern {name} with group_by {group_by}: only musiclm has it")
    if any(delays) and name in ("parallel", "musiclm"):
        raise ValueError(f"pattern {name} with delays {delays}: expected all 0")
    if name == "coarse_first" and delays[:1] != (0,):
        raise ValueError(f"pattern coarse_first with delays {delays}: expected 0 for the first codebook")
    patterns: dict[PatternName, Callable[[], Pattern]] = {
        "delay": lambda: DelayPattern(delays),
        "parallel": lambda: ParallelPattern(n_q),
        "unroll": lambda: UnrolledPattern(n_q, flattening, delays),
        "coarse_first": lambda: CoarseFirstPattern(n_q, delays[1:]),
        "musiclm": lambda: MusicLMPattern(n_q, group_by or 2),
    }
    if name not in patterns:
        raise ValueError(f"pattern {name!r}: expected one of {', '.join(patterns)}")
    return patterns[name]()


@lru_cache(maxsize=256)
def _steps(pattern: Pattern, num_frames: int, device: torch.device) -> Tensor:
    """``pattern.steps``, made once for each length and device; not to be changed."""
    with torch.inference_mode(False):  # validation may be the first to ask, and autograd keeps no inference tensors
        return pattern.steps(num_frames).to(device)


def _num_frames(num_steps: int, count: Callable[[int], int]) -> int:
    """The number of frames that ``count`` gives so many steps; every pattern's steps grow evenly with its frames."""
    first, each = count(0), count(1) - count(0)
    num_frames = (num_steps - first) // each
    if num_frames < 0 or count(num_frames) != num_steps:
        raise ValueError(f"{num_steps} steps fit no number of frames: expected {first} and {each} for each")
    return num_frames


def _check_delays(delays: tuple[int, ...], *, num: int | None = None, name: str = "delays") -> None:
    if not delays or delays[0] < 0 or list(delays) != sorted(delays):
        raise ValueError(f"{name} {delays}: expected at least one, not negative and not falling")
    if num is not None and len(delays) != num:
        raise ValueError(f"{name} {delays}: expected {num}, one for each codebook")
