"""One training step: ours beside audiocraft's ``LMModel`` and transformers' MusicGen, in one run.

python benchmarks/train.py --size tiny --size mid
python benchmarks/train.py --size small --batch 1 --seconds 10 --steps 2 --rounds 3
python benchmarks/train.py --size small --size medium --device cuda --batch 8 --seconds 30

All start from the same weights and take the same codes and text states; the first loss of each is printed, which shows
that they compute the same. A step is: the delay pattern, the forward pass, the loss as each makes it (audiocraft its
solver's, transformers that of its ``labels``), the backward pass, clipping at a norm of 1, AdamW. The optimizer is
torch's fused AdamW for all (audiocraft by itself takes the slower plain one); T5 is left out, and so is any average of
the weights. Precision: fp32 on the CPU, autocast to bf16 over fp32 weights on CUDA.

Every contestant runs in a process of its own, one after the other and again from the first (A B C A B C), so that what
else the machine does meets all.
  step     seconds: the median over the steps of all rounds, and the least
  CPU      CPU only: seconds of the processor's time in a step, the median: what else runs does not count in them
  peer     the faster peer's median over this one's, by the processor's time on the CPU and by the clock on CUDA: more
           than 1 is faster than both peers
  peak     memory, GiB: on CUDA ``max_memory_allocated``; on the CPU the largest resident memory of a step above that
           of the process after its imports, weights and optimizer included
  leaner   that over the leaner peer's
  rate     CUDA only: matrix arithmetic of the step per second over that of a plain bf16 product measured in the same
           process (recomputed parts are not counted as work)
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from musicgen_ft.checkpoint.names import audiocraft_pairs, from_ours, transformers_pairs
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel, LMConfig
from musicgen_ft.training.loss import mean_loss, state_sums

PEERS = ("audiocraft", "transformers")
OURS = ("ours", "ours, selective", "ours, full")  # what is recomputed: none, selective, full
FRAME_RATE = 50
NUM_TOKENS = 16
GIB = 2**30


class Size(NamedTuple):
    """The numbers of a model."""

    dim: int
    heads: int
    layers: int
    card: int
    text_dim: int
    batch: int
    seconds: float


SIZES = {
    "tiny": Size(128, 2, 4, 256, 64, batch=4, seconds=10),
    "mid": Size(512, 8, 6, 2048, 768, batch=2, seconds=10),
    "small": Size(1024, 16, 24, 2048, 768, batch=1, seconds=10),
    "medium": Size(1536, 24, 48, 2048, 768, batch=1, seconds=30),
    "large": Size(2048, 32, 48, 2048, 768, batch=1, seconds=30),
}


class Job(NamedTuple):
    """What a contestant is to do."""

    size: str
    device: str
    batch: int
    frames: int
    steps: int
    warmup: int


def main() -> None:
    """Runs the contestants in turns and prints a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), action="append", help="may come several times; tiny by default")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, help="rows of a step; by default each size's own")
    parser.add_argument("--seconds", type=float, help="length of a row; by default each size's own")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a process")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contestant, in turns")
    parser.add_argument("--only", action="append", choices=(*OURS, *PEERS), help="leave out the others")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(measure(options.contestant, Job(*json.loads(options.job)))))
        return
    for name in options.size or ["tiny"]:
        size = SIZES[name]
        frames = round((options.seconds or size.seconds) * FRAME_RATE)
        job = Job(name, options.device, options.batch or size.batch, frames, options.steps, options.warmup)
        compare(job, options.only or (*OURS, *PEERS), options.rounds)


