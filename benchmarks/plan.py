"""What `plan` says a training step needs, and what real steps are measured to need.

python benchmarks/plan.py
python benchmarks/plan.py --sizes small --segments_s 10 30 --methods full --recomputes none selective full

Every row is a process of its own that trains two steps of one clip by the toolkit's own module, data and trainer, with
random weights and random codes, on the CPU in fp32 (`--device gpu`: in bf16 on the GPU). Predicted are the tensors'
bytes at their peak; measured are
  live    the peak of what torch has allocated, by the profiler's memory events (GPU: max_memory_allocated)
  RSS     the process's largest resident memory, and the same less what it had after its imports
`small` in full with 30 s takes 13 GiB and minutes.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

WIDTHS = {  # width, heads, layers, codes, T5's width and layers
    "tiny": (128, 2, 4, 256, 64, 2),
    "mid": (512, 8, 6, 2048, 256, 4),
    "small": (1024, 16, 24, 2048, 768, 12),
    "medium": (1536, 24, 48, 2048, 768, 12),
}
FRAME_RATE = 50
TEXT = "a slow waltz of strings, piano and a muted trumpet, warm and calm, in three four time"


def main() -> None:
    """A table of all combinations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=WIDTHS, default=["tiny", "mid"])
    parser.add_argument("--methods", nargs="+", default=["full", "lora", "dora"])
    parser.add_argument("--recomputes", nargs="+", default=["none", "selective", "full"])
    parser.add_argument("--segments_s", nargs="+", type=float, default=[10.0])
    parser.add_argument("--micro_batches", nargs="+", type=int, default=[1])
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row is not None:
        print(json.dumps(measure(*json.loads(asked.row))))
        return
    print("| size | method | recompute | clips x s | predicted, GiB | live, GiB | ratio | RSS, GiB | RSS - imports |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in product(asked.sizes, asked.methods, asked.recomputes, asked.segments_s, asked.micro_batches):
        words = [sys.executable, __file__, "--row", json.dumps([*row, asked.accumulation, asked.device])]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        found = {name: value / 2**30 for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
        size, method, recompute, segment_s, micro_batch = row
        print(
            f"| {size} | {method} | {recompute} | {micro_batch} x {segment_s:g} | {found['predicted']:.3f} | "
            f"{found['live']:.3f} | {found['live'] / found['predicted']:.3f} | {found['rss']:.2f} | "
            f"{found['rss'] - found['imports']:.2f} |",
            flush=True,
        )


def measure(
    size: str, method: str, recompute: str, segment_s: float, micro_batch: int, accumulation: int, device: str
) -> dict[str, int]:
    """Bytes that are predicted and measured of one combination, in this process."""
    import torch

    from musicgen_ft.config.finetune import FinetuneConfig
    from musicgen_ft.model.lm import LanguageModel
    from musicgen_ft.model.lora import choose_trained
    from musicgen_ft.shards.index import ShardIndex
    from musicgen_ft.training.data import build_data, probe
    from musicgen_ft.training.module import FinetuneModule
    from musicgen_ft.training.preempt import StopRequests
    from musicgen_ft.training.run import RunFolder
    from musicgen_ft.training.simulate import training_memory
    from musicgen_ft.training.trainer import build_trainer, compute_dtype, place

    torch.manual_seed(0)
    lm_config, text_encoder = lm_config_of(size), text_encoder_of(size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_shards(folder / "shards", lm_config.card, num_frames=round((segment_s + 1) * FRAME_RATE))
        settings: dict[str, Any] = {"method": method, "recompute": recompute, "accelerator": device}
        config = FinetuneConfig(
            shards=str(folder / "shards"), out=folder / "run", max_steps=2, batch_size=micro_batch * accumulation,
            micro_batch_size=micro_batch, segment_s=segment_s, cfg_dropout=0.0, tensorboard=False, devices=1,
            **settings,
        )  # fmt: skip
        placement = place(config)
        dtype = compute_dtype(config, placement)
        data = build_data(config, ShardIndex.open(folder / "shards"), placement)
        run = RunFolder.create(folder / "run", config, run_info(), probe(data))
        imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        lm = LanguageModel(lm_config)
        choose_trained(lm, config, compute_dtype=dtype)
        module = FinetuneModule(lm.train(), text_encoder, config)
        trainer = build_trainer(
            config, placement, run, n_q=lm_config.n_q, has_valid=False, saved=None, stop=StopRequests()
        )
        trainer.save_checkpoint = lambda *_, **__: None  # type: ignore[method-assign]  # of training alone
        t5 = storage_bytes(text_encoder.encoder.state_dict().values())
        if placement.accelerator == "gpu":
            torch.cuda.reset_peak_memory_stats()
            trainer.fit(module, data)
            live = torch.cuda.max_memory_allocated()
        else:
            held = [*lm.state_dict().values(), *(module.ema.weights.values() if module.ema else [])]
            before = storage_bytes(held) + t5
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
                trainer.fit(module, data)
            live = before + peak_of_events(seen)
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (num_tokens,) = text_encoder.tokenize([TEXT])[0].shape[1:]
    predicted = training_memory(
        lm_config, config, num_frames=round(segment_s * FRAME_RATE), micro_batch=micro_batch,
        accumulates=accumulation > 1, device="cuda" if placement.accelerator == "gpu" else "cpu", compute_dtype=dtype,
        num_tokens=num_tokens,
    )  # fmt: skip
    predicted = dataclasses.replace(predicted, text_encoder=t5)
    return {"predicted": predicted.total, "live": live, "rss": rss, "imports": imports}


def peak_of_events(profile: Any) -> int:
    """The most bytes that were alive at once, of those allocated while the profiler ran."""
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def storage_bytes(tensors: Any) -> int:
    """Of all tensors, each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def lm_config_of(size: str) -> Any:
    """The language model's numbers."""
    from musicgen_ft.model.lm import LMConfig

    dim, num_heads, num_layers, card, text_dim, _ = WIDTHS[size]
    widths: dict[str, int] = {"dim": dim, "num_heads": num_heads, "num_layers": num_layers, "ffn_dim": 4 * dim}
    return LMConfig(**widths, n_q=4, card=card, delays=(0, 1, 2, 3), text_dim=text_dim)


def text_encoder_of(size: str) -> Any:
    """A T5 with random weights and nano's tokenizer."""
    from transformers import T5Config, T5EncoderModel

    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.model.conditioning import TextEncoder

    nano = open_base("nano").text_encoder()
    *_, width, layers = WIDTHS[size]
    config = T5Config(d_model=width, d_kv=64, d_ff=4 * width, num_layers=layers, num_heads=max(1, width // 64))
    return TextEncoder(T5EncoderModel(config), nano.tokenizer, id="t5")


def write_shards(folder: Path, card: int, *, num_frames: int) -> None:
    """Four tracks of random codes."""
    import numpy as np

    from musicgen_ft.codec import CodecSpec
    from musicgen_ft.corpus.labels import Labels
    from musicgen_ft.shards.format import Manifest, write_manifest
    from musicgen_ft.shards.track import Track, TrackMeta
    from musicgen_ft.shards.writer import write_shard

    codec = CodecSpec(
        id="random", sha256="0" * 64, sample_rate=32000, frame_rate=FRAME_RATE, channels=1, n_q=4, card=card
    )
    random, tracks = np.random.default_rng(0), []
    for number in range(4):
        meta = TrackMeta(
            labels=Labels(description=TEXT), relative_path=f"{number}.wav", num_frames=num_frames,
            duration_s=num_frames / FRAME_RATE,
        )  # fmt: skip
        codes = random.integers(0, card, (4, num_frames)).astype(np.uint16)
        tracks.append(Track(key=f"track_{number}", codes=codes, meta=meta))
    folder.mkdir()
    shard = write_shard(folder, "train-000000.tar", tracks, split="train", codec=codec, chroma=None).shard
    manifest = Manifest(
        codec=codec, base="nano", shards=(shard,), config={"codec": {"window_s": 30}}, toolkit_version="0", chroma=None
    )
    write_manifest(folder, manifest)


def run_info() -> Any:
    """Of a run that nobody exports."""
    from musicgen_ft.training.run import RunInfo

    return RunInfo(
        base="nano", license="mit", shards="shards", codec_sha256="0" * 64, text_padding="audiocraft", channels=1,
        text_encoder=None, train_tracks=4, train_hours=0.1, valid_tracks=0, num_parameters=1, wandb_id="none",
        toolkit_version="0",
    )  # fmt: skip


if __name__ == "__main__":
    main()
