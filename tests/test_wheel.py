"""What users install: one import name with every config and recipe in it, which runs outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


def expected_files() -> set[str]:
    """Names in the wheel of everything that the checkout ships."""
    sources = {
        "musicgen_ft": [path for path in (ROOT / "musicgen_ft").rglob("*") if path.is_file()],
        "configs": [path for path in (ROOT / "configs").rglob("*.*") if path.is_file()],
        "train": list((ROOT / "train").glob("*.py")),
        "data": list((ROOT / "data").glob("*.py")),
    }
    place = {
        "musicgen_ft": "musicgen_ft",
        "configs": "musicgen_ft/configs",
        "train": "musicgen_ft/recipes/train",
        "data": "musicgen_ft/recipes/data",
    }
    return {
        f"{place[folder]}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, paths in sources.items()
        for path in paths
        if not any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(ROOT).parts)
    }


def without_metadata(names: set[str]) -> set[str]:
    return {name for name in names if ".dist-info/" not in name}


def test_the_wheel_holds_the_package_every_recipe_and_every_config_and_nothing_else() -> None:
    """An unanchored line of .gitignore, say ``data/``, would silently take files out."""
    files = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}

    assert files == expected_files()
    assert {name.split("/")[0] for name in files} == {"musicgen_ft"}
    assert "musicgen_ft/py.typed" in files
    assert "musicgen_ft/assets/nano/model.safetensors" in files
    assert "musicgen_ft/recipes/train/finetune.py" in files
    assert "musicgen_ft/recipes/data/prepare.py" in files


def test_the_sdist_holds_what_the_wheel_is_built_from_and_the_tests() -> None:
    files = {file.distribution_path for file in SdistBuilder(str(ROOT)).recurse_included_files()}

    assert {"train/finetune.py", "data/prepare.py", "musicgen_ft/py.typed", "tests/test_wheel.py", "LICENSE"} <= files
    assert {f"configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.*")} <= files
    assert not [name for name in files if name.startswith((".venv", "demo/", "dist/"))]


# ---- built, installed alone, run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outside() -> dict[str, str]:
    """The environment of a process that knows nothing of the checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, outside: dict[str, str]) -> Path:
    """The wheel, built from the sdist, as a release is."""
    dist = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False, env=outside, cwd=dist)
    assert done.returncode == 0, done.stderr
    assert list(dist.glob("*.tar.gz"))
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def run(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory, outside: dict[str, str]
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs a program of an environment that sees our dependencies, and of us nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("clean")
    environment, cwd = folder / "environment", folder / "elsewhere"
    cwd.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    words = ["-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", "--quiet", str(wheel)]
    subprocess.run([sys.executable, *words], check=True, env=outside)
    # A folder named in a .pth is searched, but its own .pth files, of which one leads to the checkout, are not read.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(program: str, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [environment / "bin" / program, *words], capture_output=True, text=True, check=False, cwd=cwd, env=outside
        )

    return run


@pytest.mark.slow
def test_the_built_wheel_holds_the_same_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()

    assert without_metadata(names) == expected_files()
    assert "License-Expression: MIT" in text
    assert "Provides-Extra: audiocraft" in text
    assert "Requires-Dist: audiocraft" not in text  # it pins another torch: it is installed with --no-deps


@pytest.mark.slow
def test_the_installed_wheel_is_what_runs_and_finds_its_files(
    run: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    program = (
        "import musicgen_ft, musicgen_ft.cli as cli, musicgen_ft.config.shipped as config\n"
        "print(musicgen_ft.__file__)\nprint(cli.recipe_path('finetune'))\nprint(config.config_path('finetune', 'demo'))"
    )
    places = run("python", "-c", program).stdout.splitlines()

    assert len(places) == 3
    assert not [place for place in places if Path(place).is_relative_to(ROOT)]
    assert places[1].endswith("site-packages/musicgen_ft/recipes/train/finetune.py")
    assert places[2].endswith("site-packages/musicgen_ft/configs/finetune/demo.yaml")


@pytest.mark.slow
def test_the_installed_wheel_answers_help(run: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    done = run("musicgen-ft", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "finetune" in done.stdout
    assert run("musicgen-ft", "finetune", "--help").stdout.startswith("usage: musicgen-ft finetune SHARDS")


@pytest.mark.slow
def test_the_installed_wheel_runs_the_demo(
    run: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    words = ("--tracks", "12", "--old_tracks", "2", "--max_steps", "3", "--duration_s", "1")
    done = run("musicgen-ft", "demo", "--out", str(tmp_path / "demo"), *words)

    assert done.returncode == 0, done.stderr
    assert "Done in" in done.stdout
    made = {path.name for path in (tmp_path / "demo").iterdir()}
    judged = {"asked", "shards-asked-new", "shards-asked-old"}
    assert made == {"corpus", "shards", "run", "generator", "evaluation", "wavs"} | judged
    assert len(list((tmp_path / "demo" / "corpus").glob("*/*.wav"))) == 14
    assert list((tmp_path / "demo" / "wavs" / "native").glob("*.wav"))
    assert list((tmp_path / "demo" / "wavs" / "transformers").glob("*.wav"))
