"""The demo as ``make demo`` runs it: what it learns."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.mark.slow
def test_the_demo_divides_the_perplexity_on_held_out_tracks_by_three(tmp_path: Path, command: Command) -> None:
    done = command("demo", "--out", tmp_path / "demo", "--duration_s", 1)

    assert done.status == 0, done.err
    with (tmp_path / "demo" / "run" / "metrics.csv").open(newline="") as file:
        losses = [float(row["valid/ce"]) for row in csv.DictReader(file) if row["valid/ce"]]
    assert math.exp(losses[0] - min(losses[1:])) > 3  # measured 3.8
