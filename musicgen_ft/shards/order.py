"""The order of training samples: a pure function of seed and position.

Training reads positions p = 0, 1, 2, ... of one endless sequence; optimizer step s reads [s * G, (s + 1) * G), where G
is the global batch size. Nothing is stored: a run resumed at step s, on any number of processes, reads what the
uninterrupted run would have read.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

MAX_SORTED_SLOTS = 1 << 22
"""Epochs of more slots are not sorted but computed slot by slot: sorting 60 million takes 20 s and 1.3 GiB."""

_PERMUTATION, _SAMPLE, _STEP = 0, 1, 2  # streams of one seed that never overlap
_ROUNDS = 6


def sample_rng(seed: int, position: int) -> np.random.Generator:
    """The randomness of one sample: its crop, its caption, its dropout."""
    return np.random.Generator(_philox(seed, position, _SAMPLE))


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The randomness that all samples of one optimizer step share."""
    return np.random.Generator(_philox(seed, step, _STEP))


def permutation(seed: int, epoch: int, n: int) -> npt.NDArray[np.uint32]:
    """A permutation of [0, n), uint32 [n]; another one for each epoch.

    The ranks of raw Philox words: numpy keeps a bit generator's words the same in every release, and promises no such
    thing of ``Generator.permutation``. A run can be resumed after an upgrade.
    """
    words = _philox(seed, epoch, _PERMUTATION).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.uint32)


class Shuffle:
    """A permutation of [0, n) for large n, of which every entry is computed by itself: 10 us, and no memory.

    A Feistel network (any round function makes it one to one) over the bits of n - 1, walked on until it hits a number
    below n; that takes less than two rounds on average. The round function is splitmix64's finaliser.
    """

    def __init__(self, seed: int, epoch: int, n: int) -> None:
        """Another one for each seed and epoch."""
        self._n = n
        num_bits = max(2, (n - 1).bit_length())
        self._low_bits = num_bits // 2
        self._high_bits = num_bits - self._low_bits
        self._keys = [int(word) for word in _philox(seed, epoch, _PERMUTATION).random_raw(_ROUNDS)]

    def __getitem__(self, place: int) -> int:
        number = self._scrambled(place)
        while number >= self._n:
            number = self._scrambled(number)
        return number

    def _scrambled(self, number: int) -> int:
        a, b = self._high_bits, self._low_bits
        left, right = number >> b, number & ((1 << b) - 1)
        for key in self._keys:  # an even number of rounds, so that the halves have their widths again
            left, right = right, (left ^ _mixed(right + key)) & ((1 << a) - 1)
            a, b = b, a
        return left << b | right


