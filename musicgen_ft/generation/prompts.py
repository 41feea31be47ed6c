"""Files of prompts, and folders of pieces that a killed run has left unfinished."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgen_ft.errors import UserError
from musicgen_ft.files import read_json, refuse_used

RECORD_FILE = "sample.json"

_KINDS: dict[str, Any] = {
    "prompt": (str,),
    "negative_prompt": (str,),
    "seed": (int,),
    "duration_s": (int, float),
    "cfg_coef": (int, float),
}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One piece to play; what is None is as for all others."""

    prompt: str
    """What to play; blank is unconditional."""
    negative_prompt: str | None = None
    """What guidance leads away from."""
    seed: int | None = None
    """Of the draws."""
    duration_s: float | None = None
    """Seconds of audio."""
    cfg_coef: float | None = None
    """Scale of guidance."""


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file.

    Args:
        path: text with a prompt on each line, blank lines left out; or, with a name that ends in ``.jsonl``, an object
            on each line with ``prompt`` and, where a piece has its own, the other fields of ``Prompt``.

    Raises:
        UserError: naming the line that is not one.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"--prompts {path}: {reason}. Give a file with a prompt on each line, or a .jsonl.") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise UserError(f"--prompts {path}: found no prompt. Give a file with a prompt on each line, or a .jsonl.")
    if path.suffix != ".jsonl":
        return [Prompt(prompt=line.strip()) for _, line in numbered]
    return [_from_json(line, f"--prompts {path}, line {number}") for number, line in numbered]


def _from_json(line: str, where: str) -> Prompt:
    try:
        values: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: no JSON ({error}).") from error
    if not isinstance(values, dict) or "prompt" not in values:
        raise UserError(f'{where}: expected an object with a prompt, as {{"prompt": "slow waltz", "seed": 7}}.')
    fields: dict[str, Any] = values
    for name, value in fields.items():
        if name not in _KINDS:
            raise UserError(f"{where}: unknown field {name!r}, expected some of {', '.join(_KINDS)}.")
        if not isinstance(value, _KINDS[name]) or isinstance(value, bool):
            raise UserError(f"{where}: {name} is {value!r}, expected {_KINDS[name][-1].__name__}.")
        if (name == "duration_s" and not value > 0) or (name in ("seed", "cfg_coef") and value < 0):
            raise UserError(
                f"{where}: {name} is {value!r}, expected {'more than' if name == 'duration_s' else 'at least'} 0."
            )
    return Prompt(**fields)


def check_folder(out: Path, how: dict[str, Any], prompts: list[Prompt], *, is_resumable: bool = True) -> dict[str, Any]:
    """Refuses a folder that holds anything but pieces of the same command, which it may have left unfinished.

    Args:
        out: the folder.
        how: what the pieces are made with, in plain values.
        prompts: of the pieces.
        is_resumable: else it must hold nothing.

    Returns:
        What is to be written to RECORD_FILE there before the first piece.

    Raises:
        UserError: if it holds anything else.
    """
    digest = hashlib.sha256(json.dumps([vars(prompt) for prompt in prompts]).encode()).hexdigest()
    record: dict[str, Any] = json.loads(json.dumps({**how, "prompts_sha256": digest}))
    if not is_resumable or not (out / RECORD_FILE).is_file():
        refuse_used(out)
        return record
    found = read_json(out / RECORD_FILE)
    was = found if isinstance(found, dict) else {}
    if changed := [name for name in record if was.get(name) != record[name]]:
        now, before = (_short(of.get(changed[0])) for of in (record, was))
        raise UserError(
            f"{out} holds pieces of another command: {changed[0]} is {now}, was {before}. "
            "Repeat that one to go on with it, or choose another --out."
        )
    return record


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
