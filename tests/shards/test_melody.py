"""Shards that hold the chroma of each track: 320 samples per second, 32 to a frame of codes, 48 to one of chroma."""

import json
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from webdataset.compat import WebDataset

from musicgen_ft.audio import write_wav
from musicgen_ft.chroma import DROPPED, Chroma, ChromaSpec, chromagram
from musicgen_ft.codec import Codec, CodecSpec
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.errors import UserError
from musicgen_ft.shards.batch import Crop, collate
from musicgen_ft.shards.crops import CropDataset, ValidDataset
from musicgen_ft.shards.datamodule import ShardDataModule
from musicgen_ft.shards.encode import EncodeOptions, Encoder
from musicgen_ft.shards.format import Split, check_chroma, read_manifest
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.plan import PlannedTrack
from musicgen_ft.shards.sidecar import read_sidecar, sidecar_path
from musicgen_ft.shards.track import Track, decode_chroma, encode_chroma
from musicgen_ft.shards.writer import write_shard

Tracks = dict[Split, list[Track]]

NAME = "train-000000.tar"

SPEC = ChromaSpec(sample_rate=320, n_chroma=11, n_fft=112, hop_length=48)
CARD, SEGMENT, MELODY_SEGMENT = 50, 20, 13  # 20 frames of codes are 640 samples: 13 of chroma


class Captions:
    def describe(self, labels: Labels, rng: np.random.Generator) -> str | None:
        return f"{labels.description} {rng.integers(10)}"

    def plain(self, labels: Labels) -> str | None:
        return labels.description


def chroma_of(track: Track) -> Chroma:
    # Frame f of track n holds a value that tells f, so that a wrong crop shows.
    num_frames = SPEC.num_frames(32 * track.meta.num_frames)
    return ((3 * np.arange(num_frames) + int(track.key[-3:])) % SPEC.n_chroma).astype(np.uint8)


@pytest.fixture
def melody_tracks(tracks: Tracks) -> Tracks:
    return {split: [replace(track, chroma=chroma_of(track)) for track in tracks[split]] for split in tracks}


@pytest.fixture
def folder(tmp_path: Path, codec: CodecSpec, melody_tracks: Tracks, write_folder: Callable[..., Path]) -> Path:
    return write_folder(tmp_path / "melody", codec, melody_tracks, chroma=SPEC, base="melody")


@pytest.fixture
def index(folder: Path) -> ShardIndex:
    return ShardIndex.open(folder, verify=True)


# ---- on disk ---------------------------------------------------------------------------------------------------------


def test_chroma_write_then_read_is_equal(index: ShardIndex, melody_tracks: Tracks) -> None:
    assert index.manifest.chroma == SPEC
    for split in melody_tracks:
        for i, expected in enumerate(melody_tracks[split]):
            track = index.split(split).track(i)
            assert track.chroma is not None and expected.chroma is not None
            assert track.chroma.dtype == np.uint8
            np.testing.assert_array_equal(track.chroma, expected.chroma)
            np.testing.assert_array_equal(track.codes, expected.codes)
            assert track.meta == expected.meta


def test_the_index_tells_where_the_three_members_lie(folder: Path) -> None:
    sidecar = read_sidecar(folder, "train-000001.tar")
    assert sidecar.chroma_offset is not None and sidecar.chroma_bytes is not None

    with tarfile.open(folder / "train-000001.tar") as tar:
        members = {member.name: (member.offset_data, member.size) for member in tar}

    assert len(members) == 3 * len(sidecar.keys)
    for i, key in enumerate(sidecar.keys):
        assert members[f"{key}.chroma.npy"] == (sidecar.chroma_offset[i], sidecar.chroma_bytes[i])
        assert members[f"{key}.codes.npy"] == (sidecar.codes_offset[i], sidecar.codes_bytes[i])
        assert members[f"{key}.json"] == (sidecar.json_offset[i], sidecar.json_bytes[i])


