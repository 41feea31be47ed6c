"""How a batch is shared among processes, whoever starts them."""

from typing import Any

import pytest

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.training.trainer import place, started

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6", "RANK": "0", "LOCAL_RANK": "0"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "2"}


def config(**changes: Any) -> FinetuneConfig:
    return FinetuneConfig(accelerator="cpu", **{"batch_size": 12, **changes})


@pytest.mark.parametrize("launcher", [TORCHRUN, SRUN])
@pytest.mark.parametrize("devices", [None, 2, 4])
def test_a_launchers_number_of_processes_counts(
    launcher: dict[str, str], devices: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    placement = place(config(devices=devices))
    assert (placement.devices, placement.num_nodes, placement.world) == (2, 3, 6)
    assert (placement.micro_batch, placement.micro_batches) == (2, 1)
    told = ["--devices 4: left aside, since the launcher has started 2 processes"] if devices == 4 else []
    assert caplog.messages == told


def test_without_a_launcher_the_config_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started() is None
    placement = place(config(devices=3, num_nodes=2, micro_batch_size=1))
    assert (placement.world, placement.micro_batch, placement.micro_batches) == (6, 1, 2)
    monkeypatch.setenv("SLURM_NTASKS", "6")  # a job's own shell, where nobody has started processes
    assert started() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5, "devices": 2}, "--batch_size 5 .* Take a batch size of 4"),
        ({"batch_size": 3, "devices": 4}, "--batch_size 3 .* Take a batch size of 4"),
        ({"batch_size": 12, "micro_batch_size": 5}, "--batch_size 12 .* Take a batch size of 10"),
    ],
)
def test_a_batch_that_cannot_feed_all_processes_alike_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        place(config(**changes))
