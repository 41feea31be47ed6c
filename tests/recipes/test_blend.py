"""Adapters end to end: two trained over nano, blended by sample over the base; adapters of other bases refused."""

import itertools
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.peers.engines import open_mixer
from musicgen_ft.serving.studio import Side, Studio, Wish, by_short_name

Command = Callable[..., Any]

STEPS = ("--max_steps", 2, "--lr", 1.0e-2, "--warmup_steps", 0, "--batch_size", 4, "--segment_s", 1)
SAMPLE = ("--prompt", "a waltz", "--duration_s", 0.4)


def made(command: Command, *words: object) -> Path:
    result = command(*words)
    assert result.status == 0, result.err
    (out,) = (word for before, word in itertools.pairwise(words) if before == "--out")
    return Path(str(out))


def trained(command: Command, shards: Path, folder: Path, *words: object) -> Path:
    """A run, after a few steps on the CPU."""
    return made(
        command, "finetune", shards, "--out", folder, *STEPS, "--num_workers", 0, "--accelerator", "cpu", *words
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path, command: Command) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    methods = {"lofi": ("--method", "lora", "--lora_whole", "heads"), "waltz": ("--method", "dora", "--seed", 1)}
    return {name: trained(command, shards, folder / name, *words) for name, words in methods.items()}


@pytest.fixture(scope="module")
def adapters(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, command: Command) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: made(command, "export", run, "--out", folder / name, "--format", "adapter") for name, run in runs.items()
    }


def test_one_adapter_over_the_base_is_the_merged_export_and_the_base_comes_back(
    runs: dict[str, Path], adapters: dict[str, Path], nano_folder: Path, tmp_path: Path, command: Command
) -> None:
    base = open_base(str(nano_folder))
    lm = base.lm()
    mixer = open_mixer(lm, base, adapters)
    for name, run in runs.items():
        export = open_base(str(made(command, "export", run, "--out", tmp_path / name))).lm_state()
        mixer.blend({"lofi": 0.4, "waltz": 0.7})
        mixer.blend({name: 1.0})
        found = lm.state_dict()
        assert all(torch.equal(found[weight], value) for weight, value in export.items())
    mixer.blend({})
    assert all(torch.equal(lm.state_dict()[weight], value) for weight, value in base.lm_state().items())


def test_the_lines_of_python_that_the_docs_show_play(
    adapters: dict[str, Path], nano_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(adapters["lofi"].parent)
    lines = snippet.replace('"facebook/musicgen-small"', repr(str(nano_folder))).replace(
        "duration_s=10",
        "duration_s=3",  # the adapters are of a few steps: they take a while to be heard
    )
    scope: dict[str, Any] = {}
    exec(compile(lines, "docs/adapters.md", "exec"), scope)

    one, other, plain = scope["waveforms"]
    assert not torch.equal(one, other) and not torch.equal(one, plain) and not torch.equal(other, plain)


def test_sample_plays_adapters_over_their_base_and_writes_down_how_strongly(
    runs: dict[str, Path], adapters: dict[str, Path], tmp_path: Path, command: Command
) -> None:
    lofi, waltz = adapters.values()
    blends = {"none": (), "lofi": ("--adapter", lofi), "both": ("--adapter", f"{lofi}=0.5", "--adapter", waltz)}
    wavs = {name: made(command, "sample", "nano", *SAMPLE, *w, "--out", tmp_path / name) for name, w in blends.items()}
    merged = made(command, "export", runs["lofi"], "--out", tmp_path / "merged")
    made(command, "sample", merged, *SAMPLE, "--out", tmp_path / "export")

    played = {name: (tmp_path / name / "000_a-waltz.wav").read_bytes() for name in (*blends, "export")}
    assert played["lofi"] == played["export"]
    assert len(set(played.values())) == 3
    how = {name: json.loads((folder / "000_a-waltz.json").read_text())["adapter"] for name, folder in wavs.items()}
    assert how == {"none": {}, "lofi": {str(lofi): 1.0}, "both": {str(lofi): 0.5, str(waltz): 1.0}}


def test_adapters_of_different_bases_are_refused_in_one_line(
    runs: dict[str, Path], adapters: dict[str, Path], shards: Path, tmp_path: Path, command: Command
) -> None:
    other = made(command, "export", runs["lofi"], "--out", tmp_path / "other", "--format", "transformers")
    run = trained(command, shards, tmp_path / "run", "--base", other, "--method", "lora", "--max_steps", 1)
    over_other = made(command, "export", run, "--out", tmp_path / "adapter", "--format", "adapter")

    words = ("--adapter", adapters["lofi"], "--adapter", over_other)
    for generator, refused in (("nano", over_other), (other, adapters["lofi"])):
        result = command("sample", generator, *SAMPLE, *words, "--out", tmp_path / "wavs")
        assert result.status == 2
        assert len(result.err.strip().splitlines()) == 1
        assert f"adapter {refused} was made for " in result.err
        assert not (tmp_path / "wavs").exists()


def test_an_adapter_that_does_not_tell_its_base_is_judged_by_its_shapes_and_said_so(
    adapters: dict[str, Path], copy_of: Callable[[Path], Path], nano_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = copy_of(adapters["lofi"])
    (foreign / "musicgen_ft.json").unlink()
    base = open_base(str(nano_folder))
    with caplog.at_level(logging.INFO, logger="musicgen_ft"):
        mixer = open_mixer(base.lm(), base, {"foreign": foreign})
    assert mixer.names == ("foreign",)
    (record,) = caplog.records
    assert record.getMessage().endswith("does not tell the weights it was made for: its shapes fit. It names nano.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--adapter", "nowhere"), "--adapter nowhere: nowhere is no folder"),
        (("--adapter", "{lofi}=loud"), "found strength 'loud', expected a number"),
        (("--adapter", "{lofi}", "--adapter", "{lofi}=0.5"), "is given twice"),
        (("--adapter", "{shards}"), "is no adapter: expected adapter_config.json"),
        (("--adapter", "{lofi}", "--engine", "transformers"), "--adapter goes with --engine native, found transf"),
    ],
)
def test_a_wrong_adapter_is_told_in_one_line(
    adapters: dict[str, Path], shards: Path, tmp_path: Path, command: Command, words: tuple[str, ...], message: str
) -> None:
    words = tuple(word.format(**adapters, shards=shards) for word in words)
    result = command("sample", "nano", *SAMPLE, *words, "--out", tmp_path / "wavs")
    assert result.status == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "wavs").exists()


def test_the_page_switches_adapters_over_one_base(adapters: dict[str, Path], nano_folder: Path) -> None:
    studio = Studio((str(nano_folder),), adapters=by_short_name(adapters.values()), open_mixer=open_mixer)

    def played(strengths: dict[str, float]) -> Tensor:
        side = Side(generator=str(nano_folder), strengths=strengths)
        (*_, piece) = studio.play(side, Wish(prompt="a waltz", duration_s=1.0, seed=3))
        assert piece.waveform is not None
        return torch.as_tensor(piece.waveform)

    base, lofi, both, again = map(played, ({}, {"lofi": 1.0}, {"lofi": 0.5, "waltz": 0.5}, {"lofi": 0.0}))
    assert not torch.equal(base, lofi)
    assert not torch.equal(lofi, both)
    assert torch.equal(base, again)


def test_two_adapters_of_one_name_keep_their_whole_paths() -> None:
    folders = [Path("a/lofi"), Path("b/lofi"), Path("b/waltz")]
    assert by_short_name(folders) == {"a/lofi": folders[0], "b/lofi": folders[1], "waltz": folders[2]}