def test_webdataset_reads_the_chroma(folder: Path, melody_tracks: Tracks) -> None:
    reader: Any = WebDataset(str(folder / "valid-000000.tar"), shardshuffle=False).decode()  # untyped

    for sample, track in zip(list(reader), melody_tracks["valid"], strict=True):
        np.testing.assert_array_equal(sample["chroma.npy"], track.chroma)
        np.testing.assert_array_equal(sample["codes.npy"], track.codes)


def test_chroma_encodes_then_decodes_equal() -> None:
    chroma = np.arange(11, dtype=np.uint8)

    np.testing.assert_array_equal(decode_chroma(encode_chroma(chroma)), chroma)


def test_shards_without_chroma_know_nothing_of_it(shards: Path) -> None:
    assert "chroma" not in (shards / "manifest.json").read_text()
    assert "chroma" not in sidecar_path(shards / "train-000000.tar").read_text()
    assert read_manifest(shards).chroma is None
    assert ShardIndex.open(shards).split("train").track(0).chroma is None


def test_chroma_and_figures_of_seconds_lie_in_one_shard(
    tmp_path: Path, codec: CodecSpec, melody_tracks: Tracks, write_folder: Callable[..., Path]
) -> None:
    seconds = np.arange(12, dtype=np.float16).reshape(4, 3)
    track = replace(melody_tracks["train"][4], seconds=seconds)
    folder = write_folder(tmp_path / "both", codec, {"train": [track]}, chroma=SPEC)

    found = ShardIndex.open(folder, verify=True).split("train").track(0)

    assert found.chroma is not None and found.seconds is not None and track.chroma is not None
    np.testing.assert_array_equal(found.chroma, track.chroma)
    np.testing.assert_array_equal(found.seconds, seconds)
    np.testing.assert_array_equal(found.codes, track.codes)


def test_tracks_with_and_without_chroma_do_not_mix(
    tmp_path: Path, codec: CodecSpec, tracks: Tracks, melody_tracks: Tracks
) -> None:
    with pytest.raises(ValueError, match="track_000: found no chroma, the shard expects it"):
        write_shard(tmp_path, NAME, tracks["train"], split="train", codec=codec, chroma=SPEC)
    with pytest.raises(ValueError, match="track_000: found chroma, the shard expects none"):
        write_shard(tmp_path, NAME, melody_tracks["train"], split="train", codec=codec)


def test_chroma_that_is_none_is_refused(tmp_path: Path, codec: CodecSpec, tracks: Tracks) -> None:
    track = tracks["train"][0]
    wrong: Any
    for wrong in (np.zeros(3, np.int64), np.zeros((3, 2), np.uint8), np.zeros(0, np.uint8)):
        with pytest.raises(ValueError, match=r"its chroma is .*, expected uint8 \[F > 0\]"):
            replace(track, chroma=wrong)
    too_high = replace(track, chroma=np.array([3, 11], np.uint8))
    with pytest.raises(ValueError, match="track_000: a pitch class is 11, of 11"):
        write_shard(tmp_path, NAME, [too_high], split="train", codec=codec, chroma=SPEC)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: [values.pop(name) for name in ("chroma_offset", "chroma_bytes")],
        lambda values: values.update(chroma_bytes=[9999] * len(values["keys"])),
    ],
)
def test_an_index_whose_chroma_disagrees_is_refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = sidecar_path(folder / "train-000001.tar")
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))

    with pytest.raises(UserError, match="its index and the manifest disagree"):
        ShardIndex.open(folder)


def test_an_index_with_half_a_chroma_is_refused(folder: Path) -> None:
    path = sidecar_path(folder / "train-000001.tar")
    values = json.loads(path.read_text())
    del values["chroma_bytes"]
    path.write_text(json.dumps(values))

    with pytest.raises(UserError, match=r"train-000001\.index\.json.*chroma_offset without chroma_bytes"):
        ShardIndex.open(folder)


def test_a_manifest_with_unknown_numbers_of_chroma_is_refused(folder: Path) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    values["chroma"]["window"] = "hann"
    (folder / "manifest.json").write_text(json.dumps(values))

    with pytest.raises(UserError, match=r"ChromaSpec has missing keys \[\] and unknown keys \['window'\]"):
        read_manifest(folder)


