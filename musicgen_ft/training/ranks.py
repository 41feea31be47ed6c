"""The processes of a run: how they find each other, and which of them is missing.

They meet in a key-value store that rank zero (or torchrun) serves, before any of them waits in a collective operation,
where a missing one has no name. There each of them counts on while it works.
"""

import atexit
import contextlib
import logging
import os
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import lightning
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from musicgen_ft.errors import UserError
from musicgen_ft.training.checkpoints import first_line

logger = logging.getLogger(__name__)

_ANSWER = timedelta(seconds=5)
"""Within which a store that is alive answers."""


class NamedRanks(ParallelStrategy):
    """What the strategies have in common whose processes first wait for each other by name."""

    group_timeout: timedelta
    store: Store | None = None

    def meet(self) -> None:
        """Meets, then makes the process group over the store that all have met in.

        Raises:
            UserError: naming the ranks that have not come in time.
        """
        if dist.is_initialized():
            return
        strategy: Any = self  # what follows has no common name in Lightning's classes
        strategy.set_world_ranks()
        environment = self.cluster_environment
        assert environment is not None
        address, port = environment.main_address, environment.main_port
        self.store = meet(address, port, rank=self.global_rank, world=self.world_size, timeout=self.group_timeout)
        backend = strategy._get_process_group_backend()
        device = self.root_device if self.root_device.type != "cpu" else None
        dist.init_process_group(
            backend,
            store=PrefixStore("group", self.store),
            rank=self.global_rank,
            world_size=self.world_size,
            timeout=self.group_timeout,
            device_id=device,
        )
        if backend == "nccl":
            atexit.register(dist.destroy_process_group)  # as Lightning does where it makes the group


class NamedRanksDDP(NamedRanks, DDPStrategy):
    """DDP: every process holds the whole model."""

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(timeout=timeout)
        self.group_timeout = timeout

    def setup_distributed(self) -> None:
        """Meets; Lightning finds the group there."""
        self.meet()
        super().setup_distributed()


def meet(address: str, port: int, *, rank: int, world: int, timeout: timedelta) -> Store:
    """Waits until all ranks are there.

    Raises:
        UserError: naming those that have not come in time.
    """
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    until = time.monotonic() + timeout.total_seconds()
    try:
        served = TCPStore(address, port, is_master=serves, timeout=timeout, wait_for_workers=False)
    except (dist.DistError, RuntimeError) as error:
        role = "serve" if serves else "reach"
        raise UserError(
            f"rank {rank} of {world} ({socket.gethostname()}) cannot {role} the meeting point of rank 0 at "
            f"{address}:{port}: {first_line(error)}."
        ) from error
    store = PrefixStore(f"musicgen-ft/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", served)
    store.set(f"here/{rank}", socket.gethostname())
    try:
        for other in range(world):
            left = max(0.1, until - time.monotonic())
            store.wait([f"here/{other}"], timedelta(seconds=left))
    except (dist.DistError, RuntimeError) as error:
        here = _known(store, "here", world)
        missing = [str(other) for other in range(world) if other not in here]
        there = ", ".join(f"{other} ({host})" for other, host in here.items())
        raise UserError(
            f"rank {', '.join(missing) or '0'} of {world} has not come within {timeout.total_seconds() / 60:g} "
            f"minutes; here: {there or rank}. Look at its machine; under SLURM, start with srun."
        ) from error
    return store


class Heartbeat(lightning.Callback):
    """Counts this rank on in the store, and names those that lag behind when nothing moves.

    The group itself ends a collective operation that lasts too long, gloo by an exception and NCCL by the end of the
    process; neither says who was not there. So a thread looks a little earlier.
    """

    def __init__(self, strategy: NamedRanks) -> None:
        self._strategy = strategy
        self._beats = 0
        self._beat_at = time.monotonic()
        self._end = threading.Event()
        self._watcher: threading.Thread | None = None
        self._told = False

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begins to watch."""
        self._beat()
        self._watcher = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._watcher.start()

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """The data were there."""
        self._beat()

    def on_before_backward(self, *args: Any, **kwargs: Any) -> None:
        """The forward pass was made; in the backward pass the ranks wait for each other."""
        self._beat()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """The micro-batch was made."""
        self._beat()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """A batch was validated."""
        self._beat()

    def on_save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """A save begins."""
        self._beat()

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Ends the watch."""
        self._end.set()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Ends the watch; tells who is behind where a collective operation has failed."""
        self._end.set()
        if self._watcher is not None:
            self._watcher.join(2 * _ANSWER.total_seconds())  # it may be telling
        if isinstance(exception, RuntimeError) and not self._told:
            self._tell()

    def beat(self) -> None:
        """Still at work, apart from the hooks above."""
        self._beat()

    def _beat(self) -> None:
        self._beats += 1
        self._beat_at = time.monotonic()
        assert self._strategy.store is not None
        self._strategy.store.set(f"beats/{self._strategy.global_rank}", str(self._beats))

    def _watch(self) -> None:
        limit_s = 0.9 * self._strategy.group_timeout.total_seconds()
        while not self._end.wait(min(5.0, limit_s / 10)):
            if time.monotonic() - self._beat_at > limit_s:
                self._told = True
                self._tell()
                return

    def _tell(self) -> None:
        """Names the ranks that are gone, and those that are not as far as this one."""
        store, rank, world = self._strategy.store, self._strategy.global_rank, self._strategy.world_size
        assert store is not None
        waited_s = time.monotonic() - self._beat_at
        answers = self._roll_call(store, rank, world)
        hosts = _known(store, "here", world)
        if not answers:
            logger.warning(f"rank {rank} of {world}: rank 0, where all meet, is gone")
            return
        beats = {other: int(count) for other, count in _known(store, "beats", world).items()}
        gone = [other for other in range(world) if other not in answers]
        behind = [other for other in answers if beats.get(other, 0) < max(beats.values(), default=0)]
        parts = [
            f"{what}: " + ", ".join(f"rank {other} ({hosts.get(other, 'unknown machine')})" for other in ranks)
            for what, ranks in (("gone", gone), ("behind the others", behind))
            if ranks
        ]
        logger.warning(
            f"rank {rank} of {world} has waited for {waited_s:.0f} s; {'; '.join(parts) or 'all are in the same place'}"
        )

    @staticmethod
    def _roll_call(store: Store, rank: int, world: int) -> dict[int, str]:
        """The ranks that notice, too, that nothing moves; all that live do, within a moment."""
        until = time.monotonic() + _ANSWER.total_seconds()
        answers: dict[int, str] = {}
        with contextlib.suppress(dist.DistError, RuntimeError):
            store.set(f"answer/{rank}", "here")
        while time.monotonic() < until and len(answers := _known(store, "answer", world)) not in (0, world):
            time.sleep(0.1)
        return answers


def _known(store: Store, kind: str, world: int) -> dict[int, str]:
    """What the ranks have put down; nothing if the store does not answer."""
    try:
        store.set_timeout(_ANSWER)
        keys = {rank: f"{kind}/{rank}" for rank in range(world)}
        return {rank: store.get(key).decode() for rank, key in keys.items() if store.check([key])}
    except (dist.DistError, RuntimeError):
        return {}
