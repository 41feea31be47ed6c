"""sample on generators that fall silent or into a loop: said aloud, written down, played again on request."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from musicgen_ft.audio import read
from musicgen_ft.generation.decode import Engine, Piece

Command = Callable[..., Any]
RigLoops = Callable[[Callable[[int], bool]], list[list[int]]]

SAMPLE = ("--prompt", "a waltz", "--prompt", "techno", "--duration_s", 6, "--seed", 3)


@pytest.fixture
def sings(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The native engine plays random codes; where a seed is below a million, a bar of half a second again and again.

    Of every batch the seeds are kept.
    """
    asked: list[list[int]] = []

    def codes(engine: Any, conditions: Any, pieces: Sequence[Piece], **_: Any) -> list[Tensor]:
        asked.append([piece.seed for piece in pieces])
        rows = []
        for piece in pieces:
            row = torch.randint(256, (4, piece.num_frames), generator=torch.Generator().manual_seed(piece.seed))
            loops = piece.seed < 1_000_000
            bars = piece.num_frames // 25 + 1
            rows.append(row[:, :25].repeat(1, bars)[:, : piece.num_frames] if loops else row)
        return rows

    monkeypatch.setattr(Engine, "codes", codes)
    return asked


def notes(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_a_loop_is_said_and_written_down(sings: list[list[int]], tmp_path: Path, command: Command) -> None:
    result = command("sample", "nano", *SAMPLE, "--out", tmp_path / "wavs")

    assert result.status == 0, result.err
    assert "piece 0: with seed 3 it repeats 0.5 s exactly, 12 times from 0.0 s on\n" in result.out
    assert "piece 1: with seed 4 it repeats 0.5 s exactly" in result.out
    assert sings == [[3, 4]]
    for how in notes(tmp_path / "wavs"):
        assert how["seeds_tried"] == [how["seed"]]
        assert how["collapse"]["is_found"] is True
        assert how["collapse"]["loops"] == [{"start_s": 0.0, "stop_s": 6.0, "period_s": 0.5, "repetitions": 12}]


def test_a_collapsed_piece_is_played_again_with_the_seed_that_is_written_down(
    sings: list[list[int]], tmp_path: Path, command: Command
) -> None:
    result = command("sample", "nano", *SAMPLE, "--retry_silent", 3, "--out", tmp_path / "wavs")

    assert result.status == 0, result.err
    assert sings == [[3, 4], [1_000_003, 1_000_004]]
    for number, how in enumerate(notes(tmp_path / "wavs")):
        assert how["seeds_tried"] == [3 + number, 1_000_003 + number]
        assert how["seed"] == 1_000_003 + number
        assert how["collapse"]["is_found"] is False
    again = command("sample", "nano", *SAMPLE[:2], *SAMPLE[4:6], "--seed", 1_000_003, "--out", tmp_path / "again")
    assert again.status == 0, again.err
    files = [tmp_path / folder / "000_a-waltz.wav" for folder in ("wavs", "again")]
    one, other = (read(path, sample_rate=16_000, channels=1) for path in files)
    assert np.abs(one - other).max() <= 4 / 32768  # the codes are equal; the decoder's sums round by the batch


# Any code may be drawn, or the fixture ``rig_loops`` has no effect.
LONG = ("--prompt", "a waltz", "--prompt", "techno", "--duration_s", 8, "--seed", 3, "--top_k", 0)


def test_a_piece_that_loops_is_broken_off_for_the_next_seed_and_nobody_else_notices(
    rig_loops: RigLoops, tmp_path: Path, command: Command
) -> None:
    played = rig_loops(lambda seed: seed == 3)
    result = command("sample", "nano", *LONG, "--retry_silent", 2, "--out", tmp_path / "retried")
    assert result.status == 0, result.err
    assert played == [[3, 4], [1_000_003]]
    said = "piece 0: with seed 3 it repeats 0.1 s exactly, 30 times from 0.0 s on; broken off after 3.0 s\n"
    assert result.out.count("broken off") == result.out.count(said) == 1
    first, second = notes(tmp_path / "retried")
    assert (first["seeds_tried"], first["broken_off_s"]) == ([3, 1_000_003], [3.0, None])
    assert (first["seed"], first["collapse"]["is_found"]) == (1_000_003, False)
    assert (second["seeds_tried"], second["broken_off_s"]) == ([4], [None])

    once = command("sample", "nano", *LONG, "--out", tmp_path / "once")
    assert once.status == 0, once.err
    assert played[2:] == [[3, 4]]
    assert "broken off" not in once.out
    first, second = notes(tmp_path / "once")
    assert (first["seed"], first["broken_off_s"], first["collapse"]["duration_s"]) == (3, [None], 8.0)
    assert first["collapse"]["loops"] == [{"start_s": 0.0, "stop_s": 8.0, "period_s": 0.1, "repetitions": 80}]
    paths = [tmp_path / folder / "001_techno.wav" for folder in ("retried", "once")]
    one, other = (read(path, sample_rate=16_000, channels=1) for path in paths)
    assert np.abs(one - other).max() <= 4 / 32768  # the codes are equal; the decoder's sums round by the batch


def test_the_last_seed_is_played_to_the_end_whatever_it_sounds_like(
    rig_loops: RigLoops, tmp_path: Path, command: Command
) -> None:
    played = rig_loops(lambda _: True)
    result = command("sample", "nano", *LONG, "--retry_silent", 1, "--out", tmp_path / "wavs")
    assert result.status == 0, result.err
    assert played == [[3, 4], [1_000_003, 1_000_004]]
    for number, how in enumerate(notes(tmp_path / "wavs")):
        assert (how["broken_off_s"], how["seed"]) == ([3.0, None], 1_000_003 + number)
        assert (how["collapse"]["is_found"], how["collapse"]["duration_s"]) == (True, 8.0)


@pytest.mark.parametrize("engine", ["audiocraft", "transformers"])
def test_silence_is_found_whoever_plays(
    engine: str, generator: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from musicgen_ft.peers import audiocraft, transformers

    seeds: list[int] = []

    def plays_nothing(_: Any, prompts: list[str], *__: Any, seed: int, **___: Any) -> Tensor:
        seeds.append(seed)
        waveforms = torch.zeros(len(prompts), 1, 16_000 * 6)
        waveforms[:, :, : 16_000 * (1 + seed // 1_000_000)] = 0.1  # each go a second more before it falls silent
        return waveforms

    for peer in (audiocraft, transformers):
        monkeypatch.setattr(peer, "generate", plays_nothing)
    words = ("--engine", engine, "--retry_silent", 2, "--out", tmp_path / "wavs")
    result = command("sample", generator, *SAMPLE, *words)

    assert result.status == 0, result.err
    assert seeds == [3, 1_000_003, 2_000_003]
    assert "piece 1: with seed 1000004 it falls silent after 2.0 s of 6 s\n" in result.out
    for number, how in enumerate(notes(tmp_path / "wavs")):
        assert how["seeds_tried"] == [3 + number, 1_000_003 + number, 2_000_003 + number]
        assert how["seed"] == 2_000_003 + number  # all failed: the one that lost least
        assert (how["collapse"]["is_found"], how["collapse"]["ends_silent_s"]) == (True, 3.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--retry_silent", -1), "retry_silent: found -1, expected 0 or more"),
        (("--retry_silent", 2, "--temperature", 0), "--retry_silent: at --temperature 0 every seed plays the same"),
    ],
)
def test_what_cannot_be_tried_again_is_refused(
    tmp_path: Path, command: Command, words: tuple[object, ...], message: str
) -> None:
    result = command("sample", "nano", *SAMPLE, *words, "--out", tmp_path / "wavs")
    assert result.status == 2
    assert message in result.err
    assert not (tmp_path / "wavs").exists()
