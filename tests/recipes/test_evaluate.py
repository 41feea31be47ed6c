"""`evaluate` on a run, a generator, an audiocraft folder and shards without held-out tracks; and mistakes."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_ft.audio import read, write_wav
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.synthesis.genres import GENRES
from musicgen_ft.training.run import RunFolder

Command = Callable[..., Any]
SHORT = ("--pieces", 4, "--duration_s", 0.6, "--batch_size", 3, "--players", 2)
PAGE_SECTIONS = {"listen", "loss", "training", "distance", "memory", "faults", "speed", "made"}


def figures(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return values


def anchors(folder: Path) -> set[str]:
    return set(re.findall(r'<section id="(\w+)"', (folder / "index.html").read_text()))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, run: Path, command: Command, clap_folder: Path) -> Path:
    """The session's run, with a CLAP, beside its base, by one command."""
    folder = tmp_path_factory.mktemp("evaluated") / "evaluation"
    result = command("evaluate", run, "--out", folder, *SHORT, "--clap", clap_folder)
    assert result.status == 0, result.err
    assert f"page: {folder / 'index.html'}" in result.out
    assert re.search(r"Loss, held out: [\d.]+ \(base [\d.]+\)", result.out)
    return folder


def test_a_runs_losses_are_those_that_finetune_has_logged(evaluated: Path, run: Path) -> None:
    losses = RunFolder(run).read_checkpoint("best")["musicgen_ft"]
    found = figures(evaluated)["models"]

    assert found["model"]["likelihood"]["valid"]["ce"] == pytest.approx(losses["valid_ce"], rel=1e-6)
    assert found["base"]["likelihood"]["valid"]["ce"] == pytest.approx(losses["base_ce"], rel=1e-6)
    assert found["model"]["forgetting_ce"] == pytest.approx(losses["forgetting_ce"], rel=1e-5)
    assert found["base"]["forgetting_ce"] == pytest.approx(losses["base_forgetting_ce"], rel=1e-5)
    assert losses["valid_ce"] != losses["base_ce"]
    assert len(found["model"]["likelihood"]["train"]["ce_per_codebook"]) == 4


def test_every_figure_is_there_for_both_models(evaluated: Path) -> None:
    values = figures(evaluated)
    assert list(values) == sorted(values)
    assert [prompt["seed"] for prompt in values["prompts"]] == [0, 1, 2, 3]
    assert (values["split"], values["frame_rate"]) == ("valid", 50)
    for model in values["models"].values():
        sound = model["sound"]
        assert set(sound["frechet"]) == {"EnCodec", "CLAP"}
        assert sound["frechet"]["EnCodec"]["num_embeddings"] == 4
        assert sound["frechet"]["EnCodec"]["value"] >= 0
        assert -1 <= sound["clap_score"] <= 1
        assert len(sound["collapses"]) == len(sound["memorisation"]["all_codebooks"]) == 4
        assert model["throughput"]["frames"] == 4 * 30
        assert model["throughput"]["frames_per_s"] > 0
    assert "frechet" in values["yardsticks"]["train"]
    assert "memorisation" in values["yardsticks"]["held_out"]


def test_the_page_holds_every_section_and_the_sounds_lie_beside_it(evaluated: Path) -> None:
    assert anchors(evaluated) == PAGE_SECTIONS
    page = (evaluated / "index.html").read_text()
    assert page.count("<audio") == 2 * 3  # two prompts: held out, base, tuned
    for name in ("held_out", "base", "model"):
        wavs = sorted((evaluated / "sounds" / name).glob("*.wav"))
        assert [wav.name[:3] for wav in wavs] == ["000", "001", "002", "003"]
        assert read(wavs[0], sample_rate=16_000, channels=1).shape[1] <= 0.6 * 16_000
    assert str(evaluated.parent) not in page  # nobody's folders


def test_a_generator_is_measured_as_the_run_that_it_was_exported_of(
    evaluated: Path, generator: Path, shards: Path, tmp_path: Path, command: Command
) -> None:
    result = command("evaluate", generator, shards, "--out", tmp_path / "e", *SHORT)
    assert result.status == 0, result.err
    found, of_run = figures(tmp_path / "e")["models"], figures(evaluated)["models"]

    for name in ("base", "model"):  # the base is found by its name, nano
        expected = of_run[name]["likelihood"]["valid"]["ce"]
        assert found[name]["likelihood"]["valid"]["ce"] == pytest.approx(expected, rel=1e-6)
        # It has played the same clips anew.
        assert found[name]["forgetting_ce"] == pytest.approx(of_run[name]["forgetting_ce"], rel=0.05)
    assert anchors(tmp_path / "e") == PAGE_SECTIONS - {"training"}
    assert "clap_score" not in found["model"]["sound"]


