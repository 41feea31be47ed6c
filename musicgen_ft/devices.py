"""Which device a recipe runs on, and which of its processes speaks."""

import os
from pathlib import Path

import torch

from musicgen_ft.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` means; auto takes a GPU where there is one.

    Raises:
        UserError: if there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices. Use cpu or auto.")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N.")
    return device


def local_device(name: str) -> torch.device:
    """As ``resolve_device``; of several GPUs, auto takes the one that is this process's under torchrun or SLURM."""
    device = resolve_device(name)
    if name == "auto" and device.type == "cuda":
        number = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
        return torch.device("cuda", number % torch.cuda.device_count())
    return device


def total_memory(device_type: str) -> int:
    """Bytes of the smallest of this machine's GPUs (``cuda``), or of its RAM as far as this process may have it."""
    if device_type == "cuda":
        return min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container, where there is one; "max" means none
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(memory, int(text)) if text.isdigit() else memory


def computes_in_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are faster there than in fp32: a CPU may have instructions for it, or only act as if."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))


def bf16_words() -> list[str]:
    """Words for ``finetune`` on nano: bf16 where it is fast, on a CPU too. nano learns as well so."""
    return ["--precision", "bf16"] if computes_in_bf16(resolve_device("auto")) else []


def is_main_process() -> bool:
    """Whether this is rank zero of the run, or will be once the process group has started.

    Told by what torchrun, SLURM and Lightning set in the environment.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("NODE_RANK", "LOCAL_RANK"))
