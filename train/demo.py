"""The whole job in minutes, offline: synthesize, prepare, finetune, export, evaluate, sample.

musicgen-ft demo --out demo
musicgen-ft demo --out demo --genre reggae
musicgen-ft demo --out demo --corpus my-music
musicgen-ft demo --out demo --corpus my-music --base facebook/musicgen-small --finetune_config small

Without a corpus, nano learns a genre that it has never heard, beside a little of those that it knows, lest it forget
them; and a judge of genres hears whether it does.
"""

import csv
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from musicgen_ft.cli import run_recipe
from musicgen_ft.commands import Commands
from musicgen_ft.config.demo import DemoConfig
from musicgen_ft.config.held_out import HELD_OUT_GENRES
from musicgen_ft.config.shipped import config_path

UNSEEN_SEED = 920_000
"""nano was made of seeds below 1000."""
TRACK_S = 10
"""Seconds of each track: the music of a few minutes is of more pieces then."""
JUDGE_TRACKS = 144
"""Of all genres: for a base whose codec the judge that comes with nano has never heard."""
AS_MADE = ("--duplicates", "keep", "--auto_labels", "false", "--codec_check_s", "0")
"""Of music made by rule the labels are known, no two tracks are one, and the codec was trained on its like."""


def main(config: DemoConfig) -> None:
    """Runs the other recipes one after the other, as a user would, and says what they made."""
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.corpus.scan import scan_corpus
    from musicgen_ft.devices import bf16_words
    from musicgen_ft.files import refuse_used
    from musicgen_ft.synthesis.genres import find_genre

    begin = time.monotonic()
    config_path("finetune", config.finetune_config)
    refuse_used(config.out)
    find_genre(config.genre)
    open_base(config.base)  # its mistakes show before anything is made, as those of a corpus do
    if config.corpus is not None:
        scan_corpus(config.corpus)
    config.out.mkdir(parents=True, exist_ok=True)
    commands = Commands()
    corpus = config.corpus or config.out / "corpus"
    names = ("shards", "run", "generator", "evaluation", "wavs")
    shards, run, generator, evaluation, wavs = (config.out / name for name in names)
    seed = ["--seed", str(config.seed)]

    judged: list[str] = []
    if config.corpus is None:
        step(1, f"synthesize {config.tracks} tracks of {config.genre} by rule, and some of other genres")
        judged = synthesize_all(config, commands)
    step(2, f"prepare: {corpus} -> EnCodec codes of {config.base}")
    commands.run("prepare", str(corpus), "--out", str(shards), "--base", config.base, *(AS_MADE if judged else ()))
    step(3, f"finetune {config.base} on them")
    how = [] if config.max_steps is None else ["--max_steps", str(config.max_steps)]
    if config.finetune_config == DemoConfig.finetune_config:
        how += bf16_words()
    commands.run("finetune", str(shards), "--out", str(run), "--config", config.finetune_config, *how, *seed)
    step(4, "export: one folder that audiocraft and transformers open")
    # The last step, not the best one: the held-out loss turns while the genre is still being learned.
    last = ["--checkpoint", "last"]
    commands.run("export", str(run), "--out", str(generator), *last)
    step(5, "evaluate: what it has learned, beside its base, on one page")
    pieces = ["--pieces", str(config.pieces), "--duration_s", str(config.duration_s), *seed]
    commands.run("evaluate", str(run), *judged, "--out", str(evaluation), "--batch_size", "24", *last, *pieces)
    prompts = config.prompt or captions(Path(judged[0]) if judged else shards)
    step(6, "sample captions of the corpus by our own decoding, and the first by transformers")
    options = [*seed, "--duration_s", str(config.duration_s)]
    told = [word for prompt in prompts for word in ("--prompt", prompt)]
    commands.run("sample", str(generator), *told, "--out", str(wavs / "native"), *options)
    commands.run(
        "sample", str(generator), *told[:2], "--out", str(wavs / "transformers"), *options, "--engine", "transformers"
    )
    tell(config, run, evaluation, time.monotonic() - begin)


def step(number: int, what: str) -> None:
    """Announces a step."""
    print(f"\n[{number}/6] {what}", flush=True)


