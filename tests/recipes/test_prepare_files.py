"""``prepare`` on broken and strange files: a clear line for each that is left out, and none of the good is lost."""

import contextlib
import io
import itertools
import os
import re
import struct
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musicgen_ft import audio
from musicgen_ft.corpus import surveying
from musicgen_ft.corpus.scan import Record, scan_corpus
from musicgen_ft.corpus.survey import Survey, survey, survey_from_dict, survey_to_dict
from musicgen_ft.shards.encode import Encoded, Encoder
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.track import TrackMeta
from musicgen_ft.shards.work import read_tracks

# What the fixtures of conftest.py give.
Command = Callable[..., Any]
Tune = Callable[..., npt.NDArray[np.float32]]
WriteAudio = Callable[..., Path]

GOOD = "good.wav"
TIMED_OUT = "no answer within 5 s: a damaged header, or a disk that stalls"


@pytest.fixture
def corpus(tmp_path: Path, tune: Tune, write_audio: WriteAudio) -> Path:
    """A corpus of one good track."""
    write_audio(tmp_path / "corpus" / GOOD, tune(0))
    return tmp_path / "corpus"


@pytest.fixture
def prepared(corpus: Path, tmp_path: Path, command: Command) -> Callable[..., tuple[dict[str, TrackMeta], str]]:
    """A function that prepares the corpus, and gives what is kept of it, by relative path, and what was said."""

    def run(*words: object) -> tuple[dict[str, TrackMeta], str]:
        result = command("prepare", corpus, "--out", tmp_path / "shards", "--workers", 1, *words)
        assert "Traceback" not in result.err
        assert result.status == 0, result.err
        index = ShardIndex.open(tmp_path / "shards", verify=True)
        splits = [index.split(split) for split in ("train", "valid")]
        metas = [split.meta(i) for split in splits for i in range(len(split))]
        assert GOOD in {meta.relative_path for meta in metas}
        kept = {meta.relative_path: meta for meta in metas}
        listed = {track.record.relative_path: track.is_kept for track in read_tracks(tmp_path / "shards")}
        assert listed == {**dict.fromkeys(kept, True), **{f.relative_path: False for f in index.manifest.rejected}}
        return kept, result.out

    return run


def reasons(said: str) -> dict[str, str]:
    """File -> reason, of what prepare printed: one line each."""
    return dict(re.findall(r"^  (.*?): (.*)$", said, re.MULTILINE))


# ---- left out --------------------------------------------------------------------------------------------------------


def float_wav(samples: npt.NDArray[np.float32]) -> bytes:
    data = samples.astype("<f4").tobytes()
    header = struct.pack("<HHIIHH", 3, 1, 16_000, 64_000, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", 16) + header + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_every_file_that_gives_no_music_is_named_with_its_reason(
    corpus: Path, prepared: Callable[..., Any], tune: Tune, write_audio: WriteAudio
) -> None:
    noise = np.random.default_rng(0).bytes(20_000)
    (corpus / "empty.wav").touch()
    (corpus / "noise.mp3").write_bytes(noise)
    (corpus / "noise.flac").write_bytes(noise)
    (corpus / "text.wav").write_text("Verse 1: la la la\n" * 40)
    (corpus / "picture.mp4").write_bytes(b"\x89PNG\r\n\x1a\n" + noise)
    (corpus / "header only.wav").write_bytes(write_audio(corpus / "x.wav", tune(1)).read_bytes()[:44])
    (corpus / "x.wav").unlink()
    write_audio(corpus / "slow.wav", tune(2, 4.0), rate=3_999)
    fast = bytearray((corpus / GOOD).read_bytes())
    fast[24:28] = struct.pack("<I", 2**31 - 1)  # a second of it would take 8 GiB
    (corpus / "fast.wav").write_bytes(fast)
    bad = tune(3)
    bad[0, 5_000:5_003] = np.nan, np.inf, -np.inf
    (corpus / "nan.wav").write_bytes(float_wav(bad[0]))
    (corpus / "labels.wav").write_bytes((corpus / GOOD).read_bytes())
    (corpus / "labels.json").write_text('{"genre": ')

    kept, said = prepared()

    assert set(kept) == {GOOD}
    found = reasons(said)
    assert found.pop("empty.wav") == "the file is empty"
    assert found.pop("slow.wav") == "3999 samples per second, expected at least 4000"
    assert found.pop("fast.wav") == "2147483647 samples per second in 1 channels, expected at most 6144000 in all"
    assert found.pop("nan.wav") == "it holds samples that are NaN or infinite"
    assert found.pop("labels.wav").startswith("its labels cannot be read: labels.json is not valid JSON")
    assert set(found) == {"noise.mp3", "noise.flac", "text.wav", "picture.mp4", "header only.wav"}
    assert all(3 < len(reason) < 120 and str(corpus) not in reason for reason in found.values())
    assert "left out: 10 of 11 files" in said


