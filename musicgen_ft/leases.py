"""Leases: which worker does which task, among processes and machines that share nothing but a folder.

A task is claimed by creating its file, which one of them does first. The owner renews the file while it works; where
it dies, the file grows old, or names a process that is no more, and another takes the task over. Two workers on one
task are a waste and no harm: what they make is the same, and is put in place by renaming.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from musicgen_ft.errors import UserError

_PAUSE_S = 0.3  # between two looks at tasks that others are at


class LeasesGoneError(UserError):
    """The folder of the leases is gone, before all is done."""


class Leases:
    """The leases in one folder."""

    def __init__(self, folder: Path, *, stale_s: float = 60.0) -> None:
        """Makes the folder.

        Args:
            folder: on a filesystem that all workers see.
            stale_s: a lease that was not renewed for so long is taken over; an owner renews it four times as often.
        """
        if stale_s <= 0:
            raise UserError(f"lease_s is {stale_s}, expected seconds above 0.")
        self.folder, self.stale_s = folder, stale_s
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def claim(self, task: str) -> Iterator[bool]:
        """Whether the task is this worker's, for the length of the block; of a folder that is gone, none is."""
        path = self.folder / f"{task}.lease"
        lease = _text_of_a_new_lease()
        if not self._take(path, lease):
            yield False
            return
        done = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(path, lease, done), daemon=True)
        renewing.start()
        try:
            yield True
        finally:
            done.set()
            renewing.join()
            if _read(path) == lease:  # else it was taken over, after a long sleep of this worker
                path.unlink(missing_ok=True)

    def _take(self, path: Path, lease: str) -> bool:
        try:
            if _create(path, lease):
                return True
            found = _read(path)
            if found is None or not self._is_dead(path, found):
                return False
            grave = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            path.rename(grave)  # of several that see it dead, one does it
        except FileNotFoundError:
            return False  # released, buried, or removed with its folder this moment
        is_other = _read(grave) != found
        if is_other:  # another worker was faster, and this is its lease
            with suppress(OSError):
                os.link(grave, path)
        grave.unlink()
        return not is_other and _create(path, lease)

    def _is_dead(self, path: Path, lease: str) -> bool:
        try:
            owner = json.loads(lease)
        except ValueError:
            owner = {}  # seen between its creation and its first byte
        if owner.get("host") == _host() and not _is_alive(int(owner["pid"]), owner.get("born")):
            return True
        return self._now() - path.stat().st_mtime > self.stale_s

    def _now(self) -> float:
        """The time by the clock that stamps the files: a file server's may differ from this machine's."""
        probe = self.folder / f".clock-{uuid.uuid4().hex}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _renew(self, path: Path, lease: str, done: threading.Event) -> None:
        while not done.wait(self.stale_s / 4):
            with suppress(OSError):  # the share is away for a moment
                if _read(path) == lease:
                    os.utime(path)


def work_through(
    tasks: Sequence[str], leases: Leases, *, is_done: Callable[[str], bool], do: Callable[[str], None], first: int = 0
) -> None:
    """Does tasks together with other workers, until all are done by whomever.

    Args:
        tasks: their names, the same for all workers.
        leases: in a folder that all workers see.
        is_done: whether a task needs no more work.
        do: does one task.
        first: number of the task to begin with; workers that begin at different ones meet less often.

    Raises:
        LeasesGoneError: if somebody removes the folder of the leases before all is done.
    """
    waiting = [*tasks[first:], *tasks[:first]]
    while waiting := [task for task in waiting if not is_done(task)]:
        is_any_mine = False
        for task in waiting:
            if is_done(task):
                continue
            with leases.claim(task) as is_mine:
                if is_mine and not is_done(task):
                    do(task)
                    is_any_mine = True
        if not is_any_mine:
            num_left = sum(not is_done(task) for task in tasks)
            if num_left and not leases.folder.is_dir():
                raise LeasesGoneError(
                    f"{leases.folder} is gone, with {num_left} of {len(tasks)} tasks not done: somebody removed it. "
                    "Run it again."
                )
            time.sleep(_PAUSE_S)


def _text_of_a_new_lease() -> str:
    pid = os.getpid()
    return json.dumps({"host": _host(), "pid": pid, "born": _born(pid), "token": uuid.uuid4().hex})


def _create(path: Path, lease: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(lease)
    return True


def _read(path: Path) -> str | None:
    """The text of a lease; None where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _host() -> str:
    """The machine, and the container: the numbers of processes mean something within one only."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _is_alive(pid: int, born: str | None) -> bool:
    """Whether the process that claimed is still there, and no other one under its number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _born(pid) == born


def _born(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; "dead" of a zombie; None on systems without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return "dead" if state in ("Z", "X") else rest[18]
