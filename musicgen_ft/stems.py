"""Stems: the parts of a mix, separated by demucs; a melody without drums and bass, a song without its vocals.

S stems, C channels, L samples. demucs is optional: this module imports it only when a separator is opened.
"""

import functools
import importlib
import importlib.util
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch
from torch import Tensor

from musicgen_ft.demucs_models import DEFAULT_MODEL, INSTALL, open_file, open_folder, open_name
from musicgen_ft.errors import UserError

Samples = npt.NDArray[np.float32]

RHYTHM = ("drums", "bass")
VOCALS = "vocals"

_OVERLAP = 0.25  # of a window and the next: demucs' default, which audiocraft uses
_BLOCK_S = 10.0


class Separator:
    """Separates a track that comes in blocks, in memory that does not grow with its length.

    Equal to demucs' ``apply_model`` on the whole track without random shifts: its overlapping windows, 7.8 s long in
    htdemucs, are computed and cross-faded as the samples come in.

    Attributes:
        sample_rate: samples per second that the model takes and gives, 44100 in all released ones.
        channels: channels that it takes and gives, 2 in all released ones.
        sources: names of the stems.
    """

    def __init__(self, model: Any, *, device: torch.device | str = "cpu") -> None:
        """Takes one of demucs' models, or a ``BagOfModels``, whose stems are the weighted mean of its models'."""
        from demucs.apply import BagOfModels

        bag: Any = model if isinstance(model, BagOfModels) else BagOfModels([model])
        self.sample_rate: int = bag.samplerate
        self.channels: int = bag.audio_channels
        self.sources: tuple[str, ...] = tuple(bag.sources)
        self._device = torch.device(device)
        self._models: list[Any] = list(bag.to(self._device).eval().models)
        self._weights: list[list[float]] = bag.weights

    @classmethod
    def open(cls, name_or_path: str = DEFAULT_MODEL, *, device: torch.device | str = "cpu") -> "Separator":
        """Opens a model by demucs' name for it, from a file, or from a folder of files with a bag's YAML.

        A name is looked for in the caches of torch.hub and of the Hugging Face hub, and fetched if it is in neither.

        Args:
            name_or_path: e.g. ``htdemucs``; or a ``.th`` or ``.safetensors`` file of demucs', or a folder of them.
            device: where it runs.

        Raises:
            UserError: if demucs is not installed, there is no such model, it cannot be fetched, or its file is damaged
                or holds anything but a demucs model.
        """
        if importlib.util.find_spec("demucs") is None or importlib.util.find_spec("demucs.hf") is None:
            raise UserError(f"separating stems takes demucs 4.1 or later, which is not installed. {INSTALL}")
        path = Path(name_or_path)
        if path.is_dir():
            return cls(open_folder(path), device=device)
        if path.is_file():
            return cls(open_file(path), device=device)
        return cls(open_name(name_or_path), device=device)

    def stems(self, blocks: Iterable[Samples], wanted: Sequence[str]) -> Iterator[Samples]:
        """The sum of some stems of a track.

        Args:
            blocks: float32 [C, L] pieces of the track, of any lengths, at ``sample_rate``; with one channel it counts
                for all, as in demucs.
            wanted: names from ``sources``.

        Yields:
            float32 [C, L] pieces with C = ``channels``, of the same length in total.

        Raises:
            UserError: if the model has no stem of that name.
        """
        missing = [name for name in wanted if name not in self.sources]
        if missing or not wanted:
            raise UserError(
                f"the model separates {', '.join(self.sources)}: it has no {' or '.join(missing) or 'other'}."
            )
        indices = [self.sources.index(name) for name in wanted]
        columns = [torch.tensor([weights[k] for k in indices]) for weights in self._weights]
        parts = [(model, weight[:, None, None]) for model, weight in zip(self._models, columns, strict=True)]
        parts = [(model, weight) for model, weight in parts if weight.any()]  # htdemucs_ft has a model for each stem
        total = functools.reduce(torch.add, [weight for _, weight in parts])
        size = round(_BLOCK_S * self.sample_rate)
        streams = [
            _regroup(_separate(model, copy, indices, self._device), size)
            for (model, _), copy in zip(parts, _copies(self._tensors(blocks), len(parts)), strict=True)
        ]
        for pieces in zip(*streams, strict=True):
            weighted = [weight * piece for (_, weight), piece in zip(parts, pieces, strict=True)]
            stems = functools.reduce(torch.add, weighted) / total  # [S, C, L]
            summed: Samples = stems.sum(0).numpy()
            yield summed

    def melody(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """All but drums and bass, which would drown the melody in a chromagram; see ``stems``.

        Source: audiocraft's ``ChromaStemConditioner``, which adds vocals and other. It hears the mono mix at 32 kHz,
        and in training separates each crop of 30 s alone, or with a cache the whole track, as here.
        """
        return self.stems(blocks, [name for name in self.sources if name not in RHYTHM])

    def instrumental(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """All but the vocals, which the released models have never heard; see ``stems``.

        Raises:
            UserError: if the model does not tell vocals from the rest.
        """
        if VOCALS not in self.sources:
            raise UserError(f"the model separates {', '.join(self.sources)}: expected one with vocals. Use htdemucs.")
        return self.stems(blocks, [name for name in self.sources if name != VOCALS])

    def _tensors(self, blocks: Iterable[Samples]) -> Iterator[Tensor]:
        for block in blocks:
            if block.ndim != 2 or len(block) not in (1, self.channels):
                raise ValueError(f"a block of shape {list(block.shape)}, expected [1 or {self.channels}, L]")
            yield torch.from_numpy(np.ascontiguousarray(block, np.float32)).expand(self.channels, -1)


def converted(blocks: Iterable[Samples], *, from_rate: int, to_rate: int, channels: int) -> Iterator[Samples]:
    """A track at another sample rate, resampled by soxr HQ, in mono or stereo.

    Args:
        blocks: float32 [C, L] pieces of the track.
        from_rate: their samples per second.
        to_rate: those wanted.
        channels: 1 for the mean of all; else C, or any number where C is 1.

    Yields:
        float32 [channels, L'] pieces.
    """
    mixed = (_mixed(block, channels) for block in blocks)
    if from_rate == to_rate:
        yield from mixed
        return
    stream = soxr.ResampleStream(from_rate, to_rate, channels, dtype="float32", quality="HQ")
    for block in mixed:
        yield stream.resample_chunk(np.ascontiguousarray(block.T)).T
    yield stream.resample_chunk(np.zeros((0, channels), np.float32), last=True).T


def _mixed(block: Samples, channels: int) -> Samples:
    if channels == 1:
        mean: Samples = block.mean(axis=0, keepdims=True)
        return mean
    if len(block) not in (1, channels):
        raise ValueError(f"a block of {len(block)} channels, expected 1 or {channels}")
    return block if len(block) == channels else block.repeat(channels, axis=0)


# ---- separating ------------------------------------------------------------------------------------------------------


def _separate(model: Any, blocks: Iterable[Tensor], sources: list[int], device: torch.device) -> Iterator[Tensor]:
    """Stems [S, C, L] of a track by one model, in pieces as they are done.

    Source: demucs' ``apply_model(split=True, shifts=0)``: windows weighted by a triangle, added and divided by the sum
    of the weights.
    """
    from demucs import apply

    demucs: Any = apply
    size = int(model.samplerate * model.segment)
    stride = int((1 - _OVERLAP) * size)
    # Models that take some lengths only see what lies around a window; the short last one is put in the middle.
    around = model.valid_length(size) - size if hasattr(model, "valid_length") else 0
    weight = torch.cat([torch.arange(1, size // 2 + 1), torch.arange(size - size // 2, 0, -1)])
    weight = weight / weight.max()
    faded, total = torch.zeros(len(sources), model.audio_channels, 0), torch.zeros(0)
    for held, offset, length in _windows(blocks, size=size, stride=stride, before=max(size, around), after=around):
        window = demucs.TensorChunk(held[None], offset, length)  # with what lies around it in ``held``
        stems = demucs.apply_model(model, window, shifts=0, split=False, device=device)[0, sources].cpu()
        missing = length - faded.shape[-1]
        faded = torch.nn.functional.pad(faded, (0, missing)) + weight[:length] * stems
        total = torch.nn.functional.pad(total, (0, missing)) + weight[:length]
        yield faded[..., :stride] / total[:stride]
        faded, total = faded[..., stride:], total[stride:]


def _windows(
    blocks: Iterable[Tensor], *, size: int, stride: int, before: int, after: int
) -> Iterator[tuple[Tensor, int, int]]:
    """Windows of a stream of samples [C, L]: the samples at hand, and where among them a window starts and how long.

    Of each window ``before`` and ``after`` samples around it are at hand, or all to the ends of the track.
    """
    pending: list[Tensor] = []
    num_held = offset = 0

    def advanced() -> tuple[list[Tensor], int, int]:
        done = max(0, offset + stride - before)
        return [held[:, done:]], num_held - done, offset + stride - done

    for block in blocks:
        pending.append(block)
        num_held += block.shape[1]
        while num_held >= offset + size + after:
            held = torch.cat(pending, dim=1)
            yield held, offset, size
            pending, num_held, offset = advanced()
    while offset < num_held:
        held = torch.cat(pending, dim=1)
        yield held, offset, min(size, num_held - offset)
        pending, num_held, offset = advanced()


def _copies(blocks: Iterable[Tensor], number: int) -> list[Iterator[Tensor]]:
    """Several readings of one stream. ``itertools.tee`` would keep up to 57 blocks that all have read: 200 MB."""
    source = iter(blocks)
    waiting: list[deque[Tensor]] = [deque() for _ in range(number)]

    def copy(mine: deque[Tensor]) -> Iterator[Tensor]:
        while True:
            if not mine:
                block = next(source, None)
                if block is None:
                    return
                for queue in waiting:
                    queue.append(block)
            yield mine.popleft()

    return [copy(queue) for queue in waiting]


def _regroup(pieces: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same samples [..., L] in pieces of ``size``, the last one shorter: those of several models then match."""
    pending: list[Tensor] = []
    length = 0
    for piece in pieces:
        pending.append(piece)
        length += piece.shape[-1]
        while length >= size:
            joined = torch.cat(pending, dim=-1)
            yield joined[..., :size]
            pending, length = [joined[..., size:]], length - size
    if length:
        yield torch.cat(pending, dim=-1)
