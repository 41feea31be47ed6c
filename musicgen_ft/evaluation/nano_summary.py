"""What the report of ``nano`` says, in rows for a terminal, a page and a model card: each figure beside what it means.

Reads the value of ``report.json``; a figure that could not be measured is None there, and a dash here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

Report = Mapping[str, Any]
HEADER = ("", "found", "real clips", "to compare", "wanted")
MIN_GENRE_ACCURACY = 0.8
MAX_SILENT = 0.02


class Figure(NamedTuple):
    """One row."""

    what: str
    """What was measured."""
    found: str
    """Of the codec's or the model's clips."""
    real: str = ""
    """The same measure on clips of the corpus: what it says where nothing is wrong."""
    beside: str = ""
    """What it would be by chance, or with another caption."""
    wanted: str = ""
    """The target, and whether it is reached."""


def figures(report: Report) -> list[Figure]:
    """All rows."""
    return [*_of_codec(report), *_of_loss(report), *_of_steering(report), *_of_collapse(report), *_of_speed(report)]


def summary_lines(report: Report) -> list[str]:
    """A table for a terminal."""
    rows = [Figure(*HEADER), *figures(report)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def share(value: float | None) -> str:
    """A share in percent, "86 %", "0.4 %"."""
    if value is None:
        return "–"
    percent = 100 * value
    return f"{percent:.1f} %" if 0 < percent < 10 and percent != round(percent) else f"{percent:.0f} %"


def plain(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A figure with its unit."""
    return "–" if value is None else f"{value:.{digits}g}{' ' if unit else ''}{unit}"


def _of_codec(report: Report) -> list[Figure]:
    codec, model = report["codec"], report["model"]
    rows = [
        Figure("codec: log-mel distance", plain(codec["log_mel"], "nepers"), "0", "", ""),
        Figure("codec: SI-SDR", plain(codec["si_sdr_db"], "dB")),
    ]
    for place, use in enumerate(codec["codebooks"], start=1):
        of_all = f"{share(use['used'])} of {model['card']}, perplexity {use['perplexity']:.0f}"
        rows.append(Figure(f"codebook {place}: entries used", of_all))
    return rows


def _of_loss(report: Report) -> list[Figure]:
    loss = report["loss"]
    rows = []
    for place, (own, other, null) in enumerate(
        zip(loss["own_caption"], loss["other_caption"], loss["no_caption"], strict=True), start=1
    ):
        beside = f"another's caption {other:.3f}, none {null:.3f}"
        rows.append(Figure(f"loss of codebook {place}", f"{own:.3f} nats", "", beside))
    return rows


def _of_steering(report: Report) -> list[Figure]:
    genres, tempo, key, lead = report["genres"], report["tempo"], report["key"], report["lead"]
    accuracy = genres["generated"]["accuracy"]
    verdict = "reached" if accuracy >= MIN_GENRE_ACCURACY else "missed"
    return [
        Figure(
            f"genre as prompted, of {len(genres['generated']['per_genre'])}",
            share(accuracy),
            share(genres["real"]["accuracy"]),
            f"chance {share(genres['chance'])}",
            f"{share(MIN_GENRE_ACCURACY)}: {verdict}",
        ),
        Figure("tempo: median error", share(tempo["generated"]["median_error"]), share(tempo["real"]["median_error"])),
        Figure("tempo within 4 %", share(tempo["generated"]["within"]), share(tempo["real"]["within"])),
        Figure(
            "tempo within 4 %, or half or double",
            share(tempo["generated"]["within_octaves"]),
            share(tempo["real"]["within_octaves"]),
            f"other prompts of the genre {share(tempo['other_prompt'])}",
        ),
        Figure("key as prompted, of 24", share(key["generated"]), share(key["real"]), f"chance {share(key['chance'])}"),
        Figure(
            "instrument of the melody as prompted",
            share(lead["generated"]["accuracy"]),
            share(lead["real"]["accuracy"]),
            f"chance {share(lead['generated']['chance'])}",
        ),
    ]


def _of_collapse(report: Report) -> list[Figure]:
    generated, real = report["collapse"]["generated"], report["collapse"]["real"]
    verdict = "reached" if generated["silent"] < MAX_SILENT else "missed"
    return [
        Figure(
            "silent, or falls silent", share(generated["silent"]), share(real["silent"]), "", f"under 2 %: {verdict}"
        ),
        Figure("repeats its codes exactly", share(generated["looping"]), share(real["looping"])),
    ]


def _of_speed(report: Report) -> list[Figure]:
    speed = report["speed"]
    where = "a GPU" if speed["device"] != "cpu" else f"{speed['threads']} CPU thread{'s' * (speed['threads'] != 1)}"
    what = f"generation, {where}, {speed['batch_size']} clips at once"
    return [Figure(what, f"{speed['times_real_time']:.3g} × real time")]
