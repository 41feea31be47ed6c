"""``metrics.csv``: appended row by row, cut back where a resumed run goes on."""

import csv
from pathlib import Path

import pytest

from musicgen_ft.training.metrics import MetricsCSV, metric_names


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """Steps 1 to 6, with a validation at steps 0, 3 and 6."""
    metrics = MetricsCSV(tmp_path, n_q=2)
    metrics.log_metrics({"valid/ce": 5.0}, step=0)
    for step in range(1, 7):
        metrics.log_metrics({"train/ce": 5 - step / 10, "train/lr": 1e-5 * step}, step=step)
        if step % 3 == 0:
            metrics.log_metrics({"valid/ce": 5 - step / 5}, step=step)
    return tmp_path


def test_the_names_are_those_of_the_style_page() -> None:
    names = metric_names(3)
    assert {"train/ce", "train/ce_q1", "train/ce_q3", "valid/ce", "valid/ppl", "valid/ce_q2", "train/grad_norm"} <= set(
        names
    )
    assert {"perf/frames_per_s", "perf/wait_share", "perf/peak_memory_gib", "perf/mfu", "train/lr"} <= set(names)
    assert {"valid/forgetting_ce", "valid/forgetting_delta"} <= set(names)
    assert len(names) == len(set(names)) == 1 + 3 + 3 + 4 + 2 + 3 + 2


def test_a_row_for_each_step_under_one_header(logged: Path) -> None:
    found = rows(logged)
    assert [row["step"] for row in found] == ["0", "1", "2", "3", "3", "4", "5", "6", "6"]
    assert tuple(found[0]) == ("step", *metric_names(2))
    assert found[1]["train/ce"] == "4.9"
    assert found[1]["valid/ce"] == ""
    assert found[4]["valid/ce"] == "4.4"


def test_a_second_logger_appends(logged: Path) -> None:
    MetricsCSV(logged, n_q=2).log_metrics({"train/ce": 1.0}, step=7)
    assert [row["step"] for row in rows(logged)][-2:] == ["6", "7"]


@pytest.mark.parametrize(("step", "kept"), [(0, 1), (2, 3), (3, 5), (6, 9), (100, 9)])
def test_rows_after_the_step_are_dropped(logged: Path, step: int, kept: int) -> None:
    before = (logged / "metrics.csv").read_text().splitlines()
    MetricsCSV(logged, n_q=2).truncate(step)
    assert (logged / "metrics.csv").read_text().splitlines() == before[: 1 + kept]
    assert [path.name for path in logged.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("cut", [1, 2, 4, 10, 20])
def test_a_last_row_that_a_kill_has_cut_is_dropped_and_the_next_one_stands_on_its_own(logged: Path, cut: int) -> None:
    path = logged / "metrics.csv"
    metrics = MetricsCSV(logged, n_q=2)
    metrics.log_metrics(dict.fromkeys(metric_names(2), 4.123456), step=7)  # its last value can be cut unseen
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    metrics.truncate(100)
    metrics.log_metrics({"train/ce": 4.0}, step=7)
    found = rows(logged)
    assert [row["step"] for row in found] == ["0", "1", "2", "3", "3", "4", "5", "6", "6", "7"]
    assert found[-1]["train/ce"] == "4"
    assert found[-1]["valid/forgetting_delta"] == ""


def test_truncating_nothing_makes_no_file(tmp_path: Path) -> None:
    MetricsCSV(tmp_path, n_q=2).truncate(3)
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_is_not_known_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train/cee"):
        MetricsCSV(tmp_path, n_q=2).log_metrics({"train/cee": 1.0}, step=1)
