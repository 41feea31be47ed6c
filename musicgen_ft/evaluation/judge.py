"""A judge of genres for a corpus of the user's: it learns from labelled audio, as it is and as the codec gives it back.

C channels, L samples.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from musicgen_ft.audio import read
from musicgen_ft.codec import Codec
from musicgen_ft.corpus.scan import Record, scan_corpus
from musicgen_ft.errors import UserError
from musicgen_ft.evaluation.clip_features import MIN_S, Floats, clip_features
from musicgen_ft.evaluation.genres import GenreClassifier
from musicgen_ft.processes import num_cores
from musicgen_ft.shards.build import default_workers, one_thread_each

NANO_JUDGE = Path(__file__).parents[1] / "assets" / "judge" / "genres.npz"
"""Of the genres of ``synthesize``; train/nano_judge.py makes it."""
CLIPS_OF_A_TRACK = 3
"""At most: more of one track tell little that is new."""
Samples = npt.NDArray[np.float32]


def saved_judge(place: Path) -> GenreClassifier | None:
    """The judge that a file holds, or the bundled one, by the name ``nano``; None where ``place`` is no file.

    Raises:
        UserError: if the file holds none, or one of another version.
    """
    path = NANO_JUDGE if str(place) == "nano" and not place.is_dir() else place
    return GenreClassifier.load(path) if path.is_file() else None


def labelled_tracks(corpus: Path) -> list[Record]:
    """The tracks of a corpus that have a genre.

    Raises:
        UserError: if the corpus cannot be read, or has fewer than two genres.
    """
    found = [record for record in scan_corpus(corpus) if record.problem is None and record.labels.genre is not None]
    _refuse_one_genre(corpus, [record.labels.genre for record in found])
    return found


def train_judge(
    corpus: Path,
    tracks: Sequence[Record],
    codec: Codec,
    *,
    clip_s: float,
    progress: Callable[[], object] = lambda: None,
) -> GenreClassifier:
    """A judge that has heard each clip twice: models speak through the codec, and the codec's sound is no genre.

    Args:
        corpus: for messages.
        tracks: from ``labelled_tracks``.
        codec: that of the models.
        clip_s: seconds of a clip; a shorter track of a second or more is one clip.
        progress: called after each track.

    Raises:
        UserError: if a file cannot be read, or tracks of fewer than two genres are long enough.
    """
    rate = codec.spec.sample_rate

    def listen(track: Record) -> list[Floats]:
        heard: list[Floats] = []
        for clip in clips_of(read(track.path, sample_rate=rate, channels=codec.spec.channels), rate, clip_s):
            codes = codec.encode(torch.from_numpy(clip)[None])
            back = codec.decode(codes)[0, :, : clip.shape[1]].cpu().numpy()
            heard += [clip_features(clip, rate), clip_features(back, rate)]
        return heard

    workers = default_workers(codec, window_s=clip_s, cores=num_cores())
    found: list[list[Floats]] = []
    with one_thread_each(codec.device.type == "cpu"), ThreadPoolExecutor(workers) as pool:
        for heard in pool.map(listen, tracks):
            found.append(heard)
            progress()
    features = [each for heard in found for each in heard]
    genres = [track.labels.genre for track, heard in zip(tracks, found, strict=True) for _ in heard]
    _refuse_one_genre(corpus, genres)
    return GenreClassifier(np.stack(features), [genre or "" for genre in genres])


def clips_of(samples: Samples, sample_rate: int, clip_s: float) -> list[Samples]:
    """Up to CLIPS_OF_A_TRACK clips of a track float32 [C, L], one after the other from its beginning."""
    length = round(max(clip_s, MIN_S) * sample_rate)
    starts = range(0, max(1, samples.shape[1] - length + 1), length)
    clips = [samples[:, start : start + length] for start in starts[:CLIPS_OF_A_TRACK]]
    return [clip for clip in clips if clip.shape[1] >= MIN_S * sample_rate]


def _refuse_one_genre(corpus: Path, genres: Sequence[str | None]) -> None:
    if len(counts := Counter(genres)) < 2:
        told = f"{next(iter(counts))} alone" if counts else "none"
        raise UserError(
            f"--judge {corpus}: found {told}, expected tracks of two genres or more, each of a second or more. Label "
            "them, or leave it out."
        )
