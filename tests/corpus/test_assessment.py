import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicgen_ft.corpus.assessment import Assessed, assess, assessed_from_line, assessed_to_line
from musicgen_ft.corpus.auto_labels import Heard
from musicgen_ft.corpus.fingerprint import Fingerprint
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.quality import Quality
from musicgen_ft.corpus.scan import Record
from musicgen_ft.corpus.split import Split
from musicgen_ft.corpus.survey import Survey, survey_to_dict
from musicgen_ft.corpus.verdicts import Rules
from musicgen_ft.errors import UserError

Pair = tuple[Record, Survey]
MakeFile = Callable[..., Pair]

HEARD = Heard(bpm=97.6, bpm_confidence=0.8, key="a minor", key_confidence=0.7)


@pytest.fixture
def make_file(make_quality: Callable[..., Quality]) -> MakeFile:
    """A function that makes a file of the corpus and its survey; it takes changes of its figures."""

    def make(
        path: str,
        *,
        sound: str = "",
        split: Split | None = None,
        labels: Labels | None = None,
        problem: str | None = None,
        survey: dict[str, Any] | None = None,
        **quality: Any,
    ) -> Pair:
        key = path.replace("/", "-").partition(".")[0]
        record = Record(
            id=key,
            path=Path("/corpus") / path,
            relative_path=path,
            labels=labels or Labels(),
            split=split,
            fields={},
            problem=problem,
        )
        figures = make_quality(**quality)
        seconds = np.full((4, int(np.ceil(figures.duration_s))), -20, np.float16)
        facts: dict[str, Any] = {"audio_sha256": sound or path, "quality": figures, "seconds": seconds, "tags": {}}
        return record, Survey(relative_path=path, num_bytes=7, mtime_ns=8, **{**facts, **(survey or {})})

    return make


def assess_all(files: list[Pair], **options: Any) -> dict[str, Assessed]:
    settings: dict[str, Any] = {
        "rules": Rules(), "split_by": "track", "duplicates": "drop", "auto_labels": True, "valid_fraction": 0.2,
    }  # fmt: skip
    surveys = {record.relative_path: survey for record, survey in files}
    found = assess([record for record, _ in files], surveys, **{**settings, **options})
    assert [track.record.relative_path for track in found] == [record.relative_path for record, _ in files]
    return {track.record.relative_path: track for track in found}


def print_of(seed: int) -> Fingerprint:
    rng = np.random.default_rng(seed)
    return Fingerprint(rng.integers(0, 2**31, 300).astype(np.uint32), np.sort(rng.integers(0, 4000, 300, np.int32)))


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_are_completed_by_tags_and_then_by_what_was_heard(make_file: MakeFile) -> None:
    file = make_file(
        "a.wav", labels=Labels(title="Mine"), survey={"tags": {"title": "Its", "key": "c major"}, "heard": HEARD}
    )

    labels = assess_all([file])["a.wav"].record.labels

    assert (labels.title, labels.key, labels.bpm, labels.computed) == ("Mine", "c major", 98.0, ("bpm",))


def test_nothing_is_heard_where_nobody_wants_it(make_file: MakeFile) -> None:
    labels = assess_all([make_file("a.wav", survey={"heard": HEARD})], auto_labels=False)["a.wav"].record.labels

    assert labels == Labels()


def test_an_album_in_the_tags_groups_tracks(make_file: MakeFile) -> None:
    files = [make_file(f"{n}.wav", survey={"tags": {"album": f"album {n % 7}"}}) for n in range(28)]

    found = assess_all(files, split_by="auto")

    assert len({track.group for track in found.values()}) == 7
    assert all(found[f"{n}.wav"].group == found[f"{n % 7}.wav"].group for n in range(28))
    assert all(found[f"{n}.wav"].split == found[f"{n % 7}.wav"].split for n in range(28))
    assert {track.split for track in found.values()} == {"train", "valid"}


