"""Claims about the page of a corpus: all that was dropped is on it, nothing runs in it, and it stays small."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicgen_ft.corpus.quality import Quality
from musicgen_ft.corpus.verdicts import Verdict
from musicgen_ft.report.corpus_figures import ReportTrack
from musicgen_ft.report.corpus_report import MAX_ROWS, Excerpt, write_report

MakeTrack = Callable[..., ReportTrack]
MakeQuality = Callable[..., Quality]
EVIL = "\"'><script>alert(1)</script><img src=//evil.example onerror=alert(2)>"
NOISE = np.random.default_rng(0).normal(0, 0.1, (2, 8000)).astype(np.float32)


def heard(track: ReportTrack) -> tuple[Any, int]:
    return NOISE, 8000


def unheard(track: ReportTrack) -> None:
    return None


@pytest.fixture
def report(tmp_path: Path, read_page: Any) -> Callable[..., Any]:
    """A function that writes a report and reads its page."""

    def write(tracks: list[ReportTrack], excerpt: Excerpt = unheard, **words: Any) -> Any:
        path = tmp_path / "report.html"
        write_report(path, tracks, **{"title": "A corpus", "excerpt": excerpt, **words})
        return read_page(path.read_text(encoding="utf-8"))

    return write


def anchors(page: Any) -> list[str]:
    return [str(link["href"])[1:] for link in page.all("a")[1:]]


def test_a_full_report_has_every_section(report: Any, make_track: MakeTrack) -> None:
    tracks = [
        make_track("a", labels={"genre": "jazz", "bpm": 120.0, "computed": ("bpm",)}, group="one"),
        make_track("b", labels={"genre": "folk"}, split="valid", group="two"),
        make_track("c", verdict=Verdict(action="drop", reasons=("too short",)), duplicate_of="a", split=None),
    ]
    page = report(tracks, heard, captions=[("a", ["a slow tune", "a slow tune", None])])

    assert anchors(page) == ["labels", "sound", "listen", "captions", "dropped", "duplicates", "split"]
    assert "Of 3 files, 2 can be used: 6.0 min of music. All of them labelled." in page.text
    assert "1 of 2 tracks, 1 of them heard in the audio" in page.text
    assert "a slow tune × 2" in page.text
    assert "no caption: it learns to play without one" in page.text
    assert "Genres that the held-out part lacks: jazz." in page.text
    assert "No group of related tracks lies in both parts." in page.text


def test_labels_are_text_wherever_they_are_shown(report: Any, make_track: MakeTrack) -> None:
    labels = {
        **dict.fromkeys(("title", "artist", "album", "genre", "key", "description", "instrument"), EVIL),
        **dict.fromkeys(("moods", "keywords"), (EVIL,)),
    }
    tracks = [
        make_track(EVIL, labels=labels, verdict=Verdict(action="trim", reasons=(EVIL,), doubts=(EVIL,)), group=EVIL),
        make_track("b", relative_path=EVIL, split="valid", group=EVIL, duplicate_of=EVIL),
        make_track("c", relative_path=EVIL, error=EVIL, quality=None, split=None),
    ]
    page = report(tracks, heard, title=EVIL, captions=[(EVIL, [EVIL])])

    assert len(page.all("script")) == len(page.scripts) == 1
    assert "alert" not in page.scripts[0]
    assert {image["alt"] for image in page.all("img")} == {"Spectrogram of the excerpt"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(EVIL) > 10


def test_the_page_loads_nothing(report: Any, make_track: MakeTrack) -> None:
    page = report([make_track(labels={"title": "See https://music.example"})], heard)

    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "poster", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, name)
        assert not re.search(r"url\(|https?:", attributes.get("style") or "")
    assert {tag for tag, _ in page.tags}.isdisjoint({"iframe", "object", "embed", "base", "form"})


def test_everything_that_was_dropped_is_there_with_its_reason(report: Any, make_track: MakeTrack) -> None:
    tracks = [
        make_track(f"t{n:03}", verdict=Verdict(action="drop", reasons=(f"reason <{n}>",)), split=None)
        for n in range(MAX_ROWS)
    ]
    text = report(tracks).text

    assert all(f"music/t{n:03}.flac reason <{n}>" in text for n in range(MAX_ROWS))
    assert f"{MAX_ROWS:,} files" in text
    assert "Showing" not in text


def test_what_does_not_fit_is_said(report: Any, make_track: MakeTrack) -> None:
    drop = Verdict(action="drop", reasons=("too short",))
    page = report([make_track(f"{n}", verdict=drop, seconds=None) for n in range(MAX_ROWS + 7)])

    assert f"Showing {MAX_ROWS:,} of {MAX_ROWS + 7:,} files" in page.text
    assert page.text.count("too short") == MAX_ROWS + 1  # the rows, and the bar of reasons


def test_the_best_the_worst_and_the_doubtful_can_be_heard(
    report: Any, make_track: MakeTrack, make_quality: MakeQuality
) -> None:
    tracks = [
        make_track("doubt", verdict=Verdict(action="keep", doubts=("fades out over 40 s",))),
        make_track("bad", quality=make_quality(silent_share=0.4)),
        *(make_track(f"good{n}") for n in range(9)),
    ]
    page = report(tracks, heard, max_players=4)

    assert [str(audio["aria-label"]).split()[1] for audio in page.all("audio")][2:] == ["bad.flac", "doubt.flac"]
    assert "Here are 2 of 9." in page.text
    assert "fades out over 40 s" in page.text
    assert "silence costs 16: 40% of seconds" in page.text
    assert "How the tracks are ranked" in page.text


@pytest.mark.parametrize(("max_players", "expected"), [(0, 0), (1, 1), (5, 3), (12, 6)])
def test_no_more_players_than_asked_for(max_players: int, expected: int, report: Any, make_track: MakeTrack) -> None:
    doubt = Verdict(action="keep", doubts=("quiet",))
    tracks = [make_track(f"a{n}") for n in range(9)] + [make_track(f"b{n}", verdict=doubt) for n in range(2)]
    assert len(report(tracks, heard, max_players=max_players).all("audio")) == expected


def test_the_next_track_stands_in_for_one_that_cannot_be_heard(report: Any, make_track: MakeTrack) -> None:
    def some(track: ReportTrack) -> tuple[Any, int] | None:
        return heard(track) if track.id in ("3", "5") else None

    page = report([make_track(f"{n}") for n in range(9)], some, max_players=9)
    assert {str(audio["aria-label"]) for audio in page.all("audio")} == {"Play 3.flac", "Play 5.flac"}


def test_players_stop_where_the_page_would_grow_too_large(tmp_path: Path, make_track: MakeTrack) -> None:
    loud = np.random.default_rng(0).normal(0, 0.3, (1, 32000 * 12)).astype(np.float32)
    doubt = Verdict(action="keep", doubts=("quiet",))
    tracks = [make_track(f"{n}", verdict=doubt) for n in range(40)]
    write_report(tmp_path / "a.html", tracks, title="Loud", excerpt=lambda track: (loud, 32000), max_players=90)

    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert 3 < text.count("<audio") < 30
    assert len(text) < 8e6


@pytest.mark.parametrize("count", [0, 1, 3])
def test_small_corpora_have_reports(count: int, report: Any, make_track: MakeTrack) -> None:
    page = report([make_track(f"{n}") for n in range(count)], heard)
    assert ("Nothing was dropped" in page.text) == (count > 0)
    assert len(page.all("audio")) == count


def test_tracks_of_which_nothing_is_known_have_a_report(report: Any, make_track: MakeTrack) -> None:
    page = report([make_track(f"{n}", quality=None, seconds=None, split=None) for n in range(3)], heard)

    assert "3 not measured" in page.text
    assert "No track has a label for: genre" in page.text
    assert page.all("audio") == []


def test_figures_that_are_missing_are_left_out(report: Any, make_track: MakeTrack, make_quality: MakeQuality) -> None:
    bare = make_quality(loudness_lufs=None, stereo_width=None, source_channels=1)
    page = report([make_track(quality=bare, seconds=np.full((4, 7), np.nan, np.float16))], heard)

    assert "Codec SNR" not in page.text
    assert "Loudness – median" in page.text


def test_a_group_in_both_parts_is_told(report: Any, make_track: MakeTrack) -> None:
    tracks = [make_track("a", group="album x"), make_track("b", group="album x", split="valid")]
    assert "Groups that lie in both parts, so that the held-out loss is too good: album x." in report(tracks).text


def test_duplicates_stand_beside_what_they_repeat(report: Any, make_track: MakeTrack) -> None:
    tracks = [make_track("a"), *(make_track(f"b{n}", duplicate_of=of) for n, of in enumerate(["a", "music/a.flac"]))]
    text = report(tracks).text
    assert "2 files repeat 1 track" in text
    assert "3 files music/a.flac kept: music/b0.flac kept: music/b1.flac" in text


def test_a_name_that_is_no_utf_8_does_not_stop_the_report(report: Any, make_track: MakeTrack) -> None:
    track = make_track("x", relative_path="caf\udce9.mp3", verdict=Verdict(action="drop", reasons=("too short",)))
    assert "caf\\udce9.mp3" in report([track]).text


def test_five_thousand_tracks_give_a_page_of_a_few_megabytes_in_seconds(
    tmp_path: Path, make_track: MakeTrack, make_quality: MakeQuality, read_page: Any
) -> None:
    rng = np.random.default_rng(0)
    verdicts = (
        *(
            Verdict(action="keep"),
            Verdict(action="keep", doubts=("quiet",)),
            Verdict(action="drop", reasons=("short",)),
        ),
        Verdict(action="trim", start_s=3, reasons=("3 s of silence at the start",)),
    )
    tracks = [
        make_track(
            f"t{n}",
            relative_path=f"An artist {n % 331}/An album {n % 700}/{n:05} A track whose name is rather long.mp3",
            labels={"genre": f"genre {int(rng.exponential(8))}", "artist": f"Artist {n % 331}", "bpm": 90.0 + n % 60},
            verdict=verdicts[n % 4],
            quality=make_quality(duration_s=float(rng.lognormal(5, 0.5)), silent_share=float(rng.random() ** 4)),
            split=None if n % 4 == 2 else ("train", "valid")[n % 9 == 0],
            group=f"album {n % 700}",
            duplicate_of=f"t{n - 1}" if n % 50 == 2 else None,
        )
        for n in range(5000)
    ]
    start = time.process_time()
    write_report(tmp_path / "big.html", tracks, title="Big", excerpt=heard)
    assert time.process_time() - start < 8

    text = (tmp_path / "big.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 5e6
    assert "Showing 1,000 of 2,500 files" in read_page(text).text
