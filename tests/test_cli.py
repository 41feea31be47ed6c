"""The command line: one grammar for all commands, one line for every mistake, an exit status that tells the truth."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from musicgen_ft import __version__
from musicgen_ft.cli import COMMANDS, main, parse, recipe_path, run_command, run_recipe
from musicgen_ft.config.export import ExportConfig
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.config.prepare import PrepareConfig
from musicgen_ft.config.sample import SampleConfig
from musicgen_ft.config.synthesize import SynthesizeConfig
from musicgen_ft.errors import UserError

every_command = pytest.mark.parametrize("command", COMMANDS)


def finetune(*words: str) -> FinetuneConfig:
    """The config of a command line of finetune."""
    return parse(FinetuneConfig, "finetune", ["shards", "--out", "run", *words])


def sample(*words: str) -> SampleConfig:
    """The config of a command line of sample."""
    return parse(SampleConfig, "sample", ["generator", "--out", "wavs", *words])


@pytest.fixture
def my_config(tmp_path: Path) -> Callable[[str], str]:
    """Writes a YAML and gives its path."""

    def write(text: str) -> str:
        (tmp_path / "my.yaml").write_text(text)
        return str(tmp_path / "my.yaml")

    return write


@pytest.fixture
def script() -> Path:
    """The installed ``musicgen-ft``."""
    return Path(sys.executable).with_name("musicgen-ft")


# ---- the grammar -----------------------------------------------------------------------------------------------------


def test_defaults_then_the_file_then_the_options(my_config: Callable[[str], str]) -> None:
    path = my_config("max_steps: 5\nlr: 2.0e-3\n")

    assert finetune().max_steps == 1000
    assert finetune("--config", path).max_steps == 5
    assert finetune("--config", path, "--max_steps", "7").max_steps == 7
    assert finetune("--config", path, "--max_steps", "7").lr == 2.0e-3


def test_options_override_the_file_wherever_they_stand(my_config: Callable[[str], str]) -> None:
    path = my_config("max_steps: 5\n")

    assert finetune("--max_steps", "7", "--config", path) == finetune("--config", path, "--max_steps", "7")
    assert finetune("--max_steps=7", f"--config={path}").max_steps == 7


def test_of_an_option_given_twice_the_last_one_counts() -> None:
    assert finetune("--max_steps", "7", "--max_steps", "8").max_steps == 8


def test_positional_arguments_may_stand_anywhere_or_be_named() -> None:
    expected = finetune("--seed", "3")

    assert parse(FinetuneConfig, "finetune", ["--out", "run", "--seed", "3", "shards"]) == expected
    assert parse(FinetuneConfig, "finetune", ["--shards", "shards", "--out", "run", "--seed", "3"]) == expected
    assert str(expected.shards) == "shards"


def test_prompts_are_gathered_in_their_order_whatever_they_hold() -> None:
    prompts = ("a waltz", 'say "so": {x}, [y]', "--loud--", "", "Für Elise, 70 bpm", "null", "3")
    words = [word for prompt in prompts for word in ("--prompt", prompt)]

    assert sample(*words).prompt == prompts
    assert sample(*(f"--prompt={prompt}" for prompt in prompts)).prompt == prompts


def test_one_prompt_is_one_prompt() -> None:
    assert sample("--prompt", "a waltz").prompt == ("a waltz",)


def test_prompts_of_a_file_are_replaced_not_joined(my_config: Callable[[str], str]) -> None:
    path = my_config("prompt:\n  - one\n  - two\n")

    assert sample("--config", path).prompt == ("one", "two")
    assert sample("--config", path, "--prompt", "three").prompt == ("three",)


def test_genres_of_synthesize_are_gathered_too() -> None:
    config = parse(SynthesizeConfig, "synthesize", ["--out", "c", "--genres", "techno", "--genres", "drum and bass"])
    assert config.genres == ("techno", "drum and bass")


def test_values_have_the_types_of_their_fields() -> None:
    config = finetune("--lr", "1e-4", "--devices", "2", "--tensorboard", "false", "--precision", "bf16")

    assert (config.lr, config.devices, config.tensorboard, config.precision) == (1e-4, 2, False, "bf16")
    assert config.out == Path("run")
    assert finetune("--devices", "null").devices is None


def test_negative_numbers_are_values_and_no_options() -> None:
    with pytest.raises(UserError, match=r"^seed: found -3, expected 0 or more"):
        finetune("--seed", "-3")


# ---- what is refused, in one line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max_step", "3"], r"--max_step=3; did you mean max_steps\?"),  # no abbreviation either
        (["--batch-size", "3"], r"--batch-size=3; did you mean batch_size\?"),
        (["--learning_rat", "3"], r"unrecognized arguments: --learning_rat=3"),
        (["--polka", "3"], r"unrecognized arguments: --polka=3$"),
        (["--max_steps", "many"], r"max_steps.*int.*many"),
        (["--max_steps", "1.5"], r"max_steps.*int.*1\.5"),
        (["--lr", "low"], r"lr.*float.*low"),
        (["--tensorboard", "perhaps"], r"tensorboard.*bool.*perhaps"),
        (["--precision", "fp8"], r"precision.*'fp32'.*fp8"),
        (["--max_steps"], r"^--max_steps: expected a value after it"),
        (["--config", "tiny"], r"^--config tiny: no such file, and no shipped config of finetune"),
        (["more"], r"^unexpected argument 'more'. See musicgen-ft finetune --help"),
    ],
)
def test_a_wrong_option_is_told(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        finetune(*words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_step: 3\n", r"my\.yaml: .*'max_step' is not accepted; did you mean max_steps\?"),
        ("polka: 3\n", r"my\.yaml: .*'polka' is not accepted$"),
        ("optim:\n  lr: 3\n", r"my\.yaml: .*'optim.*' is not accepted"),
        ("max_steps: many\n", r"max_steps.*int.*many"),
        ("max_steps: [\n", r"pars"),
        ("- 3\n", r"- 3"),
    ],
)
def test_a_wrong_file_is_told(text: str, says: str, my_config: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match=says) as error:
        finetune("--config", my_config(text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config_class", "command", "words", "missing"),
    [
        (PrepareConfig, "prepare", ["corpus"], "out"),
        (PrepareConfig, "prepare", ["--out", "shards"], "corpus"),
        (ExportConfig, "export", ["run"], "out"),
        (SampleConfig, "sample", ["generator", "--out", "wavs"], "prompt"),
    ],
)
def test_what_is_missing_is_named(config_class: type, command: str, words: list[str], missing: str) -> None:
    with pytest.raises(UserError, match=rf"required.*{missing}|{missing}: found none"):
        parse(config_class, command, words)


def test_a_misspelled_command_is_told(script: Path) -> None:
    done = subprocess.run([script, "finetun"], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"musicgen-ft: no command 'finetun'; did you mean finetune?; there are {', '.join(COMMANDS)}."
    ]
    assert done.stdout == ""


# ---- help ------------------------------------------------------------------------------------------------------------


OWN_OPTION = {"plan": "--base BASE", "serve": "--port PORT"}
"""Of the commands that make no files."""


@every_command
def test_help_explains_every_option_and_imports_no_torch(command: str) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{str(recipe_path(command))!r}, '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    heavy = {'torch', 'lightning', 'transformers', 'numpy', 'av'} & set(sys.modules)\n"
        "    print(sorted(heavy), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stderr == "[]\n"
    assert done.stdout.startswith(f"usage: musicgen-ft {command} ")
    assert OWN_OPTION.get(command, "--out OUT") in done.stdout


def test_the_overview_names_every_command(script: Path) -> None:
    for words in ([], ["--help"], ["-h"]):
        done = subprocess.run([script, *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["musicgen-ft", "--version"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr().out == f"musicgen-ft {__version__}\n"


@every_command
def test_print_config_prints_what_a_config_file_may_hold(command: str, script: Path) -> None:
    done = subprocess.run([script, command, "--print_config"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert OWN_OPTION.get(command, "--out OUT").split()[0].strip("-") in yaml.safe_load(done.stdout)


def test_print_config_shows_the_resolved_values(my_config: Callable[[str], str], script: Path) -> None:
    words = ["finetune", "--config", my_config("max_steps: 5\n"), "--seed", "3", "--print_config"]
    done = subprocess.run([script, *words], capture_output=True, text=True, check=False)

    values = yaml.safe_load(done.stdout)
    assert (values["max_steps"], values["seed"], values["batch_size"]) == (5, 3, 16)


# ---- recipes are files -----------------------------------------------------------------------------------------------


@every_command
def test_a_recipe_is_a_file_whose_docstring_shows_commands(command: str) -> None:
    path = recipe_path(command)
    assert path.is_file()
    docstring = path.read_text(encoding="utf-8").split('"""')[1]
    assert f"musicgen-ft {command} " in docstring


