"""What the report of ``nano`` says, in rows for a terminal, a page and a model card: each figure beside what it means.

Reads the value of ``report.json``; a figure that could not be measured is None there, and a dash here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Report = Mapping[str, Any]
HEADER = ("", "found", "real clips", "to compare")
CODEBOOK_HEADER = ("codebook", "entries used", "perplexity", "loss, nats", "with another's caption", "with none")
MIN_GENRE_ACCURACY = 0.8
MAX_SILENT = 0.02


class Figure(NamedTuple):
    """One row."""

    what: str
    """What was measured."""
    found: str
    """Of the codec's or the model's clips."""
    real: str = ""
    """The same measure on the clips of the corpus that have the same captions: what it says where nothing is wrong."""
    beside: str = ""
    """What it would be by chance, and what is wanted."""


def figures(report: Report) -> list[Figure]:
    """All figures that have one value."""
    return [*_of_codec(report), *_of_steering(report), *_of_collapse(report), *_of_speed(report)]


def codebook_figures(report: Report) -> list[tuple[str, ...]]:
    """A row for each codebook, under ``CODEBOOK_HEADER``: how it is used, and the loss with the right caption or not."""
    loss = report["loss"]
    losses = zip(loss["own_caption"], loss["other_caption"], loss["no_caption"], strict=True)
    return [
        (str(place), share(use["used"]), f"{use['perplexity']:.0f}", *(f"{value:.3f}" for value in of_codebook))
        for place, (use, of_codebook) in enumerate(zip(report["codec"]["codebooks"], losses, strict=True), start=1)
    ]


def summary_lines(report: Report) -> list[str]:
    """Two tables for a terminal."""
    return [
        *_columns([HEADER, *figures(report)]),
        "",
        *_columns([CODEBOOK_HEADER, *codebook_figures(report)]),
    ]


def share(value: float | None) -> str:
    """A share in percent, "86 %", "0.4 %"."""
    if value is None:
        return "–"
    percent = 100 * value
    return f"{percent:.1f} %" if 0 < percent < 10 and percent != round(percent) else f"{percent:.0f} %"


def plain(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A figure with its unit."""
    return "–" if value is None else f"{value:.{digits}g}{' ' if unit else ''}{unit}"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _of_codec(report: Report) -> list[Figure]:
    codec = report["codec"]
    return [
        Figure("codec: log-mel distance", plain(codec["log_mel"], "nepers"), "", "same sound 0"),
        Figure("codec: SI-SDR", plain(codec["si_sdr_db"], "dB")),
    ]


def _of_steering(report: Report) -> list[Figure]:
    genres, tempo, key, lead = report["genres"], report["tempo"], report["key"], report["lead"]
    accuracy, played, real = genres["generated"]["accuracy"], tempo["generated"], tempo["real"]
    verdict = "reached" if accuracy >= MIN_GENRE_ACCURACY else "missed"
    return [
        Figure(
            f"genre as prompted, of {len(genres['generated']['per_genre'])}",
            share(accuracy),
            share(genres["real"]["accuracy"]),
            f"chance {share(genres['chance'])}; wanted {share(MIN_GENRE_ACCURACY)}, {verdict}",
        ),
        Figure(
            "a steady beat is heard", share(played["heard"] / played["clips"]), share(real["heard"] / real["clips"])
        ),
        Figure("median error of the tempo then", share(played["median_error"]), share(real["median_error"])),
        Figure("tempo within 4 % of the prompt's", share(played["within"]), share(real["within"])),
        Figure(
            "the same, or of half or double",
            share(played["within_octaves"]),
            share(real["within_octaves"]),
            f"other prompts of the genre {share(tempo['other_prompt'])}",
        ),
        Figure("key as prompted, of 24", share(key["generated"]), share(key["real"]), f"chance {share(key['chance'])}"),
        Figure(
            "melody's instrument as prompted",
            share(lead["generated"]["accuracy"]),
            share(lead["real"]["accuracy"]),
            f"chance {share(lead['generated']['chance'])}",
        ),
    ]


def _of_collapse(report: Report) -> list[Figure]:
    generated, real = report["collapse"]["generated"], report["collapse"]["real"]
    verdict = "reached" if generated["silent"] < MAX_SILENT else "missed"
    return [
        Figure("falls silent", share(generated["silent"]), share(real["silent"]), f"wanted under 2 %, {verdict}"),
        Figure("repeats its codes exactly", share(generated["looping"]), share(real["looping"])),
    ]


def _of_speed(report: Report) -> list[Figure]:
    speed = report["speed"]
    where = "a GPU" if speed["device"] != "cpu" else f"{speed['threads']} CPU thread{'s' * (speed['threads'] != 1)}"
    beside = f"{where}, {speed['batch_size']} clips at once"
    return [Figure("generated seconds in a second", plain(speed["times_real_time"]), "", beside)]
