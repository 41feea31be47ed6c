"""The house's rules that no type checker sees, read from the source: layers, recipes, nothing unpickled, no machine.

A file imports from lower layers, from its own folder, and from the plain modules of its own layer (the design has
``corpus/`` and ``audio.py`` both in layer 1, and the one reads with the other).
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"errors", "files", "processes", "terminal"},
    {"config"},
    {"cli", "commands"},
    {
        "audio",
        "containers",
        "corpus",
        "chroma",
        "codec",
        "weights",
        "low_bit",
        "devices",
        "leases",
        "pictures",
        "stems",
        "demucs_models",
        "synthesis",
    },
    {"shards", "model"},
    {"checkpoint"},
    {"generation"},
    {"training"},  # plays what it trains
    {"evaluation", "pretraining"},
    {"peers", "report", "serving", "workers"},
)
LAYER = {unit: number for number, units in enumerate(LAYERS) for unit in units}
NO_TORCH = ("cli", "commands", "config", "terminal", "files", "errors")

PACKAGE = sorted((ROOT / "musicgen_ft").rglob("*.py"))
RECIPES = sorted([*(ROOT / "data").glob("*.py"), *(ROOT / "train").glob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def unit_of(path: Path) -> str:
    """``codec`` of musicgen_ft/codec.py, ``shards`` of musicgen_ft/shards/index.py."""
    return path.relative_to(ROOT / "musicgen_ft").parts[0].removesuffix(".py")


def imported_units(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] == "musicgen_ft" and len(parts) > 1 and parts[1] != "__version__":
            yield line, parts[1]


def is_module(unit: str) -> bool:
    return (ROOT / "musicgen_ft" / f"{unit}.py").is_file()


# ---- layers ----------------------------------------------------------------------------------------------------------


def test_every_module_and_folder_has_a_layer() -> None:
    assert {unit_of(path) for path in PACKAGE} - {"__init__"} == set(LAYER)


def test_no_file_imports_from_a_higher_layer_or_from_a_folder_beside_its_own() -> None:
    wrong = []
    for path in PACKAGE:
        own = unit_of(path)
        if own == "__init__":  # offers the generator, which is imported when it is asked for
            continue
        for line, unit in imported_units(path):
            is_lower = LAYER[unit] < LAYER[own]
            is_beside = LAYER[unit] == LAYER[own] and (unit == own or is_module(unit))
            if not (is_lower or is_beside):
                wrong.append(f"{name_of(path)}:{line} imports {unit} (layer {LAYER[unit]}, its own is {LAYER[own]})")
    assert wrong == []


def test_the_command_line_imports_configs_and_what_they_stand_on_only() -> None:
    units = {unit for _, unit in imported_units(ROOT / "musicgen_ft" / "cli.py")}
    assert {LAYER[unit] for unit in units} == {LAYER["errors"], LAYER["config"]}


@pytest.mark.parametrize("module", NO_TORCH)
def test_what_parses_a_command_line_imports_no_torch_by_whatever_way(module: str) -> None:
    program = f"import sys, musicgen_ft.{module}; print({{'torch', 'lightning', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_audiocraft_is_imported_in_one_module_only() -> None:
    importers = {
        name_of(path)
        for path in [*PACKAGE, *RECIPES]
        for _, name in imports(path)
        if name.split(".")[0] == "audiocraft"
    }
    assert importers == {"musicgen_ft/peers/audiocraft.py"}


# ---- recipes ---------------------------------------------------------------------------------------------------------


def test_nobody_imports_a_recipe() -> None:
    """In an editable install ``import data`` would even succeed, as a bare namespace."""
    wrong = [
        f"{name_of(path)}:{line} imports {name}"
        for path in [*PACKAGE, *RECIPES, *TESTS]
        for line, name in imports(path)
        if name.split(".")[0] in ("data", "train", "configs") or name.startswith("musicgen_ft.recipes")
    ]
    assert wrong == []
    assert not list((ROOT / "data").rglob("__init__.py"))
    assert not list((ROOT / "train").rglob("__init__.py"))


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_defines_functions_only(path: Path) -> None:
    tree = parsed(path)

    assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.Assign, ast.AnnAssign, ast.If, ast.Expr)
    assert all(isinstance(node, allowed) for node in tree.body)
    conditions = {ast.unparse(node.test) for node in tree.body if isinstance(node, ast.If)}
    assert {"__name__ == '__main__'"} <= conditions <= {"__name__ == '__main__'", "TYPE_CHECKING"}
    assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_is_not_named_like_a_standard_module(path: Path) -> None:
    """``python data/X.py`` puts data/ first on the import path."""
    assert path.stem not in sys.stdlib_module_names


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_answers_help_before_it_imports_torch(path: Path) -> None:
    at_top = {
        name.split(".")[0]
        for node in parsed(path).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert not at_top & {"torch", "lightning", "transformers", "numpy", "av"}


# ---- nothing is ever unpickled ---------------------------------------------------------------------------------------

FORBIDDEN = re.compile(
    r"(pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve)\.(load|loads|open|Unpickler)|(torch\.)?jit\.load"
    r"|(pandas|pd)\.read_pickle|yaml\.(load|load_all|unsafe_load|full_load)|eval|exec"
)
NEEDS = (  # by what is called: the keyword without which it could unpickle
    (re.compile(r"torch\.load"), "weights_only", True),
    (re.compile(r"(numpy|np)\.load"), "allow_pickle", False),
    (re.compile(r"(numpy|np)\.lib\.format\.(read|write)_array"), "allow_pickle", False),
)


def unsafe_calls(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every call that could run what a file holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "dill", "joblib", "shelve"):
            yield node.lineno, ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if FORBIDDEN.fullmatch(called):
            yield node.lineno, called
        for pattern, keyword, value in NEEDS:
            if pattern.fullmatch(called) and given.get(keyword) != str(value):
                yield node.lineno, f"{called} without {keyword}={value}"
        if given.get("ckpt_path", "None") != "None" and given.get("weights_only") != "True":  # Lightning's own reading
            yield node.lineno, f"{called} of a ckpt_path without weights_only=True"


def test_nothing_is_ever_unpickled() -> None:
    wrong = [
        f"{name_of(path)}:{line}: {what}"
        for path in [*PACKAGE, *RECIPES, *sorted((ROOT / "benchmarks").rglob("*.py"))]
        for line, what in unsafe_calls(parsed(path))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        *("pickle.load(f)", "from pickle import loads", "torch.load(f)", "torch.load(f, weights_only=False)"),
        *("np.load(f)", "numpy.load(f, allow_pickle=True)", "yaml.load(f)", "torch.jit.load(f)", "eval(s)"),
        *("trainer.fit(m, ckpt_path=p)", "trainer.validate(m, ckpt_path=p, weights_only=False)"),
    ],
)
def test_the_rule_sees(line: str) -> None:
    assert list(unsafe_calls(ast.parse(line)))


# ---- no machine ------------------------------------------------------------------------------------------------------

MACHINE = re.compile(
    r"(?<![\w.~$}-])/(root|work|opt|home|mnt|Users|scratch)/\w"  # somebody's folders
    r"|(extra-)?index-url|trusted-host|artifactory|\bnexus\b|//[\w.-]*mirror"  # somebody's registry
    r"|(?<![\d.])(?!127\.0\.0\.1|0\.0\.0\.0)\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\d.])"  # somebody's address
)


def repository_files() -> list[Path]:
    """What git tracks or would: text and all; in an unpacked sdist, every file."""
    if not (ROOT / ".git").exists():
        return [path for path in ROOT.rglob("*") if path.is_file()]
    words = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine_or_its_registry() -> None:
    wrong = []
    for path in repository_files():
        content = path.read_bytes()
        if path == Path(__file__) or b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
            if MACHINE.search(line):
                wrong.append(f"{name_of(path)}:{number}: {line.strip()[:100]}")
    assert wrong == []


@pytest.mark.parametrize(
    "line", ["see /home/anna/music", "/" + "root/x", "pip --index-url https://pypi.example", "http://10.1.2.3/simple"]
)
def test_the_machine_rule_sees(line: str) -> None:
    assert MACHINE.search(line)
