from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from musicgen_ft.shards import order as order_module
from musicgen_ft.shards.order import (
    EpochOrder,
    PositionBatchSampler,
    Shuffle,
    micro_batches_per_step,
    permutation,
    sample_rng,
    step_rng,
    track_of,
    track_slots,
    valid_batches,
)


def test_each_epoch_passes_over_every_slot_once_in_another_order() -> None:
    order = EpochOrder(num_slots=11, seed=5)

    epochs = [[order.slot(position) for position in range(11 * epoch, 11 * (epoch + 1))] for epoch in range(4)]

    for epoch, places in enumerate(epochs):
        assert {of for of, _ in places} == {epoch}
        assert sorted(slot for _, slot in places) == list(range(11))
    assert len({tuple(slot for _, slot in places) for places in epochs}) == 4


def test_a_position_reads_the_same_slot_whatever_was_read_before() -> None:
    straight = [EpochOrder(num_slots=7, seed=3).slot(position) for position in range(40)]
    jumping = EpochOrder(num_slots=7, seed=3)

    for position in (39, 0, 8, 6, 7, 22, 13, 14, 39):
        assert jumping.slot(position) == straight[position]


def test_the_permutation_stays_the_same_in_every_release() -> None:
    assert permutation(0, 0, 9).tolist() == [0, 2, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(2036, 3, 9).tolist() == [7, 1, 3, 8, 2, 5, 4, 0, 6]


def test_permutations_are_uniform() -> None:
    first = np.array([permutation(1, epoch, 5)[0] for epoch in range(2000)])

    counts = np.bincount(first, minlength=5)

    assert np.abs(counts - 400).max() < 5 * 18  # 5 sigma of binomial(2000, 1 / 5)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9, 100, 1023, 1024, 1025])
def test_a_shuffle_hits_every_number_once(n: int) -> None:
    for epoch in (0, 7):
        shuffle = Shuffle(2036, epoch, n)
        assert sorted(shuffle[place] for place in range(n)) == list(range(n))


def test_a_shuffle_stays_the_same_in_every_release() -> None:
    shuffle = Shuffle(2036, 3, 60_000_000)
    assert [shuffle[place] for place in (0, 1, 59_999_999)] == [54874320, 2443582, 55148232]


def test_shuffles_are_uniform_and_neighbours_are_far_apart() -> None:
    first = np.array([Shuffle(1, epoch, 5)[0] for epoch in range(2000)])
    assert np.abs(np.bincount(first, minlength=5) - 400).max() < 5 * 18  # 5 sigma of binomial(2000, 1 / 5)

    n = 5000
    shuffle = Shuffle(3, 1, n)
    numbers = np.array([shuffle[place] for place in range(n)])
    # The mean distance of two draws is n / 3, its standard error about n * 0.25 / sqrt(n).
    assert np.abs(np.diff(numbers)).mean() / n == pytest.approx(1 / 3, abs=5 * 0.25 / n**0.5)


def test_a_large_epoch_is_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "MAX_SORTED_SLOTS", 10)
    order = EpochOrder(num_slots=11, seed=5)

    epochs = [[order.slot(position) for position in range(11 * epoch, 11 * (epoch + 1))] for epoch in range(4)]

    for epoch, places in enumerate(epochs):
        assert sorted(places) == [(epoch, slot) for slot in range(11)]
    assert len({tuple(slot for _, slot in places) for places in epochs}) == 4
    assert epochs[1][2][1] == Shuffle(5, 1, 11)[2]


def test_streams_of_one_seed_and_number_differ() -> None:
    sample, step = sample_rng(4, 9).integers(2**60, size=3), step_rng(4, 9).integers(2**60, size=3)

    assert not set(sample.tolist()) & set(step.tolist())
    assert sample.tolist() == sample_rng(4, 9).integers(2**60, size=3).tolist()
    assert sample.tolist() != sample_rng(4, 10).integers(2**60, size=3).tolist()
    assert sample.tolist() != sample_rng(5, 9).integers(2**60, size=3).tolist()


def test_slots_are_shared_by_length_and_every_track_has_one() -> None:
    slots = track_slots(np.array([1, 29, 30, 70, 200]), segment_frames=20)

    assert np.diff(slots).tolist() == [1, 1, 2, 4, 10]
    assert [track_of(slots, slot) for slot in range(int(slots[-1]))] == [0, 1, 2, 2, *[3] * 4, *[4] * 10]


