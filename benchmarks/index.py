"""Opening a large shards folder: time and memory of the catalog, and of all that training does before its first crop.

python benchmarks/index.py --tracks 10_000_000 --shards 10_000
python benchmarks/index.py --tracks 1_000_000 --shards 1_000 --folder /some/disk

Makes a folder of made-up indices (the tars are holes in the disk, of the right size) in a temporary folder that is
removed afterwards: ten million tracks take about 4 GB. Every row is a process of its own:
  catalog   what ``prepare`` does once: reads the JSON index of every shard, writes the catalog
  open      ``ShardIndex.open`` with the catalog; ``cold`` has none of it in the disk's cache
  start     what ``finetune`` does with it: refuses leaks, shares out the crops, draws the first epoch's order
Memory is resident memory above that of the imports, at most, mapped pages included.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from musicgen_ft.codec import CodecSpec
from musicgen_ft.corpus.captions import CaptionPolicy
from musicgen_ft.shards.catalog import write_catalog
from musicgen_ft.shards.crops import CropDataset
from musicgen_ft.shards.format import CATALOG_NAME, VERSION, Manifest, ShardInfo, Split, read_manifest, write_manifest
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.sidecar import SIDECAR_FORMAT, sidecar_path

MIB, GIB = 2**20, 2**30
CODEC = CodecSpec(id="made up", sha256="c0dec" * 8, sample_rate=32_000, frame_rate=50, channels=1, n_q=4, card=2048)
VALID_SHARE = 50  # one shard of so many


def main() -> None:
    """Makes the folder and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3, help="of opening and starting; all are printed")
    parser.add_argument("--folder", type=Path, help="where to make it; the system's temporary folder by default")
    parser.add_argument("--do", choices=("catalog", "open", "start"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        print(json.dumps(measure(options.do, options.folder)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        begin = time.perf_counter()
        make_folder(folder, options.tracks, options.shards)
        size = sum(sidecar_path(folder / shard.name).stat().st_size for shard in read_manifest(folder).shards)
        print(f"{options.tracks} tracks in {options.shards} shards, indices {size / GIB:.2f} GiB, made in", end=" ")
        print(f"{time.perf_counter() - begin:.0f} s; load average {os.getloadavg()[0]:.1f}")
        print("| what | seconds | memory, GiB |")
        print("|---|---|---|")
        row("catalog", [run("catalog", folder)])
        catalog = folder / CATALOG_NAME
        print(f"(the catalog has {catalog.stat().st_size / MIB:.0f} MiB)")
        colds = []
        for _ in range(options.repeats):
            with catalog.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            colds.append(run("open", folder))
        row("open, cold", colds)
        row("open", [run("open", folder) for _ in range(options.repeats)])
        row("open and start", [run("start", folder) for _ in range(options.repeats)])


def row(name: str, runs: list[dict[str, float]]) -> None:
    """One row of the table."""
    seconds = ", ".join(f"{each['seconds']:.2f}" for each in runs)
    print(f"| {name} | {seconds} | {max(each['memory'] for each in runs) / GIB:.2f} |", flush=True)


def run(what: str, folder: Path) -> dict[str, float]:
    """One measurement in a process of its own."""
    words = [sys.executable, __file__, "--do", what, "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(what: str, folder: Path) -> dict[str, Any]:
    """Seconds and bytes of one of the things."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    begin = time.perf_counter()
    if what == "catalog":
        write_catalog(folder, read_manifest(folder))
    else:
        index = ShardIndex.open(folder)
        assert len(index.split("train")) > len(index.split("valid")) > 0
    if what == "start":
        index.refuse_leaks()
        crops = CropDataset(
            index.split("train"), segment_frames=1500, card=CODEC.card, captions=CaptionPolicy(), seed=0, global_batch=8
        )
        crops.order.slot(0)
    return {"seconds": time.perf_counter() - begin, "memory": resident("VmHWM") - before}


def resident(name: str) -> int:
    """Bytes of resident memory, ``VmRSS`` now and ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(found) * 1024


def make_folder(folder: Path, num_tracks: int, num_shards: int) -> None:
    """Indices as ``prepare`` writes them, of tracks of 20 s to 6 minutes in albums of ten, and a manifest."""
    per_shard = num_tracks // num_shards
    rng = random.Random(0)
    rows, offset = [], 0
    for _ in range(per_shard):  # the same in every shard: only the texts differ
        frames = rng.randrange(1_000, 18_000)
        codes, meta, seconds = 128 + 8 * frames, rng.randrange(400, 900), 128 + 8 * (frames // 50)
        row = [frames]
        for size in (codes, meta, seconds):
            row += [offset + 512, size]
            offset += 512 + -(-size // 512) * 512
        rows.append(row)
    names = (
        "num_frames",
        "codes_offset",
        "codes_bytes",
        "json_offset",
        "json_bytes",
        "seconds_offset",
        "seconds_bytes",
    )
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    numbers = "".join(f',"{name}":{json.dumps(column)}' for name, column in columns.items())
    shards = []
    for number in range(num_shards):
        split: Split = "valid" if number % VALID_SHARE == 0 else "train"
        info = ShardInfo(
            name=f"{split}-{number:06d}.tar", split=split, num_samples=per_shard, num_frames=sum(columns["num_frames"]),
            num_bytes=offset, sha256=f"{number:064x}",
        )  # fmt: skip
        shards.append(info)
        with (folder / info.name).open("wb") as file:
            file.truncate(offset)
        tracks = range(number * per_shard, (number + 1) * per_shard)
        texts = {
            "keys": [f"{track * 2654435761 % 2**40:016x}" for track in tracks],
            "groups": [f"album {track // 10:08d}" for track in tracks],
            "states": [f"{track:032x}" for track in tracks],
            "codes_states": [f"{track:032x}" for track in tracks],
        }
        head = {"format": SIDECAR_FORMAT, "version": VERSION, "shard": vars(info), "codec_sha256": CODEC.sha256}
        text = json.dumps({**head, "settings": "", "rejected": [], **texts}, separators=(",", ":"))
        sidecar_path(folder / info.name).write_text(text[:-1] + numbers + "}\n")
    shards.sort(key=lambda shard: shard.name)
    write_manifest(folder, Manifest(codec=CODEC, base="nano", shards=tuple(shards), config={}, toolkit_version="0"))


if __name__ == "__main__":
    main()
