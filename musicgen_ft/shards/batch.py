"""One batch of crops, as the training module receives it.

B batch, K codebooks, T frames, F frames of chroma.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Crop(NamedTuple):
    """One sample: a stretch of a track with its text."""

    codes: Tensor
    """int64 [K, T], values in [0, card), and ``card`` where the frame is padding."""
    mask: Tensor
    """bool [T], true where a frame is audio."""
    description: str | None
    """Text for T5; None is the null condition."""
    key: str
    """The track's key."""
    position: int
    """Position in the order of training, or number of the crop in validation."""
    chroma: Tensor | None = None
    """int64 [F], the pitch class of each chroma frame, -1 where it is padding or dropped; None where the shards have
    none."""


class Batch(NamedTuple):
    """Crops of equal length. All entries have the same order.

    A named tuple and not a frozen dataclass, because Lightning's half-precision plugins rebuild a batch field by field
    (``apply_to_collection``), which a frozen dataclass refuses (test_batch.py).
    """

    codes: Tensor
    """int64 [B, K, T], values in [0, card), and ``card`` where the frame is padding."""
    mask: Tensor
    """bool [B, T], true where a frame is audio."""
    descriptions: tuple[str | None, ...]
    """B texts for T5; None is the null condition."""
    keys: tuple[str, ...]
    """B keys of tracks."""
    positions: tuple[int, ...]
    """B positions in the order of training, or numbers of the crops in validation."""
    chroma: Tensor | None = None
    """int64 [B, F], pitch classes, -1 where a frame is padding or dropped; None where the shards have none."""

    def to(self, device: Any, *, non_blocking: bool | None = None) -> "Batch":
        """The batch on ``device``; Lightning calls it.

        Args:
            device: anything that ``torch.device`` takes.
            non_blocking: does not wait for the copy; by default on CUDA only, where the stream keeps the order.
        """
        device = torch.device(device)
        if non_blocking is None:
            non_blocking = bool(device.type == "cuda")
        return self._replace(
            codes=self.codes.to(device, non_blocking=non_blocking),
            mask=self.mask.to(device, non_blocking=non_blocking),
            chroma=None if self.chroma is None else self.chroma.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the DataLoader calls it."""
        chroma = None if self.chroma is None else self.chroma.pin_memory()
        return self._replace(codes=self.codes.pin_memory(), mask=self.mask.pin_memory(), chroma=chroma)


def collate(crops: Sequence[Crop], *, margin_frames: int | None = None) -> Batch:
    """Stacks crops of equal length.

    Args:
        crops: at least one.
        margin_frames: cuts off what is padding in all of them, but for so many frames (a pattern's
            ``num_margin_frames``); None leaves it. The melody keeps its length.
    """
    codes, mask, descriptions, keys, positions, chroma = zip(*crops, strict=True)
    stacked = None if chroma[0] is None else torch.stack(chroma)
    all_codes, all_mask = torch.stack(codes), torch.stack(mask)
    if margin_frames is not None:
        T = int(all_mask.sum(1).max()) + margin_frames
        all_codes, all_mask = all_codes[:, :, :T].contiguous(), all_mask[:, :T].contiguous()
    return Batch(all_codes, all_mask, descriptions, keys, positions, stacked)