def synthesize_all(config: DemoConfig, commands: Commands) -> list[str]:
    """The corpus, and music of the genre and of others to ask for; returns what ``evaluate`` is to be told."""
    from musicgen_ft.synthesis.genres import GENRES, genres_but

    old, seed = genres_but({*HELD_OUT_GENRES, config.genre}), config.seed + UNSEEN_SEED
    corpus, asked = (config.out / name for name in ("corpus", "asked"))
    corpus.mkdir()
    asked.mkdir()
    synthesize(commands, corpus / "new", config.tracks, [config.genre], seed=seed)
    if config.old_tracks:
        synthesize(commands, corpus / "old", config.old_tracks, old, seed=seed)
    for name, genres in (("new", [config.genre]), ("old", old)):
        synthesize(commands, asked / name, config.pieces, genres, seed=seed + 1)
        shards = str(config.out / f"shards-asked-{name}")
        words = ["--base", config.base, "--valid_fraction", "0.9", *AS_MADE]
        commands.run("prepare", str(asked / name), "--out", shards, *words)
    shards_new, shards_old = (str(config.out / f"shards-asked-{name}") for name in ("new", "old"))
    judge = "nano"
    if config.base != "nano":
        judge = str(config.out / "judge")
        synthesize(commands, Path(judge), JUDGE_TRACKS, list(GENRES), seed=seed + 2)
    return [shards_new, "--judge", judge, "--others", shards_old]


def synthesize(commands: Commands, out: Path, tracks: int, genres: Sequence[str], *, seed: int) -> None:
    """Tracks of some genres, in turn."""
    chosen = [word for genre in genres for word in ("--genres", genre)]
    size = ["--tracks", str(tracks), "--duration_s", str(TRACK_S), "--seed", str(seed)]
    commands.run("synthesize", "--out", str(out), *size, *chosen)


def captions(shards: Path, most: int = 3) -> list[str]:
    """Captions of tracks that training has not seen, or of those that it has where none was held out."""
    from musicgen_ft.corpus.captions import CaptionPolicy
    from musicgen_ft.shards.index import ShardIndex

    index = ShardIndex.open(shards)
    split = index.split("valid") if len(index.split("valid")) else index.split("train")
    found = [CaptionPolicy().plain(split.meta(number).labels) for number in range(min(most, len(split)))]
    return list(dict.fromkeys(caption for caption in found if caption))


def tell(config: DemoConfig, run: Path, evaluation: Path, seconds: float) -> None:
    """What was made, and where."""
    with (run / "metrics.csv").open(newline="") as file:
        losses = [float(row["valid/ce"]) for row in csv.DictReader(file) if row["valid/ce"]]
    print(f"\nDone in {seconds / 60:.1f} minutes. In {config.out}:")
    made = [
        (
            "corpus/",
            f"labelled audio of {config.genre}, and a little of the genres that {config.base} knows, made by rule",
        ),
        ("asked/", "music whose captions are asked for; not trained on"),
    ]
    rows = [
        ("shards/", "its EnCodec codes, in WebDataset shards"),
        ("run/", "config, metrics.csv, TensorBoard logs, checkpoints"),
        ("generator/", "the fine-tuned MusicGen, for audiocraft and transformers"),
        ("evaluation/", "index.html: base and tuned side by side, to hear, to see and in figures"),
        ("wavs/", "what it plays, each with a JSON that says how it was made"),
    ]
    for name, what in (made if config.corpus is None else []) + rows:
        print(f"  {name:<16} {what}")
    if losses:
        before, after = losses[0], min(losses[1:] or losses)
        factor = math.exp(before - after)
        print(f"Validation loss on held-out tracks: {before:.3f} before, {after:.3f} after; perplexity / {factor:.1f}.")
    if config.corpus is None:
        models = json.loads((evaluation / "evaluation.json").read_text(encoding="utf-8"))["models"]
        before, after = (models[name] for name in ("base", "model"))
        new = [f"{figures['sound']['heard_as_asked']:.0%}" for figures in (before, after)]
        old = [f"{figures['others']['heard_as_asked']:.0%}" for figures in (before, after)]
        print(f"Asked for {config.genre}, {new[0]} of the pieces were heard as such before, {new[1]} after.")
        print(f"Asked for the genres that {config.base} knew, {old[0]} before, {old[1]} after.")
    if config.base == "nano":
        print(
            "nano is a toy: it plays simple music, and sounds as 1.6 kb/s do. For more: --base facebook/musicgen-small."
        )
    sys.stdout.flush()


if __name__ == "__main__":
    run_recipe(DemoConfig, main)
