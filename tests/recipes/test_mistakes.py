"""Each mistake of the user's ends with status 2 and one line that says what to do, and leaves the disk as it was."""

import contextlib
import errno
import importlib.util
import os
import pickle
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from musicgen_ft.audio import write_wav
from musicgen_ft.codec import Codec
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.shards.track import Track, TrackMeta

# What the fixture of conftest.py gives.
Command = Callable[..., Any]

TRAINING = ("--batch_size", 4, "--segment_s", 1, "--num_workers", 0, "--accelerator", "cpu", "--max_steps", 2)
SAMPLE = ("--prompt", "a waltz", "--duration_s", 0.2)


@dataclass(frozen=True)
class Place:
    """Where a test's mistakes happen: the session's good folders, and a folder of its own."""

    corpus: Path
    shards: Path
    run: Path
    generator: Path
    tmp: Path

    @property
    def out(self) -> Path:
        """A good place for the output."""
        return self.tmp / "out"

    def file(self, name: str, content: str | bytes = "") -> Path:
        """Writes a file, and the folders that it lies in."""
        path = self.tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def folder(self, name: str) -> Path:
        """Makes an empty folder."""
        (self.tmp / name).mkdir()
        return self.tmp / name

    def corpus_with(self, name: str, content: str | bytes) -> Path:
        """A corpus of one good track, and a file."""
        track = min(self.corpus.glob("*.wav"))
        self.file(f"corpus/{track.name}", track.read_bytes())
        self.file(f"corpus/{name}", content)
        return self.tmp / "corpus"

    def silence(self) -> Path:
        """A corpus of one silent track."""
        (self.tmp / "corpus").mkdir()
        write_wav(self.tmp / "corpus" / "silent.wav", torch.zeros(1, 32_000), 16_000)
        return self.tmp / "corpus"

    def many(self) -> Path:
        """A corpus of more files than one process surveys."""
        for number, track in enumerate([*self.corpus.glob("*.wav")] * 2):
            self.file(f"many/{number}.wav", track.read_bytes())
        return self.tmp / "many"

    def table(self, columns: str, *rows: str, is_same: bool = False) -> str:
        """A table of so many tracks, which are copied into the folder ``corpus``; all alike if ``is_same``."""
        tracks = sorted(self.corpus.glob("*.wav"))[: len(rows)]
        for track in tracks:
            self.file(f"corpus/{track.name}", tracks[0 if is_same else tracks.index(track)].read_bytes())
        return "".join(
            [f"file_name,{columns}\n", *(f"{track.name},{row}\n" for track, row in zip(tracks, rows, strict=True))]
        )

    def copy(self, folder: Path) -> Path:
        """A copy of one of the session's folders."""
        return Path(shutil.copytree(folder, self.tmp / folder.name))

    def track(self) -> bytes:
        """A good track."""
        return min(self.corpus.glob("*.wav")).read_bytes()

    def run_with(self, *checkpoints: bytes) -> Path:
        """A copy of the run whose checkpoints are replaced: all by one file, or removed where there is none."""
        run = Path(shutil.copytree(self.run, self.tmp / "run"))
        for path in (run / "checkpoints").iterdir():
            path.unlink()
            for content in checkpoints:
                path.write_bytes(content)
        return run

    def base_with(self, name: str, content: bytes, *, format: str) -> Path:
        """A copy of the generator in one format with a file replaced."""
        kept = {
            "audiocraft": ("state_dict.bin", "compression_state_dict.bin"),  # its T5 lies beside them, and is not read
            "transformers": ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
        }
        base = self.folder("base")
        for file in kept[format]:
            shutil.copy(self.generator / file, base / file)
        (base / name).write_bytes(content)
        return base

    def base_with_another_codec(self) -> Path:
        """A base whose EnCodec has one other weight."""
        base = Path(shutil.copytree(self.generator, self.tmp / "base"))
        for file in ("state_dict.bin", "compression_state_dict.bin"):
            (base / file).unlink()
        tensors = load_file(base / "model.safetensors")
        name = next(name for name in sorted(tensors) if name.startswith("audio_encoder."))
        tensors[name] = tensors[name] + 0.125
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
        return base


@pytest.fixture
def place(corpus: Path, shards: Path, run: Path, generator: Path, tmp_path: Path) -> Place:
    return Place(corpus, shards, run, generator, tmp_path)