def test_shards_that_do_not_fit_a_melody_base_are_refused(folder: Path, shards: Path) -> None:
    check_chroma(read_manifest(folder), SPEC)
    with pytest.raises(UserError, match=r"the shards hold no chroma .prepared with --base nano.*Prepare again"):
        check_chroma(read_manifest(shards), SPEC)
    with pytest.raises(UserError, match=r"the shards hold ChromaSpec.*hop_length=48.* is conditioned on .*=16"):
        check_chroma(read_manifest(folder), replace(SPEC, hop_length=16))


# ---- crops -----------------------------------------------------------------------------------------------------------


def crops_of(index: ShardIndex, **changed: Any) -> CropDataset:
    settings: dict[str, Any] = {"segment_frames": SEGMENT, "card": CARD, "seed": 3, "global_batch": 4} | changed
    return CropDataset(index.split("train"), captions=Captions(), **settings)


def is_dropped(crop: Crop) -> bool:
    assert crop.chroma is not None
    return bool((crop.chroma == DROPPED).all())


def test_chroma_is_cropped_in_step_with_the_codes(index: ShardIndex, melody_tracks: Tracks) -> None:
    by_key = {track.key: track for track in melody_tracks["train"]}
    crops = crops_of(index)

    for position in range(2 * crops.num_slots):
        crop = crops[position]
        track = by_key[crop.key]
        assert track.chroma is not None and crop.chroma is not None
        T = int(crop.mask.sum())
        start = (int(crop.codes[0, 0]) - int(track.codes[0, 0])) % CARD
        if track.meta.num_frames - T >= CARD:  # the value does not tell two starts of a long track apart
            start = next(
                s for s in (start, start + CARD) if np.array_equal(track.codes[:, s : s + T], crop.codes[:, :T])
            )
        first, valid = start * 32 // 48, -(-T * 32 // 48)
        expected = track.chroma[first : first + min(valid, MELODY_SEGMENT)]
        assert (crop.chroma.dtype, crop.chroma.shape) == (torch.int64, (MELODY_SEGMENT,))
        assert crop.chroma[: len(expected)].tolist() == expected.tolist()
        assert crop.chroma[len(expected) :].eq(DROPPED).all()


def test_validation_keeps_every_melody(index: ShardIndex) -> None:
    tracks = index.split("valid")
    crops = ValidDataset(tracks, segment_frames=SEGMENT, card=CARD, captions=Captions(), max_crops=99)

    found = [crops[number].chroma for number in range(len(crops))]

    assert len(found) == 8
    assert all(chroma is not None and chroma.shape == (MELODY_SEGMENT,) and chroma[0] >= 0 for chroma in found)


def test_text_and_melody_are_dropped_at_the_rates_of_the_chroma_recipe(index: ShardIndex) -> None:
    crops = crops_of(index, cfg_dropout=0.2, melody_dropout=0.5)
    num = 4000

    found = Counter((crop.description is None, is_dropped(crop)) for crop in map(crops.__getitem__, range(num)))

    # audiocraft's measured rates: .197 both, .397 the melody alone, .407 none; 5 sigma of binomial(4000, .4) is .039
    assert abs(found[True, True] / num - 0.2) < 0.032
    assert abs(found[False, True] / num - 0.4) < 0.039
    assert abs(found[False, False] / num - 0.4) < 0.039
    assert found[True, False] == 0


def test_dropping_melodies_leaves_crops_and_texts_as_they_are(index: ShardIndex) -> None:
    kept, dropped = crops_of(index, cfg_dropout=0.3), crops_of(index, cfg_dropout=0.3, melody_dropout=0.5)

    for position in range(100):
        first, second = kept[position], dropped[position]
        assert torch.equal(first.codes, second.codes)
        assert first.description == second.description
        assert first.chroma is not None and second.chroma is not None
        assert torch.equal(first.chroma, second.chroma) or is_dropped(second)


def test_chroma_in_the_shards_changes_no_crop_and_no_text(shards: Path, index: ShardIndex) -> None:
    plain = crops_of(ShardIndex.open(shards), cfg_dropout=0.3)
    melody = crops_of(index, cfg_dropout=0.3, melody_dropout=0.5)

    for position in range(50):
        first, second = plain[position], melody[position]
        assert first.chroma is None
        assert torch.equal(first.codes, second.codes)
        assert first[2:5] == second[2:5]


