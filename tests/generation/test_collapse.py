"""Loops planted at all places and periods, what is almost one, silence at each end; music that is neither."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musicgen_ft.audio import read
from musicgen_ft.codec import Codec
from musicgen_ft.generation.collapse import (
    MAX_PERIOD_S,
    MIN_REPEATED_S,
    MIN_REPETITIONS,
    Collapse,
    Loop,
    LoopWatcher,
    find_loops,
    measure,
)
from musicgen_ft.synthesis.corpus import synthesize_corpus

K, CARD, RATE = 3, 61, 10
"""Codebooks, codes, and frames per second of the synthetic pieces: a loop takes 20 repeated frames."""
SAMPLE_RATE = 8_000


def random_codes(num_frames: int, *, seed: int = 0) -> Tensor:
    return torch.randint(CARD, (K, num_frames), generator=torch.Generator().manual_seed(seed))


def planted(before: int, period: int, num_repeated: int, after: int, *, seed: int = 0) -> Tensor:
    """Random codes [K, T], in which ``period`` frames are followed by ``num_repeated`` that repeat them, and no more.

    The neighbours differ from what would go on with the loop.
    """
    codes = random_codes(before + period + num_repeated + after, seed=seed)
    start, stop = before, before + period + num_repeated
    for t in range(start + period, stop):
        codes[:, t] = codes[:, t - period]
    if before:
        codes[0, start - 1] = (codes[0, start - 1 + period] + 1) % CARD
    if after:
        codes[0, stop] = (codes[0, stop - period] + 1) % CARD
    return codes


def spans(loops: tuple[Loop, ...]) -> list[tuple[int, int, int]]:
    return [(round(loop.start_s * RATE), round(loop.stop_s * RATE), round(loop.period_s * RATE)) for loop in loops]


def needed(period: int) -> int:
    return max((MIN_REPETITIONS - 1) * period, round(MIN_REPEATED_S * RATE))


# ---- loops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [1, 2, 3, 7, 10, 11, 24, 50])
@pytest.mark.parametrize("before", [0, 1, 13, 97])
@pytest.mark.parametrize("after", [0, 1, 30])
def test_a_planted_loop_is_found_where_it_is(period: int, before: int, after: int) -> None:
    for more in (0, 1, period, 3 * period + 1):
        repeated = needed(period) + more
        (loop,) = find_loops(planted(before, period, repeated, after), RATE)
        assert spans((loop,)) == [(before, before + period + repeated, period)]
        assert loop.repetitions == (period + repeated) // period >= MIN_REPETITIONS


@pytest.mark.parametrize("period", [1, 2, 3, 7, 10, 11, 24, 50])
def test_what_repeats_a_frame_less_is_none(period: int) -> None:
    assert find_loops(planted(13, period, needed(period) - 1, 30), RATE) == ()


@settings(max_examples=60, deadline=None)
@given(
    before=st.integers(0, 60),
    period=st.integers(1, 40),
    more=st.integers(0, 90),
    after=st.integers(0, 60),
    cuts=st.lists(st.integers(1, 50)),
    seed=st.integers(0, 1000),
)
def test_every_loop_is_found_however_the_codes_are_cut(
    before: int, period: int, more: int, after: int, cuts: list[int], seed: int
) -> None:
    codes = planted(before, period, needed(period) + more, after, seed=seed)
    watcher, start = LoopWatcher(RATE), 0
    for size in itertools.chain(cuts, itertools.repeat(17)):
        watcher.add(codes[:, start : start + size])
        start += size
        if start >= codes.shape[1]:
            break
    assert watcher.found == find_loops(codes, RATE)
    assert spans(watcher.found) == [(before, before + period + needed(period) + more, period)]
    assert watcher.is_looping == (after == 0)


def test_it_is_told_as_soon_as_it_has_repeated_long_enough() -> None:
    codes, told = planted(30, 7, 60, 10), []
    watcher = LoopWatcher(RATE)
    for t in range(codes.shape[1]):
        watcher.add(codes[:, t : t + 1])
        told.append(watcher.is_looping)
    first = 30 + 7 + needed(7)  # frames, of which the last makes it one
    assert told == [first <= t + 1 <= 30 + 7 + 60 for t in range(len(told))]


def test_all_codebooks_have_to_repeat() -> None:
    for k in range(K):
        codes = planted(10, 5, 100, 10)
        codes[k] = random_codes(codes.shape[1], seed=9)[k]
        assert find_loops(codes, RATE) == ()


def test_one_other_code_in_every_round_breaks_it() -> None:
    codes = planted(10, 12, 120, 10)
    for number, t in enumerate(range(10, 142, 12)):
        codes[1, t] = number
    assert find_loops(codes, RATE) == ()


def test_loops_one_after_the_other_and_one_within_another() -> None:
    one, two = planted(9, 4, 40, 1, seed=1), planted(1, 11, 33, 6, seed=2)
    assert spans(find_loops(torch.cat([one, two], dim=1), RATE)) == [(9, 53, 4), (55, 99, 11)]
    # A phrase that ends on a held sound longer than a loop has to be, again and again: the phrase is the loop.
    phrase = torch.cat([random_codes(6), random_codes(1, seed=5).repeat(1, needed(1) + 4)], dim=1)
    assert spans(find_loops(phrase.repeat(1, 4), RATE)) == [(0, 4 * phrase.shape[1], phrase.shape[1])]


def test_the_longest_period_is_the_models_window() -> None:
    P = round(MAX_PERIOD_S * RATE)
    assert spans(find_loops(planted(5, P, 2 * P, 5), RATE)) == [(5, 5 + 3 * P, P)]
    assert find_loops(planted(5, P + 1, 2 * P + 2, 5), RATE) == ()


def test_random_codes_of_a_few_values_hold_no_loop() -> None:
    """2 values and one codebook: short repeats all over, none of 20 frames."""
    for seed in range(20):
        codes = torch.randint(2, (1, 2000), generator=torch.Generator().manual_seed(seed))
        assert find_loops(codes, RATE) == ()


def test_no_codes_hold_no_loop() -> None:
    watcher = LoopWatcher(RATE)
    watcher.add(torch.zeros(K, 0, dtype=torch.int64))
    assert watcher.found == ()


def by_definition(codes: Tensor) -> set[tuple[int, int, int]]:
    """All maximal runs by comparing every frame with every other."""
    T = codes.shape[1]
    same = (codes[:, :, None] == codes[:, None, :]).all(0).tolist()
    runs = set()
    for period in range(1, T):
        for is_same, group in itertools.groupby(range(T - period), key=lambda t, p=period: same[t][t + p]):  # type: ignore[misc]
            starts = list(group)
            if is_same and len(starts) >= needed(period):
                runs.add((starts[0], starts[-1] + 1 + period, period))
    return {
        run
        for run in runs
        if not any(o != run and o[0] <= run[0] and run[1] <= o[1] and (o[:2] != run[:2] or o[2] < run[2]) for o in runs)
    }


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_what_is_found_is_what_the_definition_says(words: list[tuple[int, int]], seed: int) -> None:
    """On codes that are made of few phrases, each a number of times."""
    phrases = [random_codes(length, seed=seed + length) for length in (1, 3, 8)]
    codes = torch.cat([phrases[which].repeat(1, times) for which, times in words], dim=1)[:, :150]
    assert set(spans(find_loops(codes, RATE))) == by_definition(codes)


# ---- silence ---------------------------------------------------------------------------------------------------------


def sound(*parts: tuple[float, float]) -> npt.NDArray[np.float32]:
    """float32 [1, L]: noise of so many seconds at so many dB each."""
    rng = np.random.default_rng(0)
    samples = [10 ** (db / 20) * rng.standard_normal(round(s * SAMPLE_RATE)) for s, db in parts]
    return np.concatenate(samples)[None].astype(np.float32)


@pytest.mark.parametrize(
    ("parts", "share", "ends_s", "is_found"),
    [
        ([(10, -20)], 0.0, 0.0, False),
        ([(6, -20), (4, -70)], 0.4, 4.0, True),
        ([(8.5, -20), (1.5, -70)], 0.1, 1.5, False),  # a last chord, and its end
        ([(4, -70), (6, -20)], 0.4, 0.0, False),
        ([(6, -70), (4, -20)], 0.6, 0.0, True),
        ([(3, -20), (3, -90), (4, -20)], 0.3, 0.0, False),
    ],
)
def test_silence_is_measured_where_it_is(
    parts: list[tuple[float, float]], share: float, ends_s: float, is_found: bool
) -> None:
    found = measure(sound(*parts), SAMPLE_RATE)
    assert found.silent_share == pytest.approx(share)
    assert found.ends_silent_s == pytest.approx(ends_s, abs=0.02)
    assert (found.is_silent, found.is_found, found.duration_s) == (False, is_found, 10.0)


@pytest.mark.parametrize("samples", [np.zeros((2, 8_123), np.float32), sound((0.3, -80)), np.zeros((1, 1), np.float32)])
def test_silence_throughout(samples: npt.NDArray[np.float32]) -> None:
    found = measure(samples, SAMPLE_RATE)
    assert found.is_silent and found.is_found
    assert found.ends_silent_s == found.lost_s == found.duration_s == samples.shape[1] / SAMPLE_RATE
    assert str(found) == "is silent throughout"


def test_what_is_lost_is_silent_or_says_nothing_new() -> None:
    loop = Loop(start_s=2.0, stop_s=8.0, period_s=0.5, repetitions=12)
    assert measure(sound((10, -20)), SAMPLE_RATE, loops=[loop]).lost_s == pytest.approx(5.5)
    assert measure(sound((3, -20), (7, -70)), SAMPLE_RATE, loops=[loop]).lost_s == pytest.approx(7.0, abs=0.02)
    assert measure(sound((10, -20)), SAMPLE_RATE).lost_s == 0.0


def test_a_collapse_is_told_in_a_line_and_as_json() -> None:
    loop = Loop(start_s=2.0, stop_s=8.1, period_s=0.5, repetitions=12)
    found = measure(sound((4, -20), (6, -70)), SAMPLE_RATE, loops=[loop])
    assert str(found) == "falls silent after 4.0 s of 10 s; repeats 0.5 s exactly, 12 times from 2.0 s on"
    assert json.loads(json.dumps(found.to_dict())) == {
        "is_found": True,
        "duration_s": 10.0,
        "loops": [{"start_s": 2.0, "stop_s": 8.1, "period_s": 0.5, "repetitions": 12}],
        "silent_share": 0.6,
        "ends_silent_s": 6.0,
        "is_silent": False,
    }
    assert str(measure(sound((6, -70), (4, -20)), SAMPLE_RATE)) == "is silent in 60% of its seconds"
    assert str(measure(sound((4, -20)), SAMPLE_RATE)) == "has not collapsed"


# ---- music -----------------------------------------------------------------------------------------------------------


def test_music_with_a_beat_is_no_loop_and_not_silent(tmp_path: Path, make_collapse: Callable[[Path], Collapse]) -> None:
    """The synthesized corpus repeats bars and drum patterns note by note; its codes never do."""
    synthesize_corpus(tmp_path, num_tracks=12, seed=1, duration_s=6.0)
    tracks = sorted(tmp_path.rglob("*.wav"))
    assert len(tracks) == 12
    for track in tracks:
        found = make_collapse(track)
        assert found.loops == (), track.name
        assert not found.is_found, track.name


@pytest.fixture
def make_collapse(nano_codec: Codec) -> Callable[[Path], Collapse]:
    """A function that measures a file: its sound, and the codes that nano makes of it."""

    def make(path: Path) -> Collapse:
        spec = nano_codec.spec
        samples = read(path, sample_rate=spec.sample_rate, channels=1)
        codes = nano_codec.encode(torch.from_numpy(samples)[None])[0]
        return measure(samples, spec.sample_rate, loops=find_loops(codes, spec.frame_rate))

    return make


def test_a_bar_that_is_played_again_and_again_is_a_loop(tmp_path: Path, nano_codec: Codec) -> None:
    """Codes of real sound that a model would have copied."""
    synthesize_corpus(tmp_path, num_tracks=1, seed=1, duration_s=4.0)
    (track,) = tmp_path.rglob("*.wav")
    rate = nano_codec.spec.frame_rate
    codes = nano_codec.encode(torch.from_numpy(read(track, sample_rate=16_000, channels=1))[None])[0]
    bar = codes[:, 60:130]
    (loop,) = find_loops(torch.cat([codes[:, :60], bar.repeat(1, 5)], dim=1), rate)
    assert (loop.start_s, loop.period_s, loop.repetitions) == (1.2, 1.4, 5)


def test_silence_has_one_code_and_is_a_loop_too(nano_codec: Codec) -> None:
    codes = nano_codec.encode(torch.zeros(1, 1, 16_000 * 5))[0]
    (loop,) = find_loops(codes, nano_codec.spec.frame_rate)
    assert loop.period_s <= 0.1
    assert loop.stop_s > 4.5
