"""Text conditioning: descriptions to the hidden states of a frozen T5 encoder.

B batch, N text tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TextStates:
    """What the language model is conditioned on."""

    states: Tensor
    """float [B, N, text_dim]: last hidden states of T5."""
    mask: Tensor
    """bool [B, N]: true where there is a token; a row that is all false is the null condition of CFG."""

    def to(self, device: torch.device | str) -> "TextStates":
        """The same on another device."""
        return TextStates(self.states.to(device), self.mask.to(device))

    def repeat_interleave(self, repeats: int) -> "TextStates":
        """Each row ``repeats`` times in a row."""
        return TextStates(self.states.repeat_interleave(repeats, 0), self.mask.repeat_interleave(repeats, 0))


class TextEncoder:
    """T5's encoder and its tokenizer, frozen, in fp32.

    It is no ``nn.Module``, so that it never enters a state dict, an optimizer or ``train()``. A missing or empty
    description is the null condition, as in audiocraft's ``T5Conditioner``; transformers' processor would keep the
    end token of an empty text (spec 8.3). Nothing is truncated: T5's positions are relative.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Any, *, id: str) -> None:
        self.encoder = encoder.eval().requires_grad_(False).float()
        self.tokenizer = tokenizer
        self.id = id
        """Where the encoder came from: a hub id or a folder's name."""

    @property
    def dim(self) -> int:
        """Width of its hidden states."""
        config: Any = self.encoder.config
        return int(config.d_model)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.encoder.parameters()).device

    def to(self, device: torch.device | str) -> "TextEncoder":
        """Moves the encoder; returns itself."""
        self.encoder.to(device)
        return self

    def tokenize(self, descriptions: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Token ids int64 [B, N] and their mask bool [B, N], padded to the longest, on the encoder's device.

        The mask's row is all false for a missing or blank description.
        """
        texts = [(description or "").strip() for description in descriptions]
        tokens = self.tokenizer(texts, return_tensors="pt", padding=True)
        mask = tokens["attention_mask"].bool()
        mask[[i for i, text in enumerate(texts) if not text]] = False
        return tokens["input_ids"].to(self.device), mask.to(self.device)

    @torch.no_grad()
    def encode(self, descriptions: Sequence[str | None]) -> TextStates:
        """Hidden states of the descriptions; None or blank gives the null condition.

        T5 always runs in fp32, also inside an autocast region, as in audiocraft (spec trap 33).
        """
        ids, mask = self.tokenize(descriptions)
        with torch.autocast(self.device.type, enabled=False):
            states = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return TextStates(states, mask)

    def null(self, batch_size: int) -> TextStates:
        """The null condition: one masked zero vector for each row."""
        return TextStates(
            torch.zeros(batch_size, 1, self.dim, device=self.device),
            torch.zeros(batch_size, 1, dtype=torch.bool, device=self.device),
        )
