"""Makes nano, the bundled base, from nothing: its corpus by rule, its codec, its text encoder, its language model.

python train/pretrain_nano.py --out nano-work
python train/pretrain_nano.py --out nano-work --tracks 2000 --max_steps 20000

101 minutes of 2 CPU cores: corpus 8, codec 27, text encoder 2, shards 13, language model 51. Told to stop, run it
again: parts that are done stay, the language model goes on from its last checkpoint.
"""

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_ft.cli import run_command, run_recipe
from musicgen_ft.config.pretrain_nano import PretrainNanoConfig
from musicgen_ft.terminal import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from musicgen_ft.codec import Codec
    from musicgen_ft.model.conditioning import TextEncoder

LINE_EVERY_STEPS = 250


def main(config: PretrainNanoConfig) -> None:
    """Corpus -> codec -> text encoder -> shards -> language model -> one folder in half precision."""
    from musicgen_ft.files import atomic_folder
    from musicgen_ft.pretraining.nano import make_base, write_untrained_lm
    from musicgen_ft.pretraining.untrained import NanoSizes
    from musicgen_ft.synthesis.genres import genres_but

    known = genres_but(config.held_out)
    corpus, untrained, shards, run, nano = (config.out / n for n in ("corpus", "untrained", "shards", "run", "nano"))
    config.out.mkdir(parents=True, exist_ok=True)

    if not corpus.is_dir():
        genres = [word for genre in known for word in ("--genres", genre)]
        size = ["--tracks", str(config.tracks), "--duration_s", str(config.duration_s), "--seed", str(config.seed)]
        run_command("synthesize", "--out", str(corpus), *size, *genres)
    if not untrained.is_dir():
        codec = pretrained_codec(config, corpus)
        text_encoder = pretrained_text_encoder(config, corpus)
        with atomic_folder(untrained) as folder:
            write_untrained_lm(folder, NanoSizes(), codec, text_encoder, seed=config.seed)
    # Labels are there, and tracks that share their drums are no duplicates: nothing is measured that nobody asks for.
    plain = ["--valid_fraction", "0.03", "--duplicates", "keep", "--auto_labels", "false", "--codec_check_s", "0"]
    run_command("prepare", str(corpus), "--out", str(shards), "--base", str(untrained), *plain)
    if (run / "config.yaml").is_file():
        run_command("finetune", "--resume", str(run))
    else:
        steps = [] if config.max_steps is None else ["--max_steps", str(config.max_steps)]
        run_command("finetune", str(shards), "--out", str(run), "--config", config.finetune_config, *steps)
    if not nano.is_dir():
        exported = config.out / "exported"
        shutil.rmtree(exported, ignore_errors=True)  # of a call that was stopped before the end
        run_command("export", str(run), "--out", str(exported), "--format", "transformers")
        make_base(exported)
        exported.rename(nano)
    num_bytes = sum(file.stat().st_size for file in nano.rglob("*") if file.is_file())
    print(f"nano: {nano}, {num_bytes / 2**20:.1f} MiB")


@contextmanager
def learning(what: str, max_steps: int) -> "Iterator[Callable[[int, dict[str, float]], None]]":
    """A progress bar, and a line every so often, as what is told losses step by step."""
    with progress_bar(total=max_steps, desc=what, unit="step") as bar:

        def report(step: int, losses: dict[str, float]) -> None:
            bar.update()
            if step % LINE_EVERY_STEPS == 0:
                bar.write(f"{what}, step {step}: " + ", ".join(f"{name} {value:.3g}" for name, value in losses.items()))

        yield report


def some_of(files: list[Path], count: int, *, seed: int) -> list[Path]:
    """By chance: every n-th would be of a few genres alone, since they take turns."""
    import random

    return random.Random(seed).sample(files, min(count, len(files)))


def pretrained_codec(config: PretrainNanoConfig, corpus: Path) -> "Codec":
    """An EnCodec trained on some of the corpus, or the one that was."""
    import torch
    from transformers import EncodecModel

    from musicgen_ft.codec import Codec
    from musicgen_ft.files import atomic_folder
    from musicgen_ft.pretraining.codec import Clips, CodecTraining, train_codec
    from musicgen_ft.pretraining.untrained import NanoSizes, untrained_encodec

    place = config.out / "codec"
    if not place.is_dir():
        files = some_of(sorted(corpus.glob("*.wav")), config.codec_tracks, seed=config.seed)
        torch.manual_seed(config.seed)
        model = untrained_encodec(NanoSizes())
        with progress_bar(total=len(files), desc="read", unit="track") as bar:
            clips = Clips(files, sample_rate=model.config.sampling_rate, progress=bar.update)
        how = CodecTraining(max_steps=config.codec_steps)
        with learning("codec", how.max_steps) as report:
            train_codec(model, clips, how, seed=config.seed, report=report)
        with atomic_folder(place) as folder:
            model.save_pretrained(folder)
    return Codec(EncodecModel.from_pretrained(place), id="nano")


def pretrained_text_encoder(config: PretrainNanoConfig, corpus: Path) -> "TextEncoder":
    """A T5 that has read the captions of the corpus as the language model will see them, or the one that has."""
    import torch
    from transformers import T5EncoderModel

    from musicgen_ft.cli import read_config
    from musicgen_ft.config.finetune import FinetuneConfig
    from musicgen_ft.corpus.captions import caption_policy
    from musicgen_ft.files import atomic_folder
    from musicgen_ft.model.conditioning import TextEncoder
    from musicgen_ft.pretraining.nano import read_labels
    from musicgen_ft.pretraining.text import TextTraining, train_text_encoder
    from musicgen_ft.pretraining.untrained import NanoSizes, untrained_text_encoder

    place = config.out / "text"
    torch.manual_seed(config.seed)
    text_encoder = untrained_text_encoder(NanoSizes())
    if not place.is_dir():
        policy = caption_policy(read_config(FinetuneConfig, "finetune", config.finetune_config))
        how = TextTraining(max_steps=config.text_steps)
        with learning("text encoder", how.max_steps) as report:
            train_text_encoder(text_encoder, read_labels(corpus), policy, how, seed=config.seed, report=report)
        with atomic_folder(place) as folder:
            encoder: Any = text_encoder.encoder
            encoder.save_pretrained(folder)
    return TextEncoder(T5EncoderModel.from_pretrained(place), text_encoder.tokenizer, id="nano")


if __name__ == "__main__":
    run_recipe(PretrainNanoConfig, main)
