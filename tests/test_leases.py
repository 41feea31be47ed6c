"""Leases are told by processes that are really killed; where the owner's machine is another, by a file of its kind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from musicgen_ft.errors import UserError
from musicgen_ft.leases import Leases, work_through

Start = Callable[..., "subprocess.Popen[str]"]

OWNER = """
import sys, time
from pathlib import Path
from musicgen_ft.leases import Leases

with Leases(Path(sys.argv[1]), stale_s=float(sys.argv[2])).claim("task") as is_mine:
    print(is_mine, flush=True)
    sys.stdin.readline()
"""

WORKER = """
import os, signal, sys, time
from pathlib import Path
from musicgen_ft.leases import Leases, work_through

folder, first, deadly = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def do(task):
    with (folder / "log").open("a") as log:
        log.write(f"{task} {os.getpid()}\\n")
    if task == deadly and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    (folder / f"{task}.done").touch()

tasks = [f"task-{number}" for number in range(20)]
while not (folder / "go").exists():
    time.sleep(0.01)
leases = Leases(folder / "leases")
work_through(tasks, leases, is_done=lambda task: (folder / f"{task}.done").exists(), do=do, first=first)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a program; what still runs when the test ends is killed."""
    with ExitStack() as stack:

        def run(program: str, *arguments: object) -> "subprocess.Popen[str]":
            command = [sys.executable, "-c", program, *map(str, arguments)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield run


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def let_go(process: "subprocess.Popen[str]") -> None:
    process.communicate("\n", timeout=30)
    assert process.returncode == 0


def claims(leases: Leases, task: str = "task") -> bool:
    with leases.claim(task) as is_mine:
        return is_mine


def write_lease(folder: Path, *, age_s: float, **changes: Any) -> Path:
    """The lease of an owner on another machine."""
    path = folder / "task.lease"
    path.write_text(json.dumps({"host": "elsewhere pid:[1]", "pid": os.getpid(), "born": "1", **changes}))
    make_old(path, age_s)
    return path


def make_old(path: Path, age_s: float) -> None:
    then = time.time() - age_s
    os.utime(path, (then, then))


# ---- one owner -------------------------------------------------------------------------------------------------------


def test_a_task_is_claimed_once_until_it_is_released(tmp_path: Path, start: Start) -> None:
    owner = start(OWNER, tmp_path / "leases", 60)
    assert first_line(owner) == "True"
    leases = Leases(tmp_path / "leases")

    assert not claims(leases)
    assert claims(leases, "another task")
    let_go(owner)

    assert claims(leases)
    assert list((tmp_path / "leases").iterdir()) == []


def test_a_task_is_released_when_its_work_fails(tmp_path: Path) -> None:
    leases = Leases(tmp_path)

    def work() -> None:
        with leases.claim("task") as is_mine:
            raise RuntimeError(f"no more memory {is_mine}")

    with pytest.raises(RuntimeError, match="no more memory True"):
        work()

    assert claims(leases)


def test_threads_of_one_process_do_not_share_a_task(tmp_path: Path) -> None:
    leases, found = Leases(tmp_path), list[bool]()

    with leases.claim("task"):
        thread = threading.Thread(target=lambda: found.append(claims(leases)))
        thread.start()
        thread.join()

    assert found == [False]


def test_a_lease_that_is_renewed_is_not_taken_over(tmp_path: Path) -> None:
    owner, other = Leases(tmp_path, stale_s=2.0), Leases(tmp_path, stale_s=2.0)
    path = tmp_path / "task.lease"

    with owner.claim("task") as is_mine:
        old = time.time() - 1.9
        os.utime(path, (old, old))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < old + 1 and time.monotonic() < deadline:
            time.sleep(0.05)

        assert is_mine
        assert path.stat().st_mtime > old + 1
        assert not claims(other)


def test_a_time_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lease_s is 0, expected seconds above 0"):
        Leases(tmp_path, stale_s=0)


# ---- dead owners -----------------------------------------------------------------------------------------------------


def test_the_task_of_a_killed_process_is_taken_over_at_once(tmp_path: Path, start: Start) -> None:
    owner = start(OWNER, tmp_path, 3600)
    assert first_line(owner) == "True"

    owner.kill()
    owner.wait()

    assert claims(Leases(tmp_path, stale_s=3600))


def test_the_task_of_a_zombie_is_taken_over_at_once(tmp_path: Path, start: Start) -> None:
    owner = start(OWNER, tmp_path, 3600)
    assert first_line(owner) == "True"

    owner.kill()
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has asked how it ended

    assert Path(f"/proc/{owner.pid}").exists()
    assert claims(Leases(tmp_path, stale_s=3600))


def test_another_process_under_the_dead_owners_number_does_not_keep_the_task(tmp_path: Path) -> None:
    with Leases(tmp_path).claim("task"):
        values = json.loads((tmp_path / "task.lease").read_text())
    (tmp_path / "task.lease").write_text(json.dumps({**values, "born": "7"}))  # values["pid"] is alive: it is ours

    assert claims(Leases(tmp_path, stale_s=3600))


@pytest.mark.parametrize(("age_s", "is_free"), [(50, False), (70, True)])
def test_the_task_of_another_machine_is_taken_over_when_it_is_stale(
    tmp_path: Path, age_s: float, is_free: bool
) -> None:
    path = write_lease(tmp_path, age_s=age_s)

    assert claims(Leases(tmp_path, stale_s=60)) == is_free
    assert path.exists() != is_free


@pytest.mark.parametrize(("age_s", "is_free"), [(0, False), (70, True)])
def test_a_lease_whose_owner_died_before_it_wrote_its_name_is_taken_over_when_it_is_stale(
    tmp_path: Path, age_s: float, is_free: bool
) -> None:
    path = write_lease(tmp_path, age_s=age_s)
    path.write_text("")
    make_old(path, age_s)

    assert claims(Leases(tmp_path, stale_s=60)) == is_free


def test_staleness_is_told_by_the_clock_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lease(tmp_path, age_s=10)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock is wrong by decades

    assert not claims(Leases(tmp_path, stale_s=60))
    assert [path.name for path in tmp_path.iterdir()] == ["task.lease"]


def test_a_frozen_owner_loses_its_task_and_leaves_it_to_the_next_when_it_wakes(tmp_path: Path, start: Start) -> None:
    owner = start(OWNER, tmp_path, 0.5)
    assert first_line(owner) == "True"
    owner.send_signal(signal.SIGSTOP)
    time.sleep(1.0)

    with Leases(tmp_path, stale_s=0.5).claim("task") as is_mine:
        assert is_mine
        owner.send_signal(signal.SIGCONT)
        let_go(owner)
        assert (tmp_path / "task.lease").exists()
        assert not claims(Leases(tmp_path, stale_s=60))


def test_of_two_that_see_an_owner_dead_one_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lease(tmp_path, age_s=70)
    fast, slow = Leases(tmp_path), Leases(tmp_path)
    rename = Path.rename
    with ExitStack() as stack:

        def after_the_other(path: Path, target: Path) -> Path:
            monkeypatch.undo()  # the other one comes in between "it is dead" and what follows from it
            assert stack.enter_context(fast.claim("task"))
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", after_the_other)

        assert not claims(slow)
        assert (tmp_path / "task.lease").exists()
        assert not claims(slow)
    assert list(tmp_path.iterdir()) == []


def test_a_lease_that_goes_while_it_is_looked_at_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lease(tmp_path, age_s=0).write_text("")
    read_text = Path.read_text

    def read_then_released(path: Path, *args: Any, **options: Any) -> str:
        text = read_text(path, *args, **options)
        path.unlink()
        return text

    monkeypatch.setattr(Path, "read_text", read_then_released)

    assert not claims(Leases(tmp_path))


# ---- many tasks ------------------------------------------------------------------------------------------------------


def log_of(folder: Path) -> list[tuple[str, str]]:
    return [(task, pid) for task, pid in (line.split() for line in (folder / "log").read_text().splitlines())]


@pytest.mark.parametrize("first", [0, 10])
def test_two_processes_do_each_task_once(tmp_path: Path, start: Start, first: int) -> None:
    workers = [start(WORKER, tmp_path, begin, "none") for begin in (0, first)]
    (tmp_path / "go").touch()

    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    assert Counter(task for task, _ in log_of(tmp_path)) == {f"task-{number}": 1 for number in range(20)}
    assert list((tmp_path / "leases").iterdir()) == []


def test_of_three_processes_one_is_killed_and_the_others_finish_all(tmp_path: Path, start: Start) -> None:
    workers = [start(WORKER, tmp_path, 7 * number, "task-9") for number in range(3)]
    (tmp_path / "go").touch()

    assert sorted(worker.wait(timeout=60) for worker in workers) == [-signal.SIGKILL, 0, 0]
    counts = Counter(task for task, _ in log_of(tmp_path))
    assert {task: count for task, count in counts.items() if count > 1} == {"task-9": 2}
    assert len(counts) == 20
    assert all((tmp_path / f"task-{number}.done").exists() for number in range(20))


def test_a_worker_waits_for_the_tasks_of_others(tmp_path: Path) -> None:
    done, mine = {"a"}, list[str]()
    leases = Leases(tmp_path)

    def finish_elsewhere() -> None:
        with leases.claim("b"):
            claimed.set()
            time.sleep(0.5)
            done.add("b")

    claimed = threading.Event()
    other = threading.Thread(target=finish_elsewhere)
    other.start()
    claimed.wait()

    def do(task: str) -> None:
        mine.append(task)
        done.add(task)

    work_through(["a", "b", "c", "d"], leases, is_done=done.__contains__, do=do, first=2)

    assert mine == ["c", "d"]
    assert done == set("abcd")
    other.join()


def test_an_error_is_not_swallowed_and_frees_the_task(tmp_path: Path) -> None:
    def do(task: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        work_through(["a"], Leases(tmp_path), is_done=lambda _: False, do=do)

    assert list(tmp_path.iterdir()) == []


def test_whoever_comes_when_all_is_done_and_removed_finds_no_task_of_its_own(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases")
    (tmp_path / "leases").rmdir()

    assert not claims(leases)
    work_through(["a"], leases, is_done=lambda _: True, do=pytest.fail)


def test_a_folder_that_goes_before_all_is_done_ends_the_work(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases")
    (tmp_path / "leases").rmdir()

    with pytest.raises(UserError, match=r"leases is gone, with 2 of 3 tasks not done.*Run it again"):
        work_through(["a", "b", "c"], leases, is_done=lambda task: task == "b", do=pytest.fail)
