"""Claims about what is counted of a corpus, and in which order its tracks come."""

import doctest
from collections.abc import Callable
from typing import Any

import pytest

import musicgen_ft.report.corpus_figures as figures
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.quality import Quality
from musicgen_ft.corpus.verdicts import Verdict
from musicgen_ft.report.corpus_figures import (
    FINDINGS,
    ReportTrack,
    count_labels,
    count_reasons,
    duplicate_clusters,
    groups_in_both_parts,
    plain,
    rank,
    score,
    spread,
    values_of,
)

MakeTrack = Callable[..., ReportTrack]
MakeQuality = Callable[..., Quality]
DOUBT = Verdict(action="keep", doubts=("quiet",))


def dropped(*reasons: str) -> Verdict:
    return Verdict(action="drop", reasons=reasons)


def test_the_examples_are_true() -> None:
    assert doctest.testmod(figures).failed == 0
    assert doctest.testmod(figures).attempted == 6


def test_what_is_kept_is_counted_without_what_is_cut_off(make_track: MakeTrack) -> None:
    assert make_track().kept_s == 180
    assert make_track(verdict=Verdict(action="trim", start_s=3, stop_s=170)).kept_s == 167
    assert make_track(verdict=Verdict(action="trim", start_s=3, stop_s=400)).kept_s == 177
    assert make_track(verdict=dropped("too short")).kept_s == 0
    assert make_track(quality=None).kept_s == 0
    assert make_track(error="damaged").kept_s == 0


def test_a_file_without_audio_is_dropped_and_its_folders_are_not_told(make_track: MakeTrack) -> None:
    track = make_track("x", error="somewhere/private/music/x.flac: no audio stream", quality=None)
    assert track.action == "drop"
    assert track.reasons == ("no audio: no audio stream",)
    assert make_track(error="no audio stream", verdict=dropped("no audio stream")).reasons == ("no audio stream",)
    assert make_track().reasons == ()


def test_a_duplicate_has_a_reason_and_has_it_once(make_track: MakeTrack) -> None:
    told = "the same recording as a.mp3, which is kept"
    assert make_track(verdict=dropped(told), duplicate_of="a.mp3").reasons == (told,)
    assert make_track(verdict=dropped(), duplicate_of="a.mp3").reasons == ("the same recording as a.mp3",)


def test_a_track_is_named_by_its_title_or_its_file(make_track: MakeTrack) -> None:
    assert make_track("x").name == "x.flac"
    assert make_track(labels={"title": "Tide"}).name == "Tide"
    assert make_track(labels={"title": "Tide", "artist": "Anna"}).name == "Tide – Anna"


def test_labels_are_counted_in_seconds_by_split_most_first(make_track: MakeTrack, make_quality: MakeQuality) -> None:
    tracks = [
        make_track("a", labels={"genre": "jazz"}),
        make_track("b", labels={"genre": "jazz"}, split="valid", quality=make_quality(duration_s=20)),
        make_track("c", labels={"genre": "folk"}, quality=make_quality(duration_s=300)),
        make_track("d", labels={"genre": "rock"}, verdict=dropped("x")),
    ]
    counts = count_labels(tracks, "genre")

    assert [(count.label, count.tracks, count.seconds) for count in counts] == [
        ("folk", 1, {"train": 300}),
        ("jazz", 2, {"train": 180, "valid": 20}),
    ]
    assert counts[1].total_s == 200


def test_instruments_are_taken_apart_and_count_once() -> None:
    assert values_of(Labels(instrument="piano, drums,piano , "), "instrument") == ("piano", "drums")
    assert values_of(Labels(moods=("calm", "dark")), "moods") == ("calm", "dark")
    assert values_of(Labels(), "genre") == values_of(Labels(), "moods") == ()