# ---- verdicts --------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_file_is_its_reason(make_file: MakeFile) -> None:
    found = assess_all(
        [
            make_file("good.wav"),
            make_file("labels.wav", problem="its labels cannot be read"),
            make_file("broken.wav", survey={"error": "no samples", "quality": None, "audio_sha256": ""}),
            make_file("quiet.wav", loudness_lufs=-70.0),
            make_file("other.wav", survey={"error": "the file is empty", "quality": None, "audio_sha256": ""}),
        ]
    )

    assert {name: track.verdict.reasons for name, track in found.items()} == {
        "good.wav": (),
        "labels.wav": ("its labels cannot be read",),
        "broken.wav": ("no samples",),
        "quiet.wav": ("loudness -70.0 LUFS, expected at least -50",),
        "other.wav": ("the file is empty",),
    }
    assert [track.is_kept for track in found.values()] == [True, False, False, False, False]
    assert [track.split for track in found.values()] == ["train", None, None, None, None]
    assert {track.duplicate_of for track in found.values()} == {None}  # broken files are not copies of each other


def test_damage_is_a_doubt(make_file: MakeFile) -> None:
    damaged = make_file("a.wav", fade_out_s=12.0, survey={"is_truncated": True, "num_bad_packets": 3})

    verdict = assess_all([damaged])["a.wav"].verdict

    assert verdict.action == "keep"
    assert verdict.doubts == (
        "fades out over 12 s",
        "truncated: the file ends before its container says it does",
        "3 damaged packets were skipped",
    )


def test_mono_is_doubted_by_the_channels_that_are_encoded(make_file: MakeFile) -> None:
    file = make_file("a.wav", source_channels=1, stereo_width=None)

    assert assess_all([file], channels=2)["a.wav"].verdict.doubts == ("mono",)
    assert assess_all([file], channels=1)["a.wav"].verdict.doubts == ()


# ---- duplicates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"duration_s": 90.0}, {"duration_s": 97.5, "bandwidth_khz": 9.0}),
        ({"bandwidth_khz": 16.0}, {"bandwidth_khz": 20.0, "clipped_share": 0.01}),
        ({"clipped_share": 0.02, "labels": Labels(title="Blue")}, {"clipped_share": 0.001}),
        ({"labels": Labels(title="Blue")}, {"labels": Labels(title="Blue", genre="folk")}),
        ({"survey": {"heard": HEARD}}, {"labels": Labels(bpm=97.0, key="a minor")}),
        ({"duration_s": 97.5, "head_silence_s": 40.0, "silent_share": 0.4}, {"duration_s": 90.0}),
    ],
)
def test_the_best_of_a_recording_is_kept(make_file: MakeFile, worse: dict[str, Any], better: dict[str, Any]) -> None:
    files = [make_file("a.wav", sound="s", **worse), make_file("b.wav", sound="s", **better), make_file("c.wav")]

    found = assess_all(files)

    assert [track.is_kept for track in found.values()] == [False, True, True]
    assert found["a.wav"].duplicate_of == "b.wav"
    assert found["a.wav"].verdict.reasons == ("the same recording as b.wav, which is kept",)
    assert (found["a.wav"].group, found["a.wav"].split) == (found["b.wav"].group, None)


def test_of_equal_copies_the_first_is_kept(make_file: MakeFile) -> None:
    found = assess_all([make_file(f"{name}.wav", sound="s") for name in "abc"])

    assert [track.duplicate_of for track in found.values()] == [None, "a.wav", "a.wav"]


def test_a_copy_that_cannot_be_used_is_not_the_one_that_is_kept(make_file: MakeFile) -> None:
    files = [
        make_file("a.wav", sound="s", duration_s=400.0, problem="its labels cannot be read"),
        make_file("b.wav", sound="s", duration_s=300.0, dc_offset=0.5),
        make_file("c.wav", sound="s", duration_s=200.0),
    ]

    found = assess_all(files)

    assert [track.is_kept for track in found.values()] == [False, False, True]
    assert found["a.wav"].verdict.reasons == ("its labels cannot be read",)


def test_near_duplicates_are_found_by_their_fingerprints(make_file: MakeFile) -> None:
    files = [
        make_file("a.mp3", bandwidth_khz=16.0, survey={"fingerprint": print_of(0)}),
        make_file("b.flac", bandwidth_khz=21.0, survey={"fingerprint": print_of(0)}),
        make_file("c.wav", survey={"fingerprint": print_of(1)}),
    ]

    found = assess_all(files)

    assert [track.duplicate_of for track in found.values()] == ["b.flac", None, None]


