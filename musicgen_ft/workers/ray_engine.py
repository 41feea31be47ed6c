"""Prepare on a Ray cluster: every block of files, and every shard, is a task.

Ray runs a task again elsewhere where its worker dies. Corpus and shards lie on a filesystem that all machines see.
What a task does is what a local worker does, under the same leases: both may work on one folder.
"""

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.config.prepare import PrepareConfig
from musicgen_ft.corpus.scan import Record
from musicgen_ft.corpus.surveying import SurveyStore
from musicgen_ft.errors import UserError
from musicgen_ft.leases import work_through
from musicgen_ft.processes import num_cores
from musicgen_ft.shards.build import Builder, default_workers
from musicgen_ft.shards.job import settings_of
from musicgen_ft.shards.work import WorkFolder
from musicgen_ft.workers.encoder import build_encoder

MAX_RETRIES = 5
"""Times that Ray starts a task again whose worker died."""


class RayEngine:
    """A Ray cluster: the one that ``RAY_ADDRESS`` names, or this machine."""

    def __init__(self) -> None:
        """Joins the cluster.

        Raises:
            UserError: if Ray is not installed, or the cluster cannot be reached.
        """
        if importlib.util.find_spec("ray") is None:
            raise UserError("--engine ray needs Ray, which is not installed. Run: pip install 'musicgen-ft[ray]'")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns that it will be the default
        import ray

        self._ray: Any = ray
        if not ray.is_initialized():
            try:
                ray.init(include_dashboard=False, logging_level=logging.ERROR)
            except ConnectionError as error:
                address = os.environ.get("RAY_ADDRESS")
                raise UserError(
                    f"the Ray cluster at {address} cannot be reached: {error}. Check RAY_ADDRESS."
                ) from error

    def survey(
        self, blocks: Mapping[str, Sequence[Record]], store: SurveyStore, listen: bool, tell: Callable[[], object]
    ) -> None:
        """Surveys blocks of files, one core each."""
        arguments = [(store, name, tuple(records), listen) for name, records in blocks.items()]
        self._run(_survey_block, arguments, num_cpus=1, num_gpus=0, tell=tell)

    def build(
        self, names: Sequence[str], config: PrepareConfig, paths: Mapping[str, Any], tell: Callable[[], object]
    ) -> None:
        """Builds shards: on one GPU each where the cluster has any and the config wants them, else on all cores."""
        resources = self._ray.cluster_resources()
        has_gpu = resources.get("GPU", 0) > 0 and config.device != "cpu"
        num_cpus = config.workers or (4 if has_gpu else self._cores_of_a_machine())
        shared = self._ray.put(dict(paths))
        arguments = [(config, name, shared) for name in names]
        self._run(_build_shard, arguments, num_cpus=num_cpus, num_gpus=int(has_gpu), tell=tell)

    def _cores_of_a_machine(self) -> int:
        return max(1, int(min(node["Resources"].get("CPU", 1) for node in self._ray.nodes() if node["Alive"])))

    def _run(
        self,
        function: Callable[..., None],
        arguments: Sequence[tuple[Any, ...]],
        *,
        num_cpus: int,
        num_gpus: int,
        tell: Callable[[], object],
    ) -> None:
        remote = self._ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=MAX_RETRIES)(function)
        waiting = [remote.remote(*values) for values in arguments]
        try:
            while waiting:
                done, waiting = self._ray.wait(waiting, timeout=0.5)
                self._ray.get(done)
                tell()
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            raise


def _survey_block(store: SurveyStore, name: str, records: Sequence[Record], listen: bool) -> None:
    work_through(
        [name],
        store.leases,
        is_done=lambda name: store.path(name).exists(),
        do=lambda name: store.make(name, records, listen=listen),
    )


def _build_shard(config: PrepareConfig, name: str, paths: Mapping[str, Any]) -> None:
    builder = _builder(config)
    builder.paths = paths
    builder.build([name])


@functools.lru_cache(maxsize=1)
def _builder(config: PrepareConfig) -> Builder:
    """Made once in each of Ray's processes, which do one task after the other."""
    encoder = build_encoder(config, open_base(config.base, channels=config.channels))
    workers = config.workers or default_workers(encoder.codec, window_s=config.window_s, cores=num_cores())
    return Builder(
        WorkFolder(config.out, lease_s=config.lease_s),
        encoder,
        {},
        workers=workers,
        settings=settings_of(config, encoder),
        min_codec_snr_db=config.min_codec_snr_db,
    )
