"""Recipes run in forks of one process that has imported all."""

import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from musicgen_ft.commands import PRELOADED

PROGRAM = """
import sys
from pathlib import Path

import musicgen_ft.cli
import musicgen_ft.commands
from musicgen_ft.commands import Commands
from musicgen_ft.errors import UserError

if __name__ == "__main__":
    if sys.argv[1] != "linux":
        sys.platform = sys.argv[1]
    commands = Commands()
    words = ("--tracks", "2", "--duration_s", "1", "--genres", "reggae")
    commands.run("synthesize", "--out", "first", *words)
    commands.run("synthesize", "--out", "second", *words)
    try:
        commands.run("synthesize", "--out", "third", "--tracks", "0")
    except UserError as error:
        print("refused:", error)
    musicgen_ft.cli.recipe_path = musicgen_ft.commands.recipe_path = lambda command: Path("broken.py")
    try:
        commands.run("synthesize")
    except RuntimeError as error:
        print("failed:", error)
    print("torch here:", "torch" in sys.modules)
"""


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_recipes_are_run_and_what_stops_them_is_told(tmp_path: Path, platform: str) -> None:
    """On Linux by forks, elsewhere by processes of their own: the same files and the same words."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "broken.py").write_text("raise SystemExit(7)")
    done = subprocess.run(
        [sys.executable, "program.py", platform], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()

    assert done.returncode == 0, done.stderr
    assert [line for line in lines if line.startswith("2 tracks")] == [
        f"2 tracks, 0.0 minutes of music with labels: {name}" for name in ("first", "second")
    ]
    assert lines[-3:] == [
        "refused: synthesize stopped, see the line above.",
        "failed: synthesize ended with status 7",
        "torch here: False",
    ]
    assert "tracks: found 0, expected a number above 0." in done.stderr
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / of).iterdir()} for of in ("first", "second"))
    assert first == second
    assert len(first) == 4


WAITING = """
import signal
import sys

from musicgen_ft.commands import Commands

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have told it to ignore
    if sys.argv[1] != "linux":
        sys.platform = sys.argv[1]
    Commands().run("synthesize", "--out", "corpus", "--tracks", "500", "--duration_s", "20", "--workers", "1")
"""


@pytest.mark.parametrize(
    ("platform", "number"),
    [
        ("linux", signal.SIGTERM),
        ("linux", signal.SIGKILL),
        ("darwin", signal.SIGTERM),
        ("darwin", signal.SIGINT),
    ],
)
def test_no_recipe_goes_on_when_the_one_that_waits_for_it_is_stopped(
    tmp_path: Path, platform: str, number: signal.Signals
) -> None:
    (tmp_path / "program.py").write_text(WAITING)
    command = [sys.executable, "program.py", platform]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("*/*.wav")):  # in a folder of a name for the time being
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(30) == (143 if number == signal.SIGTERM else -number)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0]  # what can be read is its end: nobody has it open
        assert process.stdout.read() == b""


def test_what_is_imported_before_is_there() -> None:
    """An import that fails is passed over in silence, and every recipe would pay for it."""
    code = "; ".join(f"import {module}" for module in PRELOADED)
    seen = "; import sys; print({'torch', 'lightning', 'transformers', 'librosa', 'sklearn'} - set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + seen], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
