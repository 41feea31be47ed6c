"""Measures a run or a generator on held-out tracks and lets it play beside its base: one page, and JSON.

musicgen-ft evaluate run --out evaluation
musicgen-ft evaluate run shards --out evaluation --pieces 64 --duration_s 20
musicgen-ft evaluate generator shards --out evaluation --base facebook/musicgen-small
musicgen-ft evaluate facebook/musicgen-small shards --out evaluation --base none --clap laion/larger_clap_music
musicgen-ft evaluate run --out evaluation --judge music-of-many-genres --others shards-of-them

docs/evaluation.md tells what each figure means.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from musicgen_ft.cli import run_recipe
from musicgen_ft.config.evaluate import EvaluateConfig
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.config.plain import to_plain
from musicgen_ft.terminal import progress_bar, slug

if TYPE_CHECKING:
    from musicgen_ft.codec import Codec
    from musicgen_ft.corpus.scan import Record
    from musicgen_ft.evaluation.embeddings import Embedder
    from musicgen_ft.evaluation.figures import Evaluation, ModelFigures
    from musicgen_ft.evaluation.genres import GenreClassifier
    from musicgen_ft.evaluation.others import Others
    from musicgen_ft.evaluation.playing import Heard
    from musicgen_ft.evaluation.subject import Subject
    from musicgen_ft.shards.format import Split
    from musicgen_ft.shards.index import ShardIndex

REFERENCE_CLIPS = 128
"""Clips that distances are taken to, at most: 21 minutes of 10 s."""


def main(config: EvaluateConfig) -> None:
    """Checks, measures each model, writes the folder."""
    import tempfile

    from musicgen_ft.corpus.captions import caption_policy
    from musicgen_ft.devices import resolve_device
    from musicgen_ft.evaluation.clap import open_clap
    from musicgen_ft.evaluation.embeddings import EncodecEmbedder
    from musicgen_ft.evaluation.exam import Exam
    from musicgen_ft.evaluation.figures import Evaluation, PlayedPrompt
    from musicgen_ft.evaluation.judge import labelled_tracks, saved_judge
    from musicgen_ft.evaluation.listening import Listener, longest_shared_runs
    from musicgen_ft.evaluation.playing import choose_prompts, hear, stretches
    from musicgen_ft.files import refuse_used
    from musicgen_ft.training.forgetting import FORGETTING_FILE

    # Every mistake shows before anything is computed.
    refuse_used(config.out)
    device = resolve_device(config.device)
    models, index, training = open_all(config)
    split: Split = "valid" if index.manifest.num_tracks["valid"] else "train"
    captions = caption_policy(training)
    prompts = choose_prompts(index, split, captions, duration_s=config.duration_s, num=config.pieces, seed=config.seed)
    if split == "train":
        print("nothing is held out in these shards: prompts, losses and distances are of their training tracks")
    others = open_others(config, models["model"], training)
    trained = shards_learned(models["model"], index)
    judge = None if config.judge is None else saved_judge(config.judge)
    judged = None if config.judge is None or judge is not None else labelled_tracks(config.judge)
    clap = open_clap(config.clap)

    # The reference: what the codec makes of real tracks.
    subject = models["model"]
    codec = subject.base.codec().to(device)
    rate = codec.spec.sample_rate
    embedders: list[Embedder] = [EncodecEmbedder(codec), *([] if clap is None else [clap.to(device)])]
    judge = judge if judged is None else train(config, judged, codec)
    chroma = subject.base.lm_config.chroma
    listener = Listener(embedders, sample_rate=rate, classifier=judge, clap=clap, chroma=chroma)
    most = max(REFERENCE_CLIPS, config.pieces)
    reference = stretches(index, split, captions, duration_s=config.duration_s, most=most)
    listener.take_reference([codec.decode(codes[None])[0].cpu() for _, _, codes in reference])
    references = [hear(codec, prompt.reference) for prompt in prompts]

    # Each model, one after the other.
    figures: dict[str, ModelFigures] = {}
    heard: dict[str, list[Heard]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        has_probe = subject.run is not None and (subject.run.path / FORGETTING_FILE).is_file()
        exam = Exam(
            index=index,
            trained=trained,
            config=training,
            prompts=prompts,
            references=references,
            others=others,
            listener=listener,
            probe=subject.run.path if subject.run is not None and has_probe else Path(scratch),
            duration_s=config.duration_s,
            batch_size=config.batch_size,
            device=device,
        )
        for name, model in models.items():
            figures[name], heard[name] = exam.take(model, name)

    # What real music has.
    texts, genres = [prompt.text for prompt in prompts], [prompt.genre for prompt in prompts]
    shared, first = longest_shared_runs([clip.codes for clip in references], trained.split("train"))
    known = {"shared": shared, "shared_first": first} if split == "valid" else {}  # else each is in its own track
    yardsticks = {"held_out": listener.measure_reference(references, texts, genres, **known)}
    if split == "valid":
        rest = stretches(index, "train", captions, duration_s=config.duration_s, most=config.pieces)
        yardsticks["train"] = listener.measure_others([codec.decode(codes[None])[0].cpu() for _, _, codes in rest])

    evaluation = Evaluation(
        models=figures,
        yardsticks=yardsticks,
        prompts=[PlayedPrompt(text=prompt.text, seed=prompt.seed, track=prompt.track) for prompt in prompts],
        split=split,
        real_others_heard_as_asked=None if others is None else others.real_heard_as_asked(codec, listener),
        frame_rate=codec.spec.frame_rate,
        facts=facts_of(config, subject, index, clap=None if clap is None else clap.id),
    )
    write(config, evaluation, {"held_out": references, **heard}, subject, codec)
    tell(config, evaluation)


def train(config: EvaluateConfig, tracks: "Sequence[Record]", codec: "Codec") -> "GenreClassifier":
    """A judge of the genres of the user's labelled audio."""
    from musicgen_ft.evaluation.judge import train_judge

    assert config.judge is not None
    with progress_bar(total=len(tracks), desc="the judge listens", unit="track") as bar:
        return train_judge(config.judge, tracks, codec, clip_s=config.duration_s, progress=bar.update)


