"""Claims about the page of nano: all figures are on it, three clips of each genre, and nothing in it runs."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicgen_ft.evaluation.nano_summary import (
    codebook_figures,
    figures,
    finetuning_figures,
    finetuning_header,
    finetuning_verdict,
)
from musicgen_ft.report.nano_page import GenreSound, write_nano_page

EVIL = "\"'><script>alert(1)</script>"
RATE = 8000
NOISE = np.random.default_rng(0).normal(0, 0.1, (1, RATE)).astype(np.float32)
CLIPS: dict[str, Any] = {
    "genres": {
        "clips": 8,
        "accuracy": 0.625,
        "per_genre": {"techno": 0.75, "waltz": 0.5},
        "confusion": {"techno": {"techno": 3, "folk": 1}, "waltz": {"waltz": 2, "techno": 2}},
    },
    "tempo": {"clips": 8, "heard": 7, "median_error": 0.013, "within": 0.5, "within_octaves": 0.875},
    "tempo_of_others": 0.23,
    "key": 0.375,
    "lead": {"clips": 4, "accuracy": 0.75, "chance": 0.33},
    "silent": 0.0125,
    "looping": 0.0,
}
REPORT: dict[str, Any] = {
    "base": "nano",
    "setting": {"clips": 4, "duration_s": 10.0, "seed": 900_000, "held_out": ["reggae"]},
    "model": {"card": 256},
    "judge": {"test_clips": 12},
    "codec": {
        "log_mel": 0.4321,
        "si_sdr_db": 7.654,
        "per_genre": {"techno": {"log_mel": 0.41, "si_sdr_db": 8.8}, "reggae": {"log_mel": 0.45, "si_sdr_db": 6.5}},
        "codebooks": [{"used": 1.0, "perplexity": 199.6}, {"used": 0.5, "perplexity": 101.2}],
    },
    "loss": {"own_caption": [2.5, 3.5], "other_caption": [2.75, 3.625], "no_caption": [2.625, 3.5625]},
    "generated": CLIPS,
    "reconstructed": {**CLIPS, "key": 0.5},
    "real": {**CLIPS, "looping": None},
    "chance": {"genre": 0.125, "key": 1 / 24},
    "speed": {"times_real_time": 5.4321, "device": "cpu", "threads": 2, "batch_size": 8},
    "finetuning": None,
}
FINETUNING: dict[str, Any] = {
    "base": "nano",
    "genre": "reggae",
    "pieces": 20,
    "arms": {
        "adapters": {
            "base": {"genre": 0.05, "uncalled": 0.0, "others": 0.9, "loss": 3.456, "others_loss": 2.5},
            "model": {"genre": 0.85, "uncalled": 0.1, "others": 0.8, "loss": 2.345, "others_loss": 2.625},
        }
    },
}


def sound(genre: str, caption: str = "a caption") -> GenreSound:
    facts = ("120 BPM", "SI-SDR 7.1 dB", "heard as folk")
    return GenreSound(
        genre=genre, caption=caption, sample_rate=RATE, real=NOISE, reconstructed=NOISE, generated=NOISE, facts=facts
    )


@pytest.fixture
def page(tmp_path: Path, read_page: Any) -> Any:
    """A function that writes a page and reads it."""

    def write(report: dict[str, Any], sounds: list[GenreSound]) -> Any:
        write_nano_page(tmp_path / "page.html", report, sounds)
        return read_page((tmp_path / "page.html").read_text(encoding="utf-8"))

    return write


def test_every_figure_is_on_the_page(page: Any) -> None:
    written = page(REPORT, [sound("techno"), sound("waltz")])
    for row in [*figures(REPORT), *codebook_figures(REPORT)]:
        assert all(cell in written.text for cell in row), row
    assert "8 clips of 10 s played from captions of unseen tracks, and 12 unseen clips" in written.text
    assert len(written.all("audio")) == len(written.all("img")) == 6
    assert [str(link["href"]) for link in written.all("a")[1:]] == ["#figures", "#genres", "#codec", "#listen"]


def test_what_became_of_it_by_fine_tuning_stands_on_the_page_where_that_was_measured(page: Any) -> None:
    assert finetuning_figures(FINETUNING) == [
        ("adapters", "5% → 85%", "0% → 10%", "90% → 80%", "3.46 → 2.35", "2.50 → 2.62")
    ]
    written = page({**REPORT, "finetuning": FINETUNING}, [])
    for cell in (*finetuning_header(FINETUNING), *finetuning_figures(FINETUNING)[0], finetuning_verdict(FINETUNING)):
        assert cell in written.text
    assert "reggae from at most 20% to at least 80%, and at most 10% less of the old genres" in written.text
    assert "#finetuning" in [str(link["href"]) for link in written.all("a")[1:]]


def test_a_genre_that_was_heard_but_never_asked_for_has_its_column(page: Any) -> None:
    text = page(REPORT, []).text
    assert "folk" in text and "There is none." in text


def test_the_targets_are_judged() -> None:
    (genre,) = [row for row in figures(REPORT) if row.what == "genre as prompted, of 2"]
    assert genre == ("genre as prompted, of 2", "62%", "62%", "62%", "chance 12%; wanted 80%, missed")
    (silent,) = [row for row in figures(REPORT) if row.what == "falls silent"]
    assert (silent.generated, silent.beside) == ("1.2%", "wanted under 2%, reached")
    other = copy.deepcopy(REPORT)
    other["generated"]["genres"]["accuracy"], other["generated"]["silent"] = 0.8, 0.02
    beside = {row.what: row.beside for row in figures(other)}
    assert beside["genre as prompted, of 2"].endswith("wanted 80%, reached")
    assert beside["falls silent"].endswith("missed")


def test_what_could_not_be_measured_is_a_dash() -> None:
    report = copy.deepcopy(REPORT)
    report["generated"]["tempo"]["median_error"] = report["generated"]["lead"]["accuracy"] = None
    rows = {row.what: row for row in figures(report)}
    assert rows["median error of the tempo then"].generated == "–"
    assert rows["melody's instrument as prompted"].generated == "–"
    assert rows["repeats its codes exactly"].real == "–"


def test_captions_are_text(page: Any) -> None:
    written = page({**REPORT, "base": EVIL}, [sound(EVIL, EVIL)])
    assert len(written.all("script")) == 1
    assert EVIL in written.text