def read_by_step(*, world: int, micro_batch: int, start_step: int = 0) -> list[list[int]]:
    """The sorted positions that all ranks read in each step of a run of 5 steps of 24."""
    samplers = [
        PositionBatchSampler(
            global_batch=24,
            micro_batch=micro_batch,
            rank=rank,
            world=world,
            start_step=start_step,
            num_steps=5,
            num_frames=lambda positions: np.array([1 + position * 7 % 5 for position in positions]),
        )
        for rank in range(world)
    ]
    micros = 24 // (world * micro_batch)
    batches = [list(sampler) for sampler in samplers]
    return [
        sorted(
            position
            for of_rank in batches
            for batch in of_rank[step * micros : (step + 1) * micros]
            for position in batch
        )
        for step in range(5 - start_step)
    ]


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 24), (1, 3), (2, 12), (2, 2), (4, 6), (4, 1)])
def test_each_step_reads_the_same_positions_on_any_number_of_processes(world: int, micro_batch: int) -> None:
    found = read_by_step(world=world, micro_batch=micro_batch)

    assert found == [list(range(24 * step, 24 * (step + 1))) for step in range(5)]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_run_started_at_a_later_step_reads_the_rest(world: int) -> None:
    assert read_by_step(world=world, micro_batch=3, start_step=2) == read_by_step(world=1, micro_batch=4)[2:]


def test_the_length_is_that_of_the_whole_run_wherever_it_starts() -> None:
    sampler = PositionBatchSampler(
        global_batch=12, micro_batch=3, rank=1, world=2, start_step=4, num_steps=5, num_frames=all_alike
    )

    assert len(sampler) == 10
    assert list(sampler) == [[51, 52, 53], [57, 58, 59]]


@pytest.mark.parametrize(("global_batch", "fitting"), [(10, 8), (7, 8), (25, 24)])
def test_a_global_batch_that_cannot_be_shared_is_refused(global_batch: int, fitting: int) -> None:
    message = rf"global batch of {global_batch} is not a multiple of 4 .* x 2 .* Take a batch size of {fitting}"
    with pytest.raises(ValueError, match=message):
        micro_batches_per_step(global_batch=global_batch, micro_batch=4, world=2)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize("num_crops", [5, 6, 11, 24])
def test_validation_reads_every_crop_once_in_equally_many_batches(num_crops: int, batch: int, world: int) -> None:
    ranks = [valid_batches(num_crops=num_crops, batch=batch, rank=rank, world=world) for rank in range(world)]

    assert sorted(crop for batches in ranks for crops in batches for crop in crops) == list(range(num_crops))
    assert len({len(batches) for batches in ranks}) == 1
    assert {1, *range(1, max(2, batch) + 1)} >= {len(crops) for batches in ranks for crops in batches}


def test_every_process_validates_on_all_crops_where_there_are_fewer_than_processes() -> None:
    ranks = [valid_batches(num_crops=3, batch=2, rank=rank, world=4) for rank in range(4)]

    assert ranks == [[[0], [1, 2]]] * 4


def test_crops_of_like_length_share_a_micro_batch_on_all_ranks() -> None:
    lengths = np.array([0, 0, 0, 0, 0, 0, 0, 0, 50, 9, 31, 50, 8, 50, 30, 50])

    first, second = (
        PositionBatchSampler(
            **{"global_batch": 8, "micro_batch": 2, "start_step": 1, "num_steps": 2},
            rank=rank,
            world=2,
            num_frames=lambda positions: lengths[list(positions)],
        )
        for rank in (0, 1)
    )

    assert list(first) == [[8, 11], [10, 14]]  # the longest first: memory is short in the first step or never
    assert list(second) == [[13, 15], [9, 12]]


def test_positions_of_one_process_rise_where_all_crops_are_of_one_length() -> None:
    sampler = PositionBatchSampler(
        global_batch=8, micro_batch=2, rank=1, world=2, start_step=0, num_steps=9, num_frames=all_alike
    )

    assert all(before < after for before, after in pairwise(position for batch in sampler for position in batch))


def all_alike(positions: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.full(len(positions), 30)
