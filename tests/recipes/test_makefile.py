"""``make demo`` and ``make test`` on a fresh machine: what they would install and run, seen through stubs."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("demo", "test", "test-slow", "lint", "types", "nano-report", "check", "clean")

Make = Callable[..., list[str]]

# Writes down its own name and arguments; ``-m venv FOLDER`` makes a folder of such programs.
STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> "{log}"
if [ "$2" = venv ]; then
    mkdir -p "$3/bin"
    for name in python musicgen-ft ruff mypy pyright; do cp "$0" "$3/bin/$name"; done
fi
"""


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A checkout on a fresh machine, as far as make sees it."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / "python-of-the-machine").write_text(STUB.format(log=tmp_path / "log"))
    (tmp_path / "python-of-the-machine").chmod(0o755)
    return tmp_path


@pytest.fixture
def make(fresh: Path) -> Make:
    """Runs make in the fresh checkout and gives what it ran."""

    def run(*words: str) -> list[str]:
        (fresh / "log").unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        subprocess.run(
            ["make", f"PYTHON={fresh / 'python-of-the-machine'}", *words],
            cwd=fresh,
            env=environment,
            check=True,
            capture_output=True,
        )
        return (fresh / "log").read_text().splitlines() if (fresh / "log").is_file() else []

    return run


def installs(lines: list[str]) -> list[str]:
    """What pip is asked for."""
    return [line.split("install", 1)[1] for line in lines if line.startswith("python -m pip")]


def test_test_makes_the_environment_installs_all_it_needs_and_runs_the_quick_tests(make: Make) -> None:
    ran = make("test")

    assert ran[0] == "python-of-the-machine -m venv .venv"
    assert [words.split()[-1] for words in installs(ran)] == [".[dev,audiocraft]", "audiocraft==1.3.0"]
    assert "--no-deps" in installs(ran)[1]
    assert ran[-1] == "python -m pytest -m not slow"


def test_demo_makes_the_environment_installs_the_package_and_runs_the_demo(make: Make) -> None:
    ran = make("demo")

    assert ran[0] == "python-of-the-machine -m venv .venv"
    assert [words.split()[-2:] for words in installs(ran)] == [["--editable", "."]]
    assert ran[-1] == "musicgen-ft demo --out demo"


@pytest.mark.parametrize("target", ["demo", "test", "test-slow", "lint", "types", "nano-report", "check"])
def test_a_second_call_installs_nothing(target: str, make: Make) -> None:
    assert installs(make(target))
    again = make(target)
    assert again
    assert not installs(again)
    assert not any("venv" in line for line in again)


def test_what_test_has_installed_demo_does_not_install_again(make: Make) -> None:
    make("test")
    assert make("demo") == ["musicgen-ft demo --out demo"]


def test_after_demo_test_installs_what_is_missing_into_the_same_environment(make: Make) -> None:
    make("demo")
    ran = make("test")
    assert len(installs(ran)) == 2
    assert not any("venv" in line for line in ran)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_changed_dependencies_are_installed(target: str, make: Make, fresh: Path) -> None:
    make(target)
    (fresh / "pyproject.toml").touch()
    os.utime(fresh / "pyproject.toml", (2**32, 2**32))
    assert installs(make(target))


def test_demo_takes_a_corpus_and_a_place(make: Make, fresh: Path) -> None:
    ran = make("demo", "CORPUS=my music", "OUT=out")
    assert ran[-1] == "musicgen-ft demo --out out --corpus my music"


def test_demo_makes_room_for_itself_and_touches_nothing_else(make: Make, fresh: Path) -> None:
    (fresh / "demo").mkdir()
    (fresh / "corpus").mkdir()
    make("demo")
    assert not (fresh / "demo").exists()
    assert (fresh / "corpus").exists()


def test_nano_report_makes_room_and_writes_the_card_of_nano_or_of_another_base(make: Make, fresh: Path) -> None:
    made = ("nano-finetuning", "nano-report")
    for name in made:
        (fresh / name).mkdir()
    assert make("nano-report")[-2:] == [
        "python train/nano_finetuning.py --out nano-finetuning",
        "python train/nano_report.py --out nano-report --card true --finetuning nano-finetuning",
    ]
    assert not any((fresh / name).exists() for name in made)
    assert all(line.endswith(" --base a base") for line in make("nano-report", "BASE=a base")[-2:])


def test_check_runs_everything(make: Make) -> None:
    ran = [line for line in make("check") if "pip" not in line and "venv" not in line]
    assert ran == [
        *("ruff check .", "ruff format --check .", "mypy ", "pyright "),
        *("python -m pytest -m not slow", "python -m pytest -m slow"),
    ]


def test_clean_leaves_the_sources(make: Make, fresh: Path) -> None:
    make("demo")
    make("clean")
    assert not (fresh / ".venv").exists()
    assert (fresh / "pyproject.toml").exists()


def test_every_target_is_there_and_phony() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = next(line for line in text.splitlines() if line.startswith(".PHONY:")).split()[1:]
    assert set(phony) == set(TARGETS)


def test_ci_calls_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert "make test" in script.read_text()
    assert os.access(script, os.X_OK)
