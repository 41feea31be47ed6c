"""What the report of ``nano`` says, in rows for a terminal, a page and a model card: each figure beside what it means.

Reads the value of ``report.json``; a figure that could not be measured is None there, and a dash here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Report = Mapping[str, Any]
HEADER = ("", "generated", "through the codec", "real", "to compare")
CODEBOOK_HEADER = ("codebook", "entries used", "perplexity", "loss, nats", "with another's caption", "with none")
CLIPS = ("generated", "reconstructed", "real")
FINETUNING_FILE = "finetuning.json"
"""In the folder of train/nano_finetuning.py."""
MIN_GENRE_ACCURACY = 0.8
MAX_SILENT = 0.02
MAX_NEW_BEFORE, MIN_NEW_AFTER, MAX_OLD_LOST = 0.2, 0.8, 0.1
"""Of fine-tuning on a new genre: shares of pieces that are heard as the genre they were asked for."""


class Figure(NamedTuple):
    """One row."""

    what: str
    """What was measured."""
    generated: str = ""
    """Of the clips that were played from captions."""
    reconstructed: str = ""
    """Of the real clips with these captions, through the codec: nothing generated can be expected to do better."""
    real: str = ""
    """Of the real clips themselves: how far the measure can be trusted."""
    beside: str = ""
    """What it would be by chance, and what is wanted."""


def figures(report: Report) -> list[Figure]:
    """All figures that have one value."""
    return [*_of_codec(report), *_of_steering(report), *_of_collapse(report), *_of_speed(report)]


def codebook_figures(report: Report) -> list[tuple[str, ...]]:
    """A row for each codebook, under ``CODEBOOK_HEADER``: its use, and its loss with the right caption or another."""
    loss = report["loss"]
    losses = zip(loss["own_caption"], loss["other_caption"], loss["no_caption"], strict=True)
    return [
        (str(place), share(use["used"]), f"{use['perplexity']:.0f}", *(f"{value:.3f}" for value in of_codebook))
        for place, (use, of_codebook) in enumerate(zip(report["codec"]["codebooks"], losses, strict=True), start=1)
    ]


def finetuning_header(finetuning: Report) -> tuple[str, ...]:
    """Of ``finetuning_figures``."""
    genre = finetuning["genre"]
    shares = (f"{genre} as prompted", f"{genre}, old genres prompted", "old genres as prompted")
    return ("fine-tuned", *shares, f"loss on {genre}", "loss on old genres")


def finetuning_figures(finetuning: Report) -> list[tuple[str, ...]]:
    """A row for each arm of the value of ``finetuning.json``: of the base, and of what it became."""

    def change(row: Report, name: str, told: Callable[[float], str]) -> str:
        return f"{told(row['base'][name])} → {told(row['model'][name])}"

    return [
        (
            arm,
            *(change(row, name, share) for name in ("genre", "uncalled", "others")),
            *(change(row, name, "{:.2f}".format) for name in ("loss", "others_loss")),
        )
        for arm, row in finetuning["arms"].items()
    ]


def finetuning_verdict(finetuning: Report) -> str:
    """What the arms are measured by."""
    return (
        f"Wanted: {finetuning['genre']} from at most {share(MAX_NEW_BEFORE)} to at least {share(MIN_NEW_AFTER)}, and "
        f"at most {share(MAX_OLD_LOST)} less of the old genres. With captions shuffled among the tracks no prompt can "
        f"be learned: {finetuning['genre']} is then played to prompts of old genres, too. {finetuning['pieces']} "
        f"pieces each, of the genre and of the old ones."
    )


def finetuning_lines(finetuning: Report) -> list[str]:
    """A table for a terminal."""
    return columns([finetuning_header(finetuning), *finetuning_figures(finetuning)])


def summary_lines(report: Report) -> list[str]:
    """Tables for a terminal."""
    lines = [
        *columns([HEADER, *figures(report)]),
        "",
        *columns([CODEBOOK_HEADER, *codebook_figures(report)]),
    ]
    return [*lines, "", *finetuning_lines(report["finetuning"])] if report["finetuning"] else lines


def share(value: float | None) -> str:
    """A share in percent, "86%", "0.4%"."""
    if value is None:
        return "–"
    percent = 100 * value
    return f"{percent:.1f}%" if 0 < percent < 10 and percent != round(percent) else f"{percent:.0f}%"


def plain(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A figure with its unit."""
    return "–" if value is None else f"{value:.{digits}g}{' ' if unit else ''}{unit}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _of_codec(report: Report) -> list[Figure]:
    codec = report["codec"]
    return [
        Figure("log-mel distance", reconstructed=plain(codec["log_mel"], "nepers")),
        Figure("SI-SDR", reconstructed=plain(codec["si_sdr_db"], "dB")),
    ]


def _of_steering(report: Report) -> list[Figure]:
    chance, accuracy = report["chance"], report["generated"]["genres"]["accuracy"]
    verdict = "reached" if accuracy >= MIN_GENRE_ACCURACY else "missed"
    num_genres = len(report["generated"]["genres"]["per_genre"])
    return [
        _shares(
            report,
            f"genre as prompted, of {num_genres}",
            lambda clips: clips["genres"]["accuracy"],
            f"chance {share(chance['genre'])}; wanted {share(MIN_GENRE_ACCURACY)}, {verdict}",
        ),
        _shares(report, "a steady beat is heard", lambda clips: clips["tempo"]["heard"] / clips["tempo"]["clips"]),
        _shares(report, "median error of the tempo then", lambda clips: clips["tempo"]["median_error"]),
        _shares(report, "tempo within 4% of the prompt's", lambda clips: clips["tempo"]["within"]),
        _shares(
            report,
            "the same, or of half or double",
            lambda clips: clips["tempo"]["within_octaves"],
            f"other prompts of the genre {share(report['generated']['tempo_of_others'])}",
        ),
        _shares(report, "key as prompted, of 24", lambda clips: clips["key"], f"chance {share(chance['key'])}"),
        _shares(
            report,
            "melody's instrument as prompted",
            lambda clips: clips["lead"]["accuracy"],
            f"chance {share(report['generated']['lead']['chance'])}",
        ),
    ]


def _of_collapse(report: Report) -> list[Figure]:
    verdict = "reached" if report["generated"]["silent"] < MAX_SILENT else "missed"
    return [
        _shares(report, "falls silent", lambda clips: clips["silent"], f"wanted under {share(MAX_SILENT)}, {verdict}"),
        _shares(report, "repeats its codes exactly", lambda clips: clips["looping"]),
    ]


def _of_speed(report: Report) -> list[Figure]:
    speed = report["speed"]
    where = "a GPU" if speed["device"] != "cpu" else f"{speed['threads']} CPU thread{'s' * (speed['threads'] != 1)}"
    beside = f"{where}, {speed['batch_size']} clips at once"
    return [Figure("seconds generated in a second", plain(speed["times_real_time"]), beside=beside)]


def _shares(report: Report, what: str, read: Callable[[Report], float | None], beside: str = "") -> Figure:
    generated, reconstructed, real = (share(read(report[of])) for of in CLIPS)
    return Figure(what, generated, reconstructed, real, beside)
