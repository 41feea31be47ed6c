"""Claims about charts: what is drawn is what was given, and what is said of it is true."""

import math
import re
from typing import Any

import numpy as np
import pytest

from musicgen_ft.report.charts import (
    Bar,
    Series,
    bars,
    histogram,
    legend,
    level_strip,
    lines,
    number,
    shares,
    waveform,
    with_unit,
)


def series(*values: float, name: str = "kept", tone: str = "keep") -> Series:
    return Series(name=name, tone=tone, values=values)


def ticks(text: str, axis: str) -> list[str]:
    part = text.split(f'class="ticks-{axis}"')[1].split("</div>")[0]
    return re.findall(r">([^<>]+)</span>", part)


@pytest.mark.parametrize(
    ("value", "text"), [(1234.4, "1,234"), (12.0, "12"), (3.44, "3.44"), (-0.05, "−0.05"), (-14.0, "−14")]
)
def test_a_number_is_short(value: float, text: str) -> None:
    assert number(value) == text


def test_a_unit_stands_apart_but_for_per_cent() -> None:
    assert (with_unit(3.4, "kHz"), with_unit(12, "%"), with_unit(2, "")) == ("3.4 kHz", "12%", "2")


def test_bars_share_one_scale(read_page: Any) -> None:
    rows = [
        Bar(label="techno", pieces=[("one", 6.0), ("two", 2.0)], text="8 h"),
        Bar(label="<b>", pieces=[("one", 2.0), ("two", 0.0)], text="2 h", is_rest=True),
    ]
    page = read_page(bars(rows))

    assert [piece["style"] for piece in page.all("i")] == ["width:75.00%", "width:25.00%", "width:25.00%"]
    assert "<b>" in page.text
    assert page.all("b") == []


def test_bars_of_nothing_are_empty(read_page: Any) -> None:
    assert read_page(bars([Bar(label="a", pieces=[("one", 0.0)], text="0")])).all("i") == []


def test_shares_grow_with_their_amounts(read_page: Any) -> None:
    page = read_page(shares([("keep", "kept", 3, "3"), ("drop", "dropped", 1, "1")], label="fates"))

    grown = [piece["style"] for piece in page.all("i") if "style" in piece]
    assert grown == ["flex-grow:0.75000", "flex-grow:0.25000"]
    assert "kept 3" in page.text and "dropped 1" in page.text


def test_a_histogram_counts_every_value_once(read_page: Any) -> None:
    rng = np.random.default_rng(0)
    kept, dropped = rng.normal(-14, 3, 700), rng.normal(-20, 3, 300)
    text = histogram(
        [series(*kept), series(*dropped, name="dropped", tone="drop")], what="loudness", unit="LUFS", counted="tracks"
    )

    counts: dict[str, int] = {"kept": 0, "dropped": 0}
    for count, name in re.findall(r": ([\d,]+) tracks, (\w+)</title>", text):
        counts[name] += int(count.replace(",", ""))
    assert counts == {"kept": 700, "dropped": 300}
    both = np.concatenate([kept, dropped])
    assert f"of 1,000 tracks: median {number(float(np.median(both)))} LUFS" in text
    assert read_page(text).all("rect")


def test_one_far_value_does_not_squeeze_the_others() -> None:
    values = [*np.linspace(100, 300, 200), 7200.0]
    text = histogram([series(*values)], what="length", unit="s", counted="tracks")

    assert float(ticks(text, "x")[-1]) <= 320
    assert "also 1 above" in text


def test_limits_are_kept_whatever_the_values() -> None:
    text = histogram([series(1.0, 2.0)], what="silence", unit="%", counted="tracks", limits=(0, 100))
    assert (ticks(text, "x")[0], ticks(text, "x")[-1]) == ("0", "100")


@pytest.mark.parametrize("values", [[20.0] * 5, [0.0], [-1e-9, 1e-9], [math.nan, 3.0]])
def test_a_histogram_of_hardly_anything_is_drawn(values: list[float], read_page: Any) -> None:
    assert read_page(histogram([series(*values)], what="it", unit="s", counted="tracks")).all("rect")


@pytest.mark.parametrize("values", [[], [math.nan, math.inf]])
def test_a_histogram_of_nothing_says_so(values: list[float]) -> None:
    assert "Not measured." in histogram([series(*values)], what="it", unit="s", counted="tracks")


def test_lines_go_through_their_points_and_break_where_there_is_none(read_page: Any) -> None:
    curves = {"train": [(0.0, 4.0), (50.0, 2.0), (75.0, math.nan), (100.0, 0.0)], "valid": [(0.0, 4.0), (100.0, 3.0)]}
    text = lines(curves, what="Loss", x_label="step", y_label="nats")
    drawn = [path["d"] for path in read_page(text).all("path") if (path["class"] or "").startswith("line")]

    assert drawn == ["M0.00 0.00L50.00 50.00M100.00 100.00", "M0.00 0.00L100.00 25.00"]
    assert ticks(text, "y") == ["0", "1", "2", "3", "4"]
    assert "Loss: train ends at 0, valid ends at 3" in text


def test_lines_of_one_point_and_of_none_are_drawn() -> None:
    assert "Nothing recorded yet." in lines({"a": []}, what="Loss", x_label="step", y_label="nats")
    assert "<path" in lines({"a": [(3.0, 2.5)]}, what="Loss", x_label="step", y_label="nats")


def test_a_waveform_shows_both_sides_and_full_scale(read_page: Any) -> None:
    samples = np.zeros((2, 1000), np.float32)
    samples[0, 250], samples[1, 750] = 0.5, -1.0
    quiet, loud = [path["d"] for path in read_page(waveform(samples, columns=4)).all("path")]

    assert quiet == "M0.5 50.0V50.6M1.5 25.0V50.0M2.5 50.0V50.6M3.5 50.0V100.0"
    assert loud == "M3.5 0V6M3.5 94V100"


def test_a_waveform_of_one_sample_is_drawn() -> None:
    assert "<path" in waveform(np.zeros((1, 1), np.float32))


def test_a_strip_tells_the_kept_part_from_the_rest(read_page: Any) -> None:
    levels = np.array([-np.inf, -30, 0, np.nan, -60], np.float16)
    kept, cut = [path["d"] for path in read_page(level_strip(levels, start_s=1, stop_s=4)).all("path")]

    assert kept == "M1 100V50h1V100M2 100V0h1V100M3 100V98h1V100"
    assert cut == "M0 100V98h1V100M4 100V98h1V100"
    assert level_strip(np.zeros(0, np.float16)) == ""


def test_a_legend_names_its_colours(read_page: Any) -> None:
    assert read_page(legend([("one", "train"), ("two", "<valid>")])).text == "train <valid>"
