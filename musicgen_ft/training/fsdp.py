"""FSDP2: weights, gradients, averages and the optimizer's state shared out among the ranks, by rows."""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.training import sharded
from musicgen_ft.training.ema import local
from musicgen_ft.training.ranks import NamedRanks
from musicgen_ft.training.sharded import Rows
from musicgen_ft.weights import read_pickle


class ShardedRanks(NamedRanks, ModelParallelStrategy):
    """Lightning's FSDP2, whose processes first wait for each other by name, with checkpoints of our own.

    Lightning's are PyTorch's distributed ones: they hold a pickle, and are not whole until their last file is there.
    So what it overrides of ``ParallelStrategy`` is put back here, and tensors are shared out when they are read.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(timeout=timeout)
        self.group_timeout = timeout
        self.mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        """Meets, and lays all ranks out in one row."""
        self.meet()
        ParallelStrategy.setup_environment(self)
        self._setup_distributed()  # finds the group there
        if self.mesh is None:  # of a run that was validated first, it is there
            self.mesh = init_device_mesh(self.root_device.type, (self.world_size,), mesh_dim_names=("ranks",))

    def shard(self, module: nn.Module, lm: LanguageModel, forward: str, *, bf16: bool) -> None:
        """Shares the parameters out, those of each layer together; all others are gathered for a whole micro-batch.

        Args:
            module: with ``lm`` as its only submodule; a second call does nothing.
            lm: all of its parameters, frozen ones too.
            forward: name of the method of ``module`` that runs ``lm`` and the loss.
            bf16: the layers are gathered in bf16, in which they are multiplied; gradients are summed in fp32.
        """
        if is_sharded(module):
            return
        # Activations stay as they are: the residual stream in fp32, as without FSDP.
        narrow = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for layer in lm.layers:
            fully_shard(layer, mesh=self.mesh, mp_policy=narrow if bf16 else MixedPrecisionPolicy())
        fully_shard(module, mesh=self.mesh, reshard_after_forward=True)
        register_fsdp_forward_method(module, forward)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    @property
    def lightning_restore_optimizer(self) -> bool:
        """As other strategies do."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This rank's rows."""
        return ParallelStrategy.lightning_module_state_dict(self)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """This rank's rows, the parameters numbered, as one process would have it."""
        return ParallelStrategy.optimizer_state(self, optimizer)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """Of what ``load_checkpoint`` gave."""
        ParallelStrategy.load_model_state_dict(self, checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Of what ``load_checkpoint`` gave."""
        ParallelStrategy.load_optimizer_state_dict(self, checkpoint)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes on all ranks; see ``sharded.write`` for what it raises."""
        sharded.write(Path(filepath), sharded.mapped(checkpoint, lambda _, value: _as_rows(value)))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """This rank's rows of a checkpoint that any number of ranks has written, or one process."""
        path, rank, world = Path(checkpoint_path), self.global_rank, self.world_size
        if path.is_dir():
            rows = sharded.read_rows(path, rank, world)
        else:
            rows = sharded.cut_rows(read_pickle(path), rank, world)
        loaded: dict[str, Any] = sharded.mapped(rows, lambda _, value: self._as_dtensor(value))
        return loaded

    def _as_dtensor(self, value: Tensor | Rows) -> Tensor:
        if isinstance(value, Tensor):
            return value
        stride = torch.empty(value.shape, device="meta").stride()
        assert self.mesh is not None
        return DTensor.from_local(value.local, self.mesh, [Shard(0)], shape=value.shape, stride=stride)


def _as_rows(value: Tensor | Rows) -> Tensor | Rows:
    return Rows(local(value), value.shape) if isinstance(value, DTensor) else value


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's parameters are shared out."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales gradients down to a norm over all of them, those of all ranks where they are shared out.

    Returns:
        The norm before, the same on all ranks.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    if not any(isinstance(parameter.grad, DTensor) for parameter in parameters):
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    grads = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    squared = nn.utils.get_total_norm(grads).square()
    dist.all_reduce(squared)
    norm = squared.sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale)
    return norm


def check_sharding(config: FinetuneConfig) -> None:
    """Refuses what cannot be shared out.

    Raises:
        UserError: for fp16, qlora, adamw8bit, muon, and samples on the way.
    """
    if config.sample_every_steps is not None:
        raise UserError(
            "--sample_every_steps does not go with --strategy fsdp: no process holds a whole model that could play. "
            "Leave it out, or use --strategy ddp."
        )
    if config.optimizer == "adamw8bit":
        raise UserError("--optimizer adamw8bit does not go with --strategy fsdp, which shares the moments out anyway.")
    if config.optimizer == "muon":
        raise UserError(
            "--optimizer muon does not go with --strategy fsdp: it needs whole matrices. Use --optimizer adamw, or "
            "--strategy ddp."
        )
    if config.precision == "fp16":
        raise UserError("--precision fp16 does not go with --strategy fsdp. Use --precision bf16 or fp32.")
    if config.method == "qlora":
        raise UserError(
            "--method qlora does not go with --strategy fsdp: weights in 4 bits are not shared out. Use --method lora, "
            "or --strategy ddp."
        )
