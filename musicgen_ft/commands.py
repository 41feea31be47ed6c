"""Recipes that one recipe runs one after the other, each in a process of its own."""

import multiprocessing
import runpy
import sys
from multiprocessing import forkserver

from musicgen_ft.cli import recipe_path, refuse_failure, run_command
from musicgen_ft.processes import end_with_parent, handing_on_sigterm

PRELOADED = (
    "musicgen_ft.checkpoint.generator_folder",
    "musicgen_ft.evaluation.listening",
    "musicgen_ft.shards.job",
    "musicgen_ft.training.trainer",
    "sklearn.linear_model",
)
"""Modules that between them import what takes seconds: torch, Lightning, transformers, librosa, scikit-learn."""


class Commands:
    """Runs recipes in forks of one process that has imported all and computed nothing: seconds less for each.

    On Linux alone: elsewhere a fork of what is loaded is not safe, and each recipe imports for itself.
    """

    def __init__(self) -> None:
        """Begins to import, beside whatever comes next."""
        self._context = None
        if sys.platform == "linux":
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(list(PRELOADED))
            forkserver.ensure_running()

    def run(self, command: str, *arguments: str) -> None:
        """Runs a recipe with this process' output streams.

        Raises:
            UserError: if it ended with status 2; it has told the user why.
            RuntimeError: if it failed otherwise.
        """
        if self._context is None:
            run_command(command, *arguments)
            return
        process = self._context.Process(target=_run, args=(str(recipe_path(command)), arguments))
        process.start()
        with handing_on_sigterm(process.terminate):
            process.join()
        refuse_failure(command, process.exitcode)


def _run(recipe: str, arguments: tuple[str, ...]) -> None:
    end_with_parent()
    sys.argv = [recipe, *arguments]
    runpy.run_path(recipe, run_name="__main__")
