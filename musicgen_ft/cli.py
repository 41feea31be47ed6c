"""From a command line to a recipe, and from a recipe's end to an exit status.

``musicgen-ft COMMAND ...`` runs the recipe's file; the same file runs under ``python`` and ``torchrun``. Imports no
torch, so that ``--help`` and a typo answer at once.
"""

import difflib
import errno
import json
import logging
import os
import re
import runpy
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from musicgen_ft import __version__
from musicgen_ft.config.shipped import config_path
from musicgen_ft.errors import UserError

COMMANDS = {
    "synthesize": ("data/synthesize.py", "make a small labelled corpus by rule"),
    "prepare": ("data/prepare.py", "encode a labelled corpus into shards"),
    "inspect": ("data/inspect_corpus.py", "what is in a corpus or in shards: hours, labels, quality"),
    "finetune": ("train/finetune.py", "fine-tune a MusicGen on shards"),
    "plan": ("train/plan.py", "before a download: what fits a memory, and the command for it"),
    "evaluate": ("train/evaluate.py", "a page of figures and sounds: tuned beside base, on held-out tracks"),
    "export": ("train/export.py", "make a generator folder of a run"),
    "sample": ("train/sample.py", "play prompts into WAV files"),
    "serve": ("train/serve.py", "a local page to hear base and tuned side by side"),
    "demo": ("train/demo.py", "all of the above, offline, in minutes"),
}
"""Command -> file of its recipe, and what it does."""

Config = TypeVar("Config")

_BARE_OPTIONS = ("--help", "-h", "--print_config")
_USER_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


def main() -> None:
    """The console command: runs the recipe of ``sys.argv[1]``."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("--help", "-h"):
        print(_overview())
        sys.exit(0)
    if command == "--version":
        print(f"musicgen-ft {__version__}")
        sys.exit(0)
    if command not in COMMANDS:
        print(
            f"musicgen-ft: no command {command!r}{_did_you_mean(command, COMMANDS)}; there are {', '.join(COMMANDS)}.",
            file=sys.stderr,
        )
        sys.exit(2)
    recipe = recipe_path(command)
    # Lightning starts the other ranks by running sys.argv[0] again, and spawned workers re-import __main__.
    sys.argv = [str(recipe), *sys.argv[2:]]
    runpy.run_path(str(recipe), run_name="__main__")


def run_recipe(config_class: type[Config], recipe: Callable[[Config], None]) -> None:
    """Parses the command line into a config, runs the recipe on it, and exits.

    Exit status: 0 when the work is done; 2 for a mistake of the user's, with one line on stderr; 130 for Ctrl-C. A
    fault of ours escapes with its traceback and status 1.
    """
    command = command_of(Path(sys.argv[0]))
    _configure_logging()
    try:
        recipe(parse(config_class, command, sys.argv[1:]))
    except UserError as error:
        _fail(command, str(error))
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        _fail(
            command, f"{error.filename or 'the disk'}: {error.strerror}. Free or choose another place, and run again."
        )
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns Ctrl-C into exit(1).
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        print(f"\n{_called(command)}: stopped by the user", file=sys.stderr)
        sys.exit(130)


def read_config(config_class: type[Config], command: str, name: str | None, **values: object) -> Config:
    """The config of another recipe: its defaults, those of a YAML if one is named, and ``values``."""
    words = [] if name is None else ["--config", name]
    return parse(config_class, command, [*words, *(f"--{key}={value}" for key, value in values.items())])


def command_of(recipe: Path) -> str:
    """``inspect`` of data/inspect_corpus.py, which must not be named like Python's own module ``inspect``."""
    names = {Path(file).stem: command for command, (file, _) in COMMANDS.items()}
    return names.get(recipe.stem, recipe.stem)


