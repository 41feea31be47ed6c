"""What is listened to: held-out tracks, and what models play to their captions.

C channels, L samples, K codebooks, T frames.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import soxr
import torch
from torch import Tensor

from musicgen_ft.codec import Codec
from musicgen_ft.corpus.captions import CaptionPolicy
from musicgen_ft.errors import UserError
from musicgen_ft.generation.collapse import Collapse, find_loops, measure
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import Melody, Request
from musicgen_ft.shards.crops import ValidDataset
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.index import ShardIndex, SplitIndex

WARM_UP_S = 0.2
"""Played before the clock starts: the first piece lays out weights, and on a GPU records its step."""


@dataclass(frozen=True)
class Prompt:
    """One piece that every model plays."""

    text: str | None
    """Its caption; None is unconditional."""
    seed: int
    """Of the draws."""
    track: str
    """Key of the track that has this caption."""
    genre: str | None
    """Genre of that track, where it is known."""
    reference: Tensor
    """int64 [K, T], the codes of a stretch of that track, T at most the piece's."""


@dataclass(frozen=True)
class Heard:
    """A piece, played or taken from a track."""

    codes: Tensor
    """int64 [K, T]."""
    waveform: Tensor
    """float32 [C, L] on the CPU, as the codec gives it."""
    collapse: Collapse
    """What is silent in it, or repeats."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """How fast a model has played, without the codec."""

    frames: int
    """Frames of codes, of all pieces."""
    seconds: float
    """That they took."""
    batch_size: int
    """Pieces at once."""
    device: str
    """On which."""
    frame_rate: int
    """Frames of a second of music."""

    @property
    def frames_per_s(self) -> float:
        """Frames of codes in a second, of all pieces of a batch together."""
        return self.frames / self.seconds

    @property
    def realtime_factor(self) -> float:
        """Seconds of music made in a second: above 1 it is faster than it plays."""
        return self.frames_per_s / self.frame_rate


def stretches(
    index: ShardIndex, split: Split, captions: CaptionPolicy, *, duration_s: float, most: int
) -> list[tuple[str | None, str, Tensor]]:
    """Caption, key and codes int64 [K, T] of stretches of a split's tracks, spread evenly over it, not mostly silent.

    Args:
        index: of the shards.
        split: which tracks.
        captions: makes the texts as validation has them.
        duration_s: seconds of each; of a shorter track all of it.
        most: how many, at most.
    """
    codec = index.manifest.codec
    crops = ValidDataset(
        index.split(split),
        segment_frames=max(1, int(duration_s * codec.frame_rate)),
        card=codec.card,
        captions=captions,
        max_crops=most,
    )
    found = [crops[number] for number in range(len(crops))]
    return [(crop.description, crop.key, crop.codes[:, crop.mask]) for crop in found]


def choose_prompts(
    index: ShardIndex, split: Split, captions: CaptionPolicy, *, duration_s: float, num: int, seed: int
) -> list[Prompt]:
    """Captions of a split's tracks, each with a seed of its own; where there are fewer, they come again.

    Raises:
        UserError: if the split has no track.
    """
    found = stretches(index, split, captions, duration_s=duration_s, most=num)
    if not found:
        raise UserError(f"{index.folder}: found no {split} track to take captions of. Prepare more tracks.")
    chosen = [found[number % len(found)] for number in range(num)]
    genres = _genres(index.split(split), {key for _, key, _ in chosen})
    return [Prompt(text, seed + number, key, genres[key], codes) for number, (text, key, codes) in enumerate(chosen)]


def _genres(tracks: SplitIndex, keys: Collection[str]) -> dict[str, str | None]:
    """Of some tracks, by key."""
    return {key: tracks.meta(number).labels.genre for number, key in enumerate(tracks.keys) if key in keys}


def hear(codec: Codec, codes: Tensor) -> Heard:
    """Decodes a piece, int64 [K, T], and looks for silence and loops in it."""
    spec = codec.spec
    waveform = codec.decode(codes[None])[0].float().cpu()
    loops = find_loops(codes, spec.frame_rate)
    return Heard(codes.cpu(), waveform, measure(waveform.numpy(), spec.sample_rate, loops=loops))


def play(
    generator: Generator,
    prompts: Sequence[Prompt],
    *,
    duration_s: float,
    batch_size: int,
    told: Callable[[int, int], None] | None = None,
) -> tuple[list[Heard], Throughput]:
    """Plays all prompts by the usual rules (``Sampling()``, guidance 3).

    A melody model follows the reference's own tune.

    Args:
        generator: the model.
        prompts: at least one.
        duration_s: seconds of each piece.
        batch_size: pieces at once.
        told: hears how many pieces are done, and of how many.
    """
    requests = [_request(generator, prompt, duration_s) for prompt in prompts]
    generator.codes([Request(prompt=prompts[0].text, duration_s=min(duration_s, WARM_UP_S))])
    device = generator.engine.decoder.device
    heard: list[Heard] = []
    frames, seconds = 0, 0.0
    for start in range(0, len(requests), batch_size):
        begin = time.perf_counter()
        codes = generator.codes(requests[start : start + batch_size])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds += time.perf_counter() - begin
        frames += sum(piece.shape[1] for piece in codes)
        heard += [hear(generator.codec, piece) for piece in codes]
        if told is not None:
            told(len(heard), len(requests))
    spec = generator.codec.spec
    return heard, Throughput(
        frames=frames,
        seconds=seconds,
        batch_size=min(batch_size, len(requests)),
        device=str(device),
        frame_rate=spec.frame_rate,
    )


def _request(generator: Generator, prompt: Prompt, duration_s: float) -> Request:
    spec = generator.lm.config.chroma
    melody = None if spec is None else tune(generator.codec, prompt.reference, spec.sample_rate)
    return Request(prompt=prompt.text, duration_s=duration_s, seed=prompt.seed, melody=melody)


def tune(codec: Codec, codes: Tensor, sample_rate: int) -> Melody:
    """A piece of codes int64 [K, T] in mono, float32 [L], at the rate of the chroma."""
    return at_rate(codec.decode(codes[None])[0], codec.spec.sample_rate, sample_rate)


def at_rate(waveform: Tensor, from_rate: int, to_rate: int) -> Melody:
    """Mono, float32 [L], of float [C, L]."""
    mono: Melody = waveform.float().mean(0).cpu().numpy()
    if from_rate == to_rate:
        return mono
    resampled: Melody = soxr.resample(mono, from_rate, to_rate, quality="HQ")
    return resampled
