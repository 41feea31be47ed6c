"""A control: the same music under the wrong labels, from which no caption can be learned."""

import os
from pathlib import Path

import numpy as np

from musicgen_ft.errors import UserError


def shuffle_labels(corpus: Path, out: Path, *, seed: int) -> None:
    """A copy of a synthesized corpus in which no track has its own labels.

    Args:
        corpus: wav files with a JSON beside each, in any folders.
        out: an empty folder; its audio is linked to the corpus's, its folders are left out.
        seed: of who gets whose.

    Raises:
        UserError: if there are fewer than two tracks.
    """
    tracks = sorted(corpus.rglob("*.wav"))
    if len(tracks) < 2:
        raise UserError(f"{corpus}: found {len(tracks)} tracks, expected two or more, whose labels can change places.")
    order = np.random.default_rng(seed).permutation(len(tracks)).tolist()
    for place, number in enumerate(order):
        track, other = tracks[number], tracks[order[place - 1]]
        os.link(track, out / f"{number:05d}.wav")
        (out / f"{number:05d}.json").write_bytes(other.with_suffix(".json").read_bytes())
