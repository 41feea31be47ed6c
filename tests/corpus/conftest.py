"""Makes small corpora."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

WriteTrack = Callable[..., Path]


@pytest.fixture
def write_track(tmp_path: Path) -> WriteTrack:
    """A function that writes 0.1 s of silence under the test's folder, with tags; the suffix says the format."""

    def write(relative_path: str, **tags: str) -> Path:
        path = tmp_path / relative_path
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        codec = {".flac": "flac", ".mp3": "libmp3lame", ".ogg": "libopus", ".m4a": "aac"}.get(path.suffix, "pcm_s16le")
        with av.open(str(path), "w", format="wav" if codec == "pcm_s16le" else None) as container:
            stream: Any = container.add_stream(codec, rate=48000, layout="mono")
            (stream if path.suffix == ".ogg" else container).metadata.update(tags)
            for piece in (frame, None):
                container.mux(stream.encode(piece))
        return path

    return write
