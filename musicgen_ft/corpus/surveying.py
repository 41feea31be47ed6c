"""Surveying a whole corpus: in blocks of files, by several processes and machines, each file once.

What was found is kept in a folder, a file of lines for each block. A block that a kill interrupted is done again.
"""

import hashlib
import json
import logging
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Protocol

from musicgen_ft.corpus.scan import Record
from musicgen_ft.corpus.survey import VERSION, Survey, survey, survey_from_dict, survey_to_dict, undecoded
from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_path, read_json, write_json
from musicgen_ft.leases import Leases, LeasesGoneError, work_through
from musicgen_ft.processes import end_with_parent

logger = logging.getLogger(__name__)

BLOCK = 8
"""Files surveyed under one lease: what a kill loses of them is measured again."""
MAX_ATTEMPTS = 3
"""A file that ends the process that decodes it so often is left out: a decoder that crashes, or takes all memory.

The last attempt is made in a process of its own. Whoever stops prepare by force stops its parent too, so that only the
file itself is blamed for its end.
"""
GAVE_UP = f"decoding it ended the process {MAX_ATTEMPTS} times"


class SurveyEngine(Protocol):
    """Surveys blocks of files somewhere."""

    def survey(
        self,
        blocks: Mapping[str, Sequence[Record]],
        store: "SurveyStore",
        listen: bool,
        tell: Callable[[], object],
    ) -> None:
        """Returns when the store has every block; tells now and then."""
        ...