def compare(job: Job, contestants: Any, rounds: int) -> None:
    """One table."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    loads = []
    for _ in range(rounds):
        for name in contestants:
            loads.append(os.getloadavg()[0])
            runs[name].append(run_in_process(name, job))
    threads = next(iter(runs.values()))[0]["threads"]
    place = (
        torch.cuda.get_device_name() if job.device == "cuda" else f"CPU, {threads} threads of {os.cpu_count()} cores"
    )
    print(
        f"\n{job.size}: {next(iter(runs.values()))[0]['parameters'] / 1e6:.1f} M parameters, batch {job.batch} x "
        f"{job.frames} frames, {'bf16' if job.device == 'cuda' else 'fp32'}, {place}; {rounds} x {job.steps} steps; "
        f"load average before each process {min(loads):.1f} to {max(loads):.1f}"
    )
    print("| contestant | step, s | least | CPU, s | peer | peak, GiB | leaner | rate | first loss |")
    print("|---|---|---|---|---|---|---|---|---|")
    middle = {name: statistics.median(t for run in found for t in run["times"]) for name, found in runs.items()}
    spent = {name: statistics.median(t for run in found for t in run["cpu_times"]) for name, found in runs.items()}
    counted = spent if job.device == "cpu" else middle
    peak = {name: max(run["peak"] for run in found) for name, found in runs.items()}
    peers = [name for name in PEERS if name in runs]
    for name, found in runs.items():
        least = min(t for run in found for t in run["times"])
        faster = f"{min(counted[peer] for peer in peers) / counted[name]:.2f}" if peers else ""
        leaner = f"{peak[name] / min(peak[peer] for peer in peers):.2f}" if peers else ""
        rate = ""
        if job.device == "cuda":
            share = found[0]["flops"] / middle[name] / max(run["matrix_rate"] for run in found)
            rate = f"{share:.0%}"
        print(
            f"| {name} | {middle[name]:.4g} | {least:.4g} | {spent[name]:.4g} | {faster} "
            f"| {peak[name] / GIB:.2f} | {leaner} | {rate} | {found[0]['loss']:.5f} |",
            flush=True,
        )


def run_in_process(contestant: str, job: Job) -> dict[str, Any]:
    """One contestant in a process of its own."""
    words = [sys.executable, __file__, "--contestant", contestant, "--job", json.dumps(job)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contestant} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- one contestant --------------------------------------------------------------------------------------------------

Loss = Callable[[Tensor, TextStates], Tensor]


def measure(contestant: str, job: Job) -> dict[str, Any]:
    """Builds a contestant and times its steps."""
    import_all(contestant)
    device = torch.device(job.device)
    baseline = resident("VmRSS")
    torch.manual_seed(0)
    config = config_of(job.size)
    lm = LanguageModel(config)
    lm.init_weights()
    codes = torch.randint(config.card, (job.batch, config.n_q, job.frames)).to(device)
    states = torch.randn(job.batch, NUM_TOKENS, config.text_dim)
    text = TextStates(states, torch.ones(job.batch, NUM_TOKENS, dtype=torch.bool)).to(device)
    model, loss_of = {"audiocraft": audiocraft, "transformers": transformers}.get(contestant, ours)(lm)
    if contestant == "ours, selective":
        lm.set_recompute("selective")
    elif contestant == "ours, full":
        lm.set_recompute("full")
    num_parameters = sum(value.numel() for value in lm.parameters())
    flops = step_flops(config, job)
    del lm
    model.to(device).train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1, fused=True)
    times, cpu_times, losses = [], [], []
    reset_peak(device)
    for number in range(job.warmup + job.steps):
        wait(device)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(codes, text)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait(device)
        if number >= job.warmup:
            times.append(time.perf_counter() - begin)
            cpu_times.append(time.process_time() - cpu_begin)
        losses.append(loss.item())
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM") - baseline
    return {
        "times": times,
        "cpu_times": cpu_times,
        "peak": peak,
        "loss": losses[0],
        "parameters": num_parameters,
        "threads": torch.get_num_threads(),
        "flops": flops,
        "matrix_rate": matrix_rate(device) if device.type == "cuda" else None,
    }


def import_all(contestant: str) -> None:
    """What a contestant needs, so that libraries are not counted as memory of a step."""
    if contestant == "audiocraft":
        from audiocraft.models import builders  # noqa: F401
        from audiocraft.solvers.musicgen import MusicGenSolver  # noqa: F401
    elif contestant == "transformers":
        from transformers import MusicgenForConditionalGeneration  # noqa: F401
    import torch._dynamo  # noqa: F401  # else the first step of an optimizer does it


def config_of(name: str) -> LMConfig:
    """The numbers of a size; 4 codebooks, the delays of the released models."""
    size = SIZES[name]
    return LMConfig(
        dim=size.dim, num_heads=size.heads, num_layers=size.layers, ffn_dim=4 * size.dim, n_q=4, card=size.card,
        delays=(0, 1, 2, 3), text_dim=size.text_dim,
    )  # fmt: skip


def ours(lm: LanguageModel) -> tuple[nn.Module, Loss]:
    """As ``FinetuneModule.training_step``."""

    def loss_of(codes: Tensor, text: TextStates) -> Tensor:
        states = lm.states(codes, text)
        mask = torch.ones_like(codes[:, :1], dtype=torch.bool) & states.mask
        return mean_loss(*state_sums(states, lm.heads, codes, mask)).ce

    return lm, loss_of


def audiocraft(lm: LanguageModel) -> tuple[nn.Module, Loss]:
    """``compute_predictions`` and the loss of ``MusicGenSolver``; its T5 replaced by the given states."""
    from audiocraft.models import builders
    from audiocraft.solvers.musicgen import MusicGenSolver
    from omegaconf import OmegaConf

    from musicgen_ft.checkpoint.audiocraft_format import lm_xp_config
    from musicgen_ft.peers.audiocraft import text_encoder_given

    given = GivenStates()
    stand_in: Any = SimpleNamespace(dim=lm.config.text_dim, tokenizer=None, encoder=given)
    xp = lm_xp_config(lm.config, text_encoder_id="t5") | {"device": "cpu", "dtype": "float32"}
    with text_encoder_given(stand_in):
        model: Any = builders.get_lm_model(OmegaConf.create(xp))  # type: ignore[arg-type]
    model.load_state_dict(from_ours(lm.state_dict(), audiocraft_pairs(lm.config)))
    solver = object.__new__(MusicGenSolver)  # its function needs nothing of it

    def loss_of(codes: Tensor, text: TextStates) -> Tensor:
        given.states = text.states
        tokens = {"input_ids": text.mask.long(), "attention_mask": text.mask.long()}
        conditions = model.condition_provider({"description": tokens})
        output = model.compute_predictions(codes, [], conditions)
        mask = torch.ones_like(codes, dtype=torch.bool) & output.mask
        loss: Tensor = solver._compute_cross_entropy(output.logits, codes, mask)[0]
        return loss

    model.condition_provider.conditioners["description"].device = "cpu"
    return model, loss_of


class GivenStates(nn.Module):
    """Stands where audiocraft has T5."""

    states: Tensor

    def forward(self, **_: Any) -> SimpleNamespace:
        """The states, whatever the tokens."""
        return SimpleNamespace(last_hidden_state=self.states)


def transformers(lm: LanguageModel) -> tuple[nn.Module, Loss]:
    """``MusicgenForConditionalGeneration`` with ``labels``; in training it has no delay pattern, so that is ours."""
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )
    from transformers.modeling_outputs import BaseModelOutput

    config, pattern = lm.config, lm.pattern
    decoder = MusicgenDecoderConfig(
        vocab_size=config.card, max_position_embeddings=2048, hidden_size=config.dim, ffn_dim=config.ffn_dim,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads, num_codebooks=config.n_q,
        dropout=0.0, layerdrop=0.0, pad_token_id=config.card, bos_token_id=config.card,
    )  # fmt: skip
    t5 = T5Config(d_model=config.text_dim, d_kv=2, d_ff=4, num_layers=1, num_heads=2, vocab_size=8)
    parts: dict[str, Any] = {
        "text_encoder": t5.to_dict(),
        "audio_encoder": EncodecConfig(num_filters=2, hidden_size=4, codebook_dim=4, codebook_size=2).to_dict(),
        "decoder": decoder.to_dict(),
    }
    model: Any = MusicgenForConditionalGeneration(MusicgenConfig(**parts))
    model.text_encoder.requires_grad_(False)
    model.audio_encoder.requires_grad_(False)
    _, unexpected = model.load_state_dict(from_ours(lm.state_dict(), transformers_pairs(config)), strict=False)
    assert not unexpected

    def loss_of(codes: Tensor, text: TextStates) -> Tensor:
        (B, K, T), special = codes.shape, config.card
        sequence = pattern.interleave(codes, special)
        labels = sequence[:, :, 1 : T + 1].transpose(1, 2)
        loss: Tensor = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=text.states),
            attention_mask=text.mask.long(),
            decoder_input_ids=sequence[:, :, :T].reshape(B * K, T),
            labels=labels.masked_fill(labels == special, -100),
        ).loss
        return loss

    return model, loss_of


# ---- figures ---------------------------------------------------------------------------------------------------------


def step_flops(config: LMConfig, job: Job) -> float:
    """Matrix arithmetic of a step: 2 for each weight and position forward, 4 backward; attention's products with it."""
    D, S = config.dim, job.frames
    of_step = 4 * D * D + 2 * D * config.ffn_dim + 2 * D * D  # self-attention, feed-forward, q and out of cross
    weights = config.num_layers * of_step + config.n_q * D * config.card
    scores = config.num_layers * 2 * D * (S / 2 + NUM_TOKENS)  # causal: half of the steps
    of_text = config.num_layers * 2 * D * D + D * config.text_dim
    return 6.0 * job.batch * (S * (weights + scores) + NUM_TOKENS * of_text)


def matrix_rate(device: torch.device) -> float:
    """Arithmetic per second of bf16 products of 8192 x 8192: the best of 20."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(20):
        wait(device)
        begin = time.perf_counter()
        a @ a
        wait(device)
        times.append(time.perf_counter() - begin)
    return 2 * 8192**3 / min(times)


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: torch.device) -> None:
    """What building took, the other library's weights among it, is no memory of a step."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def resident(name: str) -> int:
    """Bytes of resident memory, ``VmRSS`` now and ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(found) * 1024


if __name__ == "__main__":
    main()
