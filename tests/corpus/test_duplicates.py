import io
import itertools
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import soxr

from musicgen_ft.corpus import duplicates
from musicgen_ft.corpus.duplicates import MIN_SHARE, Match, clusters, exact_duplicates, find_matches
from musicgen_ft.corpus.fingerprint import FRAME_S, Fingerprint, FingerprintStream
from musicgen_ft.synthesis.genres import GENRES
from musicgen_ft.synthesis.render import render_track

Samples = npt.NDArray[np.float32]
RATE = 22_050


def melody(seed: int, *, duration_s: float) -> Samples:
    """Random notes of two voices with harmonics, over a little noise, float32 [1, L]."""
    generator = np.random.default_rng(seed)
    length = round(duration_s * RATE)
    samples = generator.normal(0, 1e-3, (1, length))
    for voice, note_s in ((57, 0.21), (72, 0.34)):
        for start in np.arange(0, duration_s, note_s):
            time_s = np.arange(round(min(0.6, duration_s - start) * RATE)) / RATE
            frequency = 440 * 2 ** ((voice + generator.integers(12) - 69) / 12)
            note = sum(np.sin(2 * np.pi * frequency * k * time_s) / k for k in range(1, 5)) * np.exp(-5 * time_s)
            begin = round(start * RATE)
            samples[:, begin : begin + len(note)] += 0.1 * note[: length - begin]
    return samples.astype(np.float32)


def fingerprint(samples: Samples, rate: int = RATE) -> Fingerprint:
    stream = FingerprintStream(rate)
    stream.push(samples)
    return stream.finish()


def mp3(samples: Samples, rate: int = RATE, *, kbps: int = 64) -> Samples:
    """Through MP3 and back: the encoder's delay comes before it."""
    layout = "mono" if len(samples) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    fifo = av.AudioFifo()
    fifo.write(frame)
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream: Any = container.add_stream("libmp3lame", rate=rate, layout=layout)
        stream.bit_rate = 1000 * kbps
        stream.options = {"compression_level": "7"}  # quick
        for piece in [*fifo.read_many(1152, partial=True), None]:
            container.mux(stream.encode(piece))
    file.seek(0)
    with av.open(file, "r") as coded:
        return np.concatenate([piece.to_ndarray() for piece in coded.decode(audio=0)], axis=1).astype(np.float32)


def noisy(samples: Samples) -> Samples:
    return samples + np.random.default_rng(0).normal(0, 0.004, samples.shape).astype(np.float32)


def made_up(seed: int, count: int = 120) -> Fingerprint:
    """Random hashes at random times."""
    generator = np.random.default_rng(seed)
    times = np.sort(generator.integers(0, 1500, count, dtype=np.int32))
    return Fingerprint(generator.integers(0, 1 << 32, count, dtype=np.uint32), times)


def joined(fingerprints: list[Fingerprint | None]) -> list[int]:
    matches = find_matches(fingerprints)
    return clusters(len(fingerprints), [(match.first, match.second) for match in matches])


