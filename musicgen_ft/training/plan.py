"""What of a training fits a memory: method, recomputation and micro-batch, chosen by simulated steps."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.model.lm import LanguageModel, LMConfig
from musicgen_ft.model.lora import choose_trained
from musicgen_ft.training.flops import clip_flops
from musicgen_ft.training.simulate import TEXT_TOKENS, DeviceType, Memory, training_memory

GIB = 2**30
ADAPTER_LR = 1.0e-4
"""Learning rate of adapters that were chosen here, in place of the default, which is that of whole weights."""

_PROCESS: dict[DeviceType, int] = {"cpu": 7 * GIB // 2, "cuda": 3 * GIB // 4}
"""Taken beside the tensors. CPU: by Python and the libraries (0.8 GiB), and by what the heap does not give back (up to
2.9 GiB in steps of a ``small``: benchmarks/RESULTS.md). GPU: by CUDA's context and workspaces (an assumption: not
measured)."""
_SPARE: dict[DeviceType, float] = {"cpu": 0.1, "cuda": 0.05}
"""Share of the memory that is left for other programs and between an allocator's blocks (an assumption)."""
_METHODS: tuple[Literal["full", "lora", "qlora"], ...] = ("full", "lora", "qlora")
_RECOMPUTES: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")


@dataclass(frozen=True, kw_only=True)
class Device:
    """One of the devices that a run is planned for."""

    type: DeviceType
    """Whose kernels."""
    memory: int
    """Its memory in bytes."""
    is_here: bool
    """Whether it is this machine's."""

    @property
    def budget(self) -> int:
        """Bytes that tensors may take."""
        return round(self.memory * (1 - _SPARE[self.type])) - _PROCESS[self.type]

    @property
    def process(self) -> int:
        """Bytes taken beside the tensors."""
        return _PROCESS[self.type]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be trained, and what of it is left open."""

    lm_config: LMConfig
    """Of the base."""
    config: FinetuneConfig
    """Of the run; ``auto`` where it is open."""
    text_encoder_bytes: int
    """Of T5's weights."""
    frame_rate: int
    """Frames per second."""
    devices: int = 1
    """That share a batch."""

    @property
    def num_frames(self) -> int:
        """T of a clip."""
        return max(1, round(self.config.segment_s * self.frame_rate))

    @property
    def num_chroma(self) -> int:
        """Frames of a clip's melody; 0 where the base takes none."""
        chroma = self.lm_config.chroma
        return 0 if chroma is None else chroma.num_frames(round(self.config.segment_s * chroma.sample_rate)) - 1

    @property
    def share(self) -> int:
        """Clips of a step for each device."""
        return max(1, self.config.batch_size // self.devices)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to train, with nothing left open."""

    config: FinetuneConfig
    """Of the run."""
    micro_batch: int
    """Clips at once."""
    accumulation: int
    """Micro-batches of a step."""
    memory: Memory
    """Of the tensors, at their peak."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What fits, and what does not."""

    device: Device
    """That it was planned for."""
    chosen: Candidate | None
    """The first that fits, with the largest micro-batch; None where nothing does."""
    rejected: tuple[Candidate, ...]
    """What would have been preferred, and does not fit, each at its smallest micro-batch."""
    further: tuple[Candidate, ...] = ()
    """What would need less than the chosen one."""


def plan(job: Job, device: Device, *, further: bool = False, tell: Callable[[str], None] | None = None) -> Plan:
    """Tries ways to train from the best to the most modest.

    All weights before adapters, adapters before a base in 4 bits (CUDA only); nothing computed again before parts, and
    parts before all. An optimizer of smaller state would stand between the two. Of the first that fits, the largest
    micro-batch that divides a device's share of the batch.

    Args:
        job: what is open of its config is chosen.
        device: to fit.
        further: also tell what adapters would need where all weights fit.
        tell: hears of every simulation before it begins, each takes seconds.
    """
    rejected: list[Candidate] = []
    choices = list(_choices(job.config, device))
    hopeless = set[str]()
    for config in choices:
        if config.method in hopeless:
            continue
        fitting, smallest = _largest(job, config, device, tell)
        if fitting is None:
            rejected.append(smallest)
            if config.method != choices[-1].method and smallest.memory.lasting > device.budget:
                hopeless.add(config.method)  # whatever is computed again
            continue
        more: tuple[Candidate, ...] = ()
        if further and fitting.config.method == "full" and job.config.method == "auto":
            adapters = dataclasses.replace(
                config, method="lora", recompute="none" if job.config.recompute == "auto" else job.config.recompute
            )
            more = (_simulated(job, adapters, device, _sizes(job)[0], tell),)
        chosen = dataclasses.replace(fitting, config=_resolved(job.config, fitting))
        return Plan(device=device, chosen=chosen, rejected=tuple(rejected), further=more)
    return Plan(device=device, chosen=None, rejected=tuple(rejected))


def _choices(config: FinetuneConfig, device: Device) -> Iterator[FinetuneConfig]:
    """What ``auto`` may become, in the order of preference."""
    for method in _METHODS if config.method == "auto" else (config.method,):
        if method == "qlora" and device.type == "cpu":
            continue
        for recompute in _RECOMPUTES if config.recompute == "auto" else (config.recompute,):
            yield dataclasses.replace(config, method=method, recompute=recompute)


def _resolved(asked: FinetuneConfig, found: Candidate) -> FinetuneConfig:
    """The config of the run: nothing is open any more."""
    config = dataclasses.replace(found.config, micro_batch_size=found.micro_batch)
    if asked.method == "auto" and config.method != "full" and config.lr == FinetuneConfig.lr:
        return dataclasses.replace(config, lr=ADAPTER_LR)
    return config


def _largest(
    job: Job, config: FinetuneConfig, device: Device, tell: Callable[[str], None] | None
) -> tuple[Candidate | None, Candidate]:
    """The candidate with the largest micro-batch that fits, and the one with the smallest."""
    sizes = _sizes(job)
    smallest = _simulated(job, config, device, sizes[0], tell)
    if smallest.memory.total > device.budget:
        return None, smallest
    if len(sizes) == 1:
        return smallest, smallest
    largest = _simulated(job, config, device, sizes[-1], tell)
    if largest.memory.total <= device.budget:
        return largest, smallest
    # Memory grows nearly along a line: the size above what it promises may fit, and none further up.
    each = (largest.memory.total - smallest.memory.total) / (sizes[-1] - sizes[0])
    most = sizes[0] + (device.budget - smallest.memory.total) / each
    promised = sum(size <= most for size in sizes)
    for size in reversed(sizes[1 : min(promised + 1, len(sizes) - 1)]):
        candidate = _simulated(job, config, device, size, tell)
        if candidate.memory.total <= device.budget:
            return candidate, smallest
    return smallest, smallest


def _sizes(job: Job) -> list[int]:
    """Micro-batches to choose from: what divides a device's share, or the one that is given."""
    asked = job.config.micro_batch_size
    if asked == "auto":
        return [size for size in range(1, job.share + 1) if job.share % size == 0]
    return [min(asked or job.share, job.share)]


def _simulated(
    job: Job, config: FinetuneConfig, device: Device, micro_batch: int, tell: Callable[[str], None] | None
) -> Candidate:
    accumulation = -(-job.share // micro_batch)
    if tell is not None:
        tell(f"{config.method}, recompute {config.recompute}, {micro_batch} at once")
    memory = training_memory(
        job.lm_config,
        config,
        num_frames=job.num_frames,
        micro_batch=micro_batch,
        accumulates=accumulation > 1,
        device=device.type,
        compute_dtype=compute_dtype(config, device.type),
        num_chroma=job.num_chroma,
    )
    # Processes that share a batch exchange the gradients in buffers of their own (DDP's buckets).
    gradients = memory.gradients * (2 if job.devices > 1 else 1)
    memory = dataclasses.replace(memory, gradients=gradients, text_encoder=job.text_encoder_bytes)
    return Candidate(config=config, micro_batch=micro_batch, accumulation=accumulation, memory=memory)


def compute_dtype(config: FinetuneConfig, device: DeviceType) -> torch.dtype:
    """Of matrix products in training; auto is bf16 on a GPU, as on every one since Ampere."""
    chosen = config.precision if config.precision != "auto" else ("bf16" if device == "cuda" else "fp32")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[chosen]


# ---- time ------------------------------------------------------------------------------------------------------------


def step_flops(job: Job, config: FinetuneConfig) -> int:
    """Operations that one device computes in one optimizer step."""
    with torch.device("meta"):
        lm = LanguageModel(job.lm_config)
    if config.method != "qlora":
        choose_trained(lm, config)
    else:  # the same products
        choose_trained(lm, dataclasses.replace(config, method="lora"))
    assert config.recompute != "auto"
    lm.set_recompute(config.recompute)
    flops = clip_flops(lm, num_frames=job.num_frames, num_tokens=TEXT_TOKENS, num_chroma=job.num_chroma)
    return job.share * flops.hardware


# ---- to be read ------------------------------------------------------------------------------------------------------


def table(found: Plan) -> str:
    """Rows of all candidates, GiB of each part."""
    head = ("", "method", "recompute", "clips", "weights", "gradients", "optimizer", "average", "activations")
    rows: list[tuple[str, ...]] = [(*head, "T5", "process", "total")]
    marked = [("no", candidate) for candidate in found.rejected]
    marked += [("yes", found.chosen)] if found.chosen is not None else []
    marked += [("(yes)", candidate) for candidate in found.further]
    for mark, candidate in marked:
        memory = candidate.memory
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.average, memory.activations)
        numbers = (*parts, memory.text_encoder, found.device.process, memory.total + found.device.process)
        clips = f"{candidate.micro_batch} x {candidate.accumulation}"
        words = (mark, candidate.config.method, candidate.config.recompute, clips)
        rows.append((*words, *(f"{number / GIB:.2f}" for number in numbers)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 4 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def summary(chosen: Candidate, device: Device) -> str:
    """The choice in one line."""
    config = chosen.config
    of = (chosen.memory.total + device.process) / GIB
    return (
        f"method {config.method}, recompute {config.recompute}, {chosen.micro_batch} clips at once, "
        f"{chosen.accumulation} times a step, lr {config.lr:g}: {of:.1f} of {device.memory / GIB:.1f} GiB"
    )


def shortage(found: Plan, job: Job) -> str:
    """What would be needed where nothing fits, in one line."""
    least = min(found.rejected, key=lambda candidate: candidate.memory.total)
    needed = (least.memory.total + found.device.process) / (1 - _SPARE[found.device.type]) / GIB
    return (
        f"nothing fits {found.device.memory / GIB:.1f} GiB: the least, method {least.config.method} with recompute "
        f"{least.config.recompute} and {least.micro_batch} clips of {job.config.segment_s:g} s at once, needs a "
        f"device of {needed:.1f} GiB. Give shorter clips (--segment_s), leave --method and --recompute open, or take a "
        "smaller base or a larger device."
    )