def open_all(config: EvaluateConfig) -> "tuple[dict[str, Subject], ShardIndex, FinetuneConfig]":
    """Base and model, the shards, which must fit them, and how the model was trained.

    Raises:
        UserError: if one of them is not there, or they do not fit.
    """
    from musicgen_ft.errors import UserError
    from musicgen_ft.evaluation.subject import beside, open_subject
    from musicgen_ft.shards.index import ShardIndex
    from musicgen_ft.shards.remote import local_shards
    from musicgen_ft.training.run import INFO_FILE, RunFolder

    place = config.shards
    if place is None and (Path(config.model) / INFO_FILE).is_file():
        place = RunFolder.open(Path(config.model)).info().shards
    if place is None:
        raise UserError(f"expected SHARDS: {config.model} is no run that could tell them. See evaluate --help.")
    index = ShardIndex.open(local_shards(place))
    index.refuse_leaks()
    channels = index.manifest.codec.channels
    subject = open_subject(config.model, checkpoint=config.checkpoint, weights=config.weights, channels=channels)
    subject.check(index.manifest)
    training = dataclasses.replace(
        subject.config,
        segment_s=config.segment_s or subject.config.segment_s,
        valid_max_clips=config.valid_max_clips or subject.config.valid_max_clips,
    )
    models = {"model": subject}
    wanted = subject.origin if config.base is None else config.base
    if wanted is None:
        print(f"nothing to compare with: what {config.model} was trained from is not known here. Give --base")
    elif wanted != "none":
        base = beside(subject, wanted, channels=channels)
        base.check(index.manifest)
        models = {"base": base, **models}  # first: it plays what forgetting is measured by
    return models, index, training


def shards_learned(subject: "Subject", index: "ShardIndex") -> "ShardIndex":
    """Whose training tracks were learned: those of a run's own shards, else those of the given ones."""
    from musicgen_ft.errors import UserError
    from musicgen_ft.shards.index import ShardIndex
    from musicgen_ft.shards.remote import local_shards

    if subject.run is None:
        return index
    try:
        return ShardIndex.open(local_shards(subject.run.info().shards))
    except UserError as error:
        print(f"for training tracks, those of the given shards are taken, since the run's own cannot be read: {error}")
        return index


