"""The processes of a run find each other, and name the one that is missing."""

import re
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from musicgen_ft.errors import UserError
from musicgen_ft.training import ranks
from musicgen_ft.training.ranks import Heartbeat, meet

SHORT = timedelta(seconds=1)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


def come(ranks: list[int], world: int, port: int, timeout: timedelta) -> dict[int, Any]:
    """What each of some ranks finds: the store, or the error."""
    found: dict[int, Any] = {}

    def one(rank: int) -> None:
        try:
            found[rank] = meet("127.0.0.1", port, rank=rank, world=world, timeout=timeout)
        except UserError as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_that_come_share_a_store(port: int) -> None:
    stores = come([0, 1, 2], 3, port, timedelta(seconds=30))
    stores[1].set("key", "of rank 1")
    assert stores[2].get("key") == b"of rank 1"


def test_those_that_do_not_come_are_named(port: int) -> None:
    found = come([0, 2], 4, port, SHORT)
    host = re.escape(socket.gethostname())
    for rank in (0, 2):
        assert isinstance(found[rank], UserError)
        assert re.search(rf"rank 1, 3 of 4 has not come .*here: 0 \({host}\), 2 \({host}\)", str(found[rank]))


def test_a_meeting_point_that_nobody_serves_is_named(port: int) -> None:
    error = come([1], 2, port, SHORT)[1]
    assert isinstance(error, UserError)
    assert re.search(rf"rank 1 of 2 .* cannot reach the meeting point of rank 0 at 127\.0\.0\.1:{port}", str(error))


# ---- while they train ------------------------------------------------------------------------------------------------


@pytest.fixture
def hearts() -> Callable[..., list[Heartbeat]]:
    """Ranks with one store."""

    def make(num: int, *, timeout: timedelta = timedelta(minutes=5)) -> list[Heartbeat]:
        store = HashStore()
        strategies: list[Any] = [
            SimpleNamespace(store=store, global_rank=rank, world_size=num, group_timeout=timeout) for rank in range(num)
        ]
        for rank in range(num):
            store.set(f"here/{rank}", f"host{rank}")
        return [Heartbeat(strategy) for strategy in strategies]

    return make


ANY: Any = None


def test_a_rank_that_is_gone_and_one_that_lags_behind_are_named_when_a_collective_fails(
    hearts: Callable[..., list[Heartbeat]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_ANSWER", timedelta(seconds=0.5))
    first, second, third = hearts(3)
    for heart in (first, second, third):
        heart.on_train_batch_start()
    first.on_before_backward()
    second.on_before_backward()
    third._strategy.store.set("answer/2", "here")  # type: ignore[union-attr]
    first.on_exception(ANY, ANY, UserError("the loss is nan"))
    assert caplog.messages == []
    first.on_exception(ANY, ANY, RuntimeError("Connection closed by peer"))
    expected = r"rank 0 of 3 has waited for 0 s; gone: rank 1 \(host1\); behind the others: rank 2 \(host2\)$"
    assert re.search(expected, caplog.messages[0])


def test_ranks_that_all_wait_in_the_same_place_are_told_so(
    hearts: Callable[..., list[Heartbeat]], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = hearts(2)
    for heart in (first, second):
        heart.on_train_batch_start()
    second._strategy.store.set("answer/1", "here")  # type: ignore[union-attr]
    first.on_exception(ANY, ANY, RuntimeError("Timed out"))
    assert caplog.messages[0].endswith("; all are in the same place")


def test_a_rank_that_stands_still_is_named_before_the_group_gives_up(
    hearts: Callable[..., list[Heartbeat]], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = hearts(2, timeout=timedelta(seconds=0.5))
    for heart in (first, second):
        heart.on_fit_start(ANY, ANY)
    first.on_train_batch_start()
    threading.Event().wait(1.5)
    first.on_exception(ANY, ANY, RuntimeError("Timed out"))  # says nothing a second time
    second.on_exception(ANY, ANY, RuntimeError("Timed out"))
    assert sorted(message.split(" of 2")[0] for message in caplog.messages) == ["rank 0", "rank 1"]
    assert all("s; behind the others: rank 1 (host1)" in message for message in caplog.messages)


def test_a_run_that_moves_on_or_has_ended_names_nobody(
    hearts: Callable[..., list[Heartbeat]], caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = hearts(2, timeout=timedelta(seconds=0.5))
    first.on_fit_start(ANY, ANY)
    for _ in range(10):
        threading.Event().wait(0.1)
        first.on_train_batch_end()
    first.on_fit_end(ANY, ANY)
    threading.Event().wait(0.8)
    assert caplog.messages == []
