"""A run that is told to stop: it saves at the next step boundary, on all ranks, and ends with a status of its own.

Lightning's own handling of SIGTERM calls a collective inside the signal handler, which deadlocks as soon as the other
ranks are in another collective (its issue 20806), and ends with status 0.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning

EXIT_PREEMPTED = 75
"""Of a run that was told to stop and has saved: EX_TEMPFAIL of sysexits.h, try again later."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What a launcher sends before it kills."""


class StopRequests:
    """Within its ``with`` block SIGTERM and SIGUSR1 are noted, and nothing else happens.

    Whoever trains looks at ``signum`` between two steps. To be entered early: until then a signal ends the process.
    """

    def __init__(self) -> None:
        self.signum = 0
        """The last one that came, 0 for none."""
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():  # Python allows no other to set handlers
            self._before = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum


def take_signals_over(trainer: "lightning.Trainer") -> None:
    """Switches Lightning's handlers off, those for SLURM too, and the flag that it broadcasts before every batch."""
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def leave(trainer: "lightning.Trainer", status: int) -> None:
    """Ends this rank, together with all others, with the exit status that its launcher can bear.

    A process that Lightning has started ends with 0: at anything else its parent, whose status it is that counts, is
    killed.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    by_lightning = environment is not None and not environment.creates_processes_externally
    raise SystemExit(0 if by_lightning and trainer.local_rank > 0 else status)


def _nothing() -> None:
    pass
