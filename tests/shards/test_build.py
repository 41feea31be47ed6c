"""Shards of real sound through nano's codec, from plans made by hand."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musicgen_ft.audio import write_wav
from musicgen_ft.codec import Codec
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.errors import UserError
from musicgen_ft.shards.build import Builder, default_workers, existing_shards, old_tracks, one_thread_each, read_track
from musicgen_ft.shards.encode import EncodeOptions, Encoder, encoded_of, read_encoded, write_encoded
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.plan import PlannedShard, PlannedTrack
from musicgen_ft.shards.sidecar import read_sidecar
from musicgen_ft.shards.track import Track
from musicgen_ft.shards.work import WorkFolder

NAME = "train-000000.tar"
OPTIONS = EncodeOptions(window_s=1.0, codec_check_s=2.0)


@pytest.fixture
def corpus(tmp_path: Path, nano_codec: Codec) -> Path:
    """Four tracks of 1.3 to 2.2 s."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        waveform = 0.2 * torch.randn(1, round((1.3 + 0.3 * number) * nano_codec.spec.sample_rate), generator=generator)
        write_wav(folder / f"{number}.wav", waveform, nano_codec.spec.sample_rate)
    return folder


@pytest.fixture
def planned(make_planned: Callable[..., PlannedTrack], encoder: Encoder, corpus: Path) -> list[PlannedTrack]:
    return [
        make_planned(
            number,
            duration_s=1.3 + 0.3 * number,
            relative_path=f"{number}.wav",
            num_bytes=(corpus / f"{number}.wav").stat().st_size,
            settings=encoder.settings,
        )
        for number in range(4)
    ]


@pytest.fixture
def encoder(nano_codec: Codec) -> Encoder:
    return Encoder(nano_codec, OPTIONS)


