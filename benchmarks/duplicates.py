"""Near duplicates: how surely copies of a recording are found, and how surely other pieces are left alone.

python benchmarks/duplicates.py
python benchmarks/duplicates.py --tracks 96 --audio MUSIC_FOLDER --workers 2

The pieces, all different:
  genres  tracks of the synthesizer, its genres in turn
  twins   for each genre, pieces of one tempo, key and set of instruments: the hardest to tell apart
  loop    pieces with one drum loop under them, the same samples from begin to end, as from a library of loops
  audio   with --audio, excerpts of real recordings
Each is fingerprinted as it is and after every transformation. A row of the table is a corpus of all pieces with one
copy of each, the last one a corpus of all copies at once. Two items count as joined if their cluster is one.
  recall     pairs of copies that are joined, of those that should be
  precision  joined pairs that are copies of one piece, of all joined pairs
Then come the speed of fingerprints, and of the search in a large made-up set of them.
"""

import argparse
import io
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import soxr

from musicgen_ft.audio import Samples, read
from musicgen_ft.corpus.duplicates import clusters, find_matches
from musicgen_ft.corpus.fingerprint import Fingerprint, FingerprintStream
from musicgen_ft.corpus.scan import AUDIO_SUFFIXES
from musicgen_ft.synthesis.arrange import Score, compose
from musicgen_ft.synthesis.genres import GENRES
from musicgen_ft.synthesis.render import play, render_track

RATE = 44_100
TWINS_PER_GENRE = 3
NUM_LOOP_PIECES = 8
EXCERPTS_PER_FILE, EXCERPT_S = 2, 40.0

Sound = tuple[Samples, int]
"""Samples [C, L] and their rate."""


# ---- transformations -------------------------------------------------------------------------------------------------


def gain(sound: Sound, db: float) -> Sound:
    """Louder or quieter, clipped at full scale."""
    return np.clip(sound[0] * np.float32(10 ** (db / 20)), -1, 1), sound[1]


def resampled(sound: Sound, rate: int) -> Sound:
    """At another rate."""
    return np.ascontiguousarray(soxr.resample(sound[0].T, sound[1], rate).T), rate


def later(sound: Sound, offset_s: float) -> Sound:
    """Without its first seconds, or with silence before it if the offset is negative."""
    shift = round(abs(offset_s) * sound[1])
    samples = sound[0][:, shift:] if offset_s > 0 else np.pad(sound[0], ((0, 0), (shift, 0)))
    return samples, sound[1]


def half(sound: Sound, number: int) -> Sound:
    """Its first (0) or second (1) half."""
    middle = sound[0].shape[1] // 2
    return (sound[0][:, middle:] if number else sound[0][:, :middle]), sound[1]


def mono(sound: Sound) -> Sound:
    """One channel, the mean."""
    return sound[0].mean(axis=0, keepdims=True), sound[1]


def equalized(sound: Sound, low_db: float, high_db: float) -> Sound:
    """Shelves below 200 Hz and above 4 kHz."""
    samples, rate = sound
    length = samples.shape[1]
    padded = 1 << (length - 1).bit_length()
    squares = np.fft.rfftfreq(padded, 1 / rate) ** 2
    db = low_db / (1 + squares / 200**2) + high_db * squares / (squares + 4000**2)
    filtered = np.fft.irfft(np.fft.rfft(samples, n=padded) * 10 ** (db / 20), n=padded)[:, :length]
    return filtered.astype(np.float32), rate