def _mixed(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return word ^ (word >> 31)


def track_slots(num_frames: npt.NDArray[np.int64], segment_frames: int) -> npt.NDArray[np.int64]:
    """Shares the slots of an epoch among tracks, so that an epoch passes about once over all frames.

    Args:
        num_frames: int64 [N], frames of each track.
        segment_frames: frames of one crop.

    Returns:
        int64 [N + 1], rising from 0: track i has the slots from entry i up to entry i + 1. It has
        ``max(1, round(num_frames / segment_frames))`` of them.
    """
    slots = np.maximum(1, (2 * num_frames + segment_frames) // (2 * segment_frames))
    return np.concatenate([[0], np.cumsum(slots)])


def track_of(slots: npt.NDArray[np.int64], slot: int) -> int:
    """The track that owns a slot of ``track_slots``."""
    return int(np.searchsorted(slots, slot, side="right")) - 1


class EpochOrder:
    """Which slot each position reads: a new permutation of all slots in every epoch."""

    def __init__(self, num_slots: int, seed: int) -> None:
        """An order over ``num_slots`` slots.

        Raises:
            ValueError: if there is no slot, or the seed is negative.
        """
        if num_slots < 1 or seed < 0:
            raise ValueError(f"{num_slots} slots with seed {seed}: expected at least one slot and a seed >= 0")
        self.num_slots, self.seed = num_slots, seed
        self._permutations: dict[int, npt.NDArray[np.uint32] | Shuffle] = {}

    def slot(self, position: int) -> tuple[int, int]:
        """The epoch of a position and the slot it reads."""
        epoch, place = divmod(position, self.num_slots)
        if epoch not in self._permutations:
            # The last two stay: a batch may lie across the border of two epochs.
            self._permutations = dict(list(self._permutations.items())[-1:])
            make = permutation if self.num_slots <= MAX_SORTED_SLOTS else Shuffle
            self._permutations[epoch] = make(self.seed, epoch, self.num_slots)
        return epoch, int(self._permutations[epoch][place])


def micro_batches_per_step(*, global_batch: int, micro_batch: int, world: int) -> int:
    """Micro-batches that each process accumulates in one optimizer step.

    Raises:
        ValueError: if the global batch cannot be shared evenly.
    """
    if min(global_batch, micro_batch, world) < 1 or global_batch % (micro_batch * world):
        fitting = max(1, global_batch // (micro_batch * world)) * micro_batch * world
        raise ValueError(
            f"the global batch of {global_batch} is not a multiple of {micro_batch} (micro-batch) x {world} "
            f"(processes). Take a batch size of {fitting}, or another micro-batch."
        )
    return global_batch // (micro_batch * world)


class PositionBatchSampler(Sampler[list[int]]):
    """The positions of each micro-batch of one process, from a start step on.

    Step s reads the positions from ``s * G`` up to ``(s + 1) * G``, the longest crops first, so that crops of like
    length share a micro-batch and little is padded; micro-batch m of rank r is the ``(m * world + r)``-th of them.
    ``len`` tells all micro-batches of the run and not the rest, because Lightning counts on from the checkpoint.
    """

    def __init__(
        self,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world: int,
        start_step: int,
        num_steps: int,
        num_frames: Callable[[Sequence[int]], npt.NDArray[np.int64]],
    ) -> None:
        """A sampler of the steps from ``start_step`` up to ``num_steps``.

        Args:
            global_batch: G, samples of one optimizer step over all processes.
            micro_batch: samples of one forward pass of one process.
            rank: number of this process.
            world: number of processes.
            start_step: optimizer steps done before. Take it from the trainer's ``global_step``: a sampler's own count
                runs ahead with the workers that prefetch.
            num_steps: optimizer steps of the whole run.
            num_frames: lengths of the crops at some positions.

        Raises:
            ValueError: if the global batch cannot be shared evenly.
        """
        self._num_frames = num_frames
        self.micro_batches = micro_batches_per_step(global_batch=global_batch, micro_batch=micro_batch, world=world)
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.rank, self.world = rank, world
        self.start_step, self.num_steps = start_step, num_steps

    def __len__(self) -> int:
        return self.num_steps * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.num_steps):
            positions = range(step * self.global_batch, (step + 1) * self.global_batch)
            longest_first = np.argsort(-self._num_frames(positions), kind="stable") + positions.start
            for micro in range(self.micro_batches):
                first = (micro * self.world + self.rank) * self.micro_batch
                yield longest_first[first : first + self.micro_batch].tolist()


def valid_batches(*, num_crops: int, batch: int, rank: int, world: int) -> list[list[int]]:
    """The crops of each validation batch of one process: every crop once, over all processes.

    Every process gets equally many batches, so that none waits for another in a collective operation: they differ in
    size by at most one crop. Where there are fewer crops than processes, each process takes all, which leaves every
    mean as it is.

    Args:
        num_crops: of the whole validation, at least one.
        batch: crops of a batch at most; 1 counts as 2, since equally many batches need room for one crop more.
        rank: number of this process.
        world: number of processes.

    Returns:
        Numbers of crops, in [0, num_crops).
    """
    if num_crops < world:
        rank, world = 0, 1
    most = -(-num_crops // world)
    num_batches = -(-most // max(2, batch))
    mine = list(range(rank, num_crops, world))
    borders = [len(mine) * i // num_batches for i in range(num_batches + 1)]
    return [mine[start:stop] for start, stop in pairwise(borders)]


def _philox(seed: int, number: int, stream: int) -> np.random.Philox:
    # The key names the seed and the number; the counter's top word, which no stream can count up to, the purpose.
    return np.random.Philox(key=np.array([seed, number], dtype=np.uint64), counter=[0, 0, 0, stream])
