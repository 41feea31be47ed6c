"""``make nano-report``: from a base to a table, JSON, a page and a model card whose figures are all measured."""

import contextlib
import io
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from musicgen_ft.cli import parse
from musicgen_ft.codec import Codec
from musicgen_ft.config.nano_report import NanoReportConfig
from musicgen_ft.errors import UserError
from musicgen_ft.evaluation.nano_card import BEGIN, END, write_card
from musicgen_ft.evaluation.nano_summary import codebook_figures, figures, share, summary_lines
from musicgen_ft.pretraining.nano import write_untrained_lm
from musicgen_ft.pretraining.untrained import NanoSizes, untrained_encodec, untrained_text_encoder

RECIPE = Path(__file__).parents[2] / "train" / "nano_report.py"
TINY = ("--clips", "1", "--judge_clips", "2", "--duration_s", "1", "--device", "cpu")
HELD_OUT = ("techno", "house", "drum and bass", "hip hop", "swing jazz", "folk", "chiptune", "ambient", "lullaby")
ASKED = ["reggae", "rock", "waltz"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run() -> Run:
    """Runs the recipe: exit status, output, errors."""

    def call(*words: object) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            patch.object(sys, "argv", [str(RECIPE), *map(str, words)]),
        ):
            try:
                runpy.run_path(str(RECIPE), run_name="__main__")
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
        return status, out.getvalue(), err.getvalue()

    return call