class Mistake(NamedTuple):
    """A command line, and what its one line says."""

    words: Callable[[Place], tuple[object, ...]]
    says: str


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path under a folder, hidden ones too, with the bytes of the files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_told_in_one_line(result: Any, command: str, says: str) -> None:
    assert "Traceback" not in result.err, result.err
    assert result.status == 2, result.err
    *before, line = result.err.splitlines()
    assert before == []
    assert line.startswith(f"musicgen-ft {command}: ")
    assert re.search(says, line), line


MISTAKES = {
    # ---- the corpus
    "a corpus that does not exist": Mistake(
        lambda at: ("prepare", at.tmp / "nowhere", "--out", at.out), "nowhere does not exist, expected the folder of a"
    ),
    "a corpus that is a file": Mistake(
        lambda at: ("prepare", at.file("song.wav"), "--out", at.out), r"song\.wav is a file, expected the folder of a"
    ),
    "an empty corpus": Mistake(lambda at: ("prepare", at.folder("corpus"), "--out", at.out), "corpus is empty"),
    "a corpus without audio": Mistake(
        lambda at: ("prepare", at.file("corpus/notes.txt").parent, "--out", at.out), r"corpus holds no audio.*\.flac"
    ),
    "a table without the column file_name": Mistake(
        lambda at: ("prepare", at.corpus_with("metadata.csv", "file,genre\na.wav,folk\n"), "--out", at.out),
        r"metadata\.csv has no column file_name",
    ),
    "a table that is not valid CSV": Mistake(
        lambda at: ("prepare", at.corpus_with("metadata.csv", 'file_name,genre\na.wav,"folk\n'), "--out", at.out),
        r"metadata\.csv, line \d is not valid CSV",
    ),
    "a table that names a missing file": Mistake(
        lambda at: ("prepare", at.corpus_with("metadata.csv", "file_name,genre\nlost.wav,folk\n"), "--out", at.out),
        r"metadata\.csv, line 2: .*lost\.wav",
    ),
    "a table that is not valid JSON lines": Mistake(
        lambda at: ("prepare", at.corpus_with("metadata.jsonl", "{nothing}\n"), "--out", at.out),
        r"metadata\.jsonl, line 1 is not valid JSON",
    ),
    "a share that is no share": Mistake(
        lambda at: ("prepare", at.corpus, "--out", at.out, "--valid_fraction", 1.5), "valid_fraction.*1.5.*expected"
    ),
    "an engine that is not there": Mistake(
        lambda at: ("prepare", at.corpus, "--out", at.out, "--engine", "dask"), "engine.*local.*ray.*dask"
    ),
    "nothing to split by": Mistake(
        lambda at: ("prepare", at.corpus, "--out", at.out, "--split_by", " "), "split_by: found nothing, expected auto"
    ),
    "leases that last no time": Mistake(
        lambda at: ("prepare", at.corpus, "--out", at.out, "--lease_s", 0), "lease_s: found 0"
    ),
    "a demucs that is nowhere": Mistake(
        lambda at: ("prepare", at.corpus, "--out", at.out, "--vocals", "remove", "--stems_model", "nowhere"),
        "demucs.* nowhere|nowhere.*demucs",
    ),
    "a demucs whose file is damaged": Mistake(
        lambda at: (
            *("prepare", at.corpus, "--out", at.out, "--vocals", "remove"),
            *("--stems_model", at.file("m.th", b"PK\x03\x04 cut")),
        ),
        r"m\.th",
    ),
    "another base for shards that are there": Mistake(
        lambda at: ("prepare", at.corpus, "--out", at.copy(at.shards), "--base", at.base_with_another_codec()),
        r"shards was begun with another codec, config or corpus \(train-000000\.tar\): found .*expected .*--out",
    ),
    "another window for shards that are there": Mistake(
        lambda at: ("prepare", at.corpus, "--out", at.copy(at.shards), "--window_s", 20), "found .*30.* expected .*20"
    ),
    "another corpus for shards that are there": Mistake(
        lambda at: ("prepare", at.file("songs/a.wav", at.track()).parent, "--out", at.copy(at.shards)),
        "was begun with another codec, config or corpus",
    ),
    # ---- inspect
    "an inspection of what is not there": Mistake(
        lambda at: ("inspect", at.tmp / "nowhere", "--out", at.tmp / "page.html"), "nowhere does not exist, expected"
    ),
    "an inspection of a folder that is nothing": Mistake(
        lambda at: ("inspect", at.file("notes/notes.txt").parent, "--out", at.tmp / "page.html"), "holds no audio"
    ),
    "an inspection of a run": Mistake(
        lambda at: ("inspect", at.run, "--out", at.tmp / "page.html"), "run holds no audio"
    ),
    "an inspection into a folder": Mistake(
        lambda at: ("inspect", at.corpus, "--out", at.folder("page")), "page is a folder, expected the name of a file"
    ),
    "an inspection with unknown captions": Mistake(
        lambda at: ("inspect", at.corpus, "--out", at.tmp / "p.html", "--finetune_config", "smal"),
        "smal: .*Shipped: .*small",
    ),
    "an inspection with unknown rules": Mistake(
        lambda at: ("inspect", at.corpus, "--out", at.tmp / "p.html", "--prepare_config", "smal"),
        "smal: .*Shipped: .*small",
    ),
    "an inspection of half-done shards": Mistake(
        lambda at: ("inspect", at.file("shards/.work/plan/plan.json", "{}").parents[2], "--out", at.tmp / "p.html"),
        "shards is incomplete: prepare did not finish it",
    ),
    # ---- shards and bases
    "shards of another codec than the base's": Mistake(
        lambda at: ("finetune", at.shards, "--out", at.out, "--base", at.base_with_another_codec(), *TRAINING),
        "the shards were made by codec nano .*Prepare again with this base",
    ),
    "shards that do not exist": Mistake(
        lambda at: ("finetune", at.tmp / "nowhere", "--out", at.out, *TRAINING), "nowhere is not a folder"
    ),
    "a corpus in place of shards": Mistake(
        lambda at: ("finetune", at.corpus, "--out", at.out, *TRAINING), "is not a shards folder"
    ),
    "shards that prepare did not finish": Mistake(
        lambda at: ("finetune", at.file("shards/train-000000.tar").parent, "--out", at.out, *TRAINING),
        "is incomplete: prepare did not finish it",
    ),
    "a base that is nowhere, offline (prepare)": Mistake(
        lambda at: ("prepare", at.corpus, "--out", at.out, "--base", "facebook/musicgen-small"),
        "facebook/musicgen-small is neither a folder nor in the local cache .*HF_HUB_OFFLINE is set",
    ),
    "a base that is nowhere, offline (finetune)": Mistake(
        lambda at: ("finetune", at.shards, "--out", at.out, "--base", "facebook/musicgen-small", *TRAINING),
        "facebook/musicgen-small is neither a folder nor in the local cache",
    ),
    "a base that is nowhere, offline (sample)": Mistake(
        lambda at: ("sample", "facebook/musicgen-small", *SAMPLE, "--out", at.out),
        "facebook/musicgen-small is neither a folder nor in the local cache",
    ),
    "a generator that is neither a folder nor a hub id": Mistake(
        lambda at: ("sample", "nowhere", *SAMPLE, "--out", at.out), "base nowhere: no such folder, and no hub id"
    ),
    "a generator folder with something else in it": Mistake(
        lambda at: ("sample", at.corpus, *SAMPLE, "--out", at.out), "is no MusicGen base"
    ),
    "a run in place of a generator": Mistake(
        lambda at: ("sample", at.run, *SAMPLE, "--out", at.out), "is no MusicGen base"
    ),
    "a generator whose weights are cut": Mistake(
        lambda at: (
            *("sample", at.base_with("state_dict.bin", b"PK\x03\x04 cut", format="audiocraft")),
            *(*SAMPLE, "--out", at.out),
        ),
        r"state_dict\.bin is damaged",
    ),
    # ---- the command line
    "a misspelled option": Mistake(
        lambda at: ("finetune", at.shards, "--out", at.out, "--max_step", 3), "--max_step.*did you mean max_steps"
    ),
    "a misspelled key in a config": Mistake(
        lambda at: (
            *("finetune", at.shards, "--out", at.out),
            *("--config", at.file("my.yaml", "# mine\nbatch_sise: 3\n")),
        ),
        r"my\.yaml: .*'batch_sise' is not accepted; did you mean batch_size",
    ),
    "a config that is not there": Mistake(
        lambda at: ("finetune", at.shards, "--out", at.out, "--config", "nothing"), "--config nothing: .*Shipped: "
    ),
    "a config that is no YAML": Mistake(
        lambda at: ("finetune", at.shards, "--out", at.out, "--config", at.file("my.yaml", "max_steps: [\n")),
        "YAML|pars",
    ),
    "a config of another shape": Mistake(
        lambda at: ("finetune", at.shards, "--out", at.out, "--config", at.file("my.yaml", "- 3\n")), "config"
    ),
    "a negative duration": Mistake(
        lambda at: ("sample", at.generator, "--prompt", "a", "--out", at.out, "--duration_s", -1),
        "duration_s: found -1.0, expected a number above 0",
    ),
    "a negative duration of synthesized tracks": Mistake(
        lambda at: ("synthesize", "--out", at.out, "--duration_s", -2), "duration_s: found -2.0"
    ),
    "a duration of less than a frame": Mistake(
        lambda at: ("sample", at.generator, "--prompt", "a", "--out", at.out, "--duration_s", 0.001),
        "less than a frame",
    ),
    "zero steps": Mistake(
        lambda at: ("finetune", at.shards, "--out", at.out, "--max_steps", 0), "max_steps: found 0, expected"
    ),
    "no tracks": Mistake(lambda at: ("synthesize", "--out", at.out, "--tracks", 0), "tracks: found 0, expected"),
    "an unknown genre": Mistake(
        lambda at: ("synthesize", "--out", at.out, "--genres", "polka"), "'polka' is not known, expected one of: techno"
    ),
    "an unknown engine": Mistake(
        lambda at: ("sample", at.generator, *SAMPLE, "--out", at.out, "--engine", "organ"), "engine.*native.*organ"
    ),
    "no prompt": Mistake(lambda at: ("sample", at.generator, "--out", at.out), "prompt"),
    "no place for the output": Mistake(lambda at: ("export", at.run), "out"),
    "neither shards nor a run to resume": Mistake(
        lambda at: ("finetune",), "expected SHARDS and --out RUN, or --resume"
    ),
    "an argument too many": Mistake(
        lambda at: ("export", at.run, "more", "--out", at.out), "unexpected argument 'more'"
    ),
    "an unknown device": Mistake(
        lambda at: ("sample", at.generator, *SAMPLE, "--out", at.out, "--device", "tpu"), "--device tpu: expected auto"
    ),
    "a batch that the micro-batches do not divide": Mistake(
        lambda at: (
            *("finetune", at.shards, "--out", at.out, "--accelerator", "cpu"),
            *("--batch_size", 5, "--micro_batch_size", 2),
        ),
        "batch_size 5 does not fit the devices",
    ),
    "a batch that the devices do not divide": Mistake(
        lambda at: (
            *("finetune", at.shards, "--out", at.out, "--accelerator", "cpu"),
            *("--batch_size", 3, "--devices", 2),
        ),
        "batch_size 3 does not fit the devices",
    ),
    "a stride beyond the model's window": Mistake(
        lambda at: (
            *("sample", at.generator, "--prompt", "a", "--out", at.out),
            *("--duration_s", 40, "--stride_s", 30),
        ),
        "stride_s 30.0: expected .*less than the model's window",
    ),
    # ---- runs
    "an export of what is not there": Mistake(
        lambda at: ("export", at.tmp / "nowhere", "--out", at.out), "run .*nowhere: no such folder"
    ),
    "an export of what is no run": Mistake(lambda at: ("export", at.corpus, "--out", at.out), "corpus is no run"),
    "an export of a run that has saved nothing": Mistake(
        lambda at: ("export", at.run_with(), "--out", at.out), "the run ended before its first save"
    ),
    "a resume of what is not there": Mistake(lambda at: ("finetune", "--resume", at.tmp / "nowhere"), "no such folder"),
    "a resume of what is no run": Mistake(lambda at: ("finetune", "--resume", at.corpus), "corpus is no run"),
    "a resume with other settings": Mistake(
        lambda at: ("finetune", "--resume", at.run, "--lr", 1.0e-3), "--resume takes lr from the run"
    ),
    "a training checkpoint that is cut (export)": Mistake(
        lambda at: ("export", at.run_with(b"PK\x03\x04 cut"), "--out", at.out), r"best\.ckpt is damaged"
    ),
    "a training checkpoint that is cut (resume)": Mistake(
        lambda at: ("finetune", "--resume", at.run_with(b"PK\x03\x04 cut")),
        r"step-000004\.ckpt is damaged \(.+\), as all before it",
    ),
    "an engine whose files the folder lacks": Mistake(
        lambda at: (
            *("sample", at.base_with("README.md", b"", format="audiocraft"), *SAMPLE, "--out", at.out),
            *("--engine", "transformers"),
        ),
        "holds no config.json, which --engine transformers opens|t5",
    ),
    # ---- demo
    "a demo on a corpus that is not there": Mistake(
        lambda at: ("demo", "--out", at.out, "--corpus", at.tmp / "nowhere"), "nowhere: no such folder|nowhere does not"
    ),
    "a demo with a config that is not there": Mistake(
        lambda at: ("demo", "--out", at.out, "--finetune_config", "nothing"), "--config nothing: .*Shipped: "
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_it_is_told_in_one_line_and_leaves_the_disk_as_it_was(mistake: Mistake, place: Place, command: Command) -> None:
    words = mistake.words(place)
    before = tree(place.tmp)

    result = command(*words)

    assert_told_in_one_line(result, str(words[0]), mistake.says)
    assert tree(place.tmp) == before


@pytest.mark.parametrize(
    "name",
    ["a corpus that does not exist", "a misspelled option", "zero steps", "a resume of what is no run", "no prompt"],
)
def test_it_is_told_in_one_line_by_the_console_script_too(name: str, place: Place, process: Command) -> None:
    words = MISTAKES[name].words(place)

    result = process(*words)

    assert_told_in_one_line(result, str(words[0]), MISTAKES[name].says)
    assert tree(place.tmp) == {}


def test_a_corpus_of_broken_files_only_is_refused_after_naming_each(place: Place, command: Command) -> None:
    broken = place.file("corpus/a.mp3", b"no music at all" * 100).parent
    place.file("corpus/b.wav", b"RIFF")
    before = tree(place.tmp)

    result = command("prepare", broken, "--out", place.out)

    assert_told_in_one_line(result, "prepare", r"none of its 2 audio files can be used \(a\.mp3: .+; b\.wav: .+\)")
    assert_nothing_but_surveys(place.tmp, before)


def assert_nothing_but_surveys(folder: Path, before: dict[str, bytes | None]) -> None:
    """What was measured stays, so that nothing is decoded again once the mistake is corrected."""
    new = {path for path in tree(folder).keys() - before.keys() if (folder / path).is_file()}
    assert before.items() <= tree(folder).items()
    assert new
    assert all(re.fullmatch(r"out/\.work/surveys/\w+\.jsonl", path) for path in new), new


AFTER_THE_SURVEY = {
    "a column that is not there": Mistake(
        lambda at: ("prepare", at.corpus, "--out", at.out, "--split_by", "composer"),
        "split_by composer: no track has this field, expected one of auto, track, album, artist, folder, .*genre",
    ),
    "a corpus of silence": Mistake(
        lambda at: ("prepare", at.silence(), "--out", at.out),
        r"none of its 1 audio files can be used \(silent\.wav: silent for 100% of its length",
    ),
    "one album on both sides": Mistake(
        lambda at: (
            *("prepare", at.corpus_with("metadata.csv", at.table("album,split", "Blue,train", "Blue,valid"))),
            *("--out", at.out, "--split_by", "album"),
        ),
        r"00000_techno\.wav is to be in train and 00001_\w+\.wav in valid, but they are one group .*--split_by track",
    ),
    "one recording on both sides": Mistake(
        lambda at: (
            *("prepare", at.corpus_with("metadata.csv", at.table("split", "train", "valid", is_same=True))),
            *("--out", at.out, "--duplicates", "keep"),
        ),
        "is to be in train and .* in valid, but they are one group",
    ),
}
"""Mistakes that show when the files are measured."""


@pytest.mark.parametrize("mistake", AFTER_THE_SURVEY.values(), ids=AFTER_THE_SURVEY.keys())
def test_a_mistake_that_shows_after_the_survey_keeps_what_was_measured(
    mistake: Mistake, place: Place, command: Command
) -> None:
    words = mistake.words(place)
    before = tree(place.tmp)

    result = command(*words)

    assert_told_in_one_line(result, "prepare", mistake.says)
    assert_nothing_but_surveys(place.tmp, before)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("00000_techno.json", '{"genre": ', r"00000_techno\.json is not valid JSON: .*line 1.* Correct or remove"),
        ("00000_techno.json", "[1]", r"00000_techno\.json holds a JSON list, expected an object"),
        ("00000_techno.txt", "Stück".encode("latin-1"), r"00000_techno\.txt is not UTF-8 text"),
    ],
)
def test_labels_that_cannot_be_read_leave_out_their_track_which_is_named(
    name: str, content: str | bytes, says: str, place: Place, command: Command
) -> None:
    folder = place.corpus_with(name, content)
    shutil.copy(sorted(place.corpus.glob("*.wav"))[1], folder)

    result = command("prepare", folder, "--out", place.out)

    assert (result.status, "Traceback" in result.err) == (0, False), result.err
    assert re.search(rf"left out: 1 of 2 files:\n  00000_techno\.wav: its labels cannot be read: {says}", result.out)


