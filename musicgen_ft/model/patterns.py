"""The delay pattern: K parallel codebooks become one sequence of steps, and back.

B batch, K codebooks, T frames, S sequence steps. Step 0 is empty; frame t of codebook k stands at step
1 + t + delays[k]; every other place holds the special token. Source: MusicGen (arXiv:2306.05284) section 2.2;
audiocraft's ``DelayedPatternProvider``; spec section 3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DelayPattern:
    """How many steps each codebook lags behind the first."""

    delays: tuple[int, ...]
    """Steps, one for each codebook, not falling; (0, 1, 2, 3) in the released mono models."""

    def __post_init__(self) -> None:
        if not self.delays or self.delays[0] < 0 or list(self.delays) != sorted(self.delays):
            raise ValueError(f"delays {self.delays}: expected at least one, not negative and not falling")

    @property
    def max_delay(self) -> int:
        """Steps that the last codebook lags behind."""
        return self.delays[-1]

    def num_steps(self, num_frames: int) -> int:
        """Steps of the whole sequence of ``num_frames`` frames, the empty first one included."""
        return num_frames + self.max_delay + 1

    def interleave(self, codes: Tensor, special_token_id: int) -> Tensor:
        """The whole sequence of the codes.

        Args:
            codes: int64 [B, K, T].
            special_token_id: stands wherever the pattern holds no code.

        Returns:
            int64 [B, K, S] with S = T + max_delay + 1.
        """
        B, K, T = codes.shape
        self._check_codebooks(K)
        sequence = codes.new_full((B, K, self.num_steps(T)), special_token_id)
        for k, delay in enumerate(self.delays):
            sequence[:, k, 1 + delay : 1 + delay + T] = codes[:, k]
        return sequence

    def deinterleave(self, sequence: Tensor) -> Tensor:
        """The codes of a whole sequence, the inverse of ``interleave``: int64 [B, K, S] -> [B, K, T]."""
        _, K, S = sequence.shape
        self._check_codebooks(K)
        T = S - self.max_delay - 1
        return torch.stack([sequence[:, k, 1 + delay : 1 + delay + T] for k, delay in enumerate(self.delays)], dim=1)

    def align_logits(self, logits: Tensor) -> Tensor:
        """Moves each codebook's logits from the step that predicts a frame to that frame.

        The logits of step s predict step s + 1, so those of frame t of codebook k stand at step t + delays[k].

        Args:
            logits: float [B, K, S, card], of the first S steps.

        Returns:
            float [B, K, S, card], its third axis counting frames; NaN where no step predicts the frame, so that a
            loss that forgets ``frame_mask`` shows at once.
        """
        aligned = torch.full_like(logits, torch.nan)
        S = logits.shape[2]
        for k, delay in enumerate(self.delays):
            aligned[:, k, : max(S - delay, 0)] = logits[:, k, delay:]
        return aligned

    def frame_mask(self, num_frames: int) -> Tensor:
        """True where the first ``num_frames`` steps predict a frame, bool [K, T]: not codebook k's last delays[k]."""
        frames = torch.arange(num_frames)
        return frames + torch.tensor(self.delays)[:, None] < num_frames

    def step_mask(self, num_frames: int) -> Tensor:
        """True where the whole sequence of ``num_frames`` frames holds a code: bool [K, S]."""
        frames = torch.arange(self.num_steps(num_frames)) - 1 - torch.tensor(self.delays)[:, None]
        return (frames >= 0) & (frames < num_frames)

    def _check_codebooks(self, num_codebooks: int) -> None:
        if num_codebooks != len(self.delays):
            raise ValueError(f"codes have {num_codebooks} codebooks, the pattern has {len(self.delays)} delays")
