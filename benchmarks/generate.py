"""Playing one prompt: ours beside audiocraft and transformers, plain and with its static cache, in one run.

python benchmarks/generate.py                                  # tiny shapes, seconds
python benchmarks/generate.py --size small --frames 100 --t5 full --codec full
python benchmarks/generate.py --size large --frames 1500 --device cuda --t5 full --codec full

A generator folder of random numbers in the shapes of a released model is written once, in fp16 as those are, and
opened by each contestant's own loader in a process of its own. All play the same prompt with guidance of 3, top-k 250;
before the run that counts comes one that does not, on a CPU a short one. The first of `--repeats` rounds goes through
all contestants, then the second; the median counts.
  tokens/s    frames per second (a token of each codebook), from the call to the whole waveform; the codec included
  x real      seconds of audio per second
  CPU s/s     seconds of CPU time per second of audio: what other work on the machine changes least
  times       how many times faster than the faster peer, on a CPU by CPU time, on CUDA by the clock
  first, s    from the call to the first sound in hand; the peers give none before the end
  memory      on a CPU the largest resident memory of the process, loading included; on CUDA what torch has allocated
  bandwidth   bytes that the steps must read (the layers' weights, heads, and the cache so far), per second, as a share
              of what the machine reads when it does nothing else: summing a large tensor, in the same process. On a
              CPU both are taken by CPU time
With --quality instead: how far each dtype's predictions lie from those of fp32, on the generator folder given.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIZES = {  # width, heads, layers, card
    "tiny": (128, 4, 2, 256), "small": (1024, 16, 24, 2048), "medium": (1536, 24, 48, 2048),
    "large": (2048, 32, 48, 2048),
}  # fmt: skip
ON_CPU = ("ours fp32", "ours auto", "ours bf16", "ours int8", "audiocraft", "transformers", "transformers static")
ON_CUDA = ("ours fp16", "ours bf16", "ours eager", "audiocraft", "transformers", "transformers static")
PEERS = ("audiocraft", "transformers", "transformers static")
PROMPT = "driving techno with heavy bass and bright strings at 120 bpm"
GIB = 2**30


def main() -> None:
    """Writes the folder, runs the contestants, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="whose shapes")
    parser.add_argument("--frames", type=int, default=200, help="50 are a second")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--t5", choices=("toy", "full"), default="toy", help="full has T5-base's shape")
    parser.add_argument("--codec", choices=("toy", "full"), default="toy", help="full has encodec_32khz's shape")
    parser.add_argument("--only", nargs="*", help="contestants, by name")
    parser.add_argument("--quality", type=Path, metavar="GENERATOR", help="compare the dtypes on a generator folder")
    parser.add_argument("--shards", type=Path, help="for --quality: shards whose codes are predicted")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(run_contestant(options.contestant, options.folder, options)))
        return
    if options.quality:
        if options.shards is None:
            parser.error("--quality needs --shards: codes of music that the generator can predict")
        show_quality(options.quality, options.shards)
        return
    with tempfile.TemporaryDirectory() as name:
        write_generator(Path(name), options)
        compare(Path(name), options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    """All contestants on the same folder, in turns."""
    names = options.only or (ON_CUDA if options.device.startswith("cuda") else ON_CPU)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(options.repeats):
        for name in names:
            found[name].append(run_in_process(name, folder, options))
    print(
        f"{options.size}, {options.frames} frames, batch 1, guidance 3, device {options.device}, T5 {options.t5}, "
        f"codec {options.codec}, {torch.get_num_threads()} threads, {options.repeats} rounds"
    )
    print(
        "| contestant | tokens/s | x real time | CPU s/s | times the faster peer | first, s | memory, GiB | bandwidth |"
    )
    print("|---|---|---|---|---|---|---|---|")
    what = "seconds" if options.device.startswith("cuda") else "cpu"
    spent = {name: statistics.median(run[what] / run["frames"] for run in runs) for name, runs in found.items()}
    fastest = min((spent[name] for name in names if name in PEERS), default=None)
    for name, runs in found.items():
        speed = statistics.median(run["frames"] / run["seconds"] for run in runs)
        cpu = 50 * statistics.median(run["cpu"] / run["frames"] for run in runs)
        times = f"{fastest / spent[name]:.2f}" if fastest else ""
        first = statistics.median(run["first"] for run in runs)
        memory = max(run["memory"] for run in runs) / GIB
        read = statistics.median(run["read"] for run in runs)
        print(
            f"| {name} | {speed:.1f} | {speed / 50:.2f} | {cpu:.2f} | {times} | {first:.2f} | {memory:.2f} "
            f"| {read:.0%} |"
        )


def run_in_process(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One contestant in a process of its own."""
    words = [sys.executable, __file__, "--contestant", name, "--folder", str(folder), "--device", options.device]
    done = subprocess.run([*words, "--frames", str(options.frames)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_contestant(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Plays twice, and counts the second time."""
    torch.manual_seed(0)
    engine, _, kind = name.partition(" ")
    play, element_size = {"ours": ours, "audiocraft": audiocraft, "transformers": transformers}[engine](
        folder, options, kind
    )
    is_cuda = options.device.startswith("cuda")
    play(options.frames if is_cuda else 5)
    cpu = time.process_time()
    seconds, first, frames = play(options.frames)
    cpu = time.process_time() - cpu
    memory = torch.cuda.max_memory_allocated() if is_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "cpu": cpu,
        "first": first,
        "frames": frames,
        "memory": memory,
        "read": bytes_read(folder, frames, element_size) / (seconds if is_cuda else cpu) / bandwidth(options.device),
    }


Play = Callable[[int], tuple[float, float, int]]
"""Plays so many frames of the prompt: seconds in all, seconds to the first sound, frames."""


def ours(folder: Path, options: argparse.Namespace, dtype: str) -> tuple[Play, float]:
    """Streamed, as a listener takes it."""
    from musicgen_ft import Generator, Request
    from musicgen_ft.generation.session import Sessions

    generator = Generator.open(str(folder), device=options.device, dtype="auto" if dtype == "eager" else dtype)
    if dtype == "eager":
        generator.engine._sessions = Sessions(generator.engine.decoder, "eager")

    def play(wanted: int) -> tuple[float, float, int]:
        request = Request(prompt=PROMPT, duration_s=wanted / generator.codec.spec.frame_rate)
        begin, first, length = time.perf_counter(), 0.0, 0
        for chunk in generator.stream(request):
            first = first or time.perf_counter() - begin
            length += chunk.shape[1]
        return time.perf_counter() - begin, first, length // generator.codec.spec.hop_length

    is_half = {"fp32": False, "int8": False}.get(dtype, True)
    return play, 1.0 if dtype == "int8" else 2.0 if is_half else 4.0


def audiocraft(folder: Path, options: argparse.Namespace, _: str) -> tuple[Play, float]:
    """Its ``MusicGen``, which computes in fp16 on CUDA, in fp32 on a CPU."""
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.generation.options import GenerationOptions
    from musicgen_ft.peers import audiocraft as peer

    text_encoder = open_base(str(folder)).text_encoder().to(options.device)
    generator = peer.open_generator(folder, text_encoder, device=options.device)
    rate = generator.frame_rate

    def play(wanted: int) -> tuple[float, float, int]:
        begin = time.perf_counter()
        waveform = peer.generate(generator, [PROMPT], GenerationOptions(duration_s=wanted / rate), seed=0)
        seconds = time.perf_counter() - begin
        return seconds, seconds, int(waveform.shape[-1] * rate / generator.sample_rate)

    return play, 2.0 if options.device.startswith("cuda") else 4.0


def transformers(folder: Path, options: argparse.Namespace, cache: str) -> tuple[Play, float]:
    """Its ``MusicgenForConditionalGeneration``, in fp16 on CUDA, in fp32 on a CPU."""
    from musicgen_ft.peers import transformers as peer

    is_cuda = options.device.startswith("cuda")
    generator = peer.open_generator(folder, device=options.device)
    if is_cuda:
        generator = generator.half()
    codec = generator.config.audio_encoder
    inputs = peer._tokens(generator, [PROMPT])
    num_delayed = generator.config.decoder.num_codebooks - 1
    given = {"cache_implementation": cache} if cache else {}

    @torch.no_grad()
    def play(wanted: int) -> tuple[float, float, int]:
        begin = time.perf_counter()
        waveform = generator.generate(
            **inputs, do_sample=True, guidance_scale=3.0, top_k=250, max_new_tokens=wanted + num_delayed, **given
        ).cpu()
        seconds = time.perf_counter() - begin
        return seconds, seconds, int(waveform.shape[-1] * codec.frame_rate / codec.sampling_rate)

    return play, 2.0 if is_cuda else 4.0


# ---- what a step must read -------------------------------------------------------------------------------------------


def bytes_read(folder: Path, frames: int, element_size: float) -> float:
    """Of a whole piece: the weights of layers and heads at each step, keys and values of the steps before it."""
    from musicgen_ft.checkpoint.base import open_base

    config = open_base(str(folder)).lm_config
    D = config.dim
    # q, k, v and out of self-attention, q and out of cross-attention, the feed-forward part; the heads are in fp32.
    layers = config.num_layers * (6 * D * D + 2 * D * config.ffn_dim) * element_size
    heads = config.n_q * config.card * D * 4.0
    steps = frames + config.delays[-1]
    cache = 2 * config.num_layers * 2 * D * max(element_size, 2.0)  # two rows; of each step, read at all later ones
    return steps * (layers + heads) + cache * steps * (steps - 1) / 2


def bandwidth(device: str) -> float:
    """Bytes per second: the best of ten sums over 1 GiB."""
    large = torch.ones(GIB // 4, device=device)
    clock = time.process_time if device == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(10):
        begin = clock()
        float(large.sum())  # waits for the device
        best = min(best, clock() - begin)
    return GIB / best


# ---- what they open --------------------------------------------------------------------------------------------------


def write_generator(folder: Path, options: argparse.Namespace) -> None:
    """Random numbers in both formats, the language model's rounded to fp16."""
    from transformers import EncodecConfig, EncodecModel, T5Config, T5EncoderModel

    from musicgen_ft.checkpoint import audiocraft_format, transformers_format
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.codec import Codec
    from musicgen_ft.model.conditioning import TextEncoder
    from musicgen_ft.model.lm import LanguageModel, LMConfig

    torch.manual_seed(0)
    nano = open_base("nano")
    codec, text_encoder = nano.codec(), nano.text_encoder()
    if options.t5 == "full":
        t5 = T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128)
        text_encoder = TextEncoder(T5EncoderModel(t5), text_encoder.tokenizer, id="t5")
    D, H, num_layers, card = SIZES[options.size]
    full = options.codec == "full"
    encodec = EncodecConfig(  # of facebook/encodec_32khz; the toy has fewer filters
        target_bandwidths=[2.2] if card == 2048 else [1.6], sampling_rate=32_000, num_filters=64 if full else 4,
        upsampling_ratios=[8, 5, 4, 4], codebook_size=card, codebook_dim=128 if full else 32,
        hidden_size=128 if full else 32, use_causal_conv=False, use_conv_shortcut=False,
    )  # fmt: skip
    model = EncodecModel(encodec).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_(std=0.1)
        layer.codebook.inited.fill_(1)
    codec = Codec(model, id="encodec")
    config = LMConfig(
        dim=D, num_heads=H, num_layers=num_layers, ffn_dim=4 * D, n_q=codec.spec.n_q, card=card,
        delays=tuple(range(codec.spec.n_q)), text_dim=text_encoder.dim,
    )  # fmt: skip
    lm = LanguageModel(config)
    lm.init_weights()
    state = {name: value.half() for name, value in lm.state_dict().items()}
    del lm
    t5_folder = audiocraft_format.T5_FOLDER
    audiocraft_format.write_folder(folder, state, config, codec, text_encoder_id=t5_folder)
    transformers_format.write_text_encoder(folder / t5_folder, text_encoder)
    transformers_format.write_folder(folder, state, config, codec, text_encoder)


# ---- quality ---------------------------------------------------------------------------------------------------------


def show_quality(generator: Path, shards: Path) -> None:
    """Cross-entropy on held-out codes, and how often the guided greedy code is that of fp32, for each dtype."""
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.corpus.captions import CaptionPolicy
    from musicgen_ft.shards.index import ShardIndex

    base, split = open_base(str(generator)), ShardIndex.open(shards).split("valid")
    clips = [
        (
            torch.from_numpy(split.codes(number)[:, :300].astype("int64"))[None],
            CaptionPolicy().plain(split.meta(number).labels),
        )
        for number in range(min(6, len(split)))
    ]
    truth = torch.cat([codes[0].flatten() for codes, _ in clips])
    exact = predictions(base, "fp32", clips)
    print("| dtype | cross-entropy, nats | more than fp32 | error of a logit / their deviation | greedy codes equal |")
    print("|---|---|---|---|---|")
    for name in ("fp32", "fp16", "bf16", "int8"):
        found = exact if name == "fp32" else predictions(base, name, clips)
        ce, reference = (float(torch.nn.functional.cross_entropy(each[0], truth)) for each in (found, exact))
        error = float((found[0] - exact[0]).square().mean().sqrt() / exact[0].std())
        best, wanted = ((each[1] + (each[0] - each[1]) * 3.0).argmax(-1) for each in (found, exact))
        same = float((best == wanted).float().mean())
        print(f"| {name} | {ce:.4f} | {ce - reference:+.5f} | {error:.5f} | {same:.2%} |")


def predictions(base: Any, precision: Any, clips: list[tuple[torch.Tensor, str | None]]) -> torch.Tensor:
    """Logits with and without the caption of every code, step by step as in decoding: [2, codes, card]."""
    from musicgen_ft.generation.decode import Conditions
    from musicgen_ft.generation.decoder import Decoder

    decoder, text_encoder, pattern = Decoder(base.lm(), precision), base.text_encoder(), base.lm_config.make_pattern()
    parts = []
    for codes, caption in clips:
        sequence = pattern.interleave(codes, base.lm_config.special_token_id)
        condition = decoder.condition(Conditions(text_encoder.encode([caption])).rows(2)[0])
        steps = sequence.shape[2] - 1
        cache, logits = decoder.cache(2, steps), []
        with torch.no_grad():
            for step in range(steps):
                fed = sequence[:, :, step : step + 1].repeat(2, 1, 1)
                logits.append(decoder.prefill(fed, condition, cache, start=step))
        parts.append(pattern.align_logits(torch.stack(logits, 2), codes.shape[2]).flatten(1, 2))
    return torch.cat(parts, dim=1)


if __name__ == "__main__":
    main()