def parse(config_class: type[Config], command: str, arguments: Sequence[str]) -> Config:
    """The config of a command line: defaults, then ``--config``, then the options.

    Raises:
        UserError: for everything that is wrong with it, in one line.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    positional = getattr(config_class, "POSITIONAL", ())
    names = [field.name for field in fields(config_class)]  # type: ignore[arg-type]
    parser = ArgumentParser(
        prog=_called(command),
        usage=" ".join([_called(command), *(name.upper() for name in positional), "[options]"]),
        description=(config_class.__doc__ or "").strip(),
        exit_on_error=False,
        allow_abbrev=False,  # else --max_step would pass for --max_steps
    )
    help_text = f"YAML file, or the name of one in configs/{command}; other options override it."
    parser.add_argument("--config", action="config", help=help_text)
    parser.add_class_arguments(config_class, as_group=False)
    tuples = {name for name, hint in get_type_hints(config_class).items() if str(hint).startswith("tuple[str")}
    aliases = getattr(config_class, "ALIASES", {})
    normalised = _normalise(arguments, command, positional, tuples, aliases)
    try:
        values = parser.parse_args(normalised).as_dict()
    except ArgumentError as error:
        files = [word.partition("=")[2] for word in normalised if word.startswith("--config=")]
        raise UserError(_one_line(str(error), names, files[0] if files else None)) from error
    values = {name: value for name, value in values.items() if name in names}
    try:
        return config_class(**values)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def recipe_path(command: str) -> Path:
    """The recipe's file: the checkout's where there is one, else the installed package's."""
    package = Path(__file__).parent
    file = COMMANDS[command][0]
    checkout = package.parent
    return checkout / file if (checkout / "pyproject.toml").is_file() else package / "recipes" / file


def run_command(command: str, *arguments: str) -> None:
    """Runs another recipe in a process of its own, with this one's output streams.

    Raises:
        UserError: if it ended with status 2; it has told the user why.
        RuntimeError: if it failed otherwise.
    """
    import subprocess

    from musicgen_ft.processes import handing_on_sigterm

    words = [sys.executable, str(recipe_path(command)), *arguments]
    with subprocess.Popen(words) as process, handing_on_sigterm(process.terminate):
        try:
            status = process.wait()
        except BaseException:  # Ctrl-C, say
            process.kill()
            raise
    refuse_failure(command, status)


def refuse_failure(command: str, status: int | None) -> None:
    """Hands on how a recipe ended.

    Raises:
        UserError: for status 2: it has told the user why.
        RuntimeError: for any other but 0.
    """
    if status == 2:
        raise UserError(f"{command} stopped, see the line above.")
    if status != 0:
        raise RuntimeError(f"{command} ended with status {status}")


def _normalise(
    arguments: Sequence[str],
    command: str,
    positional: Sequence[str],
    tuples: set[str],
    aliases: dict[str, str],
) -> list[str]:
    """Every argument as ``--name=value``: positional ones named, repeated ones gathered, configs found."""
    found: list[str] = []
    gathered: dict[str, list[str]] = {}
    rest, words = list(positional), list(arguments)
    while words:
        word = words.pop(0)
        if word.split("=")[0] in _BARE_OPTIONS:
            found.append(word)
        elif word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            name = aliases.get(name, name)
            if not has_value:
                if not words:
                    raise UserError(f"--{name}: expected a value after it.")
                value = words.pop(0)
            if name in tuples:
                gathered.setdefault(name, []).append(value)
            elif name == "config":
                found.insert(0, f"--config={config_path(command, value)}")  # options override it wherever they stand
            else:
                found.append(f"--{name}={value}")
        elif rest and rest[0] in tuples:  # takes all that follow
            gathered.setdefault(rest[0], []).append(word)
        elif rest:
            found.append(f"--{rest.pop(0)}={word}")
        else:
            raise UserError(f"unexpected argument {word!r}. See {_called(command)} --help.")
    return found + [f"--{name}={json.dumps(values)}" for name, values in gathered.items()]


def _one_line(message: str, names: Sequence[str], file: str | None) -> str:
    """jsonargparse's message on one line: where it is wrong, and a suggestion for a misspelled name."""
    line = re.sub(r"<class '(\w+)'>", r"\1", " ".join(message.split()))
    line = re.sub(r'Parser key "(\w+)":', r"\1:", line)
    if word := re.search(r"unrecognized arguments: --([^=]+)", line):
        return line + _did_you_mean(word[1], names)
    if word := re.search(r"Option '(.+)' is not accepted", line):  # only ever said of a file
        return f"{file}: {line}{_did_you_mean(word[1], names)}"
    return f"{line} (in {file} or on the command line)" if file else line


def _did_you_mean(word: str, names: Any) -> str:
    close = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _called(command: str) -> str:
    """How the user calls a recipe: some are no console commands, and run by their file alone."""
    return f"musicgen-ft {command}" if command in COMMANDS else command


def _fail(command: str, message: str) -> None:
    print(f"{_called(command)}: {message}", file=sys.stderr)
    sys.exit(2)


def _configure_logging() -> None:
    """Our own lines at INFO, everybody else's warnings only where they concern the user."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("musicgen_ft").setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(lightning|transformers|torch|torchaudio)\..*")


def _overview() -> str:
    lines = [f"  {name:<12} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["musicgen-ft COMMAND [options]; COMMAND --help tells more.", *lines])
