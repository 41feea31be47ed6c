"""What a position or a number becomes: crops of tracks with their text.

K codebooks, T frames of a track, segment_frames those of a crop.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from musicgen_ft.chroma import DROPPED, crop_chroma
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.quality import SECOND_FIGURES, SILENCE_DB
from musicgen_ft.shards.batch import Crop
from musicgen_ft.shards.index import SplitIndex
from musicgen_ft.shards.order import EpochOrder, sample_rng, step_rng, track_of, track_slots

CfgDropoutScope = Literal["sample", "step"]

MAX_SILENT_SHARE = 0.5
"""A crop with more silent seconds is never served where its track has another."""


class CaptionPolicy(Protocol):
    """Makes a text of labels."""

    def describe(self, labels: Labels, rng: np.random.Generator) -> str | None:
        """A text for training, drawn anew each time; None where nothing is known."""
        ...

    def plain(self, labels: Labels) -> str | None:
        """The text for validation, always the same."""
        ...


class CropDataset(Dataset[Crop]):
    """Training crops by position: ``dataset[position]`` is a pure function of the seed and the position."""

    def __init__(
        self,
        tracks: SplitIndex,
        *,
        segment_frames: int,
        card: int,
        captions: CaptionPolicy,
        seed: int,
        global_batch: int,
        cfg_dropout: float = 0.0,
        cfg_dropout_scope: CfgDropoutScope = "sample",
        melody_dropout: float = 0.0,
    ) -> None:
        """Crops of ``tracks``.

        Args:
            tracks: the training split, with at least one track.
            segment_frames: frames of a crop; shorter tracks are padded at their end.
            card: the special token, which fills the padding.
            captions: makes the text.
            seed: of the order, the crops, the texts and the dropout.
            global_batch: samples of one optimizer step; tells the step of a position.
            cfg_dropout: probability that the text is dropped, and the melody with it, in [0, 1].
            cfg_dropout_scope: one draw for each sample, or one for each optimizer step and all its samples, as
                audiocraft's ClassifierFreeGuidanceDropout and AttributeDropout do.
            melody_dropout: probability that the melody is dropped where the text is kept, in [0, 1].

        Raises:
            ValueError: if there is no track, or a probability is out of range.
        """
        for name, probability in (("cfg_dropout", cfg_dropout), ("melody_dropout", melody_dropout)):
            if not 0 <= probability <= 1:
                raise ValueError(f"{name} is {probability}, expected a probability in [0, 1]")
        self._tracks, self._captions, self._seed = tracks, captions, seed
        self._segment_frames, self._card = segment_frames, card
        self._global_batch, self._cfg_dropout, self._scope = global_batch, cfg_dropout, cfg_dropout_scope
        self._melody_dropout = melody_dropout
        self._slots = track_slots(tracks.num_frames, segment_frames)
        self.order = EpochOrder(num_slots=int(self._slots[-1]), seed=seed)

    @property
    def num_slots(self) -> int:
        """Crops of one epoch, which is about one pass over all frames."""
        return self.order.num_slots

    def num_frames(self, positions: Sequence[int]) -> npt.NDArray[np.int64]:
        """Frames of audio of the crops at these positions, in [1, segment_frames]: int64 [N]. Reads no shard."""
        tracks = [self._track(position) for position in positions]
        return np.minimum(self._tracks.num_frames[tracks], self._segment_frames)

    def _track(self, position: int) -> int:
        _, slot = self.order.slot(position)
        return track_of(self._slots, slot)

    def __getitem__(self, position: int) -> Crop:
        track = self._track(position)
        rng = sample_rng(self._seed, position)
        # Each draw is made whether it is used or not: crops and texts stay the same when the dropout changes.
        start = int(rng.integers(max(1, int(self._tracks.num_frames[track]) - self._segment_frames + 1)))
        start = _sounding_start(self._tracks, track, start, segment_frames=self._segment_frames, draw=rng.random())
        drop_all = rng.random()
        description = self._captions.describe(self._tracks.meta(track).labels, rng)
        drop_melody = rng.random()
        if self._scope == "step":
            of_step = step_rng(self._seed, position // self._global_batch)
            drop_all, drop_melody = of_step.random(), of_step.random()
        is_dropped = drop_all < self._cfg_dropout
        return _crop(
            self._tracks,
            track,
            start,
            segment_frames=self._segment_frames,
            card=self._card,
            description=None if is_dropped else description,
            position=position,
            is_melody_dropped=is_dropped or drop_melody < self._melody_dropout,
        )


class ValidDataset(Dataset[Crop]):
    """The same crops at every validation: stretches of the tracks, one after the other, without overlap."""

    def __init__(
        self, tracks: SplitIndex, *, segment_frames: int, card: int, captions: CaptionPolicy, max_crops: int
    ) -> None:
        """Crops of ``tracks``.

        Args:
            tracks: the validation split; it may be empty.
            segment_frames: frames of a crop. A track's rest counts as a crop when it is at least half of one, or all
                there is.
            card: the special token, which fills the padding.
            captions: makes the text.
            max_crops: takes at most so many, spread evenly over all.
        """
        self._tracks, self._captions = tracks, captions
        self._segment_frames, self._card = segment_frames, card
        self._slots = track_slots(tracks.num_frames, segment_frames)
        total = int(self._slots[-1])
        taken = min(total, max_crops)
        self._chosen = np.arange(taken) * total // max(1, taken)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, number: int) -> Crop:
        slot = int(self._chosen[number])
        track = track_of(self._slots, slot)
        start = (slot - int(self._slots[track])) * self._segment_frames
        return _crop(
            self._tracks,
            track,
            _sounding_start(self._tracks, track, start, segment_frames=self._segment_frames),
            segment_frames=self._segment_frames,
            card=self._card,
            description=self._captions.plain(self._tracks.meta(track).labels),
            position=number,
        )


def _sounding_start(
    tracks: SplitIndex, track: int, start: int, *, segment_frames: int, draw: float | None = None
) -> int:
    """Where a crop begins that is not mostly silent.

    Args:
        tracks: whose seconds tell their level; where nobody measured, every start is as good.
        track: number of the track.
        start: frame that is wanted, and taken unless the crop there would be mostly silent.
        segment_frames: frames of the crop.
        draw: in [0, 1), chooses among the seconds at which a crop may begin; None takes the nearest.

    Returns:
        A frame; of a track that is silent all over, that of its least silent crop.
    """
    last = int(tracks.num_frames[track]) - segment_frames
    if not tracks.has_seconds or last <= 0:
        return start
    level_db = tracks.seconds(track)[SECOND_FIGURES.index("level_db")]
    silent = np.concatenate([[0], np.cumsum(level_db < SILENCE_DB)])  # [S + 1]
    starts = np.append(np.arange(0, last, tracks.frame_rate), last)
    candidates = np.append(starts, start)
    firsts = candidates // tracks.frame_rate
    lasts = np.minimum(-(-(candidates + segment_frames) // tracks.frame_rate), len(level_db))
    share = (silent[lasts] - silent[np.minimum(firsts, lasts)]) / np.maximum(1, lasts - firsts)
    if share[-1] <= MAX_SILENT_SHARE:
        return start
    allowed = starts[share[:-1] <= MAX_SILENT_SHARE]
    if len(allowed) == 0:
        return int(candidates[np.argmin(share)])
    if draw is None:
        return int(allowed[np.argmin(np.abs(allowed - start))])
    return int(allowed[int(draw * len(allowed))])


def _crop(
    tracks: SplitIndex,
    track: int,
    start: int,
    *,
    segment_frames: int,
    card: int,
    description: str | None,
    position: int,
    is_melody_dropped: bool = False,
) -> Crop:
    found = tracks.codes(track, start, min(start + segment_frames, int(tracks.num_frames[track])))
    K, T = found.shape
    codes = torch.full((K, segment_frames), card, dtype=torch.int64)
    codes[:, :T] = torch.from_numpy(found.astype(np.int64))
    chroma = None
    if tracks.chroma_spec is not None:
        chroma = crop_chroma(
            tracks.chroma(track),
            tracks.chroma_spec,
            start=start,
            num_frames=T,
            segment_frames=segment_frames,
            hop_length=tracks.hop_length,
        )
        if is_melody_dropped:
            chroma.fill_(DROPPED)
    return Crop(codes, torch.arange(segment_frames) < T, description, tracks.keys[track], position, chroma)
