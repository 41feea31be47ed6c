"""What the data path feeds alone, beside what the fastest measured training step eats.

python benchmarks/data_path.py
python benchmarks/data_path.py --size tiny --size mid --size small --steps 2

Writes shards of made-up codes with labels and figures of seconds, and reads them as ``finetune`` does: index, order,
crop, caption, batch. Training steps are those of ``benchmarks/train.py``, ours with nothing recomputed. Frames are
frames of all codebooks; a crop is as long as the size's row in ``train.py``.
  fed     frames per second of the data path, the best of the repeats, after the workers have started
  eaten   frames per second of the training step, by its least time
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_ft.codec import CodecSpec
from musicgen_ft.corpus.captions import CaptionPolicy
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.shards.catalog import write_catalog
from musicgen_ft.shards.datamodule import ShardDataModule
from musicgen_ft.shards.format import Manifest, ShardInfo, Split, write_manifest
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.track import Track, TrackMeta
from musicgen_ft.shards.writer import write_shard

CODEC = CodecSpec(id="made up", sha256="c0dec" * 8, sample_rate=32_000, frame_rate=50, channels=1, n_q=4, card=2048)
SPLIT: Split = "train"
BATCH = 8
TRAIN = Path(__file__).with_name("train.py")
ROWS = {"tiny": (4, 500), "mid": (2, 500), "small": (1, 500), "medium": (1, 1500)}  # batch, frames, as in train.py


def main() -> None:
    """Measures both and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(ROWS), action="append", help="may come several times; tiny by default")
    parser.add_argument("--tracks", type=int, default=2000, help="of 30 s to 4 minutes")
    parser.add_argument("--batches", type=int, default=400, help="of 8 crops, timed")
    parser.add_argument("--workers", type=int, action="append", help="0 and 2 by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="training steps, timed")
    parser.add_argument("--device", default="cpu", help="of the training step: cpu or cuda")
    options = parser.parse_args()
    sizes = options.size or ["tiny"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, options.tracks)
        index = ShardIndex.open(folder)
        print(f"{options.tracks} tracks, batches of {BATCH}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")
        print("| size | crop, frames | workers | fed | eaten | times |")
        print("|---|---|---|---|---|---|")
        for size in sizes:
            _, frames = ROWS[size]
            eaten = step_rate(size, options.steps, options.device)
            for workers in options.workers or [0, 2]:
                fed = max(feed(index, frames, workers, options.batches) for _ in range(options.repeats))
                print(f"| {size} | {frames} | {workers} | {fed:.0f} | {eaten:.0f} | {fed / eaten:.1f} |", flush=True)


def feed(index: ShardIndex, segment_frames: int, num_workers: int, num_batches: int) -> float:
    """Frames per second of so many batches, after as many that start the workers and warm the disk's cache."""
    warm = 20
    data = ShardDataModule(
        index=index, segment_frames=segment_frames, global_batch=BATCH, micro_batch=BATCH,
        num_steps=warm + num_batches, seed=0, captions=CaptionPolicy(), cfg_dropout=0.3, num_workers=num_workers,
    )  # fmt: skip
    batches: Any = iter(data.train_dataloader())
    for _ in islice(batches, warm):
        pass
    begin = time.perf_counter()
    frames = sum(batch.mask.numel() for batch in batches)
    return frames / (time.perf_counter() - begin)


def step_rate(size: str, steps: int, device: str) -> float:
    """Frames per second of our training step, by its least time."""
    batch, frames = ROWS[size]
    job = [size, device, batch, frames, steps, 1]
    words = [sys.executable, str(TRAIN), "--contestant", "ours", "--job", json.dumps(job)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the training step failed:\n{done.stderr}")
    return batch * frames / float(min(json.loads(done.stdout.splitlines()[-1])["times"]))


def write_shards(folder: Path, num_tracks: int) -> None:
    """Shards of 500 tracks each."""
    rng = np.random.default_rng(0)
    shards: list[ShardInfo] = []
    for first in range(0, num_tracks, 500):
        tracks = [make_track(rng, number) for number in range(first, min(first + 500, num_tracks))]
        shards.append(write_shard(folder, f"{SPLIT}-{len(shards):06d}.tar", tracks, split=SPLIT, codec=CODEC).shard)
    write_manifest(folder, Manifest(codec=CODEC, base="nano", shards=tuple(shards), config={}, toolkit_version="0"))
    write_catalog(folder, Manifest(codec=CODEC, base="nano", shards=tuple(shards), config={}, toolkit_version="0"))


def make_track(rng: np.random.Generator, number: int) -> Track:
    """A track of 30 s to 4 minutes, with what prepare tells of it."""
    seconds = int(rng.integers(30, 240))
    frames = seconds * CODEC.frame_rate
    labels = Labels(
        description=f"track {number}: a slow piece for strings and piano, recorded in a small room",
        genre="classical", moods=("calm", "warm"), instrument="piano", bpm=60.0 + number % 100, key="C major",
    )  # fmt: skip
    meta = TrackMeta(labels=labels, relative_path=f"{number}.flac", num_frames=frames, duration_s=float(seconds))
    return Track(
        key=f"track_{number:06d}",
        codes=rng.integers(CODEC.card, size=(CODEC.n_q, frames)).astype(np.uint16),
        meta=meta,
        seconds=rng.uniform(-40, -10, size=(4, seconds)).astype(np.float16),
    )


if __name__ == "__main__":
    main()