class SurveyStore:
    """A folder of surveys."""

    def __init__(self, folder: Path, leases: Leases) -> None:
        """Makes the folder."""
        self.folder, self.leases = folder, leases
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, block: str) -> Path:
        """Where the surveys of a block lie."""
        return self.folder / f"{block}.jsonl"

    def read(self) -> dict[str, Survey]:
        """Every survey that is there, by relative path; of two the later one."""
        found: dict[str, Survey] = {}
        for path in sorted(self.folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
            with path.open(encoding="utf-8") as file:
                for line in file:
                    if (one := survey_from_dict(json.loads(line))) is not None:
                        found[one.relative_path] = one
        return found

    def make(self, block: str, records: Iterable[Record], *, listen: bool) -> None:
        """Surveys a block of files."""
        attempts_path = self.folder / f"{block}.attempts.json"
        attempts = read_json(attempts_path) if attempts_path.exists() else {}
        with atomic_path(self.path(block)) as temporary, temporary.open("w", encoding="utf-8") as file:
            for record in records:
                number = attempts.get(record.relative_path, 0)
                write_json(attempts_path, {**attempts, record.relative_path: number + 1})
                try:
                    is_last = number >= MAX_ATTEMPTS - 1
                    found = (_survey_apart if is_last else survey)(record, listen=listen)
                except BaseException:  # somebody stops this process: it is not the file that ends it
                    write_json(attempts_path, attempts)
                    raise
                file.write(json.dumps(survey_to_dict(found), ensure_ascii=False, allow_nan=False) + "\n")
        attempts_path.unlink(missing_ok=True)  # another worker, which took this one for dead, may have been faster


def survey_corpus(
    records: Sequence[Record],
    store: SurveyStore,
    *,
    known: Mapping[str, Survey],
    listen: bool,
    workers: int,
    progress: Callable[[int], object],
    engine: "SurveyEngine | None" = None,
) -> dict[str, Survey]:
    """The survey of every record; those that are known and still true are not made again.

    Args:
        records: the corpus.
        store: where surveys are kept; shared by all workers, on whatever machine.
        known: surveys from elsewhere, by relative path.
        listen: whether to hear tempo and key where labels lack them.
        workers: processes of this machine.
        progress: told how many files are surveyed in all.
        engine: does it elsewhere than in processes of this machine.

    Returns:
        By relative path, one for each record.

    Raises:
        LeasesGoneError: if somebody removes the store meanwhile.
    """
    found = {**known, **store.read()}
    missing = [
        record
        for record in records
        if record.relative_path not in found or not found[record.relative_path].is_of(record, listen=listen)
    ]
    blocks = dict(_blocks(missing, listen=listen))
    progress(len(records) - len(missing))
    sizes = {name: len(block) for name, block in blocks.items()}

    def tell() -> None:
        done = sum(size for name, size in sizes.items() if store.path(name).exists())
        progress(len(records) - len(missing) + done)

    workers = min(workers, len(blocks))
    if engine is not None:
        engine.survey(blocks, store, listen, tell)
    elif workers > 1:
        _survey_in_processes(blocks, store, listen=listen, workers=workers, tell=tell)
    else:
        _survey_blocks(blocks, store, listen, 0, tell)
    found.update(store.read())
    if any(record.relative_path not in found for record in records):
        raise LeasesGoneError(f"{store.folder} is gone: somebody removed it. Run it again.")
    return {record.relative_path: found[record.relative_path] for record in records}


def _blocks(records: Sequence[Record], *, listen: bool) -> Iterator[tuple[str, list[Record]]]:
    """Blocks and their names, which tell of the files as they are now: one that changed is in a block of a new name."""
    for start in range(0, len(records), BLOCK):
        block = list(records[start : start + BLOCK])
        digest = hashlib.sha256(f"{VERSION} {listen}".encode())
        for record in block:
            try:
                stat = record.path.stat()
                digest.update(f"{record.relative_path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(f"{record.relative_path} is gone\n".encode())
        yield digest.hexdigest()[:24], block


def _survey_blocks(
    blocks: Mapping[str, Sequence[Record]],
    store: SurveyStore,
    listen: bool,
    first: int,
    tell: Callable[[], object] | None = None,
) -> None:
    def do(name: str) -> None:
        store.make(name, blocks[name], listen=listen)
        if tell is not None:
            tell()

    work_through(list(blocks), store.leases, is_done=lambda name: store.path(name).exists(), do=do, first=first)


def _survey_in_processes(
    blocks: Mapping[str, Sequence[Record]],
    store: SurveyStore,
    *,
    listen: bool,
    workers: int,
    tell: Callable[[], object],
) -> None:
    """Keeps ``workers`` processes at it until every block is done; one that a file killed is replaced."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang

    def start(number: int) -> tuple[SpawnProcess, Connection]:
        first = number * len(blocks) // workers
        reader, writer = context.Pipe(duplex=False)
        arguments = (blocks, store, listen, first, writer)
        process = context.Process(target=_worker, args=arguments)
        with _deaf_to_ctrl_c():
            process.start()
        writer.close()
        return process, reader

    processes = [start(number) for number in range(workers)]
    try:
        while any(process.exitcode != 0 for process, _ in processes):
            time.sleep(0.1)
            tell()
            for number, (process, reader) in enumerate(processes):
                if process.exitcode not in (0, None):
                    if process.exitcode == 1:
                        raise _told(reader) or RuntimeError("a process that surveys the corpus failed, see above")
                    logger.warning(
                        "a process that surveys the corpus was killed (%s), another one takes over", process.exitcode
                    )
                    processes[number] = start(number)
    finally:
        for process, _ in processes:
            process.terminate()
            process.join()


def _worker(
    blocks: Mapping[str, Sequence[Record]],
    store: SurveyStore,
    listen: bool,
    first: int,
    writer: Connection,
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # an exception: no file is blamed for it
    end_with_parent()
    try:
        _survey_blocks(blocks, store, listen, first)
    except (UserError, OSError) as error:  # a full disk, say: one line, and not a traceback for each process
        writer.send(error)
        sys.exit(1)


def _survey_apart(record: Record, *, listen: bool) -> Survey:
    """The survey of a file that may end the process that decodes it: another one than this."""
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_send_survey, args=(record, listen, writer))
    with _deaf_to_ctrl_c():
        process.start()
    writer.close()
    try:
        return survey_from_dict(reader.recv()) or undecoded(record, GAVE_UP)
    except EOFError:
        return undecoded(record, GAVE_UP)
    finally:
        process.terminate()
        process.join()


def _send_survey(record: Record, listen: bool, writer: Connection) -> None:
    end_with_parent()
    writer.send(survey_to_dict(survey(record, listen=listen)))


def _told(reader: Connection) -> Exception | None:
    """What went wrong in a process that ended, where it could say so."""
    with suppress(EOFError):
        error: Exception = reader.recv()
        return error
    return None


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started here do not hear Ctrl-C: whoever started them does, and ends them."""
    if threading.current_thread() is not threading.main_thread():  # no signal can be set there
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
