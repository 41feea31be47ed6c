"""Every command that README, configs, recipes and docs show is one that the toolkit takes."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch

from musicgen_ft.cli import COMMANDS, parse
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import Request

ROOT = Path(__file__).parents[1]
CLASSES = {
    name: getattr(import_module(f"musicgen_ft.config.{name}"), f"{name.capitalize()}Config") for name in COMMANDS
}
PLACES = ["README.md", "docs/*.md", "configs/*/*.yaml", "train/*.py", "data/*.py"]
# At the start of a line or after a comment sign: a sentence that names a command is none.
_SHOWN = re.compile(
    r"^(?:#\s*|\s*)(?:musicgen-ft|python (?:train|data)/)[ ]?(\w+)(?:\.py)? +(.*?)(?:\s{2,}#.*)?$", re.MULTILINE
)


def shown() -> list[tuple[str, str, str]]:
    found = []
    for place in PLACES:
        for path in sorted(ROOT.glob(place)):
            for command, words in _SHOWN.findall(path.read_text(encoding="utf-8")):
                if command in COMMANDS and "RUN|" not in words:
                    found.append((path.relative_to(ROOT).as_posix(), command, words))
    return found


@pytest.mark.parametrize(("place", "command", "words"), shown())
def test_a_command_that_is_shown_is_understood(place: str, command: str, words: str) -> None:
    parse(CLASSES[command], command, [word for word in shlex.split(words) if word != "\\"])


def test_the_readme_shows_every_command_of_the_main_job() -> None:
    assert {command for place, command, _ in shown() if place == "README.md"} >= {
        "prepare", "finetune", "export", "sample",
    }  # fmt: skip
    assert len(shown()) > 30


def test_the_readmes_lines_of_python_play(nano_folder: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for name in ("Generator.open", "Request", "generator.play", "generator.stream"):
        assert name in snippet
    lines = (
        snippet.replace('"generator"', repr(str(nano_folder)))
        .replace("duration_s=10", "duration_s=0.2")
        .replace("print(", "str(")
    )
    scope: dict[str, object] = {}
    exec(compile(lines, "README.md", "exec"), scope)

    assert {scope["Generator"], scope["Request"]} == {Generator, Request}
    for name in ("waveform", "chunk"):
        waveform = scope[name]
        assert isinstance(waveform, torch.Tensor)
        assert waveform.shape == (1, 3200)
