"""Where a run runs, and Lightning's trainer for it."""

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import lightning
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loggers import Logger

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.devices import is_main_process
from musicgen_ft.errors import UserError
from musicgen_ft.shards.order import micro_batches_per_step
from musicgen_ft.shards.progress import MicroBatchProgress
from musicgen_ft.training.checkpoints import AtomicCheckpointIO, SaveCheckpoints, validation_is_pending
from musicgen_ft.training.early_stop import EarlyStop
from musicgen_ft.training.fsdp import ShardedRanks, check_sharding
from musicgen_ft.training.listening import Listening
from musicgen_ft.training.metrics import MetricsCSV, build_loggers
from musicgen_ft.training.preempt import StopRequests, take_signals_over
from musicgen_ft.training.progress import ProgressBar
from musicgen_ft.training.ranks import Heartbeat, NamedRanks, NamedRanksDDP
from musicgen_ft.training.run import RunFolder, Saved

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How the batch of one step is shared among devices."""

    accelerator: str
    """cpu or gpu."""
    devices: int
    """Devices of each machine."""
    num_nodes: int
    """Machines."""
    world: int
    """Devices of all machines: the processes of the run."""
    micro_batch: int
    """Clips at once on one device."""
    micro_batches: int
    """Micro-batches that each device gathers in one step."""


def place(config: FinetuneConfig) -> Placement:
    """Shares the batch among the devices that there are, or that torchrun or SLURM has started processes for.

    Raises:
        UserError: if a device that is asked for is missing, the batch cannot be shared evenly, or the model cannot.
    """
    num_gpus = torch.cuda.device_count() if config.accelerator != "cpu" else 0
    if config.accelerator == "gpu" and num_gpus == 0:
        raise UserError("--accelerator gpu: this machine has no CUDA device. Use --accelerator cpu.")
    devices, num_nodes = started() or (config.devices or num_gpus or 1, config.num_nodes)
    if config.devices not in (None, devices) and is_main_process():
        logger.warning(f"--devices {config.devices}: left aside, since the launcher has started {devices} processes")
    if num_gpus and devices > num_gpus:
        raise UserError(f"--devices {devices}: this machine has {num_gpus} CUDA devices.")
    world = devices * num_nodes
    if config.strategy == "fsdp" and world > 1:
        check_sharding(config)
    share = max(1, config.batch_size // world)
    asked = None if config.micro_batch_size == "auto" else config.micro_batch_size
    micro_batch = min(asked or share, share)
    try:
        micro_batches = micro_batches_per_step(global_batch=config.batch_size, micro_batch=micro_batch, world=world)
    except ValueError as error:
        raise UserError(f"--batch_size {config.batch_size} does not fit the devices: {error}") from error
    return Placement(
        accelerator="gpu" if num_gpus else "cpu",
        devices=devices,
        num_nodes=num_nodes,
        world=world,
        micro_batch=micro_batch,
        micro_batches=micro_batches,
    )


def started() -> tuple[int, int] | None:
    """Processes on each machine, and machines, where torchrun or srun has started them; None where we do.

    Taken from the launcher, so that no process waits for others that nobody has started, nor trains alone.
    """
    if torch.distributed.is_torchelastic_launched():
        here, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return here, world // here
    if "SLURM_STEP_ID" in os.environ and SLURMEnvironment.detect():
        num_nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ["SLURM_NTASKS"]) // num_nodes, num_nodes
    return None


def build_trainer(
    config: FinetuneConfig,
    placement: Placement,
    run: RunFolder,
    *,
    n_q: int,
    has_valid: bool,
    saved: Saved | None,
    stop: StopRequests,
    listening: Listening | None = None,
) -> lightning.Trainer:
    """Lightning's trainer: the run is one epoch of ``max_steps`` steps, and nothing is left to Lightning's defaults.

    Args:
        config: of the run.
        placement: of ``place``.
        run: where metrics and checkpoints go.
        n_q: codebooks, for the names of the metrics.
        has_valid: whether there are tracks to validate on.
        saved: what a resumed run goes on from; later rows of its metrics are dropped, without it all.
        stop: whether the run was told to stop.
        listening: plays on the way.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):  # importing them has set their levels to INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    loggers: list[Logger] = []
    if is_main_process():
        metrics = MetricsCSV(run.path, n_q)
        pending = saved is not None and validation_is_pending(saved.state, saved.step, config, has_valid=has_valid)
        metrics.truncate(-1 if saved is None else saved.step, validated=not pending)
        loggers = [metrics, *build_loggers(config, run.path, wandb_id=run.info().wandb_id)]
    strategy = _strategy(config, placement)
    valid_every = min(config.valid_every_steps, config.max_steps)
    trainer = lightning.Trainer(
        accelerator=placement.accelerator,
        devices=placement.devices,
        num_nodes=placement.num_nodes,
        strategy=strategy or "auto",
        precision=_precision(config, placement),
        plugins=[AtomicCheckpointIO()],
        logger=loggers,
        callbacks=[
            MicroBatchProgress(),
            *([Heartbeat(strategy)] if strategy else []),
            *([listening] if listening else []),
            EarlyStop(config.early_stop_validations),  # before the checkpoints, which hold what it has counted
            SaveCheckpoints(run.checkpoints, config, has_valid=has_valid, stop=stop),
            ProgressBar(config.max_steps, every_steps=max(1, config.max_steps // 20)),
        ],
        max_steps=config.max_steps,
        max_epochs=1,
        accumulate_grad_batches=placement.micro_batches,
        val_check_interval=valid_every * placement.micro_batches if has_valid else None,
        limit_val_batches=None if has_valid else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,  # Lightning's own; SaveCheckpoints does
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(run.path),
    )
    take_signals_over(trainer)
    return trainer


def _strategy(config: FinetuneConfig, placement: Placement) -> NamedRanks | None:
    """None for one process, which has nothing to share out."""
    if placement.world == 1:
        return None
    timeout = timedelta(minutes=config.timeout_minutes)
    return ShardedRanks(timeout) if config.strategy == "fsdp" else NamedRanksDDP(timeout)


def compute_dtype(config: FinetuneConfig, placement: Placement) -> torch.dtype:
    """Of matrix products in training."""
    dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": torch.float32}
    return dtypes[_precision(config, placement)]


def _precision(config: FinetuneConfig, placement: Placement) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """Lightning's name: weights and optimizer stay in fp32, matrix products may be in half precision."""
    auto = "bf16" if placement.accelerator == "gpu" and torch.cuda.is_bf16_supported() else "fp32"
    chosen = auto if config.precision == "auto" else config.precision
    if chosen == "bf16":
        return "bf16-mixed"
    return "16-mixed" if chosen == "fp16" else "32-true"
