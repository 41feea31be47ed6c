"""What `sample` takes beyond a prompt, and what it says to words that it cannot play."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musicgen_ft.audio import read, write_wav

Command = Callable[..., Any]
SHORT = ("--prompt", "a waltz", "--duration_s", 0.4)


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """A quarter of a second at another rate than the generator's, in stereo."""
    path = tmp_path / "tone.wav"
    write_wav(path, (0.3 * torch.sin(torch.arange(11_025) / 30)).repeat(2, 1), 44_100)
    return path


def played(folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    (wav,), (how,) = list(folder.glob("*.wav")), list(folder.glob("000_*.json"))
    found: dict[str, Any] = json.loads(how.read_text())
    return read(wav, sample_rate=16_000, channels=1), found


def test_a_piece_goes_on_from_a_recording(nano_folder: Path, tmp_path: Path, tone: Path, command: Command) -> None:
    result = command("sample", nano_folder, *SHORT, "--audio_prompt", tone, "--out", tmp_path / "wavs")
    assert result.status == 0, result.err
    samples, how = played(tmp_path / "wavs")
    assert samples.shape == (1, 6400)
    assert how["audio_prompt"] == str(tone)


@pytest.mark.parametrize("words", [("--negative_prompt", "drums"), ("--two_step_cfg", "true"), ("--dtype", "bf16")])
def test_other_ways_to_play_are_taken_and_told(
    nano_folder: Path, tmp_path: Path, command: Command, words: tuple[str, str]
) -> None:
    result = command("sample", nano_folder, *SHORT, "--out", tmp_path / "wavs", *words)
    assert result.status == 0, result.err
    _, how = played(tmp_path / "wavs")
    assert str(how[words[0].removeprefix("--")]).lower() == words[1]


def test_many_words_are_read_and_said_to_be_many(nano_folder: Path, tmp_path: Path, command: Command) -> None:
    prompt = " ".join(["a"] * 300)
    result = command("sample", nano_folder, "--prompt", prompt, "--duration_s", 0.1, "--out", tmp_path / "wavs")
    assert result.status == 0, result.err
    assert "piece 0: all 300 words of the prompt were read" in result.out


def test_a_top_k_of_zero_takes_all_codes(nano_folder: Path, tmp_path: Path, command: Command) -> None:
    result = command("sample", nano_folder, *SHORT, "--top_k", 0, "--out", tmp_path / "wavs")
    assert result.status == 0, result.err


def test_a_file_of_prompts_is_played_and_goes_on_where_it_was_stopped(
    nano_folder: Path, tmp_path: Path, command: Command
) -> None:
    lines: list[dict[str, Any]] = [
        *({"prompt": f"waltz {number}", "duration_s": (1 + number) / 10} for number in range(4)),
        {"prompt": "x", "seed": 9},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("sample", nano_folder, "--prompts", tmp_path / "prompts.jsonl", "--duration_s", 0.2, "--batch_size", 2)
    whole = command(*words, "--out", tmp_path / "whole")
    assert whole.status == 0, whole.err
    wavs = sorted((tmp_path / "whole").glob("*.wav"))
    assert [wav.name for wav in wavs] == [*(f"00{n}_waltz-{n}.wav" for n in range(4)), "004_x.wav"]
    assert [read(wav, sample_rate=16_000, channels=1).shape[1] for wav in wavs] == [1600, 3200, 4800, 6400, 3200]
    assert json.loads(wavs[4].with_suffix(".json").read_text())["seed"] == 9

    stopped = tmp_path / "stopped"
    command(*words, "--out", stopped)
    for path in stopped.glob("00[124]_*"):
        if path.suffix == ".json" or path.name.startswith("001"):
            path.unlink()  # as if it had been killed: no piece counts without its JSON
    left = {path.name: path.stat().st_mtime_ns for path in stopped.glob("00[03]_*")}
    again = command(*words, "--out", stopped)
    assert again.status == 0, again.err
    assert "2 of 5 pieces are there already" in again.out
    assert {name: (stopped / name).stat().st_mtime_ns for name in left} == left
    for wav in wavs:
        assert (stopped / wav.name).read_bytes() == wav.read_bytes()

    assert "5 of 5 pieces are there already" in command(*words, "--out", stopped).out
    other = command(*words, "--out", stopped, "--seed", 3)
    assert other.status == 2
    assert "holds pieces of another command: seed is 3, was 0" in other.err


MISTAKES: dict[str, tuple[tuple[object, ...], str]] = {
    "a recording as long as the piece": (
        ("--audio_prompt", "tone.wav", "--duration_s", 0.2),
        r"audio_prompt: found 0\.2[46] s, expected less than the duration of 0\.2 s",
    ),
    "a recording that is none": (("--audio_prompt", "broken.wav"), r"--audio_prompt .*broken\.wav.*Give a file"),
    "a peer that has no negative prompt": (
        ("--negative_prompt", "drums", "--engine", "transformers"),
        "negative_prompt: found one for --engine transformers, it is for --engine native",
    ),
    "a peer that is told a dtype": (("--dtype", "bf16", "--engine", "audiocraft"), "dtype: found one for --engine"),
    "double guidance without a melody": (("--cfg_coef_beta", 5.0), "cfg_coef_beta sets the prompt against a melody"),
    "words without end": (("--prompt", "word " * 2000), r"prompt 'word word.*expected at most 4096.*Shorten it"),
    "a duration below nothing": (("--duration_s", -1), "duration_s: found -1"),
    "numbers that do not exist": (("--dtype", "int4"), "dtype"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_in_one_line_and_writes_nothing(
    nano_folder: Path, tmp_path: Path, tone: Path, command: Command, words: tuple[object, ...], message: str
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    given = [tmp_path / str(word) if str(word).endswith(".wav") else word for word in words]
    result = command("sample", nano_folder, *SHORT, "--out", tmp_path / "wavs", *given)
    assert result.status == 2, result.err
    assert "Traceback" not in result.err
    assert re.search(message, result.err.splitlines()[-1]), result.err
    assert not list(tmp_path.glob("wavs/*"))
