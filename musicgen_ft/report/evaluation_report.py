"""The page of an evaluation: base beside tuned, to hear and to see, and every figure beside what it is measured by."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from musicgen_ft.evaluation.figures import Distance, Evaluation, SoundFigures
from musicgen_ft.evaluation.likelihood import Likelihood
from musicgen_ft.evaluation.memorisation import SharedRun
from musicgen_ft.report import charts
from musicgen_ft.report.charts import Bar, number
from musicgen_ft.report.page import (
    Section,
    Tile,
    card,
    details,
    grid,
    heading,
    join,
    paragraph,
    render_page,
    table,
    tiles,
    write_page,
)
from musicgen_ft.report.players import player

Samples = npt.NDArray[np.float32]
Curves = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
"""Of each chart its curves, each a sequence of (step, value)."""

MEDIA_BYTES = 8_000_000  # of all players together: a page that opens at once, and that a mail carries
MAX_CLASSES = 20
_TONE = {"held_out": "three", "train": "mute", "base": "two", "model": "one"}
_CURVES = {  # chart -> name of a curve -> column of metrics.csv
    "Loss": {"training": "train/ce", "held out": "valid/ce"},
    "Loss on what the base plays": {"forgetting": "valid/forgetting_ce"},
}


# ---- the page --------------------------------------------------------------------------------------------------------


def write_evaluation(
    path: Path,
    evaluation: Evaluation,
    *,
    title: str,
    sounds: Mapping[str, Sequence[Samples]],
    sample_rate: int,
    curves: Curves | None = None,
    max_prompts: int = 6,
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: the HTML file.
        evaluation: the figures.
        title: name of the model.
        sounds: of ``held_out``, ``base`` and ``model`` what was heard, float [C, L] for each prompt, at one loudness.
        sample_rate: of all of it.
        curves: of the training, from ``loss_curves``.
        max_prompts: how many can be listened to at most.
    """
    sections = [
        listen_section(evaluation, sounds, sample_rate, max_prompts=max_prompts),
        likelihood_section(evaluation),
        curves_section(curves or {}),
        distance_section(evaluation),
        class_section(evaluation),
        memory_section(evaluation),
        faults_section(evaluation),
        speed_section(evaluation),
        origin_section(evaluation),
    ]
    page = render_page(
        title=title,
        kicker="Evaluation",
        lead=_lead(evaluation),
        header=tiles(key_figures(evaluation)),
        sections=sections,
    )
    write_page(path, page)


def label_of(evaluation: Evaluation, name: str) -> str:
    """What a model or a yardstick is called on the page."""
    if name == "model":
        return "tuned" if "base" in evaluation.models else "this model"
    return {"base": "base", "held_out": _real(evaluation), "train": "other tracks"}[name]


def _real(evaluation: Evaluation) -> str:
    return "held-out track" if evaluation.split == "valid" else "training track"


def _lead(evaluation: Evaluation) -> str:
    number_of = f"{len(evaluation.prompts):,} piece{'s' * (len(evaluation.prompts) != 1)}"
    whose = "held-out tracks" if evaluation.split == "valid" else "training tracks: nothing was held out"
    beside = f", beside {evaluation.models['base'].place}" if "base" in evaluation.models else ""
    return f"{number_of} played to captions of {whose}{beside}."


def key_figures(evaluation: Evaluation) -> list[Tile]:
    """The figures that matter most, each with the base's."""
    model, base = evaluation.models["model"], evaluation.models.get("base")
    shown: list[Tile] = []
    if loss := model.likelihood.get(evaluation.split):
        of_base = None if base is None else base.likelihood[evaluation.split]
        where = "held out" if evaluation.split == "valid" else "training tracks"
        note = "" if of_base is None else f"base {of_base.ce:.3f}"
        shown.append(Tile(value=f"{loss.ce:.3f}", label=f"Loss, {where}", note=note or "nats per code"))
        note = "of a codebook's entries" if of_base is None else f"base {number(round(of_base.ppl, 1))}"
        shown.append(Tile(value=number(round(loss.ppl, 1)), label="Perplexity", note=note))
    if model.sound.heard_as_asked is not None:
        of_base_share = None if base is None else base.sound.heard_as_asked
        margin = _margin(model.sound.heard_as_asked, model.sound.num_clips)
        note = f"{margin}, " + ("of the pieces, by the judge" if of_base_share is None else f"base {of_base_share:.0%}")
        shown.append(Tile(value=f"{model.sound.heard_as_asked:.0%}", label="Heard as the genre asked for", note=note))
    for embedding, found in model.sound.distances.items():
        of_base_sound = None if base is None else base.sound.distances.get(embedding)
        note = "to real tracks" if of_base_sound is None else f"base {_figure(of_base_sound.value)}"
        shown.append(Tile(value=_figure(found.value), label=f"Distance, {embedding}", note=note))
    if model.sound.longest_shared is not None:
        longest = model.sound.longest_shared.num_frames / evaluation.frame_rate
        shown.append(Tile(value=f"{number(round(longest, 2))} s", label="Longest copy", note="of a training track"))
    if model.forgetting_ce is not None and base is not None and base.forgetting_ce is not None:
        shown.append(
            Tile(
                value=_signed(model.forgetting_ce - base.forgetting_ce),
                label="Forgetting",
                note="nats, on other genres",
            )
        )
    shown += _other_tiles(evaluation)
    found_n = sum(collapse.is_found for collapse in model.sound.collapses)
    shown.append(Tile(value=f"{found_n} of {model.sound.num_clips}", label="Silent or looping", note="pieces"))
    return shown