def open_others(config: EvaluateConfig, subject: "Subject", training: FinetuneConfig) -> "Others | None":
    """Other music, where it is asked for.

    Raises:
        UserError: if its shards are not there, or another codec made them.
    """
    from musicgen_ft.evaluation.others import Others
    from musicgen_ft.shards.index import ShardIndex
    from musicgen_ft.shards.remote import local_shards

    if config.others is None:
        return None
    index = ShardIndex.open(local_shards(config.others))
    subject.check(index.manifest)
    return Others.open(index, training, duration_s=config.duration_s, pieces=config.pieces, seed=config.seed)


def facts_of(config: EvaluateConfig, subject: "Subject", index: "ShardIndex", *, clap: str | None) -> dict[str, object]:
    """How the figures were made, without anybody's folders: an evaluation is published, too."""
    from musicgen_ft import __version__
    from musicgen_ft.checkpoint.card import without_paths

    trained = to_plain(subject.config) if subject.weights else {}
    manifest = index.manifest
    return {
        "config": without_paths(to_plain(config)),
        "trained_with": without_paths(trained),
        "weights": dict(subject.weights),
        "shards": {
            "train_tracks": manifest.num_tracks["train"],
            "train_hours": manifest.duration_s["train"] / 3600,
            "valid_tracks": manifest.num_tracks["valid"],
            "valid_hours": manifest.duration_s["valid"] / 3600,
            "codec_sha256": manifest.codec.sha256,
        },
        "clap": clap,
        "toolkit_version": __version__,
    }


def write(
    config: EvaluateConfig,
    evaluation: "Evaluation",
    heard: "Mapping[str, Sequence[Heard]]",
    subject: "Subject",
    codec: "Codec",
) -> None:
    """The folder, whole or not at all; then wandb, where it is asked for."""
    from musicgen_ft.audio import normalize_loudness, write_wav
    from musicgen_ft.files import atomic_folder, write_json
    from musicgen_ft.report.evaluation_report import loss_curves, write_evaluation

    rate = codec.spec.sample_rate
    curves = {} if subject.run is None else loss_curves(subject.run.path)
    sounds = {name: [normalize_loudness(piece.waveform, rate) for piece in pieces] for name, pieces in heard.items()}
    with atomic_folder(config.out) as folder:
        for name, waveforms in sounds.items():
            (folder / "sounds" / name).mkdir(parents=True)
            for number, waveform in enumerate(waveforms):
                path = folder / "sounds" / name / f"{number:03d}_{slug(evaluation.prompts[number].text or '')}.wav"
                write_wav(path, waveform, rate)
        write_json(folder / "evaluation.json", evaluation.to_dict())
        write_evaluation(
            folder / "index.html",
            evaluation,
            title=Path(config.model).name or config.model,
            sounds={name: [waveform.numpy() for waveform in waveforms] for name, waveforms in sounds.items()},
            sample_rate=rate,
            curves=curves,
            max_prompts=config.players,
        )
    if config.wandb != "off":
        log(config, evaluation)


def log(config: EvaluateConfig, evaluation: "Evaluation") -> None:
    """Figures, and a table of what was played, into a wandb run of their own."""
    import wandb

    from musicgen_ft.training.metrics import wandb_logger
    from musicgen_ft.training.run import new_wandb_id

    experiment = wandb_logger(config, config.out, new_wandb_id()).experiment
    names = sorted(path.name for path in (config.out / "sounds").iterdir())
    table = wandb.Table(columns=["prompt", *names])
    files = {name: sorted((config.out / "sounds" / name).glob("*.wav")) for name in names}
    for number, prompt in enumerate(evaluation.prompts):
        table.add_data(prompt.text, *(wandb.Audio(str(files[name][number])) for name in names))
    experiment.log({**evaluation.metrics(), "sounds": table})
    experiment.finish()


def tell(config: EvaluateConfig, evaluation: "Evaluation") -> None:
    """The figures that matter most, in a few lines."""
    from musicgen_ft.report.evaluation_report import summary_lines

    print("\n".join(summary_lines(evaluation)))
    print(f"page: {config.out / 'index.html'}")


if __name__ == "__main__":
    run_recipe(EvaluateConfig, main)
