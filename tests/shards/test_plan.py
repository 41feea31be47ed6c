import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicgen_ft.codec import CodecSpec
from musicgen_ft.corpus.assessment import Assessed
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.quality import Quality
from musicgen_ft.corpus.scan import Record
from musicgen_ft.corpus.survey import Survey
from musicgen_ft.corpus.verdicts import Verdict
from musicgen_ft.shards.encode import Encoded, finished_track
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.plan import PlannedShard, PlannedTrack, make_plan, planned_track
from musicgen_ft.shards.writer import write_shard

MakePlanned = Callable[..., PlannedTrack]
Existing = dict[str, Iterable[str]]

BYTES = 100_000


def plan(
    tracks: dict[Split, list[PlannedTrack]],
    codec: CodecSpec,
    *,
    existing: Existing | None = None,
    max_shard_bytes: int = BYTES,
) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the shards that stay, and keys of those to make, by name."""
    whole: dict[Split, list[PlannedTrack]] = {"train": [], "valid": [], **tracks}
    kept, new = make_plan(whole, codec, existing=existing or {}, max_shard_bytes=max_shard_bytes)
    return kept, {shard.name: [track.key for track in shard.tracks] for shard in new}


def states(*tracks: PlannedTrack) -> list[str]:
    return [track.state for track in tracks]


# ---- a new folder ----------------------------------------------------------------------------------------------------


def test_each_split_has_its_shards_with_all_tracks_in_order(codec: CodecSpec, make_planned: MakePlanned) -> None:
    train, valid = [make_planned(number) for number in (4, 0, 7)], [make_planned(9)]

    kept, new = make_plan({"train": train, "valid": valid}, codec, existing={}, max_shard_bytes=BYTES)

    assert kept == []
    assert new == [
        PlannedShard(name="train-000000.tar", split="train", tracks=tuple(train)),
        PlannedShard(name="valid-000000.tar", split="valid", tracks=tuple(valid)),
    ]


def test_equal_tracks_give_equal_plans(codec: CodecSpec, make_planned: MakePlanned) -> None:
    def make() -> Any:
        tracks: dict[Split, list[PlannedTrack]] = {
            "train": [make_planned(number, duration_s=60.0 * (1 + number % 3)) for number in range(30)],
            "valid": [make_planned(number) for number in range(30, 33)],
        }
        return plan(tracks, codec, max_shard_bytes=25_000)

    assert make() == make()
    assert len(make()[1]) > 3


def filled(planned: PlannedTrack, codec: CodecSpec) -> Any:
    """The track as large as it gets."""
    num_frames = math.ceil(planned.duration_s * codec.frame_rate)
    seconds = planned.seconds.shape[1]
    encoded = Encoded(
        codes=np.zeros((codec.n_q, num_frames), np.uint16),
        chroma=None,
        snr_db=12.5,
        snr_seconds=np.full(seconds, 12.5, np.float32),
    )
    return finished_track(planned, encoded)


@pytest.mark.parametrize("duration_s", [1.0, 30.0, 400.0])
def test_a_shard_is_full_before_it_exceeds_its_size(
    tmp_path: Path, codec: CodecSpec, make_planned: MakePlanned, duration_s: float
) -> None:
    labels = Labels(description="a long description of the music " * 8, title="title " * 4, artist="an artist",
                    album="an album", genre="folk", moods=("calm", "warm"), bpm=97.0, key="a minor")  # fmt: skip
    tracks = [make_planned(number, duration_s=duration_s, labels=labels) for number in range(60)]

    _, new = make_plan({"train": tracks, "valid": []}, codec, existing={}, max_shard_bytes=BYTES)

    sizes = [
        write_shard(
            tmp_path, shard.name, (filled(track, codec) for track in shard.tracks), split="train", codec=codec
        ).shard.num_bytes
        for shard in new
    ]
    assert [track for shard in new for track in shard.tracks] == tracks
    assert len(sizes) > 1
    assert max(sizes) <= BYTES
    assert min(sizes[:-1]) > BYTES / 2


def test_a_track_larger_than_a_shard_has_one_of_its_own(codec: CodecSpec, make_planned: MakePlanned) -> None:
    tracks = [make_planned(number, duration_s=duration_s) for number, duration_s in enumerate((3.0, 9000.0, 3.0, 3.0))]

    _, new = plan({"train": tracks}, codec)

    assert list(new.values()) == [["track_000"], ["track_001"], ["track_002", "track_003"]]


# ---- a folder that is there ------------------------------------------------------------------------------------------


def test_shards_whose_tracks_are_wanted_as_they_are_stay(codec: CodecSpec, make_planned: MakePlanned) -> None:
    tracks = [make_planned(number) for number in range(6)]
    existing: Existing = {"train-000000.tar": states(*tracks[:3]), "train-000001.tar": states(*tracks[3:5])}

    kept, new = plan({"train": tracks}, codec, existing=existing)

    assert kept == ["train-000000.tar", "train-000001.tar"]
    assert new == {"train-000002.tar": ["track_005"]}


def test_nothing_is_made_where_nothing_changed(codec: CodecSpec, make_planned: MakePlanned) -> None:
    train, valid = [make_planned(number) for number in range(3)], [make_planned(8)]
    existing: Existing = {"train-000004.tar": states(*train), "valid-000002.tar": states(*valid)}

    assert plan({"train": train[::-1], "valid": valid}, codec, existing=existing) == (list(existing), {})


def test_a_shard_with_a_track_that_changed_or_went_is_dissolved(codec: CodecSpec, make_planned: MakePlanned) -> None:
    tracks = [make_planned(number) for number in range(6)]
    existing: Existing = {
        "train-000000.tar": states(*tracks[:2]),
        "train-000001.tar": states(*tracks[2:4]),
        "train-000002.tar": states(*tracks[4:]),
    }
    changed = replace(tracks[3], labels=Labels(genre="jazz"))

    kept, new = plan({"train": [tracks[0], tracks[2], changed, *tracks[4:]]}, codec, existing=existing)

    assert kept == ["train-000002.tar"]
    assert new == {"train-000003.tar": ["track_000", "track_002", "track_003"]}


def test_a_track_that_changes_sides_leaves_its_shard(codec: CodecSpec, make_planned: MakePlanned) -> None:
    tracks = [make_planned(number) for number in range(4)]
    existing: Existing = {"train-000000.tar": states(*tracks[:3]), "valid-000000.tar": states(tracks[3])}

    kept, new = plan({"train": tracks[:2], "valid": tracks[2:]}, codec, existing=existing)

    assert kept == ["valid-000000.tar"]
    assert new == {"train-000001.tar": ["track_000", "track_001"], "valid-000001.tar": ["track_002"]}


def test_numbers_go_on_from_the_highest_that_is_there(codec: CodecSpec, make_planned: MakePlanned) -> None:
    existing: Existing = {"train-000009.tar": ["gone"], "train-000003.tar": ["gone too"], "valid-000020.tar": ["gone"]}
    tracks = [make_planned(number, duration_s=1000.0) for number in range(2)]

    kept, new = plan({"train": tracks}, codec, existing=existing, max_shard_bytes=70_000)

    assert kept == []
    assert list(new) == ["train-000010.tar", "train-000011.tar"]


def test_of_two_shards_with_one_track_one_stays(codec: CodecSpec, make_planned: MakePlanned) -> None:
    tracks = [make_planned(number) for number in range(3)]  # an update was stopped before the old shard was removed
    existing: Existing = {"train-000000.tar": states(*tracks[:2]), "train-000001.tar": states(*tracks[1:])}

    kept, new = plan({"train": tracks}, codec, existing=existing)

    assert kept == ["train-000000.tar"]
    assert new == {"train-000002.tar": ["track_002"]}


def test_an_empty_shard_is_not_kept(codec: CodecSpec, make_planned: MakePlanned) -> None:
    kept, new = plan({"train": [make_planned(1)]}, codec, existing={"train-000000.tar": []})

    assert (kept, new) == ([], {"train-000001.tar": ["track_001"]})


# ---- states ----------------------------------------------------------------------------------------------------------

CODES = {
    "start_s": 2,
    "stop_s": 50,
    "audio_sha256": "f" * 64,
    "settings": "window_s=10",
}
"""What a track's codes are made of."""
REST: dict[str, Any] = {
    "key": "other",
    "relative_path": "jazz/song 0.flac",
    "labels": Labels(genre="jazz"),
    "group": "another album",
    "duration_s": 3.5,
    "seconds": np.full((4, 3), -21, np.float16),
    "is_truncated": True,
    "num_bad_packets": 3,
}