def test_python_runs_a_recipe_as_the_console_command_does(script: Path) -> None:
    words = ["--out", "corpus", "--tracks", "0"]
    ways = ([str(script), "synthesize"], [sys.executable, str(recipe_path("synthesize"))])
    by_console, by_python = (
        subprocess.run([*way, *words], capture_output=True, text=True, check=False) for way in ways
    )

    assert by_console.returncode == by_python.returncode == 2
    assert (
        by_console.stderr == by_python.stderr == "musicgen-ft synthesize: tracks: found 0, expected a number above 0.\n"
    )


# ---- exit status -----------------------------------------------------------------------------------------------------


def end_of(recipe: Callable[[SynthesizeConfig], None], monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit status of a command whose recipe does this."""
    monkeypatch.setattr(sys, "argv", ["some/synthesize.py", "--out", "corpus"])
    try:
        run_recipe(SynthesizeConfig, recipe)
    except SystemExit as end:
        return end.code
    return 0


def raising(error: BaseException) -> Callable[[SynthesizeConfig], None]:
    def recipe(config: SynthesizeConfig) -> None:
        raise error

    return recipe


def test_work_done_is_0_and_the_recipe_gets_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[SynthesizeConfig] = []
    assert end_of(got.append, monkeypatch) == 0
    assert got == [SynthesizeConfig(out=Path("corpus"))]


def test_a_mistake_of_the_users_is_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(raising(UserError("the key is flat. Sharpen it.")), monkeypatch) == 2
    assert capsys.readouterr().err == "musicgen-ft synthesize: the key is flat. Sharpen it.\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS])
def test_a_disk_that_does_not_take_it_is_2_and_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = OSError(number, "the system's words", "some/file")
    assert end_of(raising(error), monkeypatch) == 2
    assert capsys.readouterr().err.startswith("musicgen-ft synthesize: some/file: the system's words. ")


@pytest.mark.parametrize(
    "error", [KeyError("ours"), ValueError("ours"), OSError(errno.EBADF, "ours"), AssertionError()]
)
def test_a_fault_of_ours_escapes_with_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)) as escaped:
        end_of(raising(error), monkeypatch)
    assert escaped.value is error


def test_a_fault_of_ours_is_1(tmp_path: Path) -> None:
    recipe = tmp_path / "synthesize.py"
    recipe.write_text(
        "from musicgen_ft.cli import run_recipe\nfrom musicgen_ft.config.synthesize import SynthesizeConfig\n"
        "run_recipe(SynthesizeConfig, lambda config: config.nothing)\n"
    )
    done = subprocess.run([sys.executable, recipe, "--out", "c"], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "AttributeError" in done.stderr


def test_ctrl_c_is_130_and_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(raising(KeyboardInterrupt()), monkeypatch) == 130
    assert capsys.readouterr().err == "\nmusicgen-ft synthesize: stopped by the user\n"


def test_ctrl_c_that_a_library_turned_into_an_exit_is_130_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def recipe(config: SynthesizeConfig) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does

    assert end_of(recipe, monkeypatch) == 130


def test_an_exit_of_the_recipes_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert end_of(raising(SystemExit(5)), monkeypatch) == 5


def test_a_recipe_run_by_another_hands_its_status_on(capfd: pytest.CaptureFixture[str]) -> None:
    run_command("synthesize", "--help")
    with pytest.raises(UserError, match="synthesize stopped, see the line above"):
        run_command("synthesize", "--out", "corpus", "--tracks", "0")
    assert "tracks: found 0" in capfd.readouterr().err