@pytest.mark.parametrize(
    ("words", "module", "says"),
    [
        (("--engine", "ray"), "ray", r"--engine ray needs Ray, which is not installed\. Run: pip install .*ray"),
        (("--vocals", "remove"), "demucs", "separating stems takes demucs .*not installed. pip install"),
    ],
)
def test_what_is_not_installed_is_told_with_its_command(
    words: tuple[str, ...], module: str, says: str, place: Place, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def missing(name: str, *arguments: Any) -> Any:
        return None if name.split(".")[0] == module else find(name, *arguments)

    monkeypatch.setattr(importlib.util, "find_spec", missing)

    result = command("prepare", place.corpus, "--out", place.out, *words)

    assert_told_in_one_line(result, "prepare", says)
    assert tree(place.tmp) == {}


def test_shards_with_one_group_in_both_splits_are_not_trained_on(
    place: Place, command: Command, nano_codec: Codec, write_folder: Callable[..., Path]
) -> None:
    def track(key: str) -> Track:
        codes = np.zeros((4, 60), np.uint16)
        meta = TrackMeta(labels=Labels(), relative_path=f"{key}.wav", num_frames=60, duration_s=1.2, group="album Blue")
        return Track(key=key, codes=codes, meta=meta)

    folder = write_folder(place.tmp / "leaky", nano_codec.spec, {"train": [track("a")], "valid": [track("b")]})

    result = command("finetune", folder, "--out", place.out, *TRAINING)

    assert_told_in_one_line(result, "finetune", "1 groups of tracks are in both splits, e.g. 'album Blue' with a in")
    assert not place.out.exists()


# ---- where the output goes -------------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[Place], tuple[object, ...]]] = {
    "synthesize": lambda at: ("synthesize", "--tracks", 1, "--duration_s", 1),
    "prepare": lambda at: ("prepare", at.corpus),
    "finetune": lambda at: ("finetune", at.shards, *TRAINING),
    "export": lambda at: ("export", at.run),
    "sample": lambda at: ("sample", at.generator, *SAMPLE),
    "demo": lambda at: ("demo", "--tracks", 1),
}
"""Commands that write into --out, and words that are right."""

