"""Commands as a user gives them, in this process or one of their own; what the main job makes, once a session."""

import contextlib
import hashlib
import io
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch

from musicgen_ft.cli import main as console_command

TRAINING = ("--batch_size", "4", "--segment_s", "1", "--num_workers", "0", "--accelerator", "cpu")


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Result]
"""Words of a command line to its result: ``command("export", run, "--out", folder)``."""


@pytest.fixture(scope="session")
def command() -> Command:
    """Runs ``musicgen-ft WORDS ...`` as the console command does, but in this process: no import is paid twice."""

    def run(*words: object) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            patch.object(sys, "argv", ["musicgen-ft", *map(str, words)]),
            patch.dict(os.environ),
            patch.object(logging.root, "handlers", []),
            patch.object(logging.root, "level", logging.WARNING),
            warnings.catch_warnings(),
            _same_chance(),
        ):
            try:
                console_command()
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
                status = 1
        return Result(status, out.getvalue(), err.getvalue())

    return run


@contextlib.contextmanager
def _same_chance() -> Iterator[None]:
    """Leaves the global generators of chance as they were: a command in a process of its own would, too."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy_state)


@pytest.fixture(scope="session")
def console_script() -> Path:
    """The installed ``musicgen-ft``."""
    script = Path(sys.executable).with_name("musicgen-ft")
    assert script.is_file(), "the package is not installed in this environment: pip install -e ."
    return script


@pytest.fixture(scope="session")
def process(console_script: Path) -> Command:
    """Runs ``musicgen-ft WORDS ...`` in a process of its own."""

    def run(*words: object, cwd: Path | None = None) -> Result:
        done = subprocess.run(
            [console_script, *map(str, words)], capture_output=True, text=True, check=False, cwd=cwd, timeout=300
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def tune() -> Callable[..., npt.NDArray[np.float32]]:
    """A function that makes a tune, float32 [C, L]; another seed is another recording."""

    def make(seed: int, seconds: float = 1.5, *, rate: int = 16_000, channels: int = 1) -> npt.NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        samples = 0.02 * rng.standard_normal((channels, round(seconds * rate)))
        for second in np.arange(0, seconds, 0.25):
            heard = samples[:, round(second * rate) : round((second + 1) * rate)]
            times = np.arange(heard.shape[1]) / rate
            for note in rng.integers(40, 90, size=3):
                frequency = 440 * 2 ** ((note - 69) / 12)
                heard += 0.15 * np.exp(-6 * times) * np.sin(2 * np.pi * frequency * times)
        return np.clip(samples, -0.95, 0.95).astype(np.float32)

    return make


CODECS = {".mp3": "libmp3lame", ".flac": "flac", ".ogg": "libopus", ".opus": "libopus", ".m4a": "aac"}


@pytest.fixture(scope="session")
def write_audio() -> Callable[..., Path]:
    """A function that writes float32 [C, L] to a file of the format that its suffix says, with tags."""

    def write(
        path: Path,
        samples: npt.NDArray[np.float32],
        *,
        rate: int = 16_000,
        codec: str = "",
        format: str | None = None,
        options: dict[str, str] | None = None,
        **tags: str,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        with av.open(str(path), "w", format=format, options=options or {}) as container:
            stream: Any = container.add_stream(codec or CODECS.get(path.suffix, "pcm_s16le"), rate=rate, layout=layout)
            (stream if path.suffix == ".ogg" else container).metadata.update(tags)
            resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.codec_context.frame_size)
            for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
                container.mux(stream.encode(piece))
        return path

    return write


@pytest.fixture(scope="session")
def bytes_of() -> Callable[[Path], dict[str, str]]:
    """A function that tells of every file under a folder, hidden ones too, the hash of its bytes."""

    def tell(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return tell


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the session's corpus, shards, run and generator lie in."""
    return tmp_path_factory.mktemp("main-job")


