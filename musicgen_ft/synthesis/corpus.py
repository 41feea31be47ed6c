"""Writes a corpus: for each track a wav file and a JSON file of its labels beside it."""

import multiprocessing
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

import numpy as np

from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_path, write_json
from musicgen_ft.processes import end_with_parent
from musicgen_ft.synthesis.genres import GENRES, find_genre
from musicgen_ft.synthesis.render import Track, render_track


def synthesize_corpus(
    folder: Path,
    *,
    num_tracks: int,
    seed: int,
    duration_s: float,
    sample_rate: int = 44_100,
    genres: Sequence[str] | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Writes labelled tracks into a folder that is there.

    Track ``i`` has the same bytes in every corpus of the same seed, genres, duration and sample rate, however many
    tracks it has.

    Args:
        folder: where the files go.
        num_tracks: how many tracks.
        seed: of the corpus.
        duration_s: length of each track.
        sample_rate: of the files, in Hz.
        genres: names in ``GENRES``, taken in turn; None takes all.
        workers: processes that share the tracks.
        progress: called after each track with the tracks done and ``num_tracks``.

    Returns:
        The wav files, in order.

    Raises:
        UserError: if a number is out of range, or a genre is not known.
    """
    if num_tracks < 1:
        raise UserError(f"num_tracks is {num_tracks}, expected 1 or more. Choose another --tracks.")
    names = tuple(GENRES) if genres is None else tuple(genres)
    if not names:
        raise UserError(f"genres is empty, expected some of: {', '.join(GENRES)}. Leave it out to take them all.")
    for name in names:
        find_genre(name)
    work = [(folder, seed, number, names[number % len(names)], duration_s, sample_rate) for number in range(num_tracks)]
    paths = []
    for done, path in enumerate(_synthesized(work, workers), start=1):
        paths.append(path)
        if progress is not None:
            progress(done, num_tracks)
    return sorted(paths)


_Work: TypeAlias = tuple[Path, int, int, str, float, int]
"""Folder, seed, number, genre, duration in seconds, sample rate in Hz."""


def _synthesized(work: Sequence[_Work], workers: int) -> Iterator[Path]:
    """The files, as they get done."""
    if workers == 1:
        yield from map(_synthesize_track, work)
        return
    spawn = multiprocessing.get_context("spawn")  # what the parent has loaded may hold threads: no fork
    processes = min(workers, len(work))
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=end_with_parent) as pool:
        for done in as_completed([pool.submit(_synthesize_track, one) for one in work]):
            yield done.result()


def _synthesize_track(work: _Work) -> Path:
    folder, seed, number, genre, duration_s, sample_rate = work
    path = folder / f"{number:05d}_{genre.replace(' ', '_')}.wav"
    write_track(path, render_track(seed, number, genre=genre, duration_s=duration_s, sample_rate=sample_rate))
    return path


def write_track(path: Path, track: Track) -> None:
    """Writes a track as 16-bit PCM to ``path`` and its labels as JSON beside it."""
    samples = np.rint(track.waveform.T * 32767).astype("<i2")  # [L, C]
    with atomic_path(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(track.sample_rate)
        file.writeframes(samples.tobytes())
    sidecar = asdict(track.labels) | {
        "name": path.stem,
        "duration": len(samples) / track.sample_rate,
        "sample_rate": track.sample_rate,
        "file_extension": path.suffix[1:],
    }
    write_json(path.with_suffix(".json"), sidecar)