def test_dropout_by_step_drops_all_melodies_of_a_step_or_none(index: ShardIndex) -> None:
    crops = crops_of(index, cfg_dropout=0.2, cfg_dropout_scope="step", melody_dropout=0.5)
    steps = [
        {(crop.description is None, is_dropped(crop)) for crop in (crops[4 * step + i] for i in range(4))}
        for step in range(600)
    ]

    assert all(len(step) == 1 for step in steps)
    rates = {kind: sum(step == {kind} for step in steps) / 600 for kind in ((True, True), (False, True), (True, False))}
    assert abs(rates[True, True] - 0.2) < 5 * 0.0163  # 5 sigma of 600 draws
    assert abs(rates[False, True] - 0.4) < 5 * 0.02
    assert rates[True, False] == 0


def test_a_melody_probability_out_of_range_is_refused(index: ShardIndex) -> None:
    with pytest.raises(ValueError, match=r"melody_dropout is -0\.1, expected a probability in \[0, 1\]"):
        crops_of(index, melody_dropout=-0.1)


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_stacks_chroma_and_carries_it_to_a_device(index: ShardIndex) -> None:
    crops = [crops_of(index)[position] for position in range(3)]
    batch = collate(crops)
    assert batch.chroma is not None and crops[2].chroma is not None

    moved = batch.to("meta")

    assert batch.chroma.shape == (3, MELODY_SEGMENT)
    assert torch.equal(batch.chroma[2], crops[2].chroma)
    assert moved.chroma is not None and moved.chroma.device.type == "meta"


def test_the_data_module_drops_half_of_the_melodies_unless_told_otherwise(index: ShardIndex) -> None:
    settings: dict[str, Any] = {
        "index": index, "segment_frames": SEGMENT, "global_batch": 4, "micro_batch": 4, "num_steps": 2, "seed": 3,
        "captions": Captions(),
    }  # fmt: skip
    rates = [
        sum(is_dropped(data.train_crops[position]) for position in range(1000)) / 1000
        for data in (ShardDataModule(**settings), ShardDataModule(**settings, melody_dropout=0.1))
    ]

    assert abs(rates[0] - 0.5) < 5 * 0.0158  # 5 sigma of 1000 draws
    assert abs(rates[1] - 0.1) < 5 * 0.0095


# ---- encoding --------------------------------------------------------------------------------------------------------


def test_a_track_is_encoded_with_the_chroma_of_its_mono_mix(
    tmp_path: Path, nano_codec: Codec, make_planned: Callable[..., PlannedTrack]
) -> None:
    rate = nano_codec.spec.sample_rate
    waveform = torch.randn(2, 3 * rate + 77, generator=torch.Generator().manual_seed(0)) * 0.1
    write_wav(tmp_path / "a.wav", waveform, rate)
    spec = ChromaSpec(sample_rate=rate, n_fft=512, hop_length=128)
    options = EncodeOptions(window_s=1.0, codec_check_s=0.0)
    track = make_planned(start_s=1, duration_s=2.0, num_bytes=(tmp_path / "a.wav").stat().st_size)

    plain = Encoder(nano_codec, options).encode(tmp_path / "a.wav", track)
    melody = Encoder(nano_codec, options, chroma=spec).encode(tmp_path / "a.wav", track)

    stored = (waveform * 32768).round().clamp(-32768, 32767) / 32768
    assert plain.chroma is None and melody.chroma is not None
    np.testing.assert_array_equal(melody.chroma, chromagram(stored.mean(0).numpy()[rate:], spec))
    np.testing.assert_array_equal(melody.codes, plain.codes)


def test_chroma_of_another_sample_rate_than_the_codecs_is_refused(nano_codec: Codec) -> None:
    spec = ChromaSpec(sample_rate=nano_codec.spec.sample_rate + 1)

    with pytest.raises(UserError, match=r"the base takes chroma of audio at \d+ Hz, its codec .* takes \d+ Hz"):
        Encoder(nano_codec, EncodeOptions(), chroma=spec)