def test_an_audiocraft_folder_alone(run: Path, shards: Path, tmp_path: Path, command: Command) -> None:
    exported = command("export", run, "--out", tmp_path / "audiocraft", "--format", "audiocraft")
    assert exported.status == 0, exported.err
    (tmp_path / "audiocraft" / "musicgen_ft.json").unlink()  # as if another toolkit had made it
    words = ("evaluate", tmp_path / "audiocraft", shards, "--out", tmp_path / "e", "--segment_s", 1)
    result = command(*words, *SHORT, "--valid_max_clips", 2)
    assert result.status == 0, result.err

    assert "nothing to compare with" in result.out
    found = figures(tmp_path / "e")["models"]
    assert set(found) == {"model"}
    assert "forgetting_ce" not in found["model"]
    assert found["model"]["likelihood"]["train"]["num_clips"] == 2
    assert "This model" in (tmp_path / "e" / "index.html").read_text()


def test_without_held_out_tracks_those_to_train_on_are_taken_and_that_is_said(
    corpus: Path, nano_folder: Path, tmp_path: Path, command: Command
) -> None:
    prepared = command("prepare", corpus, "--out", tmp_path / "shards", "--valid_fraction", 0)
    assert prepared.status == 0, prepared.err
    words = ("evaluate", "nano", tmp_path / "shards", "--out", tmp_path / "e", "--valid_max_clips", 2)
    result = command(*words, *SHORT)
    assert result.status == 0, result.err

    assert "nothing is held out in these shards" in result.out
    values = figures(tmp_path / "e")
    assert values["split"] == "train"
    assert set(values["yardsticks"]) == {"held_out"}
    assert "memorisation" not in values["yardsticks"]["held_out"]  # each lies in its own track
    assert "nothing was held out" in (tmp_path / "e" / "index.html").read_text()


def test_wandb_gets_the_figures_and_the_sounds(run: Path, tmp_path: Path, command: Command) -> None:
    words = ("--pieces", 2, "--duration_s", 1, "--base", "none", "--valid_max_clips", 1, "--wandb", "offline")
    result = command("evaluate", run, "--out", tmp_path / "e", *words)
    assert result.status == 0, result.err
    (offline,) = (tmp_path / "e" / "wandb").glob("offline-run-*")
    assert list(offline.glob("*.wandb"))
    assert list(offline.rglob("*.table.json"))


def test_a_judge_of_a_labelled_folder_tells_what_genres_it_hears_and_others_what_is_forgotten(
    run: Path, shards: Path, corpus: Path, tmp_path: Path, command: Command
) -> None:
    words = ("--pieces", 3, "--duration_s", 1.2, "--judge", corpus, "--others", shards)
    result = command("evaluate", run, "--out", tmp_path / "e", *words)
    assert result.status == 0, result.err
    assert re.search(r"Heard as the genre asked for: \d+% \(± \d+, base \d+%\)", result.out)
    assert re.search(r"Other music, heard as asked: \d+% \(± \d+, base \d+%, real tracks \d+%\)", result.out)
    values = figures(tmp_path / "e")
    genres = {json.loads(path.read_text())["genre"] for path in corpus.glob("*.json")}
    for sound in (values["models"]["model"]["sound"], values["yardsticks"]["held_out"]):
        assert set(sound["class_shares"]) == genres
        assert sum(sound["class_shares"].values()) == pytest.approx(1.0)
        assert 0 <= sound["heard_as_asked"] <= 1
    assert "kl" in values["models"]["model"]["sound"]
    for model in values["models"].values():  # the others are the shards themselves here
        assert model["others"]["likelihood"] == model["likelihood"]["valid"]
        assert model["others"]["heard_as_asked"] == model["sound"]["heard_as_asked"]
        assert model["others"]["heard_as_asked"] <= model["others"]["heard_as_learned"] <= 1  # of the same genres
    assert values["real_others_heard_as_asked"] == values["yardsticks"]["held_out"]["heard_as_asked"]
    assert "What a classifier hears" in (tmp_path / "e" / "index.html").read_text()