@pytest.fixture
def calls(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the tracks that were encoded."""
    found: list[str] = []
    encode = encoder.encode

    def count(path: Path, track: PlannedTrack) -> Any:
        found.append(track.key)
        return encode(path, track)

    monkeypatch.setattr(encoder, "encode", count)
    return found


def work_in(out: Path, tracks: Sequence[PlannedTrack], *, name: str = NAME, split: Split = "train") -> WorkFolder:
    """A folder with a plan of one shard."""
    work = WorkFolder(out)
    work.write_plan("inputs", [], [PlannedShard(name=name, split=split, tracks=tuple(tracks))], [])
    return work


def builder_of(work: WorkFolder, encoder: Encoder, corpus: Path, **options: Any) -> Builder:
    paths = {f"{number}.wav": corpus / f"{number}.wav" for number in range(4)}
    return Builder(work, encoder, paths, **{"workers": 2, "settings": "of the job", **options})


def tracks_of(out: Path, name: str = NAME) -> list[Track]:
    sidecar = read_sidecar(out, name)
    return [read_track(out, sidecar, number) for number in range(len(sidecar.keys))]


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


# ---- what a shard holds ----------------------------------------------------------------------------------------------


def test_a_shard_holds_what_the_plan_says(
    tmp_path: Path, corpus: Path, encoder: Encoder, planned: list[PlannedTrack]
) -> None:
    work = work_in(tmp_path / "out", planned)
    told: list[str] = []

    builder_of(work, encoder, corpus, progress=lambda track: told.append(track.key)).build([NAME])

    sidecar = read_sidecar(work.out, NAME)
    assert sidecar.keys == [track.key for track in planned]
    assert sidecar.states == [track.state for track in planned]
    assert sidecar.codes_states == [track.codes_state for track in planned]
    assert sidecar.groups == [track.group for track in planned]
    assert (sidecar.settings, sidecar.rejected) == ("of the job", [])
    assert sorted(told) == sidecar.keys
    for number, (track, plan) in enumerate(zip(tracks_of(work.out), planned, strict=True)):
        expected = encoder.encode(corpus / f"{number}.wav", plan)
        np.testing.assert_array_equal(track.codes, expected.codes)
        assert track.codes.shape == (4, math.ceil(50 * plan.duration_s - 1e-6))
        assert track.meta.labels == plan.labels and track.meta.quality is not None
        assert track.meta.quality.codec_snr_db == pytest.approx(expected.snr_db)
        assert track.meta.source["audio_sha256"] == plan.audio_sha256
        assert track.seconds is not None
        np.testing.assert_array_equal(track.seconds[3], expected.snr_seconds.astype(np.float16))
        np.testing.assert_array_equal(track.seconds[:3], plan.seconds[:3])
    assert list(work.parts.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_byte(
    tmp_path: Path, corpus: Path, encoder: Encoder, planned: list[PlannedTrack], workers: int
) -> None:
    for name, number in (("one", 1), ("other", workers)):
        builder_of(work_in(tmp_path / name, planned), encoder, corpus, workers=number).build([NAME])

    assert files_of(tmp_path / "one") == files_of(tmp_path / "other")
    assert [*files_of(tmp_path / "one")] == ["train-000000.index.json", NAME]


def test_a_trimmed_track_is_encoded_from_second_to_second(
    tmp_path: Path, corpus: Path, encoder: Encoder, planned: list[PlannedTrack]
) -> None:
    trimmed = replace(planned[3], start_s=1, stop_s=2, duration_s=1.0, seconds=planned[3].seconds[:, 1:2])
    work = work_in(tmp_path / "out", [trimmed])

    builder_of(work, encoder, corpus).build([NAME])

    (track,) = tracks_of(work.out)
    assert track.codes.shape == (4, 50)
    assert track.seconds is not None and track.seconds.shape == (4, 1)
    assert (track.meta.source["start_s"], track.meta.source["stop_s"]) == (1, 2)


def test_several_shards_are_made_and_those_that_are_there_are_not(
    tmp_path: Path, corpus: Path, encoder: Encoder, planned: list[PlannedTrack], calls: list[str]
) -> None:
    work = WorkFolder(tmp_path / "out")
    names = ("train-000000.tar", "train-000001.tar", "valid-000000.tar")
    shards = [
        PlannedShard(name=names[0], split="train", tracks=tuple(planned[:2])),
        PlannedShard(name=names[1], split="train", tracks=tuple(planned[2:3])),
        PlannedShard(name=names[2], split="valid", tracks=tuple(planned[3:])),
    ]
    work.write_plan("inputs", [], shards, [])

    builder_of(work, encoder, corpus, workers=1).build(names, first=2)
    builder_of(work, encoder, corpus).build(names)

    assert calls == ["track_003", "track_000", "track_001", "track_002"]
    assert [sidecar.shard.name for sidecar in existing_shards(work.out)] == list(names)
    assert work.num_planned() == 0


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: path.write_bytes(b"no sound" * 100), "."),
    ],
)
def test_a_file_that_can_no_longer_be_decoded_costs_itself_alone(
    tmp_path: Path,
    corpus: Path,
    encoder: Encoder,
    planned: list[PlannedTrack],
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[Path], object],
    reason: str,
) -> None:
    break_it(corpus / "1.wav")
    work = work_in(tmp_path / "out", planned)

    with caplog.at_level(logging.WARNING):
        builder_of(work, encoder, corpus).build([NAME])

    sidecar = read_sidecar(work.out, NAME)
    assert sidecar.keys == ["track_000", "track_002", "track_003"]
    assert [file.relative_path for file in sidecar.rejected] == ["1.wav"]
    assert reason in sidecar.rejected[0].reason or reason == "."
    assert str(corpus) not in sidecar.rejected[0].reason
    assert f"left out 1.wav: {sidecar.rejected[0].reason}" in caplog.text


def test_a_track_that_the_codec_cannot_carry_is_left_out(
    tmp_path: Path, corpus: Path, encoder: Encoder, planned: list[PlannedTrack]
) -> None:
    work = work_in(tmp_path / "out", planned)
    snr_db = sorted(encoder.encode(corpus / f"{number}.wav", track).snr_db for number, track in enumerate(planned))
    limit = (snr_db[0] + snr_db[1]) / 2
    assert snr_db[0] < limit < snr_db[1]

    builder_of(work, encoder, corpus, min_codec_snr_db=limit).build([NAME])

    sidecar = read_sidecar(work.out, NAME)
    assert len(sidecar.keys) == 3
    (rejected,) = sidecar.rejected
    assert rejected.reason == f"the codec carries it with {snr_db[0]:.1f} dB, expected at least {limit:g}"


def test_a_shard_of_which_no_track_can_be_encoded_is_done_all_the_same(
    tmp_path: Path, corpus: Path, encoder: Encoder, planned: list[PlannedTrack]
) -> None:
    for path in corpus.iterdir():
        path.unlink()
    work = work_in(tmp_path / "out", planned)

    builder_of(work, encoder, corpus).build([NAME])

    assert (read_sidecar(work.out, NAME).keys, len(read_sidecar(work.out, NAME).rejected)) == ([], 4)


def test_an_error_of_ours_ends_the_build_and_leaves_its_parts(
    tmp_path: Path, corpus: Path, encoder: Encoder, planned: list[PlannedTrack], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_in(tmp_path / "out", planned)
    encode = encoder.encode

    def fail(path: Path, track: PlannedTrack) -> Any:
        if track.key == "track_002":
            raise RuntimeError("out of memory")
        return encode(path, track)

    monkeypatch.setattr(encoder, "encode", fail)

    with pytest.raises(RuntimeError, match="out of memory"):
        builder_of(work, encoder, corpus, workers=1).build([NAME])

    assert files_of(work.out) == {}
    assert {*work.parts.iterdir()} == {work.part_path(track) for track in planned[:2]}
    assert list(work.leases.folder.iterdir()) == []


@pytest.mark.parametrize("step", ["_encode", "_encode_track"])
def test_a_worker_that_was_taken_for_dead_and_overtaken_is_no_error(
    tmp_path: Path,
    corpus: Path,
    encoder: Encoder,
    planned: list[PlannedTrack],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    work = work_in(tmp_path / "out", planned)
    slow, fast = builder_of(work, encoder, corpus, workers=1), builder_of(work, encoder, corpus)
    finish = getattr(slow, step)

    def overtaken(what: Any) -> Any:
        found = finish(what)
        if not fast.is_done(NAME):
            fast.build_shard(NAME)
        return found

    monkeypatch.setattr(slow, step, overtaken)

    slow.build([NAME])

    assert read_sidecar(work.out, NAME).keys == [track.key for track in planned]
    assert list(work.leases.folder.iterdir()) == []


def test_labels_may_hold_any_character(tmp_path: Path, planned: list[PlannedTrack]) -> None:
    labels = Labels(description="one\u2028two\x85three\x0bfour\r\nfive", title="für dich")
    work = work_in(tmp_path / "out", [replace(planned[0], labels=labels), planned[1]])

    assert [track.labels for track in work.planned(NAME).tracks] == [labels, planned[1].labels]
    assert work.num_planned() == 2


# ---- nothing is encoded twice ----------------------------------------------------------------------------------------


def test_a_track_whose_part_is_there_is_not_encoded_again(
    tmp_path: Path, corpus: Path, encoder: Encoder, planned: list[PlannedTrack], calls: list[str]
) -> None:
    builder_of(work_in(tmp_path / "whole", planned), encoder, corpus).build([NAME])
    calls.clear()
    work = work_in(tmp_path / "out", planned)
    for number in (0, 2):
        part = encoded_of(tracks_of(tmp_path / "whole")[number])
        write_encoded(work.part_path(planned[number]), part)

    builder_of(work, encoder, corpus).build([NAME])

    assert sorted(calls) == ["track_001", "track_003"]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_codes_of_an_old_shard_are_copied(
    tmp_path: Path, corpus: Path, encoder: Encoder, planned: list[PlannedTrack], calls: list[str]
) -> None:
    builder_of(work_in(tmp_path / "out", planned[:3]), encoder, corpus).build([NAME])
    old = tracks_of(tmp_path / "out")
    calls.clear()
    relabelled = [replace(track, labels=Labels(genre="jazz"), group="new") for track in planned]
    work = work_in(tmp_path / "out", relabelled, name="valid-000001.tar", split="valid")

    builder_of(work, encoder, corpus).build(["valid-000001.tar"])

    assert calls == ["track_003"]
    new = tracks_of(tmp_path / "out", "valid-000001.tar")
    for before, after, plan in zip(old, new, relabelled, strict=False):
        np.testing.assert_array_equal(after.codes, before.codes)
        np.testing.assert_array_equal(after.seconds, before.seconds)
        assert after.meta.quality == before.meta.quality
        assert (after.meta.labels, after.meta.group) == (plan.labels, "new")


@pytest.mark.parametrize("change", [{"start_s": 1}, {"audio_sha256": "0" * 64}, {"settings": "window_s=2"}])
def test_codes_of_an_old_shard_that_would_be_others_are_not_copied(
    tmp_path: Path,
    corpus: Path,
    encoder: Encoder,
    planned: list[PlannedTrack],
    calls: list[str],
    change: dict[str, Any],
) -> None:
    builder_of(work_in(tmp_path / "out", planned[3:]), encoder, corpus).build([NAME])
    calls.clear()
    work = work_in(tmp_path / "out", [replace(planned[3], **change)], name="train-000001.tar")

    builder_of(work, encoder, corpus).build(["train-000001.tar"])

    assert calls == ["track_003"]


def test_shards_that_prepare_did_not_write_offer_no_codes(shards: Path) -> None:
    assert old_tracks(shards) == {}
    assert [sidecar.shard.name for sidecar in existing_shards(shards)] == [
        "train-000000.tar",
        "train-000001.tar",
        "valid-000000.tar",
    ]


def test_a_part_survives_the_disk(tmp_path: Path, corpus: Path, encoder: Encoder, planned: list[PlannedTrack]) -> None:
    encoded = encoder.encode(corpus / "0.wav", planned[0])
    write_encoded(tmp_path / "part.npz", encoded)

    read = read_encoded(tmp_path / "part.npz")

    np.testing.assert_array_equal(read.codes, encoded.codes)
    np.testing.assert_array_equal(read.snr_seconds, encoded.snr_seconds)
    assert read.codes.dtype == np.uint16
    assert read.snr_db == encoded.snr_db
    assert read.chroma is None
    chroma = np.arange(5, dtype=np.uint8)
    write_encoded(tmp_path / "part.npz", replace(encoded, chroma=chroma))
    np.testing.assert_array_equal(read_encoded(tmp_path / "part.npz").chroma, chroma)


# ---- workers ---------------------------------------------------------------------------------------------------------


def test_on_a_cpu_each_track_has_one_thread() -> None:
    torch.set_num_threads(2)
    try:
        with one_thread_each(is_cpu=False):
            assert torch.get_num_threads() == 2
        with one_thread_each(is_cpu=True):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_there_are_as_many_workers_as_cores_as_far_as_memory_goes(nano_codec: Codec) -> None:
    assert default_workers(nano_codec, window_s=1.0, cores=3) == 3
    assert default_workers(nano_codec, window_s=1e7, cores=3) == 1


def test_a_file_that_changed_since_its_survey_is_left_out_and_named(
    tmp_path: Path, corpus: Path, encoder: Encoder, planned: list[PlannedTrack]
) -> None:
    work = work_in(tmp_path / "out", planned)
    (corpus / "2.wav").write_bytes((corpus / "3.wav").read_bytes())

    builder_of(work, encoder, corpus).build([NAME])

    (rejected,) = read_sidecar(work.out, NAME).rejected
    assert (rejected.relative_path, rejected.reason) == ("2.wav", "it changed since it was surveyed. Run again.")


def test_a_shard_that_was_cut_is_not_taken_for_a_whole_one(
    tmp_path: Path, corpus: Path, encoder: Encoder, planned: list[PlannedTrack]
) -> None:
    work = work_in(tmp_path / "out", planned)
    builder_of(work, encoder, corpus).build([NAME])
    whole = (work.out / NAME).read_bytes()
    (work.out / NAME).write_bytes(whole[:-512])

    with pytest.raises(UserError, match=rf"{NAME} is damaged: \d+ bytes, its index says {len(whole)}"):
        existing_shards(work.out)
