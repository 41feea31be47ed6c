"""Says before any download how a base can be trained within a memory.

musicgen-ft plan --base medium --memory_gib 24
musicgen-ft plan --base large --memory_gib 80 --devices 8 --method full
musicgen-ft plan --base nano --device cpu --segment_s 10
"""

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from musicgen_ft.cli import read_config, run_recipe
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.config.plan import PlanConfig
from musicgen_ft.errors import UserError

if TYPE_CHECKING:
    from musicgen_ft.training.plan import Candidate, Device, Job


def main(config: PlanConfig) -> None:
    """Base, device and what is fixed -> simulated steps -> a table, an estimate of the time, a command."""
    from musicgen_ft.checkpoint.released import outline
    from musicgen_ft.training.plan import GIB, Job, plan, shortage, table

    run = read_config(FinetuneConfig, "finetune", config.finetune_config)
    asked: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("segment_s", "batch_size", "method", "recompute")
        if getattr(config, name) is not None
    }
    run = dataclasses.replace(run, **asked)
    base = outline(config.base)
    device = device_of(config)
    job = Job(
        lm_config=base.lm_config,
        config=run,
        text_encoder_bytes=base.text_encoder_bytes,
        frame_rate=base.frame_rate,
        devices=config.devices,
    )
    if run.method == "qlora" and device.type == "cpu":
        raise UserError("--method qlora: weights in 4 bits need a CUDA device. Use --method lora, or --device gpu.")

    found = plan(job, device, further=True, tell=lambda what: print(f"trying {what}", file=sys.stderr))
    kind = "GPU" if device.type == "cuda" else "CPU"
    where = f"{'this machine' if device.is_here else 'a'}{chr(39) + 's' if device.is_here else ''} {kind}"
    print(f"{base.place} on {where} of {device.memory / GIB:.1f} GiB, clips of {run.segment_s:g} s, GiB for each part:")
    print(table(found))
    if found.chosen is None:
        raise UserError(shortage(found, job))
    print(f"weights are trained in {precision(found.chosen, device)}; {time_of(job, found.chosen, device)}")
    print(command(config, base.place, found.chosen, device))


def device_of(config: PlanConfig) -> "Device":
    """The device that is planned for.

    Raises:
        UserError: if a GPU's memory is not known.
    """
    import torch

    from musicgen_ft.devices import total_memory
    from musicgen_ft.training.plan import GIB, Device

    has_gpu = torch.cuda.is_available()
    is_gpu = config.device == "gpu" or (config.device == "auto" and (has_gpu or config.memory_gib is not None))
    if is_gpu and not has_gpu and config.memory_gib is None:
        raise UserError("--device gpu: this machine has none, expected --memory_gib of the one to plan for.")
    kind = "cuda" if is_gpu else "cpu"
    memory = total_memory(kind) if config.memory_gib is None else round(config.memory_gib * GIB)
    return Device(type="cuda" if is_gpu else "cpu", memory=memory, is_here=has_gpu or not is_gpu)


def precision(chosen: "Candidate", device: "Device") -> str:
    """In words."""
    from musicgen_ft.training.plan import compute_dtype

    dtype = str(compute_dtype(chosen.config, device.type)).removeprefix("torch.")
    return "float32" if dtype == "float32" else f"float32 with products in {dtype}"


def time_of(job: "Job", chosen: "Candidate", device: "Device") -> str:
    """How long a step takes, as far as this machine can tell."""
    import torch

    from musicgen_ft.training.matrix_rate import matrix_rate
    from musicgen_ft.training.plan import compute_dtype, step_flops

    flops = step_flops(job, chosen.config)
    if not device.is_here:
        return f"{flops / 1e12:.1f} TFLOP a step for each device, whose rate is not known here"
    rate = matrix_rate(torch.device(device.type), compute_dtype(chosen.config, device.type))
    seconds, steps = flops / rate, chosen.config.max_steps
    return (
        f"{flops / 1e12:.2f} TFLOP a step for each device: {seconds:.3g} s or more at the {rate / 1e12:.2f} TFLOP/s "
        f"that matrix products reach here, {steps * seconds / 3600:.2g} h for {steps} steps"
    )


def command(config: PlanConfig, base: str, chosen: "Candidate", device: "Device") -> str:
    """What to run; shards and run are for the user to name."""
    run = chosen.config
    words = ["musicgen-ft finetune shards --out run", f"--base {base}"]
    if config.finetune_config != "auto":
        words.append(f"--config {config.finetune_config}")
    words += [f"--method {run.method}", f"--recompute {run.recompute}", f"--micro_batch_size {run.micro_batch_size}"]
    words += [f"--batch_size {run.batch_size}", f"--segment_s {run.segment_s:g}", f"--lr {run.lr:.1e}"]
    if config.devices > 1:
        words.append(f"--devices {config.devices}")
    if device.type == "cpu":
        words.append("--accelerator cpu")
    return " ".join(words)


if __name__ == "__main__":
    run_recipe(PlanConfig, main)