writers = pytest.mark.parametrize("name", WRITERS)


@writers
@pytest.mark.parametrize("holds", ["corpus", "shards", "run", "generator", "something else"])
def test_a_folder_that_holds_another_output_is_refused_and_kept(
    name: str, holds: str, place: Place, command: Command
) -> None:
    if (name, holds) == ("prepare", "shards"):
        pytest.skip("its own shards are what prepare goes on with, see test_prepare.py")
    folder = place.file("mine/holiday.txt", "me").parent if holds == "something else" else getattr(place, holds)
    before = tree(folder)

    result = command(*WRITERS[name](place), "--out", folder)

    assert_told_in_one_line(result, name, "holds|not empty")
    assert str(folder) in result.err
    assert tree(folder) == before


@writers
@pytest.mark.parametrize("below", ["", "/deep/out"])
def test_a_place_that_is_a_file_or_lies_under_one_is_refused(
    name: str, below: str, place: Place, command: Command
) -> None:
    file = place.file("file.txt", "mine")
    before = tree(place.tmp)

    result = command(*WRITERS[name](place), "--out", f"{file}{below}")

    assert_told_in_one_line(result, name, r"file\.txt.* is a file")
    assert tree(place.tmp) == before


@writers
def test_a_place_that_may_not_be_written_is_told(name: str, place: Place, command: Command) -> None:
    locked = place.folder("locked")
    locked.chmod(0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere: root")

    result = command(*WRITERS[name](place), "--out", locked / "out")

    assert_told_in_one_line(result, name, "Permission denied")
    assert tree(locked) == {}


@contextlib.contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """As on a disk that is nearly full: every write beyond ``num_bytes`` fails, whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        ("synthesize", 20_000),
        ("prepare", 2_000),
        ("prepare", 12_000),
        ("prepare of many files", 2_000),
        ("finetune", 1_000_000),
        ("export", 1_000_000),
        ("sample", 2_000),
    ],
)
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing_under_a_final_name(
    name: str, num_bytes: int, place: Place, command: Command
) -> None:
    command_name = name.split()[0]
    words = ("prepare", place.many(), "--workers", 2) if "many" in name else WRITERS[name](place)
    with files_of_at_most(num_bytes):
        result = command(*words, "--out", place.out)

    assert result.status == 2, result.err
    assert "Traceback" not in result.err
    assert result.err.splitlines()[-1].startswith(f"musicgen-ft {command_name}: ")
    assert os.strerror(errno.EFBIG) in result.err.splitlines()[-1]
    # finetune had begun: its records may stand, but no checkpoint. So may what prepare measured and encoded, to go on
    # with, but no shard. Of the others, not even a temporary file.
    written = {path for path in tree(place.out) if (place.out / path).is_file()}
    assert {path for path in written if "tmp" in path or path.endswith((".ckpt", ".tar", ".wav", ".bin"))} == set()
    assert not written or command_name in ("finetune", "prepare")
    if command_name == "prepare":
        assert all(path.startswith(".work/") for path in written)
        assert command(*words, "--out", place.out).status == 0  # there is room again: it goes on


# ---- pickles ---------------------------------------------------------------------------------------------------------


class Payload:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(params=["zip", "legacy", "plain pickle"])
def poison(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """A checkpoint with a payload, in each format that torch reads; it makes ``executed`` if it is unpickled."""
    value = {
        "state_dict": {"lm.x": torch.zeros(1)},
        "global_step": 4,
        "best_state": {"x": torch.zeros(1)},
        "xp.cfg": "",
        "payload": Payload(tmp_path / "executed"),
    }
    if request.param == "plain pickle":
        return pickle.dumps(value)
    path = tmp_path / "poison"
    torch.save(value, path, _use_new_zipfile_serialization=request.param == "zip")
    content = path.read_bytes()
    path.unlink()
    return content


POISONED: dict[str, Callable[[Place, bytes], tuple[object, ...]]] = {
    "a run to export": lambda at, poison: ("export", at.run_with(poison), "--out", at.out),
    "a run to resume": lambda at, poison: ("finetune", "--resume", at.run_with(poison)),
    "audiocraft's language model": lambda at, poison: (
        *("sample", at.base_with("state_dict.bin", poison, format="audiocraft")),
        *(*SAMPLE, "--out", at.out),
    ),
    "audiocraft's codec": lambda at, poison: (
        *("prepare", at.corpus, "--base", at.base_with("compression_state_dict.bin", poison, format="audiocraft")),
        *("--out", at.out),
    ),
    "transformers' weights": lambda at, poison: (
        *("prepare", at.corpus, "--base", at.base_with("pytorch_model.bin", poison, format="transformers")),
        *("--out", at.out),
    ),
}


@pytest.mark.parametrize("name", POISONED)
def test_a_pickle_with_foreign_objects_is_refused_and_never_executed(
    name: str, poison: bytes, place: Place, command: Command
) -> None:
    words = POISONED[name](place, poison)
    before = tree(place.tmp)

    result = command(*words)

    assert not (place.tmp / "executed").exists()
    assert_told_in_one_line(result, str(words[0]), "holds pickled objects other than tensors")
    assert tree(place.tmp) == before


def test_the_payload_of_these_tests_is_live(place: Place, poison: bytes) -> None:
    """Else the test above would show nothing."""
    with contextlib.suppress(RuntimeError):  # of a plain pickle, once it is unpickled
        torch.load(place.file("poison", poison), weights_only=False)
    assert (place.tmp / "executed").exists()