def _other_tiles(evaluation: Evaluation) -> list[Tile]:
    """What has become of other music, beside the base."""
    model = evaluation.models["model"].others
    base = evaluation.models["base"].others if "base" in evaluation.models else None
    if model is None:
        return []
    note = "nats per code" if base is None else f"base {base.likelihood.ce:.3f}"
    shown = [Tile(value=f"{model.likelihood.ce:.3f}", label="Loss, other music", note=note)]
    if model.heard_as_asked is not None:
        told = [_margin(model.heard_as_asked, model.num_clips)]
        told += [] if base is None or base.heard_as_asked is None else [f"base {base.heard_as_asked:.0%}"]
        if evaluation.real_others_heard_as_asked is not None:
            told.append(f"real tracks {evaluation.real_others_heard_as_asked:.0%}")
        shown.append(
            Tile(value=f"{model.heard_as_asked:.0%}", label="Other music, heard as asked", note=", ".join(told))
        )
    if model.heard_as_learned is not None:
        of_base = "" if base is None or base.heard_as_learned is None else f"base {base.heard_as_learned:.0%}"
        shown.append(
            Tile(value=f"{model.heard_as_learned:.0%}", label="Other music, heard as what was learned", note=of_base)
        )
    return shown


def _margin(share: float, num_clips: int) -> str:
    """How far a share of so many clips is from that of very many: its standard error in percent, by Agresti and Coull.

    Two hits and two misses are added to what was counted, so that none or all of a few clips is not taken for certain.
    """
    likely = (share * num_clips + 2) / (num_clips + 4)
    return f"± {100 * math.sqrt(likely * (1 - likely) / (num_clips + 4)):.0f}"


def summary_lines(evaluation: Evaluation) -> list[str]:
    """The same for a terminal, a line each."""
    return [f"{tile.label}: {tile.value}{f' ({tile.note})' * bool(tile.note)}" for tile in key_figures(evaluation)]


# ---- listening -------------------------------------------------------------------------------------------------------


