"""Shows on nano that fine-tuning works: it learns a genre that it has never heard, and keeps the others.

python train/nano_finetuning.py --out nano-finetuning
python train/nano_finetuning.py --out nano-finetuning --genre reggae --base nano-work/nano

Beside a little of the others, by all weights and by adapters; alone; and once more beside the others with captions that
have changed places, from which no prompt can be learned: the genre is then played to prompts of others, too. What is
heard is the last step of each: the held-out loss turns earlier, while the share of the genre still grows.
"""

import json
from pathlib import Path
from typing import Any

from musicgen_ft.cli import run_command, run_recipe
from musicgen_ft.config.nano_finetuning import NanoFinetuningConfig

ARMS = {  # name -> (corpus, words for finetune)
    "beside old genres": ("mixed", ()),
    "the same, by adapters": ("mixed", ("--method", "lora", "--lora_rank", "16", "--lora_alpha", "16", "--lr", "5e-3")),
    "the genre alone": ("new", ()),
    "captions shuffled": ("shuffled", ()),
}


def main(config: NanoFinetuningConfig) -> None:
    """Makes the corpora, fine-tunes each arm, evaluates it on unseen tracks of the genre and of the others."""
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.evaluation.nano_summary import FINETUNING_FILE, finetuning_lines, finetuning_verdict
    from musicgen_ft.files import refuse_used, write_json
    from musicgen_ft.synthesis.genres import find_genre, genres_but

    find_genre(config.genre)
    known = [genre for genre in genres_but(config.held_out) if genre != config.genre]
    refuse_used(config.out)
    open_base(config.base)  # its mistakes show before anything is made
    config.out.mkdir(parents=True, exist_ok=True)
    make_corpora(config, known)
    rows = {}
    for name, (corpus, words) in ARMS.items():
        run, page = (config.out / "-".join((kind, *name.split())) for kind in ("run", "evaluation"))
        finetune(config, corpus, run, words)
        evaluate(config, run, page)
        rows[name] = row_of(page)
    report = {"base": Path(config.base).name, "genre": config.genre, "pieces": config.pieces, "arms": rows}
    write_json(config.out / FINETUNING_FILE, report)
    print("\n".join([*finetuning_lines(report), "", finetuning_verdict(report)]))


def make_corpora(config: NanoFinetuningConfig, known: list[str]) -> None:
    """New: the genre. Mixed: that and some of the others. Shuffled: the same under wrong labels. All of own seeds."""
    from musicgen_ft.evaluation.control import shuffle_labels
    from musicgen_ft.files import atomic_folder
    from musicgen_ft.synthesis.genres import GENRES

    new, mixed, unseen, others = (config.out / "corpora" / name for name in ("new", "mixed", "unseen", "others"))
    synthesize(config, new, config.tracks, [config.genre], seed=config.seed)
    synthesize(config, mixed / "new", config.tracks, [config.genre], seed=config.seed)
    synthesize(config, mixed / "old", config.old_tracks, known, seed=config.seed)
    synthesize(config, unseen, config.pieces, [config.genre], seed=config.seed + 1)
    synthesize(config, others, config.pieces, known, seed=config.seed + 1)
    if config.base != "nano":
        synthesize(config, own_judge(config), config.judge_tracks, list(GENRES), seed=config.seed + 2)
    with atomic_folder(config.out / "corpora" / "shuffled") as folder:
        shuffle_labels(mixed, folder, seed=config.seed)
    words = ["--base", config.base, "--duplicates", "keep", "--auto_labels", "false", "--codec_check_s", "0"]
    for name, valid in (("new", 0.1), ("mixed", 0.1), ("shuffled", 0.1), ("unseen", 0.9), ("others", 0.9)):
        corpus, shards = (str(config.out / kind / name) for kind in ("corpora", "shards"))
        run_command("prepare", corpus, "--out", shards, "--valid_fraction", str(valid), *words)


def own_judge(config: NanoFinetuningConfig) -> Path:
    """Music that a judge learns from, of a base whose codec the judge that comes with nano has never heard."""
    return config.out / "corpora" / "judge"


def synthesize(config: NanoFinetuningConfig, out: Path, tracks: int, genres: list[str], *, seed: int) -> None:
    """Tracks of some genres, in turn."""
    out.parent.mkdir(parents=True, exist_ok=True)
    chosen = [word for genre in genres for word in ("--genres", genre)]
    size = ["--tracks", str(tracks), "--duration_s", str(config.duration_s), "--seed", str(seed)]
    run_command("synthesize", "--out", str(out), *size, *chosen)


def finetune(config: NanoFinetuningConfig, corpus: str, run: Path, words: tuple[str, ...]) -> None:
    """One arm."""
    from musicgen_ft.devices import bf16_words

    how = bf16_words() + ([] if config.max_steps is None else ["--max_steps", str(config.max_steps)])
    shards = str(config.out / "shards" / corpus)
    run_command("finetune", shards, "--out", str(run), "--config", config.finetune_config, *how, *words)


def evaluate(config: NanoFinetuningConfig, run: Path, page: Path) -> None:
    """On captions of unseen tracks, of the genre and of the others, heard by one judge."""
    shards, judge = config.out / "shards", "nano" if config.base == "nano" else own_judge(config)
    size = ["--pieces", str(config.pieces), "--duration_s", str(config.piece_s), "--batch_size", "8"]
    beside = ["--base", config.base, "--others", str(shards / "others"), "--judge", str(judge)]
    run_command(
        "evaluate", str(run), str(shards / "unseen"), "--out", str(page), "--checkpoint", "last", *size, *beside
    )


def row_of(page: Path) -> dict[str, Any]:
    """What an evaluation says of the genre and of the others, before and after."""
    values = json.loads((page / "evaluation.json").read_text(encoding="utf-8"))
    return {
        name: {
            "genre": figures["sound"]["heard_as_asked"],
            "others": figures["others"]["heard_as_asked"],
            "uncalled": figures["others"]["heard_as_learned"],
            "loss": figures["likelihood"]["valid"]["ce"],
            "others_loss": figures["others"]["likelihood"]["ce"],
        }
        for name, figures in values["models"].items()
    }


if __name__ == "__main__":
    run_recipe(NanoFinetuningConfig, main)