# ---- copies of recordings --------------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Samples], tuple[Samples, int]]] = {
    "quieter": lambda samples: (samples * np.float32(0.1), RATE),
    "clipped": lambda samples: (np.clip(4 * samples, -1, 1), RATE),
    "MP3 at 32 kb/s": lambda samples: (mp3(samples, kbps=32), RATE),
    "another rate": lambda samples: (soxr.resample(samples.T, RATE, 48_000).T, 48_000),
    "0.37 s cut": lambda samples: (samples[:, round(0.37 * RATE) :], RATE),
    "silence before": lambda samples: (np.pad(samples, ((0, 0), (round(1.2345 * RATE), 0))), RATE),
    "first half": lambda samples: (samples[:, : samples.shape[1] // 2], RATE),
    "second half, MP3": lambda samples: (mp3(samples[:, samples.shape[1] // 2 :], kbps=32), RATE),
    "stereo": lambda samples: (np.concatenate([samples, 0.4 * samples]), RATE),
    "noisy": lambda samples: (noisy(samples), RATE),
}


@pytest.fixture(scope="module")
def pieces() -> list[Samples]:
    return [melody(seed, duration_s=16 + 3 * seed) for seed in range(4)]


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found_among_other_pieces(pieces: list[Samples], name: str) -> None:
    copies = [COPIES[name](piece) for piece in pieces]
    prints = [*map(fingerprint, pieces), None, *(fingerprint(samples, rate) for samples, rate in copies)]
    matches = find_matches(prints)
    assert [(match.first, match.second) for match in matches] == [(i, i + 5) for i in range(4)]
    assert all(MIN_SHARE <= match.share <= 1 for match in matches)


def test_a_match_says_where_the_second_starts_in_the_first(pieces: list[Samples]) -> None:
    whole, part = fingerprint(pieces[2]), fingerprint(pieces[2][:, round(7.3 * RATE) :])
    (match,) = find_matches([whole, None, part])
    assert (match.first, match.second) == (0, 2)
    assert match.offset_s == pytest.approx(7.3, abs=1.5 * FRAME_S)
    assert match.share > 0.9
    (match,) = find_matches([part, whole])
    assert match.offset_s == pytest.approx(-7.3, abs=1.5 * FRAME_S)


def test_a_quotation_is_no_copy(pieces: list[Samples]) -> None:
    """A fifth of the one is in the other, sample by sample."""
    other = melody(9, duration_s=25)
    length = 5 * RATE
    other[:, 2 * length : 3 * length] = pieces[2][:, length : 2 * length]
    assert find_matches([fingerprint(pieces[2]), fingerprint(other)]) == []


def test_pieces_over_the_same_drum_loop_are_no_copies() -> None:
    """The loop is the same samples from begin to end, and as loud as the music over it."""
    generator = np.random.default_rng(7)
    loop = np.zeros(2 * RATE)
    for beat, frequency in enumerate((180, 400, 180, 950, 180, 420, 2000, 700)):
        time_s = np.arange(RATE // 4) / RATE
        hit = (np.sin(2 * np.pi * frequency * time_s) + 0.5 * generator.normal(size=len(time_s))) * np.exp(-20 * time_s)
        loop[beat * len(hit) : (beat + 1) * len(hit)] = 0.15 * hit
    drums = np.tile(loop, 12)[None].astype(np.float32)
    over = [fingerprint(drums + melody(seed, duration_s=24)) for seed in range(20, 24)]
    shared = [len(np.intersect1d(a.hashes, b.hashes)) for a, b in itertools.combinations(over, 2)]
    assert max(shared) >= duplicates.MIN_SHARED, "the loop is heard"
    assert find_matches(over) == []


@pytest.mark.parametrize(("num_looped", "is_copy"), [(12, False), (25, False), (60, True)])
def test_what_a_loop_repeats_counts_once_and_has_to_be_much(num_looped: int, is_copy: bool) -> None:
    """A bar of 100 frames fifteen times, in both; 200 hashes are each one's own."""
    generator = np.random.default_rng(8)
    bar, places = made_up(100, num_looped).hashes, generator.integers(0, 100, num_looped)
    times = np.concatenate([places + 100 * number for number in range(15)]).astype(np.int32)
    prints: list[Fingerprint | None] = []
    for seed in range(2):
        own = made_up(seed, 200)
        all_times = np.concatenate([own.times, times])
        order = np.argsort(all_times, kind="stable")
        prints.append(Fingerprint(np.concatenate([own.hashes, np.tile(bar, 15)])[order], all_times[order]))
    assert len(find_matches(prints)) == is_copy


def test_a_loop_is_found_in_its_half() -> None:
    """Every two seconds the same: any repeat is a right offset, and one hash has many places."""
    loop = np.tile(melody(30, duration_s=2.0), 40)
    (match,) = find_matches([fingerprint(loop), fingerprint(loop[:, 31 * RATE :])])
    assert match.share > 0.9


def test_of_many_copies_all_are_joined() -> None:
    """More than the pairs that one of them is part of; each copy has half of the hashes."""
    originals = [made_up(seed) for seed in range(2)]
    prints: list[Fingerprint | None] = []
    for number in range(80):
        generator = np.random.default_rng((1, number))
        original, noise = originals[number % 2], made_up(1000 + number)
        is_kept = generator.random(120) < 0.5
        times = np.where(is_kept, original.times + number, noise.times)
        order = np.argsort(times, kind="stable")
        prints.append(Fingerprint(np.where(is_kept, original.hashes, noise.hashes)[order], times[order]))
    assert joined(prints) == [0, 1] * 40


def test_hashes_that_are_everywhere_join_nothing() -> None:
    common = made_up(0, 40)
    prints: list[Fingerprint | None] = []
    for seed in range(1, 80):
        own, generator = made_up(seed), np.random.default_rng((2, seed))
        times = generator.permuted(np.concatenate([own.times, common.times]))  # the same hashes, elsewhere
        prints.append(Fingerprint(np.concatenate([own.hashes, common.hashes]), np.sort(times)))
    assert joined(prints) == list(range(79))


def test_how_many_are_paired_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    prints: list[Fingerprint | None] = [None, made_up(0), made_up(1)]
    for number in range(12):
        original = made_up(number % 2)
        prints += [Fingerprint(original.hashes[number * 3 :], original.times[number * 3 :]), made_up(50 + number)]
    expected = find_matches(prints)
    assert len(expected) == 2 * (7 * 6 // 2)
    for block in (1, 100, 1000):
        monkeypatch.setattr(duplicates, "_BLOCK", block)
        assert find_matches(prints) == expected


@pytest.mark.parametrize("prints", [[], [None, None], [Fingerprint(np.zeros(0, np.uint32), np.zeros(0, np.int32))] * 3])
def test_what_has_no_hashes_matches_nothing(prints: list[Fingerprint | None]) -> None:
    assert find_matches(prints) == []


@pytest.mark.slow
def test_copies_of_synthesized_tracks_are_told_from_other_tracks() -> None:
    """The goals: of the pairs found 99 % are right, and 95 % of the right ones are found."""
    sources, prints = [], []
    for number, genre in enumerate([*GENRES, *GENRES]):
        samples = render_track(1, number, genre=genre, duration_s=26.0, sample_rate=44_100).waveform
        middle = samples.shape[1] // 2
        copies = [
            (samples, 44_100),
            (np.clip(2 * samples, -1, 1), 44_100),
            (mp3(samples, 44_100, kbps=64), 44_100),
            (soxr.resample(samples.T, 44_100, 22_050).T, 22_050),
            (samples[:, round(0.37 * 44_100) :], 44_100),
            (samples[:, :middle], 44_100),
            (samples[:, middle:] * np.float32(0.1), 44_100),
        ]
        prints += [fingerprint(*copy) for copy in copies]
        sources += [number] * len(copies)
    found = joined([*prints])
    pairs = list(itertools.combinations(range(len(prints)), 2))
    of_one = {pair for pair in pairs if sources[pair[0]] == sources[pair[1]]}
    taken = {pair for pair in pairs if found[pair[0]] == found[pair[1]]}
    assert len(of_one & taken) / len(taken) >= 0.99
    assert len(of_one & taken) / len(of_one) >= 0.95


# ---- equal samples, and clusters -------------------------------------------------------------------------------------


def test_equal_hashes_are_exact_duplicates_and_empty_ones_never() -> None:
    assert exact_duplicates(["a", "", "b", "a", "", "c", "a", "b"]) == [(0, 3), (3, 6), (2, 7)]
    assert exact_duplicates([]) == []


def test_a_cluster_is_named_by_its_smallest_member() -> None:
    assert clusters(7, [(5, 3), (6, 5), (1, 4)]) == [0, 1, 2, 3, 1, 3, 3]
    assert clusters(3, []) == [0, 1, 2]
    assert clusters(3, iter([(2, 1), (1, 2), (1, 1)])) == [0, 1, 1]


def test_clusters_are_what_can_be_reached() -> None:
    generator = np.random.default_rng(3)
    pairs = [(int(a), int(b)) for a, b in generator.integers(0, 60, (35, 2))]
    smallest = list(range(60))
    for _ in range(60):  # as long as it takes for the smallest number to go round
        for a, b in pairs:
            smallest[a] = smallest[b] = min(smallest[a], smallest[b])
    assert clusters(60, pairs) == smallest


def test_a_match_cannot_be_changed() -> None:
    match = Match(0, 1, 2.5, 0.75)
    with pytest.raises(AttributeError):
        match.share = 1.0  # type: ignore[misc]
