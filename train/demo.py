"""The whole job in minutes, offline: synthesize, prepare, finetune, export, evaluate, sample.

musicgen-ft demo --out demo
musicgen-ft demo --out demo --corpus my-music
musicgen-ft demo --out demo --corpus my-music --base facebook/musicgen-small --finetune_config small
"""

import csv
import math
import sys
import time
from pathlib import Path

from musicgen_ft.cli import run_command, run_recipe
from musicgen_ft.config import DemoConfig, config_path


def main(config: DemoConfig) -> None:
    """Runs the other recipes one after the other, as a user would, and says what they made."""
    from musicgen_ft.corpus.scan import scan_corpus
    from musicgen_ft.files import refuse_used

    begin = time.monotonic()
    config_path("finetune", config.finetune_config)
    refuse_used(config.out)
    if config.corpus is not None:
        scan_corpus(config.corpus)  # its mistakes show before anything is made
    config.out.mkdir(parents=True, exist_ok=True)
    corpus = config.corpus or config.out / "corpus"
    names = ("shards", "run", "generator", "evaluation", "wavs")
    shards, run, generator, evaluation, wavs = (config.out / name for name in names)
    seed = ["--seed", str(config.seed)]

    if config.corpus is None:
        step(1, f"synthesize a labelled corpus of {config.tracks} tracks by rule")
        run_command("synthesize", "--out", str(corpus), "--tracks", str(config.tracks), *seed)
    step(2, f"prepare: {corpus} -> EnCodec codes of {config.base}")
    run_command("prepare", str(corpus), "--out", str(shards), "--base", config.base)
    step(3, f"finetune {config.base} on them")
    steps = [] if config.max_steps is None else ["--max_steps", str(config.max_steps)]
    run_command("finetune", str(shards), "--out", str(run), "--config", config.finetune_config, *steps, *seed)
    step(4, "export: one folder that audiocraft and transformers open")
    run_command("export", str(run), "--out", str(generator))
    step(5, "evaluate: what it has learned, beside its base, on one page")
    pieces = ["--pieces", str(config.pieces), "--duration_s", str(config.duration_s), *seed]
    run_command("evaluate", str(run), "--out", str(evaluation), *pieces)
    prompts = config.prompt or captions(shards)
    step(6, "sample captions of the corpus by our own decoding, and the first by transformers")
    options = [*seed, "--duration_s", str(config.duration_s)]
    told = [word for prompt in prompts for word in ("--prompt", prompt)]
    run_command("sample", str(generator), *told, "--out", str(wavs / "native"), *options)
    run_command(
        "sample", str(generator), *told[:2], "--out", str(wavs / "transformers"), *options, "--engine", "transformers"
    )
    tell(config, run, time.monotonic() - begin)


def step(number: int, what: str) -> None:
    """Announces a step."""
    print(f"\n[{number}/6] {what}", flush=True)


def captions(shards: Path, most: int = 3) -> list[str]:
    """Captions of tracks that training has not seen, or of those that it has where none was held out."""
    from musicgen_ft.corpus.captions import CaptionPolicy
    from musicgen_ft.shards.index import ShardIndex

    index = ShardIndex.open(shards)
    split = index.split("valid") if len(index.split("valid")) else index.split("train")
    found = [CaptionPolicy().plain(split.meta(number).labels) for number in range(min(most, len(split)))]
    return list(dict.fromkeys(caption for caption in found if caption))


def tell(config: DemoConfig, run: Path, seconds: float) -> None:
    """What was made, and where."""
    with (run / "metrics.csv").open(newline="") as file:
        losses = [float(row["valid/ce"]) for row in csv.DictReader(file) if row["valid/ce"]]
    print(f"\nDone in {seconds / 60:.1f} minutes. In {config.out}:")
    rows = [
        ("corpus/", "labelled audio, made by rule"),
        ("shards/", "its EnCodec codes, in WebDataset shards"),
        ("run/", "config, metrics.csv, TensorBoard logs, checkpoints"),
        ("generator/", "the fine-tuned MusicGen, for audiocraft and transformers"),
        ("evaluation/", "index.html: base and tuned side by side, to hear, to see and in figures"),
        ("wavs/", "what it plays, each with a JSON that says how it was made"),
    ]
    for name, what in rows[config.corpus is not None :]:
        print(f"  {name:<12} {what}")
    if losses:
        before, after = losses[0], min(losses[1:] or losses)
        factor = math.exp(before - after)
        print(f"Validation loss on held-out tracks: {before:.3f} before, {after:.3f} after; perplexity / {factor:.1f}.")
    if config.base == "nano":
        print(
            "nano is a toy with random weights: it shows the whole job, and what it plays is noise. For music: "
            "--base facebook/musicgen-small."
        )
    sys.stdout.flush()


if __name__ == "__main__":
    run_recipe(DemoConfig, main)