@pytest.fixture(scope="module")
def done(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The report of a base with random weights, the base's folder, and what was printed."""
    place = tmp_path_factory.mktemp("report")
    base, out = place / "random", place / "out"
    base.mkdir()
    sizes = NanoSizes(num_filters=8, latent_dim=32, dim=128, num_layers=4)
    torch.manual_seed(1)
    codec, text_encoder = Codec(untrained_encodec(sizes), id="random"), untrained_text_encoder(sizes)
    write_untrained_lm(base, sizes, codec, text_encoder, seed=1)
    held_out = [word for genre in HELD_OUT for word in ("--held_out", genre)]
    status, printed, err = run("--base", base, "--out", out, "--card", "true", *TINY, *held_out)
    assert status == 0, err
    return out, base, printed


@pytest.fixture(scope="module")
def report(done: tuple[Path, Path, str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((done[0] / "report.json").read_text())
    return value


def test_the_report_holds_every_figure_that_the_model_card_needs(report: dict[str, Any]) -> None:
    assert list(report["generated"]["genres"]["per_genre"]) == ASKED
    assert report["generated"]["genres"]["clips"] == 3
    assert report["judge"]["test_clips"] == 12 and report["judge"]["train_clips"] == 24
    assert set(report["codec"]["per_genre"]) == {*HELD_OUT, *ASKED}
    assert len(report["codec"]["codebooks"]) == report["model"]["n_q"] == 4
    assert {len(of_captions) for of_captions in report["loss"].values()} == {4}
    assert set(report["loss"]) == {"own_caption", "other_caption", "no_caption"}
    assert report["loss"]["own_caption"] != report["loss"]["other_caption"] != report["loss"]["no_caption"]
    assert 0 <= report["generated"]["silent"] <= 1 and 0 <= report["generated"]["looping"] <= 1
    assert report["real"]["looping"] is None  # sound has no codes
    assert report["real"]["tempo"]["heard"] == 0 and report["real"]["tempo"]["median_error"] is None  # 1 s is too short
    assert report["speed"]["times_real_time"] > 0
    assert report["chance"] == {"genre": pytest.approx(1 / 12), "key": pytest.approx(1 / 24)}


def test_random_weights_know_no_caption(report: dict[str, Any]) -> None:
    """Codes of 256: ln 256 is 5.5 nats, and no caption changes much."""
    for own, other in zip(report["loss"]["own_caption"], report["loss"]["other_caption"], strict=True):
        assert 5 < own < 7
        assert own == pytest.approx(other, abs=0.2)
    assert report["codec"]["log_mel"] > 1


def test_the_model_is_counted_before_it_plays(report: dict[str, Any], done: tuple[Path, Path, str]) -> None:
    from musicgen_ft.checkpoint.base import open_base

    base = open_base(str(done[1]))
    assert report["model"]["lm_parameters"] == sum(p.numel() for p in base.lm().parameters())
    assert report["model"]["kbps"] == pytest.approx(1.6)


def test_the_table_is_printed_with_the_targets(report: dict[str, Any], done: tuple[Path, Path, str]) -> None:
    out, base, printed = done
    lines = summary_lines(report)
    assert printed.startswith("\n".join(lines))
    assert f"page: {out / 'report.html'}" in printed and f"card: {base / 'README.md'}" in printed
    (genre,) = [line for line in lines if line.startswith("genre as prompted, of 3")]
    assert "wanted 80%, missed" in genre or "wanted 80%, reached" in genre
    assert "chance 8.3%" in genre


def test_the_page_shows_three_clips_of_each_genre_and_loads_nothing(done: tuple[Path, Path, str]) -> None:
    page = (done[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") == page.count('alt="Spectrogram') == 3 * len(ASKED)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for genre in ASKED:
        assert f">{genre.capitalize()}</h3>" in page


def test_every_figure_stands_in_the_card_and_none_is_anybodys_folder(
    report: dict[str, Any], done: tuple[Path, Path, str]
) -> None:
    card = (done[1] / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n")
    assert "# random\n" in card and "1.32 M parameters" in card
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]
    for figure in figures(report):
        assert list(figure) in rows
    for of_codebook in codebook_figures(report):
        assert list(of_codebook) in rows
    assert f"right about {share(report['judge']['real'])} of unseen real clips" in " ".join(card.split())
    assert str(done[1].parent) not in card + (done[0] / "report.json").read_text()


def test_a_card_with_a_place_for_the_figures_keeps_its_own_words(report: dict[str, Any], tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"# mine\n\n{BEGIN}\nold figures \\1\n{END}\n\nthe end\n")
    assert write_card(tmp_path, report) == card
    text = card.read_text()
    assert text.startswith(f"# mine\n\n{BEGIN}\nMeasured by `make nano-report`")
    assert text.endswith(f"{END}\n\nthe end\n") and "old figures" not in text
    write_card(tmp_path, report)
    assert card.read_text() == text


def test_what_fine_tuning_made_of_it_stands_in_the_report(report: dict[str, Any], run: Run, tmp_path: Path) -> None:
    arm = {"genre": 0.05, "uncalled": 0.1, "others": 0.9, "loss": 3.456, "others_loss": 2.5}
    found = {"base": "nano", "genre": "reggae", "pieces": 20, "arms": {"adapters": {"base": arm, "model": arm}}}
    with_it = {**report, "finetuning": found}
    assert summary_lines(with_it)[: len(summary_lines(report))] == summary_lines(report)
    assert "adapters    5% → 5%" in summary_lines(with_it)[-1]
    text = write_card(tmp_path, with_it).read_text()
    assert (
        "Fine-tuned on reggae, which it had never heard" in text
        and "| adapters | 5% → 5% | 10% → 10% | 90% → 90% |" in text
    )
    status, _, err = run("--out", tmp_path / "out", "--finetuning", tmp_path / "none")
    assert status == 2 and "expected the folder of a finished train/nano_finetuning.py" in err


def test_mistakes_are_told_before_anything_is_made(run: Run, nano_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, _, err = run("--base", nano_folder, "--out", out, "--held_out", "polka", *TINY)
    assert status == 2 and "'polka' is not known" in err
    (out / "kept").mkdir(parents=True)
    status, _, err = run("--base", nano_folder, "--out", out, *TINY)
    assert status == 2 and "is not empty" in err
    assert [path.name for path in out.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", "999"), "seed: found 999, expected 1000 or more"),
        (("--judge_clips", "1"), "judge_clips: found 1, expected 2 or more"),
        (("--duration_s", "0.5"), "duration_s: found 0.5, expected 1 or more"),
        (("--duration_s", "nan"), "duration_s: Expected a float. Got value: nan"),
        (("--clips", "0"), "clips: found 0, expected a number above 0"),
        (("--cfg_coef", "-1"), "cfg_coef: found -1.0, expected 0 or more"),
    ],
)
def test_numbers_out_of_range_are_told(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse(NanoReportConfig, "nano_report", ["--out", "x", *words])


def test_a_share_is_written_as_it_is_read() -> None:
    assert [share(value) for value in (None, 0.0, 0.004, 0.05, 0.083, 0.856, 1.0)] == [
        *("–", "0%", "0.4%", "5%", "8.3%", "86%", "100%"),
    ]