@pytest.mark.parametrize("name", [*CODES, *REST])
def test_states_tell_what_changed(make_planned: MakePlanned, name: str) -> None:
    track = make_planned()
    changed = replace(track, **{name: {**CODES, **REST}[name]})

    assert changed.state != track.state
    assert (changed.codes_state != track.codes_state) == (name in CODES)


def test_states_tell_of_the_figures(make_planned: MakePlanned, make_quality: Callable[..., Quality]) -> None:
    track = make_planned()
    changed = replace(track, quality=make_quality(duration_s=3.0, peak_db=-3.0))

    assert (changed.state != track.state, changed.codes_state == track.codes_state) == (True, True)


def test_a_planned_track_survives_json(make_planned: MakePlanned) -> None:
    track = make_planned(7, start_s=1, stop_s=3, labels=Labels(moods=("warm",), bpm=98.5, computed=("bpm",)))

    read = PlannedTrack.from_dict(json.loads(json.dumps(track.to_dict(), allow_nan=False)))

    assert (read.state, read.codes_state) == (track.state, track.codes_state)
    assert (read.labels, read.quality, read.start_s, read.stop_s) == (track.labels, track.quality, 1, 3)
    np.testing.assert_array_equal(read.seconds, track.seconds)


def test_what_is_planned_of_a_file_is_its_kept_part(make_quality: Callable[..., Quality]) -> None:
    seconds = np.arange(4 * 98, dtype=np.float16).reshape(4, 98)
    survey = Survey(
        relative_path="a/b.wav", num_bytes=1, mtime_ns=2, audio_sha256="e" * 64, quality=make_quality(),
        seconds=seconds, tags={}, is_truncated=True, num_bad_packets=2,
    )  # fmt: skip
    record = Record(
        id="a-b-1", path=Path("/a/b.wav"), relative_path="a/b.wav", labels=Labels(genre="folk"), split=None, fields={}
    )
    verdict = Verdict(action="trim", start_s=3, stop_s=90, reasons=("silence",))
    assessed = Assessed(record=record, survey=survey, verdict=verdict, group="g", duplicate_of=None, split="train")

    track = planned_track(assessed, "window_s=30")

    assert (track.key, track.relative_path, track.group) == ("a-b-1", "a/b.wav", "g")
    assert (track.start_s, track.stop_s, track.duration_s) == (3, 90, 87.0)
    assert (track.is_truncated, track.num_bad_packets, track.settings) == (True, 2, "window_s=30")
    np.testing.assert_array_equal(track.seconds, seconds[:, 3:90])
    whole = planned_track(replace(assessed, verdict=Verdict(action="keep")), "window_s=30")
    assert (whole.start_s, whole.stop_s, whole.duration_s, whole.seconds.shape) == (0, None, 97.5, (4, 98))