def listen_section(
    evaluation: Evaluation, sounds: Mapping[str, Sequence[Samples]], sample_rate: int, *, max_prompts: int
) -> Section:
    """The same prompts from the same seeds, side by side, as many as the page carries."""
    blocks: list[Markup] = []
    left = MEDIA_BYTES
    num = len(evaluation.prompts)
    most = min(max_prompts, num)
    for index in (place * num // most for place in range(most)):  # evenly: neighbours may be of one track
        block = _prompt_block(evaluation, sounds, sample_rate, index)
        left -= len(block)
        if left < 0 and blocks:
            break
        blocks.append(block)
    shown = "" if len(blocks) == len(evaluation.prompts) else f" Here are {len(blocks)} of {len(evaluation.prompts)}."
    return Section(
        anchor="listen",
        title="Listen",
        lead="Same prompt, same seed, same loudness; as small MP3s. The real track is what the codec makes of it. "
        f"All pieces lie as WAV files in the folder sounds.{shown}",
        body=join(blocks) if blocks else Markup(),
    )


def _prompt_block(
    evaluation: Evaluation, sounds: Mapping[str, Sequence[Samples]], sample_rate: int, index: int
) -> Markup:
    prompt = evaluation.prompts[index]
    cards = []
    for name in ("held_out", "base", "model"):
        if name not in sounds:
            continue
        figures = evaluation.yardsticks[name] if name == "held_out" else evaluation.models[name].sound
        cards.append(
            player(
                title=label_of(evaluation, name).capitalize(),
                samples=sounds[name][index],
                sample_rate=sample_rate,
                facts=prompt.track if name == "held_out" else f"seed {prompt.seed}",
                notes=_notes(figures, index, evaluation.frame_rate),
            )
        )
    return join([heading(prompt.text or "No caption: played without a condition"), grid(cards, width_rem=19)])


def _notes(figures: SoundFigures, index: int, frame_rate: int) -> list[tuple[str, str]]:
    notes: list[tuple[str, str]] = []
    if figures.collapses and figures.collapses[index].is_found:
        notes.append(("trim", str(figures.collapses[index])))
    if figures.shared and figures.shared[index].num_frames:
        run = figures.shared[index]
        if run.num_frames >= frame_rate:  # of less than a second nobody would speak
            notes.append(("trim", f"{_run_text(run, frame_rate)} of {run.track}"))
    return notes


# ---- likelihood ------------------------------------------------------------------------------------------------------


def likelihood_section(evaluation: Evaluation) -> Section:
    """Loss and perplexity by codebook, split and model."""
    cards = []
    for split, name in (("valid", "Held-out tracks"), ("train", "Training tracks")):
        found = {
            model: figures.likelihood[split]
            for model, figures in evaluation.models.items()
            if split in figures.likelihood
        }
        if found:
            cards.append(card(name, _likelihood_table(evaluation, found), note=_clips_text(next(iter(found.values())))))
    if forgetting := _forgetting_card(evaluation):
        cards.append(forgetting)
    return Section(
        anchor="loss",
        title="Loss",
        lead="How well real music is predicted: cross-entropy in nats for each code, and its exponential, perplexity: "
        "among how many equally likely codes it feels like choosing. Lower is better. Held out far above training "
        "tracks means learned by heart.",
        body=grid(cards, width_rem=30),
    )


def _clips_text(found: Likelihood) -> str:
    return f"{found.num_clips:,} clips, {found.num_frames:,} frames; as finetune validates"


def _likelihood_table(evaluation: Evaluation, found: Mapping[str, Likelihood]) -> Markup:
    labels = [label_of(evaluation, name) for name in found]
    header = ["", *(f"loss, {label}" for label in labels), *(f"perplexity, {label}" for label in labels)]
    if "base" in found:
        header.insert(1 + len(labels), "change")
    rows = []
    all_of = {name: (of_model.ce, *of_model.ce_per_codebook) for name, of_model in found.items()}
    for k in range(len(next(iter(all_of.values())))):
        losses = [of_model[k] for of_model in all_of.values()]
        change = [_signed(losses[-1] - losses[0])] if "base" in found else []
        name = "all" if k == 0 else f"codebook {k}"
        rows.append(
            [name, *(f"{ce:.3f}" for ce in losses), *change, *(number(round(math.exp(ce), 1)) for ce in losses)]
        )
    return table("Loss and perplexity by codebook", header, rows)


def _forgetting_card(evaluation: Evaluation) -> Markup | None:
    known = {name: of.forgetting_ce for name, of in evaluation.models.items() if of.forgetting_ce is not None}
    if not known:
        return None
    rows = [[label_of(evaluation, name), f"{ce:.3f}"] for name, ce in known.items()]
    note = "loss on what the base plays to captions of common genres; 0.1 above the base's own is little"
    return card("Forgetting", table("Loss on what the base plays", ["", "loss"], rows), note=note)


def loss_curves(run: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The curves in a run's metrics.csv, by chart; empty where there is none."""
    path = run / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    charts_found = {}
    for chart, columns in _CURVES.items():
        curves = {name: _column(rows, column) for name, column in columns.items()}
        if shown := {name: curve for name, curve in curves.items() if len(curve) > 1}:
            charts_found[chart] = shown
    return charts_found


def _column(rows: Sequence[Mapping[str, str | None]], name: str) -> list[tuple[float, float]]:
    return [(float(row["step"] or 0), float(row[name] or 0)) for row in rows if row.get(name)]


def curves_section(curves: Curves) -> Section:
    """How the loss fell in training."""
    cards = [
        card(name, charts.lines(found, what=name, x_label="step", y_label="nats")) for name, found in curves.items()
    ]
    return Section(anchor="training", title="Training", body=grid(cards, width_rem=24), lead="From the run's own log.")


# ---- distances -------------------------------------------------------------------------------------------------------


def distance_section(evaluation: Evaluation) -> Section:
    """Frechet distances, fit to the text, tune."""
    sounds = {name: figures.sound for name, figures in evaluation.models.items()} | dict(evaluation.yardsticks)
    cards = []
    for embedding in dict.fromkeys(key for sound in sounds.values() for key in sound.distances):
        found = {name: sound.distances[embedding] for name, sound in sounds.items() if embedding in sound.distances}
        cards.append(_distance_card(evaluation, embedding, found))
    fits = {name: sound.clap_score for name, sound in sounds.items() if sound.clap_score is not None}
    if fits:
        note = "mean cosine similarity of sound and caption, from -1 to 1; higher is better"
        cards.append(card("Fit to the caption, CLAP", _bars(evaluation, fits), note=note))
    tunes = {name: sound.chroma_similarity for name, sound in sounds.items() if sound.chroma_similarity is not None}
    if tunes:
        note = (
            "share of frames with the loudest pitch class of the given tune; 1 follows it exactly, chance is near 0.1"
        )
        cards.append(card("Fit to the tune", _bars(evaluation, tunes), note=note))
    return Section(
        anchor="distance",
        title="Distance to real music",
        lead="Frechet distance between embeddings of what is played and of real tracks, as the codec gives them. 0 is "
        "the same distribution. Other real tracks of the corpus show how near it can come with so many clips. It "
        "compares with nothing that was measured on other clips, and is no FAD by VGGish.",
        body=grid(cards, width_rem=24),
    )


def _distance_card(evaluation: Evaluation, embedding: str, found: Mapping[str, Distance]) -> Markup:
    body = _bars(evaluation, {name: distance.value for name, distance in found.items()})
    one = next(iter(found.values()))
    note = f"{one.num_embeddings:,} embeddings against {one.num_reference:,}, {one.dim} wide; lower is better"
    if any(distance.is_rough for distance in found.values()):
        warning = (
            f"Fewer embeddings than they are wide ({one.dim}): the values are too high, by the more the fewer there "
            "are. Their order still tells something, their size does not. Give more --pieces."
        )
        body = join([body, paragraph(warning, tone="note")])
    return card(f"Frechet distance, {embedding}", body, note=note)


def _bars(evaluation: Evaluation, values: Mapping[str, float]) -> Markup:
    order = [name for name in ("train", "held_out", "base", "model") if name in values]
    return charts.bars(
        [
            Bar(
                label=label_of(evaluation, name),
                pieces=[(_TONE[name], max(0.0, values[name]))],
                text=_figure(values[name]),
            )
            for name in order
        ]
    )


def class_section(evaluation: Evaluation) -> Section:
    """What a classifier hears; empty without one."""
    sounds = {name: evaluation.yardsticks[name] for name in ("held_out",) if name in evaluation.yardsticks}
    sounds |= {name: figures.sound for name, figures in evaluation.models.items()}
    shares = {name: sound.class_shares for name, sound in sounds.items() if sound.class_shares}
    if "model" not in shares:
        return Section(anchor="classes", title="What a classifier hears", body=Markup())
    real = shares.get("held_out", shares["model"])
    classes = sorted(shares["model"], key=lambda name: -max(real[name], shares["model"][name]))
    labels = [label_of(evaluation, name) for name in shares]
    rows = [[name, *(f"{share[name]:.0%}" for share in shares.values())] for name in classes[:MAX_CLASSES]]
    cards = [card("Share of each class", table("Share of each class", ["", *labels], rows), note="mean probability")]
    asked = {name: sounds[name].heard_as_asked for name in shares}
    if found := {name: share for name, share in asked.items() if share is not None}:
        of_prompt = [[label_of(evaluation, name), f"{share:.0%}"] for name, share in found.items()]
        note = "share of the clips whose most probable class is the genre of the track with their caption"
        cards.append(
            card("Heard as the genre asked for", table("Heard as the genre asked for", ["", ""], of_prompt), note=note)
        )
    kls = {name: sound.kl for name, sound in sounds.items() if sound.kl is not None}
    if kls:
        rows = [
            [label_of(evaluation, name), *(f"{v:.3f}" for v in (kl.from_reference, kl.from_generated, kl.both))]
            for name, kl in kls.items()
        ]
        header = ["", "real from played", "played from real", "both"]
        note = "nats, mean over prompts: 0 where the classifier hears the same in both; lower is better"
        cards.append(card("Divergence", table("Kullback-Leibler divergence", header, rows), note=note))
    return Section(
        anchor="classes",
        title="What a classifier hears",
        lead="Probabilities of a classifier, of what is played and of the real tracks with the same captions.",
        body=grid(cards, width_rem=26),
    )


# ---- memory, faults, speed -------------------------------------------------------------------------------------------


def memory_section(evaluation: Evaluation) -> Section:
    """Longest runs of codes shared with training tracks."""
    sounds = {name: figures.sound for name, figures in evaluation.models.items()}
    sounds |= {name: sound for name, sound in evaluation.yardsticks.items() if sound.shared}
    rows = []
    for name, sound in sounds.items():
        if sound.longest_shared is None or sound.longest_shared_first is None:
            continue
        longest = sorted(run.num_frames for run in sound.shared)
        rows.append(
            [
                label_of(evaluation, name),
                _seconds(sound.longest_shared, evaluation.frame_rate),
                f"{longest[len(longest) // 2] / evaluation.frame_rate:.2f} s",
                _seconds(sound.longest_shared_first, evaluation.frame_rate),
            ]
        )
    body = [
        card(
            "Longest copies",
            table("Longest shared runs", ["", "longest", "median of pieces", "first codebook alone"], rows),
        )
    ]
    if details_of := _run_table(evaluation):
        body.append(details("Of each piece of the model", details_of))
    return Section(
        anchor="memory",
        title="Learned by heart",
        lead="The longest stretch whose codes, of all codebooks, are exactly those of a stretch of a training track. "
        "Held-out music shares what the style and the codec have in common; well beyond that is a copy. A stretch of "
        "a single frame held is silence, or one sound.",
        body=join(body),
    )


def _run_table(evaluation: Evaluation) -> Markup | None:
    sound = evaluation.models["model"].sound
    rows = [
        [
            Markup("{}<small>seed {}</small>").format(prompt.text or "no caption", prompt.seed),
            _seconds(run, evaluation.frame_rate),
            f"{run.start / evaluation.frame_rate:.2f} s",
            f"{run.distinct_frames:,}",
            run.track or "–",
            f"{run.track_start / evaluation.frame_rate:.2f} s" if run.num_frames else "–",
        ]
        for prompt, run in zip(evaluation.prompts, sound.shared, strict=True)
    ]
    header = ["prompt", "length", "from", "different frames", "track", "from"]
    return table("Longest shared run of each piece", header, rows) if rows else None


def faults_section(evaluation: Evaluation) -> Section:
    """Silence and loops."""
    sounds = {"held_out": evaluation.yardsticks["held_out"]} if "held_out" in evaluation.yardsticks else {}
    sounds |= {name: figures.sound for name, figures in evaluation.models.items()}
    rows = [
        [
            label_of(evaluation, name),
            f"{sound.num_silent} of {sound.num_clips}",
            f"{sound.num_looping} of {sound.num_clips}",
            f"{np.mean([found.silent_share for found in sound.collapses]):.0%}",
        ]
        for name, sound in sounds.items()
        if sound.collapses
    ]
    header = ["", "fall silent", "repeat exactly", "silent seconds"]
    return Section(
        anchor="faults",
        title="Silence and loops",
        lead="What went wrong that nobody has to listen to.",
        body=card("Pieces", table("Silence and loops", header, rows)),
    )


def speed_section(evaluation: Evaluation) -> Section:
    """How fast it plays."""
    rows = [
        [
            label_of(evaluation, name),
            f"{number(round(figures.throughput.frames_per_s, 1))}",
            f"{figures.throughput.realtime_factor:.2f}",
            f"{figures.throughput.batch_size}",
            figures.throughput.device,
        ]
        for name, figures in evaluation.models.items()
    ]
    header = ["", "frames per s", "times real time", "pieces at once", "device"]
    return Section(
        anchor="speed",
        title="Speed",
        lead="Decoding of codes alone, all pieces of a batch together, on the machine that has made this page.",
        body=card("Throughput", table("Throughput", header, rows)),
    )


def origin_section(evaluation: Evaluation) -> Section:
    """What the figures were made with."""
    tables = []
    for name, title in (
        ("config", "Options"),
        ("weights", "Weights"),
        ("shards", "Shards"),
        ("trained_with", "Training"),
    ):
        values = evaluation.facts.get(name)
        if isinstance(values, Mapping) and values:
            rows = [[str(key), "–" if value in (None, "", []) else str(value)] for key, value in values.items()]
            tables.append(details(title, table(title, ["", "value"], rows)))
    return Section(
        anchor="made",
        title="How it was made",
        lead="evaluation.json in this folder holds every figure of this page, and more.",
        body=join(tables) if tables else Markup(),
    )


def _seconds(run: SharedRun, frame_rate: int) -> str:
    return f"{run.num_frames / frame_rate:.2f} s"


def _run_text(run: SharedRun, frame_rate: int) -> str:
    held = ", one frame held" if run.distinct_frames == 1 else ""
    return f"{_seconds(run, frame_rate)} from {run.start / frame_rate:.2f} s on are the codes{held}"


def _figure(value: float) -> str:
    return number(float(f"{value:.3g}"))


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
