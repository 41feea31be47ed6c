"""Tiny shards: K = 3 codebooks of 50 entries, 10 frames per second, crops of 20 frames."""

import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from musicgen_ft.codec import CodecSpec
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.quality import Quality
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.plan import PlannedTrack
from musicgen_ft.shards.track import Track, TrackMeta

MakeTrack = Callable[..., Track]


@pytest.fixture
def codec() -> CodecSpec:
    return CodecSpec(id="tiny", sha256="c0dec" * 8, sample_rate=320, frame_rate=10, channels=1, n_q=3, card=50)


@pytest.fixture
def make_track(codec: CodecSpec) -> MakeTrack:
    def make(number: int, num_frames: int = 30) -> Track:
        # Frame t of codebook k of track n holds a value that tells k and t, so that a wrong crop shows.
        codes = (np.arange(num_frames)[None] + 7 * np.arange(codec.n_q)[:, None] + number) % codec.card
        meta = TrackMeta(
            labels=Labels(
                description=f"song {number} für dich", genre="folk", moods=("calm", "warm"), bpm=90.0 + number
            ),
            relative_path=f"folk/song {number}.flac",
            num_frames=num_frames,
            duration_s=num_frames / codec.frame_rate,
            source={"sample_rate": 44100, "channels": 2},
        )
        return Track(key=f"track_{number:03d}", codes=codes.astype(np.uint16), meta=meta)

    return make


@pytest.fixture
def tracks(make_track: MakeTrack) -> dict[Split, list[Track]]:
    # 5 + 41 + 70 + 20 + 55 + 33 frames are 1 + 2 + 4 + 1 + 3 + 2 = 13 slots of 20 frames.
    train = [make_track(number, frames) for number, frames in enumerate((5, 41, 70, 20, 55, 33))]
    valid = [make_track(number, frames) for number, frames in enumerate((44, 12, 99), start=100)]
    return {"train": train, "valid": valid}


@pytest.fixture
def make_shards(codec: CodecSpec, write_folder: Callable[..., Path]) -> Callable[..., Path]:
    """Writes complete shards of tracks into a folder."""

    def make(folder: Path, tracks: dict[Split, list[Track]]) -> Path:
        return write_folder(folder, codec, tracks)

    return make


@pytest.fixture
def shards(tmp_path: Path, tracks: dict[Split, list[Track]], make_shards: Callable[..., Path]) -> Path:
    """A complete folder of two train shards and one valid shard."""
    return make_shards(tmp_path / "shards", tracks)


@pytest.fixture
def make_planned(make_quality: Callable[..., Quality]) -> Callable[..., PlannedTrack]:
    """A function that makes a track of a plan; it takes changes."""

    def make(number: int = 0, *, duration_s: float = 3.0, **changes: Any) -> PlannedTrack:
        facts: dict[str, Any] = {
            "key": f"track_{number:03d}", "relative_path": f"folk/song {number}.flac",
            "labels": Labels(description=f"song {number}", genre="folk"), "group": f"album {number // 2}",
            "start_s": 0, "stop_s": None, "duration_s": duration_s, "quality": make_quality(duration_s=duration_s),
            "seconds": np.full((4, math.ceil(duration_s)), -20, np.float16), "audio_sha256": f"{number:064x}",
            "num_bytes": 44, "is_truncated": False, "num_bad_packets": 0, "settings": "window_s=30",
        }  # fmt: skip
        return PlannedTrack(**{**facts, **changes})

    return make


class _Handler(SimpleHTTPRequestHandler):
    requested: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requested.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(shards: Path) -> Iterator[tuple[str, list[str]]]:
    """The shards at a URL of this machine, and the paths that were asked for."""
    _Handler.requested.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(shards.parent))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{shards.name}", _Handler.requested
        server.shutdown()
        thread.join()
