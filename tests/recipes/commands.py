"""Starts commands in processes of their own that have paid for their imports: each is a fork of this one.

Reads a JSON list from each line of stdin: words of a command line, environment, file for the output, largest file it
may write (bytes, or null). Answers with the process id, and with ``PID STATUS`` when it has ended.
"""

import json
import os
import resource
import signal
import sys
import threading

import lightning  # noqa: F401
import torch  # noqa: F401

import musicgen_ft.shards.datamodule
import musicgen_ft.training.module
import musicgen_ft.training.trainer  # noqa: F401
from musicgen_ft.cli import main


def run(words: list[str], environment: dict[str, str], output: str, largest: int | None) -> None:
    """The command, in a child."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.update(environment)
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.argv = ["musicgen-ft", *words]
    main()


def tell_its_end(pid: int) -> None:
    """Waits for a child."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(1, f"{pid} {status}\n".encode())


for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(*request)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.write(1, f"{child}\n".encode())
    threading.Thread(target=tell_its_end, args=(child,), daemon=True).start()