def encoded(sound: Sound, codec: str, kbps: int) -> Sound:
    """Through ``libmp3lame`` or ``libopus`` and back."""
    samples, rate = resampled(sound, 48_000) if codec == "libopus" else sound
    layout = "mono" if len(samples) == 1 else "stereo"
    is_planar = codec != "libopus"
    content = np.ascontiguousarray(samples) if is_planar else samples.T.reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(content, format="fltp" if is_planar else "flt", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    fifo = av.AudioFifo()
    fifo.write(frame)
    file = io.BytesIO()
    with av.open(file, "w", format="mp3" if is_planar else "ogg") as container:
        stream: Any = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 1000 * kbps
        stream.options = {"compression_level": "7" if is_planar else "5"}  # LAME takes its time by default
        for piece in [*fifo.read_many(1152 if is_planar else 960, partial=True), None]:
            container.mux(stream.encode(piece))
    file.seek(0)
    with av.open(file, "r") as coded:
        blocks = [frame.to_ndarray() for frame in coded.decode(audio=0)]
    assert len(blocks[0]) == len(samples), "the decoder gives planes"
    return np.concatenate(blocks, axis=1).astype(np.float32), rate


def mp3(sound: Sound, kbps: int) -> Sound:
    """Through MP3 and back."""
    return encoded(sound, "libmp3lame", kbps)


def ogg(sound: Sound, kbps: int) -> Sound:
    """Through Opus in Ogg and back."""
    return encoded(sound, "libopus", kbps)


Transformation = Callable[[Sound], Sound]


def chain(*steps: Transformation) -> Transformation:
    """One after the other."""

    def transform(sound: Sound) -> Sound:
        for step in steps:
            sound = step(sound)
        return sound

    return transform


TRANSFORMATIONS: dict[str, Transformation] = {
    "gain -20 dB": partial(gain, db=-20),
    "gain +6 dB, clipped": partial(gain, db=6),
    "MP3 128 kb/s": partial(mp3, kbps=128),
    "MP3 64 kb/s": partial(mp3, kbps=64),
    "OGG (Opus) 96 kb/s": partial(ogg, kbps=96),
    "resampled to 22.05 kHz": partial(resampled, rate=22_050),
    "resampled to 48 kHz": partial(resampled, rate=48_000),
    "first 0.37 s cut": partial(later, offset_s=0.37),
    "3.1234 s of silence before": partial(later, offset_s=-3.1234),
    "first half": partial(half, number=0),
    "second half": partial(half, number=1),
    "mono": mono,
    "EQ +5 dB low, -5 dB high": partial(equalized, low_db=5, high_db=-5),
    "mono, 0.37 s cut, MP3 64": chain(mono, partial(later, offset_s=0.37), partial(mp3, kbps=64)),
    "second half, 22.05 kHz, MP3 64": chain(
        partial(half, number=1), partial(resampled, rate=22_050), partial(mp3, kbps=64)
    ),
    "+6 dB clipped, EQ, first half, Opus 80": chain(
        partial(gain, db=6), partial(equalized, low_db=-4, high_db=4), partial(half, number=0), partial(ogg, kbps=80)
    ),
    "0.1234 s cut, second half, -20 dB, MP3 128": chain(
        partial(later, offset_s=0.1234), partial(half, number=1), partial(gain, db=-20), partial(mp3, kbps=128)
    ),
}


# ---- pieces ----------------------------------------------------------------------------------------------------------


def genre_piece(number: int) -> Samples:
    """A track of the synthesizer, of 20 to 45 s."""
    genre = tuple(GENRES)[number % len(GENRES)]
    return render_track(5, number, genre=genre, duration_s=20 + 7 * number % 26, sample_rate=RATE).waveform


def twin_scores(genre: str, count: int) -> list[Score]:
    """Different pieces of one tempo, key and set of instruments."""
    bpm = sum(GENRES[genre].tempo_bpm) // 2
    rules = replace(GENRES[genre], tempo_bpm=(bpm, bpm))
    scores: list[Score] = []
    for seed in range(100_000):
        score = compose(rules, np.random.default_rng((29, seed)), 30.0)
        if not scores or (score.key, score.instruments) == (scores[0].key, scores[0].instruments):
            scores.append(score)
        if len(scores) == count:
            break
    return scores


def twin_piece(genre: str, number: int) -> Samples:
    """One of the twins."""
    score = twin_scores(genre, TWINS_PER_GENRE)[number]
    return play(score, np.random.default_rng((29, number)), 30.0, RATE)


def loop_piece(number: int) -> Samples:
    """House at 120 bpm in any key, without drums of its own, over a loop of two bars (4 s)."""
    rules = replace(GENRES["house"], tempo_bpm=(120, 120))
    drums = replace(compose(rules, np.random.default_rng(5), 4.0), layers=())
    loop = play(drums, np.random.default_rng(5), 4.0, RATE)
    score = replace(compose(rules, np.random.default_rng((7, number)), 32.0), strokes={})
    piece = play(replace(score, genre=replace(rules, drums=None)), np.random.default_rng((7, number)), 32.0, RATE)
    return (piece + np.tile(loop, 8)) / np.float32(2)


def audio_piece(path: Path, number: int) -> Samples:
    """An excerpt of a recording."""
    length = round(EXCERPT_S * RATE)
    return read(path, sample_rate=RATE, channels=2)[:, number * length : (number + 1) * length]


def audio_pieces(folder: Path) -> Iterator[tuple[str, Callable[[], Samples]]]:
    """Excerpts of every recording long enough."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES):
        duration_s = read(path, sample_rate=RATE, channels=1).shape[1] / RATE
        for number in range(min(EXCERPTS_PER_FILE, int(duration_s / EXCERPT_S))):
            yield f"audio {path.name} {number}", partial(audio_piece, path, number)


# ---- measuring -------------------------------------------------------------------------------------------------------


class Copy(NamedTuple):
    """One item of the corpus."""

    piece: str
    transformation: str
    fingerprint: Fingerprint
    duration_s: float
    cpu_s: float
    """Seconds that the fingerprint took."""


class Result(NamedTuple):
    """How well a corpus was told apart."""

    recall: float
    precision: float
    num_wrong: int
    """Joined pairs of different pieces."""
    seconds: float
    """That the search took."""


def main() -> None:
    """Makes the pieces and their copies, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tracks", type=int, default=60, help="pieces of the genres in turn")
    parser.add_argument("--audio", type=Path, action="append", default=[], help="folder of real recordings")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--large", type=int, default=20_000, help="tracks of the made-up set, 500 hashes each")
    args = parser.parse_args()

    pieces: list[tuple[str, Callable[[], Samples]]] = [
        *((f"genre {number}", partial(genre_piece, number)) for number in range(args.tracks)),
        *((f"twin {g} {n}", partial(twin_piece, g, n)) for g in GENRES for n in range(TWINS_PER_GENRE)),
        *((f"loop {number}", partial(loop_piece, number)) for number in range(NUM_LOOP_PIECES)),
        *(piece for folder in args.audio for piece in audio_pieces(folder)),
    ]
    kinds = Counter(name.split()[0] for name, _ in pieces)
    print(f"{len(pieces)} pieces: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}\n", flush=True)
    with ProcessPoolExecutor(args.workers) as pool:
        copies = [copy for found in pool.map(copies_of, pieces) for copy in found]

    print("| transformation | recall | precision | wrong pairs |\n|---|---|---|---|")
    for name in TRANSFORMATIONS:
        print_row(name, judge([copy for copy in copies if copy.transformation in ("", name)]))
    everything = judge(copies)
    print_row(f"all {len(copies)} at once", everything)

    audio_s = sum(copy.duration_s for copy in copies)
    cpu_s = sum(copy.cpu_s for copy in copies)
    num_hashes = sum(len(copy.fingerprint.hashes) for copy in copies)
    num_characters = sum(len(copy.fingerprint.to_text()) for copy in copies)
    print(f"\nfingerprints: {cpu_s / audio_s * 3600:.1f} s per hour of audio ({audio_s / cpu_s:.0f} x real time)")
    print(f"  {num_hashes / audio_s:.1f} hashes and {num_characters / audio_s:.0f} characters per second of audio")
    print(f"search among all {len(copies)}: {everything.seconds:.1f} s")
    print_large(args.large)


def copies_of(piece: tuple[str, Callable[[], Samples]]) -> list[Copy]:
    """A piece and all its copies; the piece itself has no transformation."""
    name, make = piece
    sound = (make(), RATE)
    copies = [fingerprinted(name, "", sound)]
    return [*copies, *(fingerprinted(name, title, step(sound)) for title, step in TRANSFORMATIONS.items())]


def fingerprinted(piece: str, transformation: str, sound: Sound) -> Copy:
    """A copy with its fingerprint, made from blocks of 10 s."""
    samples, rate = sound
    begin = time.process_time()
    stream = FingerprintStream(rate)
    for start in range(0, samples.shape[1], 10 * rate):
        stream.push(samples[:, start : start + 10 * rate])
    fingerprint = stream.finish()
    return Copy(piece, transformation, fingerprint, samples.shape[1] / rate, time.process_time() - begin)


def judge(copies: Sequence[Copy]) -> Result:
    """Searches a corpus and compares its clusters with the pieces."""
    begin = time.perf_counter()
    matches = find_matches([copy.fingerprint for copy in copies])
    seconds = time.perf_counter() - begin
    found = clusters(len(copies), [(match.first, match.second) for match in matches])
    pieces = [copy.piece for copy in copies]
    num_joined = num_pairs(Counter(found))
    num_right = num_pairs(Counter(zip(found, pieces, strict=True)))
    recall = num_right / num_pairs(Counter(pieces))
    precision = num_right / num_joined if num_joined else 1.0
    return Result(recall, precision, num_joined - num_right, seconds)


def num_pairs(sizes: Counter[Any]) -> int:
    """Pairs within groups of these sizes."""
    return sum(size * (size - 1) // 2 for size in sizes.values())


def print_row(name: str, result: Result) -> None:
    """One row of the table."""
    print(f"| {name} | {result.recall:.3f} | {result.precision:.3f} | {result.num_wrong} |", flush=True)


def print_large(num_tracks: int, num_hashes: int = 500) -> None:
    """The time of the search among many: a tenth are copies with a third of their hashes, a fifth of all is common."""
    generator = np.random.default_rng(0)
    common = generator.integers(0, 1 << 28, 100_000, dtype=np.uint32)
    prints: list[Fingerprint] = []
    for number in range(num_tracks):
        hashes = generator.integers(0, 1 << 28, num_hashes, dtype=np.uint32)  # the smallest sixteenth, as of music
        # Some of the common ones are everywhere: their frequency falls with the square of their rank.
        ranks = (len(common) * generator.random(num_hashes // 5) ** 2).astype(np.intp)
        hashes[: num_hashes // 5] = common[ranks]
        times = np.sort(generator.integers(0, 5000, num_hashes, dtype=np.int32))
        if number % 10 == 9:
            kept = slice(0, None, 3)
            original = prints[int(generator.integers(number))]
            hashes[kept], times[kept] = original.hashes[kept], original.times[kept] + 17
            order = np.argsort(times, kind="stable")
            hashes, times = hashes[order], times[order]
        prints.append(Fingerprint(hashes, times))
    begin = time.perf_counter()
    matches = find_matches(prints)
    seconds = time.perf_counter() - begin
    print(f"search among {num_tracks} made-up tracks of {num_hashes} hashes: {seconds:.1f} s, {len(matches)} matches")


if __name__ == "__main__":
    main()