@pytest.fixture(scope="session")
def corpus(made: Path, command: Command) -> Path:
    """8 synthesized tracks of 2.5 s; not to be changed."""
    return _done(command, made / "corpus", "synthesize", "--tracks", 8, "--duration_s", 2.5)


@pytest.fixture(scope="session")
def shards(made: Path, corpus: Path, command: Command) -> Path:
    """The corpus in nano's codes; not to be changed."""
    return _done(command, made / "shards", "prepare", corpus)


@pytest.fixture(scope="session")
def run(made: Path, shards: Path, command: Command) -> Path:
    """nano after 4 steps, validated and saved at 2 and 4; not to be changed."""
    steps = ("--max_steps", 4, "--save_every_steps", 2, "--valid_every_steps", 2, "--lr", 1.0e-3, "--warmup_steps", 0)
    return _done(command, made / "run", "finetune", shards, *steps, *TRAINING)


@pytest.fixture(scope="session")
def generator(made: Path, run: Path, command: Command) -> Path:
    """The run's export in both formats; not to be changed."""
    return _done(command, made / "generator", "export", run)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies one of the session's folders to where a test may change it."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy-of-{folder.name}"))

    return copy


# ---- processes that are watched while they run -----------------------------------------------------------------------


_PATIENCE_S = 120.0


@dataclass
class Process:
    """A command that runs in a process of its own."""

    pid: int
    output: Path
    ended: dict[int, int] = field(repr=False)
    """Process id -> status, of all that have ended."""
    hear: Callable[[], None] = field(repr=False)

    def status(self) -> int:
        """Of its end, waited for; a process that hangs fails the test."""
        until = time.monotonic() + _PATIENCE_S
        while self.pid not in self.ended:
            assert time.monotonic() < until, f"hangs:\n{self.text()}"
            self.hear()
        return self.ended[self.pid]

    def runs(self) -> bool:
        self.hear()
        return self.pid not in self.ended

    def kill(self, signum: int = signal.SIGKILL) -> None:
        assert self.runs(), f"ended before its signal:\n{self.text()}"
        os.kill(self.pid, signum)

    def text(self) -> str:
        return self.output.read_text(errors="replace")


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Process]]:
    """Starts ``musicgen-ft WORDS ...`` in a process of its own."""
    logs, ended, number = tmp_path_factory.mktemp("logs"), dict[int, int](), 0
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("commands.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    os.set_blocking(server.stdout.fileno(), False)
    begun: list[int] = []

    def hear() -> None:
        assert server.stdout is not None
        assert server.poll() is None, "the process that starts the others has ended"
        line = server.stdout.readline()
        if not line:
            time.sleep(0.002)
            return
        pid, *status = map(int, line.split())
        if status:
            ended[pid] = status[0]
        else:
            begun.append(pid)

    def run(*words: object, largest: int | None = None, **environment: str) -> Process:
        nonlocal number
        number += 1
        output = logs / f"{number}.txt"
        output.touch()
        assert server.stdin is not None
        server.stdin.write(json.dumps([list(map(str, words)), environment, str(output), largest]).encode() + b"\n")
        server.stdin.flush()
        before = len(begun)
        while len(begun) == before:
            hear()
        return Process(begun[-1], output, ended, hear)

    yield run
    server.stdin.close()
    server.wait()


@pytest.fixture(scope="session")
def start_two(start: Callable[..., Process]) -> Callable[..., list[Process]]:
    """Starts the two processes of one run, or so many as ``num`` says, as torchrun would.

    ``largest``: rank -> bytes of the largest file that it may write.
    """

    def run(*words: object, num: int = 2, largest: Mapping[int, int] | None = None) -> list[Process]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": port}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            start(*words, largest=(largest or {}).get(rank), **shared, RANK=str(rank), LOCAL_RANK=str(rank))
            for rank in range(num)
        ]

    return run


def _done(command: Command, out: Path, *words: object) -> Path:
    result = command(*words, "--out", out)
    assert result.status == 0, result.err
    return out