def test_duplicates_that_are_kept_are_on_one_side(make_file: MakeFile) -> None:
    for number in range(12):  # whichever side the first would be drawn for
        files = [make_file(f"{number}{name}.wav", sound=name) for name in "abcd"]
        files.append(make_file(f"{number}copy.wav", sound="a"))

        found = list(assess_all(files, duplicates="keep", valid_fraction=0.4).values())

        assert all(track.is_kept and track.duplicate_of is None for track in found)
        assert (found[0].group, found[0].split) == (found[4].group, found[4].split)
        assert len({track.group for track in found}) == 4


def test_copies_that_the_corpus_puts_on_both_sides(make_file: MakeFile) -> None:
    files = [
        make_file("a.wav", sound="s", split="train"),
        make_file("b.wav", sound="s", split="valid"),
        make_file("c.wav", split="valid"),
    ]

    with pytest.raises(UserError, match=r"a\.wav is to be in train and b\.wav in valid, but they are one group"):
        assess_all(files, duplicates="keep")
    found = assess_all(files, duplicates="drop")

    assert [track.split for track in found.values()] == ["train", None, "valid"]


# ---- splits ----------------------------------------------------------------------------------------------------------


def test_what_is_dropped_is_on_no_side_and_takes_no_place_in_it(make_file: MakeFile) -> None:
    files = [make_file(f"{n}.wav", loudness_lufs=-70.0 if n > 1 else -14.0) for n in range(20)]

    found = assess_all(files, valid_fraction=0.01)

    assert sorted(str(track.split) for track in found.values()) == ["None"] * 18 + ["train", "valid"]


def test_the_split_of_an_earlier_run_stays(make_file: MakeFile) -> None:
    files = [make_file(f"{n}.wav") for n in range(10)]
    first = assess_all(files)
    opposite = {track.group: "valid" if track.split == "train" else "train" for track in first.values()}

    again = assess_all(files, previous=opposite)

    assert {track.group: track.split for track in again.values()} == opposite


def test_a_corpus_of_which_nothing_is_left_is_told_by_its_verdicts(make_file: MakeFile) -> None:
    found = assess_all([make_file("a.wav", duration_s=0.2)])

    assert not found["a.wav"].is_kept
    assert assess_all([]) == {}


# ---- lines -----------------------------------------------------------------------------------------------------------


def test_a_file_survives_its_line(make_file: MakeFile) -> None:
    files = [
        make_file(
            "für/a.wav",
            sound="s",
            tail_silence_s=9.0,
            survey={"heard": HEARD, "fingerprint": print_of(3), "tags": {"x": "é"}},
        ),
        make_file("für/b.wav", sound="s", duration_s=40.0),
        make_file("c.wav", survey={"error": "no samples", "quality": None, "seconds": None, "audio_sha256": ""}),
    ]

    for track in assess_all(files).values():
        read = assessed_from_line(assessed_to_line(track), Path("/corpus"))

        assert read is not None
        assert "\n" not in assessed_to_line(track)
        assert survey_to_dict(read.survey) == survey_to_dict(track.survey)
        assert replace(read.record, split=track.record.split) == track.record
        assert (read.verdict, read.group, read.split, read.duplicate_of) == (
            track.verdict, track.group, track.split, track.duplicate_of,
        )  # fmt: skip


def test_a_line_of_another_version_counts_as_none_and_a_damaged_one_is_told(make_file: MakeFile) -> None:
    line = assessed_to_line(assess_all([make_file("a.wav")])["a.wav"])
    values = json.loads(line)
    values["survey"]["version"] = 0

    assert assessed_from_line(json.dumps(values), Path()) is None
    for damaged in (line[:-9], json.dumps({"id": "a"}), json.dumps({**json.loads(line), "labels": {"who": 1}})):
        with pytest.raises((ValueError, KeyError, TypeError)):
            assessed_from_line(damaged, Path())
