"""The model card of ``nano``: its prose stands here, its figures come from ``report.json``."""

import re
from collections.abc import Sequence
from pathlib import Path

from musicgen_ft.checkpoint.card import CARD_NAME
from musicgen_ft.evaluation.nano_summary import (
    CODEBOOK_HEADER,
    HEADER,
    Report,
    codebook_figures,
    figures,
    finetuning_figures,
    finetuning_header,
    finetuning_verdict,
    share,
)
from musicgen_ft.files import atomic_path

BEGIN, END = "<!-- figures of nano-report: begin -->", "<!-- figures of nano-report: end -->"
_BETWEEN = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)


def write_card(folder: Path, report: Report) -> Path:
    """Writes a report's figures into the card of a base's folder; the whole card where it has no place for them.

    Args:
        folder: of the base.
        report: the value of ``report.json``.

    Returns:
        The card.
    """
    path = folder / CARD_NAME
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    block = f"{BEGIN}\n{figures_markdown(report)}\n{END}"
    after = _BETWEEN.sub(lambda _: block, before, count=1) if _BETWEEN.search(before) else _whole(report, block)
    with atomic_path(path) as temporary:
        temporary.write_text(after, encoding="utf-8")
    return path


def figures_markdown(report: Report) -> str:
    """The figures as Markdown."""
    judge, genres, setting = report["judge"], report["generated"]["genres"], report["setting"]
    asked = setting["clips"] * len(genres["per_genre"])
    sampling = setting["sampling"]
    lines = [
        f"Measured by `make nano-report` on music of seeds that training never saw ({setting['seed']} and on).",
        f"In clips of {setting['duration_s']:g} s: {judge['test_clips']} through the codec, {asked} of them for the",
        f"loss, and as many generated from their captions, with cfg_coef {sampling['cfg_coef']:g}, top_k",
        f"{sampling['top_k']} and temperature {sampling['temperature']:g}. Beside what is generated stands the same",
        "measure on the real clips whose captions were the prompts.",
        "",
        *_table(HEADER, figures(report)),
        "",
        *_table(CODEBOOK_HEADER, codebook_figures(report)),
        "",
        "Log-mel distance: mean absolute difference of natural logarithms of magnitudes in 80 mel bands, windows of",
        "64 ms every 16 ms, a floor of -80 dB; 1 neper is 8.7 dB. SI-SDR as torchmetrics computes it.",
        "",
        "The judge of genres is a logistic regression over features of timbre, harmony and onsets, trained on",
        f"{judge['train_clips']} real clips and on what the codec makes of the same clips. It is right about",
        f"{share(judge['real'])} of unseen real clips and {share(judge['reconstructed'])} of unseen clips that went",
        f"through the codec; trained on the real ones alone, {share(judge['real_only']['real'])} and",
        f"{share(judge['real_only']['reconstructed'])}. Tempo and key are heard as `prepare` does, but for fainter",
        "strokes; the melody's instrument by one such regression for each genre that has a choice.",
        "",
        "Of the clips prompted for each genre, heard as that genre:",
        "",
        *_table(
            ("prompted", "heard so", "else heard as"),
            [
                (genre, share(found), _others(genres["confusion"][genre], genre))
                for genre, found in genres["per_genre"].items()
            ],
        ),
    ]
    return "\n".join([*lines, *_finetuning(report["finetuning"])])


def _finetuning(finetuning: Report | None) -> list[str]:
    if finetuning is None:
        return []
    return [
        "",
        f"Fine-tuned on {finetuning['genre']}, which it had never heard, by `train/nano_finetuning.py`:",
        "",
        *_table(finetuning_header(finetuning), finetuning_figures(finetuning)),
        "",
        finetuning_verdict(finetuning),
    ]


def _others(heard: dict[str, int], genre: str) -> str:
    wrong = sorted(((count, name) for name, count in heard.items() if name != genre), reverse=True)
    return ", ".join(f"{name} {count}" for count, name in wrong)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _whole(report: Report, block: str) -> str:
    model, setting = report["model"], report["setting"]
    trained = ", ".join(report["generated"]["genres"]["per_genre"])
    return f"""---
license: mit
pipeline_tag: text-to-audio
library_name: transformers
tags: [musicgen, music, text-to-audio, musicgen-ft]
---
# {report["base"]}

A complete MusicGen at toy size: it comes with musicgen-ft, so that preparing, fine-tuning, exporting and playing can be
tried within minutes, without a network, on any machine. Same architecture as the released models, smaller numbers.

| | |
|---|---|
| language model | {model["lm_parameters"] / 1e6:.2f} M parameters, {model["n_q"]} codebooks of {model["card"]} |
| codec | EnCodec, {model["codec_parameters"] / 1e6:.2f} M parameters, {_channels(model["channels"])}, \
{model["sample_rate"] / 1000:g} kHz, {model["frame_rate"]} frames a second, {model["kbps"]:g} kb/s |
| text encoder | T5, {model["text_parameters"] / 1e6:.2f} M parameters |
| genres | {trained} |
| genres left out, to be learned by fine-tuning | {", ".join(setting["held_out"]) or "none"} |
| licence of the weights | MIT, that of the repository |

## What it was trained on

Music that `musicgen-ft synthesize` makes by rule: composed and played from a seed, with no recording, sample or text of
anybody's. So its weights carry no rights of others. `python train/pretrain_nano.py` trains it anew.

## How good it is

{block}

## Limits

Its captions told of genre, instruments, key, tempo and mood, as `musicgen-ft synthesize` writes them; how far it
follows each stands above. What it plays is as simple as the rules that made its corpus, and sounds as
{model["kbps"]:g} kb/s do. It is for trying the toolkit and for tests, not for music to be listened to.
"""


def _channels(channels: int) -> str:
    return "mono" if channels == 1 else "stereo"
