"""Claims about the table for the terminal."""

import unicodedata
from collections.abc import Callable

from musicgen_ft.corpus.quality import Quality
from musicgen_ft.corpus.verdicts import Verdict
from musicgen_ft.report.corpus_figures import ReportTrack
from musicgen_ft.report.corpus_summary import summary_lines

MakeTrack = Callable[..., ReportTrack]


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def test_the_summary_tells_what_there_is(make_track: MakeTrack, make_quality: Callable[..., Quality]) -> None:
    trim = Verdict(action="trim", start_s=60, reasons=("60 s of silence at the start",))
    tracks = [
        make_track("a", labels={"genre": "techno"}),
        make_track("b", labels={"genre": "techno"}, verdict=trim),
        make_track("c", labels={"genre": "jazz"}, split="valid", quality=make_quality(source_sample_rate=48000)),
        make_track("d", verdict=Verdict(action="drop"), duplicate_of="a", split=None),
        make_track("e", error="broken", quality=None, split=None),
    ]
    lines = summary_lines(tracks, "My music")
    text = "\n".join(" ".join(line.split()) for line in lines)

    assert lines[:2] == ["My music", "────────"]
    assert "files 5 kept whole 2 trimmed 1 dropped 2" in text
    assert "music kept 8.0 min train 5.0 min in 2 tracks valid 3.0 min in 1 track" in text
    assert f"techno {'█' * 40} 5.0 min 62%" in text
    assert f"jazz {'█' * 24} 3.0 min 38%" in text
    assert "sample rates 44.1 kHz: 3 48 kHz: 1" in text
    assert "loudness -14.0 -14.0 -14.0 -14.0 -14.0 LUFS" in text
    assert "duplicates 1 of 1 track" in text
    assert "1 no audio: broken" in text


def test_lines_fit_and_columns_align_whatever_the_labels(make_track: MakeTrack) -> None:
    genres = ["techno", "ポップ・ミュージック・フロム・トーキョー", "g" * 300, "evil\x1b[2J", *map(str, range(20))]
    reason = "w" * 300
    tracks = [make_track(f"{n}", labels={"genre": genre}) for n, genre in enumerate(genres)]
    tracks.append(make_track("x", verdict=Verdict(action="drop", reasons=(reason,))))
    lines = summary_lines(tracks, "t" * 300)

    assert max(map(columns, lines)) <= 100
    assert "\x1b" not in "".join(lines)
    assert "12 more" in "".join(lines)
    assert len({columns(line) for line in lines if "█" in line}) == 1


def test_a_corpus_of_nothing_and_one_without_figures_have_summaries(make_track: MakeTrack) -> None:
    assert summary_lines([], "empty")[0] == "empty"
    lines = summary_lines([make_track(quality=None, seconds=None, split=None)], "unmeasured")
    assert any(line.startswith("not measured") for line in lines)
    assert any("no track has a genre" in line for line in lines)