def test_the_bundled_judge_knows_all_genres_of_synthesize(run: Path, tmp_path: Path, command: Command) -> None:
    result = command("evaluate", run, "--out", tmp_path / "e", "--pieces", 2, "--duration_s", 1.2, "--judge", "nano")
    assert result.status == 0, result.err
    sound = figures(tmp_path / "e")["yardsticks"]["held_out"]
    assert set(sound["class_shares"]) == set(GENRES)
    assert 0 <= sound["heard_as_asked"] <= 1


def test_copies_are_looked_for_in_what_the_run_was_trained_on(
    run: Path, shards: Path, tmp_path: Path, command: Command
) -> None:
    made = [
        command("synthesize", "--out", tmp_path / "c", "--tracks", 3, "--duration_s", 2, "--genres", "waltz"),
        command("prepare", tmp_path / "c", "--out", tmp_path / "other"),
        command("evaluate", run, tmp_path / "other", "--out", tmp_path / "e", *SHORT, "--base", "none"),
    ]
    assert [step.status for step in made] == [0] * 3, [step.err for step in made]
    trained, others = (set(ShardIndex.open(folder).split("train").keys) for folder in (shards, tmp_path / "other"))
    copies = figures(tmp_path / "e")["models"]["model"]["sound"]["memorisation"]["first_codebook"]
    found = {copy["track"] for copy in copies if copy["num_frames"]}
    assert found
    assert found <= trained - others


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no such folder": (("./nowhere", "SHARDS"), r"nowhere: no such folder"),
    "an empty folder": (("EMPTY", "SHARDS"), "is empty, expected a run or a generator"),
    "no shards for a generator": (("nano",), "expected SHARDS: nano is no run"),
    "shards that are none": (("nano", "EMPTY"), "is not a shards folder"),
    "shards of another codec": (("OTHER", "SHARDS"), "the shards were made by codec"),
    "a used place": (("nano", "SHARDS", "--out", "SHARDS"), "is not empty"),
    "too little music": (("nano", "SHARDS", "--pieces", "1", "--duration_s", "1"), "expected at least 2 s"),
    "a base that is none": (("RUN", "--base", "./nowhere"), "Or compare with none: --base none"),
    "a CLAP that is none": (("nano", "SHARDS", "--clap", "EMPTY"), "describes no CLAP"),
    "others that are none": (("nano", "SHARDS", "--others", "EMPTY"), "is not a shards folder"),
    "a judge that is none": (("nano", "SHARDS", "--judge", "TEXT"), "found no classifier in it"),
    "a judge of one genre": (("nano", "SHARDS", "--judge", "ONE"), "expected tracks of two genres or more"),
    "a judge of blinks": (("nano", "SHARDS", "--judge", "ONE", "--duration_s", "0.6"), "expected 1 or more"),
    "no such device": (("nano", "SHARDS", "--device", "tpu"), "--device tpu"),
}


@pytest.fixture(scope="module")
def other_codec(tmp_path_factory: pytest.TempPathFactory, nano_folder: Path) -> Path:
    """nano with one weight of its codec changed."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(nano_folder, tmp_path_factory.mktemp("other") / "base"))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.startswith("audio_encoder.") and tensors[name].is_floating_point())
    tensors[name] = tensors[name] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_in_one_line_and_writes_nothing(
    run: Path,
    shards: Path,
    other_codec: Path,
    tmp_path: Path,
    command: Command,
    bytes_of: Callable[[Path], dict[str, str]],
    words: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "waltz").mkdir()
    write_wav(tmp_path / "waltz" / "one.wav", torch.rand(1, 32_000) - 0.5, 16_000)
    places = {
        "SHARDS": shards,
        "EMPTY": tmp_path / "empty",
        "OTHER": other_codec,
        "RUN": run,
        "ONE": tmp_path / "waltz",
        "TEXT": tmp_path / "judge.npz",
    }
    (tmp_path / "judge.npz").write_text("none")
    given = [places.get(word, word) for word in words]
    out = () if "--out" in words else ("--out", tmp_path / "e")
    before = bytes_of(shards)
    result = command("evaluate", *given, *out)

    assert result.status == 2, result.err
    assert "Traceback" not in result.err
    assert re.search(message, result.err.splitlines()[-1]), result.err
    assert not (tmp_path / "e").exists()
    assert bytes_of(shards) == before