def test_reasons_are_counted_by_kind(make_track: MakeTrack) -> None:
    tracks = [
        make_track("a", verdict=dropped("silent for 61% of its length, expected at most 50%")),
        make_track("b", verdict=dropped("silent for 9.5% of its length, expected at most 50%", "too short")),
        make_track("c", verdict=Verdict(action="trim", start_s=4, reasons=("4 s of silence at the start",))),
        make_track("d", verdict=dropped("the same recording as 1/2.mp3, which is kept"), duplicate_of="1/2.mp3"),
        make_track("e", verdict=dropped("the same recording as 3.mp3, which is kept"), duplicate_of="3.mp3"),
        make_track("f", verdict=Verdict(action="keep", reasons=("never told",))),
    ]

    assert [(count.reason, count.dropped, count.trimmed) for count in count_reasons(tracks)] == [
        ("silent for …% of its length, expected at most …%", 2, 0),
        ("the same recording as another track, which is kept", 2, 0),
        ("too short", 1, 0),
        ("… s of silence at the start", 0, 1),
    ]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("much silence", {"silent_share": 0.3}),
        ("clipped", {"clipped_share": 0.01}),
        ("narrow band", {"bandwidth_khz": 8.0}),
        ("mono in stereo", {"stereo_width": 0.0}),
        ("DC offset", {"dc_offset": -0.05}),
        ("quiet", {"loudness_lufs": None}),
        ("quiet", {"loudness_lufs": -44.0}),
    ],
)
def test_each_fault_is_noticed_and_no_other(name: str, changes: dict[str, Any], make_quality: MakeQuality) -> None:
    assert [finding.name for finding in FINDINGS if finding.holds(make_quality(**changes))] == [name]


def test_nothing_is_noticed_in_a_flawless_track(make_quality: MakeQuality) -> None:
    assert not [finding for finding in FINDINGS if finding.holds(make_quality(stereo_width=None))]


def test_points_fall_in_proportion_and_never_below_0(make_track: MakeTrack, make_quality: MakeQuality) -> None:
    def points(**changes: Any) -> float | None:
        return score(make_track(quality=make_quality(**changes)))

    assert points() == 100
    assert points(clipped_share=0.001) == 85
    assert points(bandwidth_khz=10.5) == 85
    assert points(codec_snr_db=None) == 100
    assert points(codec_snr_db=3.0) == 95
    worst = {"clipped_share": 1.0, "bandwidth_khz": 0.0, "silent_share": 1.0, "loudness_lufs": -60.0}
    assert points(**worst, codec_snr_db=-9.0) == 0
    assert score(make_track(quality=None)) is None


def test_a_track_is_in_one_list_and_what_is_dropped_in_none(make_track: MakeTrack, make_quality: MakeQuality) -> None:
    bad, worse = make_quality(silent_share=0.3), make_quality(silent_share=0.4)
    tracks = [
        *(make_track(f"good{number}") for number in range(4)),
        make_track("bad", quality=bad),
        make_track("worse", quality=worse),
        make_track("doubt", verdict=DOUBT),
        make_track("doubts", verdict=Verdict(action="keep", doubts=("quiet", "clipped"))),
        make_track("dropped", verdict=dropped("x")),
        make_track("unmeasured", quality=None),
    ]
    ranking = rank(tracks)

    assert {track.id for track in ranking.best} == {"good0", "good1", "good2", "good3"}
    assert [track.id for track in ranking.worst] == ["worse", "bad"]
    assert [track.id for track in ranking.doubtful] == ["doubts", "doubt"]


def test_where_all_lose_points_half_are_the_best(make_track: MakeTrack, make_quality: MakeQuality) -> None:
    tracks = [make_track(f"{n}", quality=make_quality(silent_share=0.1 + 0.05 * n)) for n in range(4)]
    ranking = rank(tracks)
    assert [track.id for track in ranking.best] == ["0", "1"]
    assert [track.id for track in ranking.worst] == ["3", "2"]


def test_the_ranking_does_not_hang_on_the_order_of_the_tracks(make_track: MakeTrack) -> None:
    tracks = [make_track(f"track{number}") for number in range(50)]
    best = rank(tracks).best
    assert best == rank(tracks[::-1]).best
    assert [track.id for track in best] != sorted(track.id for track in best)


def test_every_genre_comes_once_before_one_comes_twice(make_track: MakeTrack) -> None:
    tracks = [make_track(str(n), labels={"genre": genre}) for n, genre in enumerate(["jazz", "jazz", "jazz", "folk"])]
    assert [track.id for track in spread(tracks, 3)] == ["0", "3", "1"]


def test_clusters_and_parted_groups_are_found(make_track: MakeTrack) -> None:
    tracks = [
        make_track("a", group="one"),
        make_track("b", group="one", split="valid"),
        make_track("c", group="two", duplicate_of="a"),
        make_track("d", group="two", duplicate_of="a", split=None),
        make_track("e", duplicate_of="x"),
    ]
    assert [(of, [track.id for track in members]) for of, members in duplicate_clusters(tracks)] == [
        ("music/a.flac", ["c", "d"]),
        ("x", ["e"]),
    ]
    assert groups_in_both_parts(tracks) == ["one"]


def test_a_terminal_gets_plain_text() -> None:
    assert plain("a\x1b[31m\n\tb\udce9\u202e") == "a[31m b\\udce9"
