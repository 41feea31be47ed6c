"""Files of two seconds of sound; where a process is to die, in one of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import wave
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicgen_ft.corpus import surveying
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.scan import Record, scan_corpus
from musicgen_ft.corpus.survey import Survey, survey, survey_from_dict, survey_to_dict, undecoded
from musicgen_ft.corpus.surveying import BLOCK, GAVE_UP, MAX_ATTEMPTS, SurveyStore, survey_corpus
from musicgen_ft.leases import Leases

RATE = 8_000


def write_sound(path: Path, *, seed: int = 0, seconds: float = 2.0, channels: int = 1, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    samples = (8_000 * rng.standard_normal((round(seconds * rate), channels))).clip(-30_000, 30_000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three files of sound."""
    for number in range(3):
        write_sound(tmp_path / "corpus" / f"{number}.wav", seed=number)
    return tmp_path / "corpus"


def records_of(corpus: Path) -> list[Record]:
    return scan_corpus(corpus, read_tags=False)


def store_in(folder: Path) -> SurveyStore:
    return SurveyStore(folder / "surveys", Leases(folder / "leases"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded."""
    found: list[str] = []

    def count(record: Record, *, listen: bool) -> Survey:
        found.append(record.relative_path)
        return survey(record, listen=listen)

    monkeypatch.setattr(surveying, "survey", count)
    return found


def survey_all(
    records: Sequence[Record],
    store: SurveyStore,
    *,
    known: Mapping[str, Survey] | None = None,
    listen: bool = False,
    workers: int = 1,
    told: list[int] | None = None,
) -> dict[str, Survey]:
    return survey_corpus(
        records,
        store,
        known=known or {},
        listen=listen,
        workers=workers,
        progress=(told if told is not None else list[int]()).append,
    )


# ---- one file --------------------------------------------------------------------------------------------------------


def test_one_pass_tells_everything(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "corpus" / "a.wav", seconds=2.5, channels=2)
    (record,) = records_of(tmp_path / "corpus")

    found = survey(record, listen=True)

    assert found.error is None and not found.is_truncated and found.num_bad_packets == 0
    assert found.quality is not None and found.seconds is not None
    assert (found.quality.duration_s, found.quality.source_channels, found.quality.source_sample_rate) == (2.5, 2, RATE)
    assert found.seconds.shape == (4, 3)
    assert found.fingerprint is not None and found.heard is not None
    assert re.fullmatch(r"[0-9a-f]{64}", found.audio_sha256)
    assert (found.num_bytes, found.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert survey(record, listen=False).heard is None
    labelled = replace(record, labels=Labels(bpm=90.0, key="a minor"))
    assert survey(labelled, listen=True).heard is None


def test_equal_sound_has_an_equal_hash_and_other_sound_another(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav")
    write_sound(tmp_path / "b.wav")
    write_sound(tmp_path / "c.wav", seed=1)
    write_sound(tmp_path / "d.wav", rate=RATE + 1, seconds=2.0)

    a, b, c, d = (survey(record, listen=False).audio_sha256 for record in records_of(tmp_path))

    assert a == b
    assert len({a, c, d}) == 3


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"", "the file is empty"), (b"no sound at all " * 100, "."), (b"RIFF\x00\x00", ".")],
)
def test_a_file_without_sound_gives_an_error_and_not_its_path(tmp_path: Path, content: bytes, error: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    (record,) = records_of(tmp_path)

    found = survey(record, listen=True)

    assert found.error is not None and re.search(error, found.error)
    assert str(tmp_path) not in found.error and "\n" not in found.error
    assert (found.quality, found.num_bytes) == (None, len(content))
    assert found.is_of(record, listen=True)


def test_a_sample_rate_too_low_to_measure_gives_an_error(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", rate=3_000)

    found = survey(records_of(tmp_path)[0], listen=True)

    assert found.error == "3000 samples per second, expected at least 4000"


def test_a_file_that_vanished_gives_an_error_and_is_looked_for_again(corpus: Path) -> None:
    record = records_of(corpus)[1]
    content = record.path.read_bytes()
    record.path.unlink()

    found = survey(record, listen=False)
    assert found.error == "No such file or directory"
    record.path.write_bytes(content)

    assert not found.is_of(record, listen=False)


def test_a_file_that_may_not_be_read_is_looked_at_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = records_of(corpus)[1]

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)  # root may read everything
        found = survey(record, listen=False)

    assert found.error == "Permission denied"
    assert not found.is_of(record, listen=False)


def test_a_survey_is_of_its_file_until_that_changes(corpus: Path) -> None:
    record = records_of(corpus)[0]
    found = survey(record, listen=False)
    assert found.is_of(record, listen=False)
    assert not found.is_of(record, listen=True)  # nobody listened
    assert found.is_of(replace(record, labels=Labels(bpm=90.0, key="a minor")), listen=True)

    os.utime(record.path, ns=(found.mtime_ns + 1, found.mtime_ns + 1))

    assert not found.is_of(record, listen=False)


def test_a_survey_survives_json(corpus: Path) -> None:
    for record in records_of(corpus)[:1]:
        for found in (survey(record, listen=True), undecoded(record, "no samples")):
            values = survey_to_dict(found)

            read = survey_from_dict(json.loads(json.dumps(values, allow_nan=False)))

            assert read is not None
            assert survey_to_dict(read) == values


def test_a_survey_of_another_version_counts_as_none(corpus: Path) -> None:
    values = survey_to_dict(survey(records_of(corpus)[0], listen=False))

    assert survey_from_dict({**values, "version": 0}) is None


# ---- many files ------------------------------------------------------------------------------------------------------


def test_each_file_is_decoded_once(corpus: Path, tmp_path: Path, calls: list[str]) -> None:
    for number in range(3, BLOCK + 3):
        write_sound(corpus / f"{number}.wav", seed=number, seconds=0.5)
    told: list[int] = []

    found = survey_all(records_of(corpus), store_in(tmp_path), told=told)

    assert sorted(calls) == sorted(found) == sorted(record.relative_path for record in records_of(corpus))
    assert told == [0, BLOCK, BLOCK + 3]
    assert all(one.error is None for one in found.values())


def test_what_is_known_is_not_decoded_again(corpus: Path, tmp_path: Path, calls: list[str]) -> None:
    records = records_of(corpus)
    first = survey_all(records, store_in(tmp_path))
    calls.clear()
    told: list[int] = []

    same_store = survey_all(records, store_in(tmp_path), told=told)
    from_elsewhere = survey_all(records, store_in(tmp_path / "other"), known=first)

    assert calls == []
    assert told == [3]
    assert [*same_store] == [*from_elsewhere] == [*first]


def test_a_corpus_that_grew_or_changed_costs_what_is_new(corpus: Path, tmp_path: Path, calls: list[str]) -> None:
    first = survey_all(records_of(corpus), store_in(tmp_path))
    write_sound(corpus / "1.wav", seed=7, seconds=1.5)
    write_sound(corpus / "new.wav", seed=8)
    calls.clear()

    found = survey_all(records_of(corpus), store_in(tmp_path), known=first)

    assert sorted(calls) == ["1.wav", "new.wav"]
    assert found["1.wav"].audio_sha256 != first["1.wav"].audio_sha256
    assert found["0.wav"].audio_sha256 == first["0.wav"].audio_sha256


def test_to_listen_is_asked_of_those_that_were_not_listened_to(corpus: Path, tmp_path: Path, calls: list[str]) -> None:
    (corpus / "2.json").write_text('{"bpm": 90, "key": "a minor"}')
    survey_all(records_of(corpus), store_in(tmp_path))
    calls.clear()

    found = survey_all(records_of(corpus), store_in(tmp_path), listen=True)

    assert sorted(calls) == ["0.wav", "1.wav"]
    assert found["0.wav"].heard is not None


def test_a_broken_file_costs_itself_alone(corpus: Path, tmp_path: Path) -> None:
    records = records_of(corpus)
    (corpus / "0.wav").write_bytes(b"")
    (corpus / "2.wav").unlink()

    found = survey_all(records, store_in(tmp_path))

    assert {name: one.error for name, one in found.items()} == {
        "0.wav": "the file is empty",
        "1.wav": None,
        "2.wav": "No such file or directory",
    }


def test_a_stop_is_not_blamed_on_the_file(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(record: Record, *, listen: bool) -> Survey:
        raise KeyboardInterrupt

    store = store_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(surveying, "survey", stop)
        for _ in range(MAX_ATTEMPTS + 1):
            with pytest.raises(KeyboardInterrupt):
                survey_all(records_of(corpus), store)

    assert all(one.error is None for one in survey_all(records_of(corpus), store).values())
    assert [path.suffix for path in store.folder.iterdir()] == [".jsonl"]


def test_a_block_that_another_worker_has_made_too_is_no_error(corpus: Path, tmp_path: Path) -> None:
    store = store_in(tmp_path)

    def other(record: Record, *, listen: bool) -> Survey:
        for path in store.folder.glob("*.attempts.json"):  # it took this worker for dead, and is done
            path.unlink()
        return survey(record, listen=listen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surveying, "survey", other)
        found = survey_all(records_of(corpus), store)

    assert len(found) == 3


# ---- processes that die ----------------------------------------------------------------------------------------------

PROGRAM = """
import logging, os, signal, sys
from pathlib import Path
from musicgen_ft.corpus import surveying
from musicgen_ft.corpus.scan import scan_corpus
from musicgen_ft.corpus.survey import survey
from musicgen_ft.leases import Leases

surveying.BLOCK = 2
folder, how = Path(sys.argv[1]), sys.argv[2]

def deadly(record, *, listen):
    with (folder / "log").open("a") as log:
        log.write(f"{record.relative_path} {os.getpid()}\\n")
    is_first = (folder / "log").read_text().count("3.wav") == 1
    if record.relative_path == "3.wav" and (how == "always" or is_first):
        os.kill(os.getpid(), signal.SIGKILL)
    return survey(record, listen=listen)

surveying.survey = deadly  # in the processes that are started, too: they run this file first

if __name__ == "__main__":
    store = surveying.SurveyStore(folder / "surveys", Leases(folder / "leases"))
    records = scan_corpus(folder / "corpus", read_tags=False)
    found = surveying.survey_corpus(records, store, known={}, listen=False, workers=2, progress=lambda _: None)
    print(*(f"{name}: {one.error}" for name, one in found.items()), sep="\\n")
"""


def run_program(folder: Path, how: str) -> "subprocess.CompletedProcess[str]":
    for number in range(6):
        write_sound(folder / "corpus" / f"{number}.wav", seed=number, seconds=0.5)
    (folder / "program.py").write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, str(folder / "program.py"), str(folder), how],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def decoded(folder: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in (folder / "log").read_text().splitlines())


def test_a_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    ended = run_program(tmp_path, "once")

    assert (ended.returncode, ended.stdout.splitlines()) == (0, [f"{number}.wav: None" for number in range(6)])
    assert "was killed (-9), another one takes over" in ended.stderr
    counts = decoded(tmp_path)
    assert counts.pop("3.wav") == 2
    assert counts.pop("2.wav") == 2  # of the same block
    assert set(counts.values()) == {1}
    names = [path.name for path in (tmp_path / "surveys").iterdir() if not path.name.startswith(".")]
    assert [name.partition(".")[2] for name in names] == ["jsonl"] * 3
    assert [*(tmp_path / "leases").iterdir()] == []


def test_a_file_that_kills_every_process_is_left_out(tmp_path: Path) -> None:
    ended = run_program(tmp_path, "always")

    errors = dict.fromkeys(range(6), "None") | {3: GAVE_UP}
    assert (ended.returncode, ended.stdout.splitlines()) == (0, [f"{n}.wav: {error}" for n, error in errors.items()])
    assert decoded(tmp_path)["3.wav"] == MAX_ATTEMPTS == 3


def test_a_parent_that_is_killed_takes_its_processes_with_it(tmp_path: Path) -> None:
    for number in range(6):
        write_sound(tmp_path / "corpus" / f"{number}.wav", seed=number, seconds=0.5)
    sleep = PROGRAM.replace("os.kill(os.getpid(), signal.SIGKILL)", "import time; time.sleep(60)")
    (tmp_path / "program.py").write_text(sleep)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "program.py"), str(tmp_path), "always"])
    deadline = time.monotonic() + 60
    log = tmp_path / "log"
    while not (log.exists() and "3.wav" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("3.wav")]
    assert len(pids) == 1

    parent.send_signal(signal.SIGKILL)
    parent.wait()

    while is_running(pids[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pids[0])


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