def test_a_file_that_may_not_be_read_is_named(corpus: Path, prepared: Callable[..., Any], tune: Tune) -> None:
    (corpus / "locked.wav").write_bytes((corpus / GOOD).read_bytes())
    (corpus / "locked.wav").chmod(0)
    if os.access(corpus / "locked.wav", os.R_OK):
        pytest.skip("this user may read everything: root")

    _, said = prepared()

    assert reasons(said) == {"locked.wav": "Permission denied"}


def test_a_file_whose_header_is_scanned_for_ever_is_given_up(
    corpus: Path, prepared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = av.open

    def slow(file: str, *arguments: Any, **named: Any) -> Any:
        if file.endswith("endless.wav"):
            assert named["timeout"] == audio.TIMEOUT_S
            named["timeout"] = (1e-9, 1e-9)  # as if it had taken so long
        return opened(file, *arguments, **named)

    (corpus / "endless.wav").write_bytes((corpus / GOOD).read_bytes())
    monkeypatch.setattr(av, "open", slow)

    _, said = prepared()

    assert reasons(said) == {"endless.wav": TIMED_OUT}


# ---- files that change while it runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: path.write_bytes(b""), r"it changed since it was surveyed\. Run again\."),
        (lambda path: path.write_bytes(path.read_bytes()[:20_000]), r"it changed since it was surveyed\. Run again\."),
    ],
    ids=["vanishes", "is emptied", "is cut"],
)
@pytest.mark.parametrize("when", ["before the survey", "before it is encoded"])
def test_a_file_that_changes_meanwhile_is_named_and_picked_up_by_the_next_run(
    when: str,
    change: Callable[[Path], None],
    reason: str,
    corpus: Path,
    prepared: Callable[..., Any],
    tune: Tune,
    write_audio: WriteAudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = write_audio(corpus / "other.wav", tune(1))
    content = other.read_bytes()

    def surveyed(record: Record, *, listen: bool) -> Survey:
        if record.path == other:
            change(other)
        return survey(record, listen=listen)

    encode = Encoder.encode

    def encoded(self: Encoder, path: Path, track: Any) -> Encoded:
        if path == other:
            change(other)
        return encode(self, path, track)

    with monkeypatch.context() as patch:
        if when == "before the survey":
            patch.setattr(surveying, "survey", surveyed)
        else:
            patch.setattr(Encoder, "encode", encoded)
        kept, said = prepared()
    assert set(kept) == {GOOD}
    assert set(reasons(said)) == {"other.wav"}
    if when == "before it is encoded":
        assert re.search(reason, reasons(said)["other.wav"])
    other.write_bytes(content)

    kept, said = prepared()

    assert set(kept) == {GOOD, "other.wav"}
    assert "left out" not in said


def test_a_file_that_becomes_another_of_the_same_size_is_named(
    corpus: Path, prepared: Callable[..., Any], tune: Tune, write_audio: WriteAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_audio(corpus / "other.wav", tune(1))
    encode = Encoder.encode

    def encoded(self: Encoder, path: Path, track: Any) -> Encoded:
        content = bytearray(other.read_bytes())
        content[24:28] = struct.pack("<I", 8_000)  # half the sample rate
        other.write_bytes(content)
        return encode(self, path, track)

    monkeypatch.setattr(Encoder, "encode", encoded)

    _, said = prepared()

    assert reasons(said) == {
        "other.wav": "3.0 s long, 1.5 s when it was surveyed: it was changed meanwhile. Run again."
    }


# ---- kept ------------------------------------------------------------------------------------------------------------


def test_formats_depths_and_channels_of_every_kind_are_kept(
    corpus: Path, prepared: Callable[..., Any], tune: Tune, write_audio: WriteAudio
) -> None:
    seeds = itertools.count(1)
    for codec in ("pcm_u8", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"):
        write_audio(corpus / f"{codec}.wav", tune(next(seeds)), codec=codec)
    write_audio(corpus / "six.wav", tune(next(seeds), channels=6))
    write_audio(corpus / "stereo.flac", tune(next(seeds), channels=2))
    write_audio(corpus / "no xing.mp3", tune(next(seeds)), options={"write_xing": "0"})
    write_audio(corpus / "ogg.ogg", tune(next(seeds), rate=48_000), rate=48_000)
    write_audio(corpus / "aac.m4a", tune(next(seeds)))
    write_audio(corpus / "high.wav", tune(next(seeds), rate=192_000), rate=192_000)
    write_audio(corpus / "lowest.wav", tune(next(seeds), rate=4_000), rate=4_000)
    write_audio(corpus / "wav named.mp3", tune(next(seeds)), format="wav", codec="pcm_s16le")
    write_audio(corpus / "mp3 named.wav", tune(next(seeds)), format="mp3", codec="libmp3lame")

    kept, said = prepared("--min_bandwidth_khz", 0)

    assert "left out" not in said
    assert set(kept) == {path.name for path in corpus.iterdir()}
    assert all(meta.duration_s == pytest.approx(1.5, abs=0.11) for meta in kept.values())
    assert kept["six.wav"].quality is not None
    assert kept["six.wav"].quality.source_channels == 6


def test_cut_files_are_kept_as_far_as_they_go_and_marked(
    corpus: Path, prepared: Callable[..., Any], tune: Tune, write_audio: WriteAudio, tmp_path: Path
) -> None:
    for number, suffix in enumerate((".wav", ".mp3", ".flac", ".ogg"), start=1):
        path = write_audio(corpus / f"cut{suffix}", tune(number, 6.0, rate=48_000), rate=48_000)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    kept, said = prepared()

    cut = {f"cut{suffix}" for suffix in (".wav", ".mp3", ".flac", ".ogg")}
    assert set(kept) == {GOOD, *cut}
    assert {name for name, meta in kept.items() if meta.source["is_truncated"]} == cut
    assert all(1.5 < kept[name].duration_s < 4.5 for name in cut)
    doubts = {track.record.relative_path: track.verdict.doubts for track in read_tracks(tmp_path / "shards")}
    assert all(any(doubt.startswith("truncated") for doubt in doubts[name]) for name in cut)
    assert "left out" not in said


def test_names_of_all_kinds_are_kept_and_their_ids_differ(
    corpus: Path, prepared: Callable[..., Any], tune: Tune, write_audio: WriteAudio
) -> None:
    seeds = itertools.count(1)
    names = [
        "Ænima — 東京の夜 🎹.wav",
        "x" * 251 + ".wav",
        "a.b.c..wav",
        " blank and 'quotes' \"too\".wav",
        "100% $HOME {genre} \\n.wav",
        "-rf.wav",
        unicodedata.normalize("NFC", "é.wav"),
        unicodedata.normalize("NFD", "é.wav"),
        "SHOUT.WAV",
        "deep/" * 20 + "deep.wav",
    ]
    for name in names:
        path = corpus / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(write_audio(corpus.parent / "tune.wav", tune(next(seeds))).read_bytes())
    (corpus / "x").mkdir()
    (corpus / "x" / "a.b.c..wav").write_bytes((corpus / "a.b.c..wav").read_bytes())

    kept, said = prepared("--duplicates", "keep")

    assert "left out" not in said
    assert set(kept) == {GOOD, *names, "x/a.b.c..wav"}


def test_links_that_lead_round_or_nowhere_or_to_no_file_lose_nothing(
    corpus: Path, prepared: Callable[..., Any], tune: Tune, write_audio: WriteAudio
) -> None:
    write_audio(corpus / "deep" / "a.wav", tune(1))
    (corpus / "deep" / "up").symlink_to(corpus)
    (corpus / "self.wav").symlink_to("self.wav")
    (corpus / "lost.wav").symlink_to("nowhere.wav")
    os.mkfifo(corpus / "pipe.wav")
    (corpus / "folder.wav").mkdir()
    write_audio(corpus / "folder.wav" / "b.wav", tune(2))

    kept, _ = prepared()

    assert set(kept) == {GOOD, "deep/a.wav", "folder.wav/b.wav"}


# ---- fuzzed files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, tune: Tune, write_audio: WriteAudio) -> dict[str, bytes]:
    """Small valid files, by suffix."""
    folder = tmp_path_factory.mktemp("seeds")
    rates = {".wav": 8_000, ".mp3": 16_000, ".ogg": 48_000, ".flac": 16_000}
    return {
        suffix: write_audio(folder / f"a{suffix}", tune(number, 0.6, rate=rate), rate=rate, title="T").read_bytes()
        for number, (suffix, rate) in enumerate(rates.items())
    }


PLACE = st.floats(0, 1, exclude_max=True) | st.floats(0, 0.05)  # headers are where it hurts
CHANGE = st.one_of(
    st.tuples(st.just("flip"), PLACE, st.integers(1, 255)),
    st.tuples(st.just("set"), PLACE, st.sampled_from([0, 0x7F, 0x80, 0xFF])),
    st.tuples(st.just("word"), PLACE, st.sampled_from([0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])),
    st.tuples(st.just("cut"), PLACE, st.just(0)),
    st.tuples(st.just("double"), PLACE, st.integers(1, 3_000)),
    st.tuples(st.just("drop"), PLACE, st.integers(1, 3_000)),
    st.tuples(st.just("insert"), PLACE, st.integers(1, 300)),
)


def changed(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    data = bytearray(content)
    for kind, where, number in changes:
        at = int(where * len(data))
        if kind == "flip" and data:
            data[at] ^= number
        elif kind == "set" and data:
            data[at : at + 8] = bytes([number] * len(data[at : at + 8]))
        elif kind == "word":
            data[at : at + 4] = struct.pack("<I", number)[: len(data[at : at + 4])]
        elif kind == "cut":
            del data[at:]
        elif kind == "double":
            data[at:at] = data[at : at + number]
        elif kind == "drop":
            del data[at : at + number]
        else:
            data[at:at] = np.random.default_rng(number).bytes(number)
    return bytes(data)


def test_200_fuzzed_files_give_a_survey_or_a_reason_each_and_lose_no_good_track(
    corpus: Path, prepared: Callable[..., Any], seeds: dict[str, bytes]
) -> None:
    numbers = itertools.count()

    @settings(
        max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(suffix=st.sampled_from(sorted(seeds)), changes=st.lists(CHANGE, min_size=1, max_size=4))
    def survey_one(suffix: str, changes: list[tuple[str, float, int]]) -> None:
        path = corpus / f"fuzzed{next(numbers):03}{suffix}"
        path.write_bytes(changed(seeds[suffix], changes))
        (record,) = (record for record in scan_corpus(corpus, read_tags=False) if record.path == path)
        with contextlib.redirect_stderr(io.StringIO()):
            found = survey(record, listen=False)
        assert (found.error is None) == (found.quality is not None)
        if found.error is not None:
            assert found.error.strip() and "\n" not in found.error and str(corpus) not in found.error
        again = survey_from_dict(survey_to_dict(found))
        assert again is not None and again.error == found.error

    survey_one()
    num_files = len(list(corpus.iterdir()))
    assert num_files >= 200

    kept, said = prepared("--min_duration_s", 0, "--duplicates", "keep")

    assert f"of {num_files} files" in said
    assert 20 < len(kept) < num_files - 20


# ---- huge files ------------------------------------------------------------------------------------------------------


def sparse_wav(path: Path, *, num_frames: int, rate: int, channels: int, how: str, sound: bytes) -> Path:
    """A WAV of 64-bit floats that is mostly a hole: ``sound`` at its start, then silence."""
    num_bytes = 8 * channels * num_frames
    fmt = b"fmt " + struct.pack("<IHHIIHH", 16, 3, channels, rate, rate * channels * 8, channels * 8, 64)
    if how == "rf64":
        ds64 = b"ds64" + struct.pack("<IQQQI", 28, num_bytes + 72, num_bytes, num_frames, 0)
        head = b"RF64" + struct.pack("<I", 0xFFFF_FFFF) + b"WAVE" + ds64 + fmt
        head += b"data" + struct.pack("<I", 0xFFFF_FFFF)
    else:
        head = b"RIFF" + struct.pack("<I", (num_bytes + 36) % 2**32) + b"WAVE" + fmt
        head += b"data" + struct.pack("<I", num_bytes % 2**32)
    with path.open("wb") as file:
        file.write(head + sound)
        file.truncate(len(head) + num_bytes)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("how", ["rf64", "wrapped"])
def test_a_wav_over_4_gib_is_measured_to_its_end_or_named(
    how: str, corpus: Path, prepared: Callable[..., Any], tune: Tune
) -> None:
    num_frames = 2**32 // 64 + 200_000  # 350 s of 8 channels of 8 bytes at 192 kHz
    sound = 20 * tune(1, 3.0, rate=192_000, channels=8).T.astype("<f8").tobytes()
    big = sparse_wav(corpus / "big.wav", num_frames=num_frames, rate=192_000, channels=8, how=how, sound=sound)
    assert big.stat().st_size > 2**32

    kept, said = prepared("--max_silent_share", 1)
    big.unlink()  # pytest keeps what tests wrote

    if how == "rf64":
        assert set(kept) == {GOOD, "big.wav"}
        quality = kept["big.wav"].quality
        assert quality is not None
        assert (quality.duration_s, quality.source_channels) == (pytest.approx(num_frames / 192_000), 8)
        assert kept["big.wav"].duration_s == pytest.approx(60, abs=1)  # the rest is silence
    else:  # its header says 12.8 MB, and FFmpeg looks for what comes behind them
        assert set(kept) == {GOOD}
        assert reasons(said) == {"big.wav": TIMED_OUT}


@pytest.mark.slow
def test_a_track_of_ten_hours_is_measured_in_little_memory(tmp_path: Path, tune: Tune) -> None:
    rate, hours = 8_000, 10
    path = tmp_path / "day.wav"
    piece = (32_767 * tune(0, 60.0, rate=rate)).astype("<i2").tobytes()
    num_bytes = 60 * hours * len(piece)
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", num_bytes + 36) + b"WAVEfmt ")
        file.write(struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16) + b"data" + struct.pack("<I", num_bytes))
        for _ in range(60 * hours):
            file.write(piece)
    program = """
import resource, sys
from pathlib import Path
from musicgen_ft.corpus.scan import scan_corpus
from musicgen_ft.corpus.survey import survey
(record,) = scan_corpus(Path(sys.argv[1]), read_tags=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = survey(record, listen=False)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(found.error, found.quality.duration_s, *found.seconds.shape, grown // 1024)
"""

    ended = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)

    path.unlink()  # pytest keeps what tests wrote
    *found, grown_mib = ended.stdout.split()
    assert found == ["None", "36000.0", "4", "36000"]
    assert int(grown_mib) < 150  # the samples alone would be 1.1 GiB
