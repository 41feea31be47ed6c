"""Files of prompts, line by line, and folders that are taken up again."""

import json
from pathlib import Path

import pytest

from musicgen_ft.errors import UserError
from musicgen_ft.files import write_json
from musicgen_ft.generation.prompts import RECORD_FILE, Prompt, check_folder, read_prompts


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_each_line_of_a_text_is_a_prompt(tmp_path: Path) -> None:
    path = written(tmp_path / "prompts.txt", "slow waltz\n\n  tango, 120 bpm \r\n\u00e9tude\n")

    assert read_prompts(path) == [Prompt(prompt=text) for text in ("slow waltz", "tango, 120 bpm", "\u00e9tude")]


def test_a_line_of_json_may_have_options_of_its_own(tmp_path: Path) -> None:
    lines = [
        {"prompt": "waltz"},
        {"prompt": "", "seed": 7, "duration_s": 2, "cfg_coef": 1.5, "negative_prompt": "drums"},
    ]
    path = written(tmp_path / "prompts.jsonl", "\n".join(map(json.dumps, lines)))

    assert read_prompts(path) == [
        Prompt(prompt="waltz"),
        Prompt(prompt="", seed=7, duration_s=2, cfg_coef=1.5, negative_prompt="drums"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("waltz", "line 2: no JSON"),
        ("[1]", "line 2: expected an object with a prompt"),
        ('{"seed": 7}', "line 2: expected an object with a prompt"),
        (
            '{"prompt": "a", "tempo": 7}',
            "line 2: unknown field 'tempo', expected some of prompt, negative_prompt, seed",
        ),
        ('{"prompt": 7}', "line 2: prompt is 7, expected str"),
        ('{"prompt": "a", "seed": 1.5}', "line 2: seed is 1.5, expected int"),
        ('{"prompt": "a", "seed": true}', "line 2: seed is True, expected int"),
        ('{"prompt": "a", "seed": -1}', "line 2: seed is -1, expected at least 0"),
        ('{"prompt": "a", "duration_s": 0}', "line 2: duration_s is 0, expected more than 0"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path / "prompts.jsonl", f'{{"prompt": "waltz"}}\n{line}\n')

    with pytest.raises(UserError, match=message):
        read_prompts(path)


def test_a_file_without_a_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompt"):
        read_prompts(written(tmp_path / "empty.txt", " \n\n"))
    with pytest.raises(UserError, match="No such file"):
        read_prompts(tmp_path / "gone.txt")
    (tmp_path / "latin.txt").write_bytes(b"\xe9tude")
    with pytest.raises(UserError, match="it is no UTF-8 text"):
        read_prompts(tmp_path / "latin.txt")


def test_a_folder_is_taken_up_by_the_same_command_alone(tmp_path: Path) -> None:
    how, prompts = {"seed": 0, "melody": None}, [Prompt(prompt="waltz")]
    write_json(tmp_path / "out" / RECORD_FILE, check_folder(tmp_path / "out", how, prompts))
    (tmp_path / "out" / "000_waltz.wav").touch()

    assert check_folder(tmp_path / "out", how, prompts)["seed"] == 0
    with pytest.raises(UserError, match="seed is 1, was 0"):
        check_folder(tmp_path / "out", how | {"seed": 1}, prompts)
    with pytest.raises(UserError, match=r"prompts_sha256 is .* was"):
        check_folder(tmp_path / "out", how, [Prompt(prompt="waltz", seed=3)])


def test_a_folder_that_holds_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "song.wav").touch()
    with pytest.raises(UserError):
        check_folder(tmp_path, {}, [Prompt(prompt="waltz")])
