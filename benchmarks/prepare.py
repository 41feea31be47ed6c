"""Encoding a corpus: ours beside the plain forms of transformers and audiocraft, on the same files in one run.

python benchmarks/prepare.py
python benchmarks/prepare.py --codec full --files 6
python benchmarks/prepare.py --memory            # one track of 10 minutes, and one of 100

Every engine runs in a process of its own and does what its users do with a folder of clips: decode a file, encode it,
keep the codes. Peers take one file after the other with all of torch's threads; ours takes one file per core, each on
one thread, as `prepare` does (surveys and shards left out, which the peers do not have). All decode by the same
reader, so that the codes have to be equal; the line `equal` tells whether they are.
  decode   seconds of audio per second, decoding and resampling alone, on one core
  encode   seconds of audio per second, decoding and encoding
  busy     share of the time that the encoding threads spend in the codec
  memory   largest resident memory of the process

The codec: `toy` has nano's architecture with 8 filters, `full` has the numbers of facebook/encodec_32khz, both with
random weights. Files: 29 s each, 44.1 kHz stereo, a third MP3, a third FLAC, a third WAV, made by rule.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from musicgen_ft.audio import AudioReader, read, write_wav
from musicgen_ft.codec import Codec
from musicgen_ft.synthesis.render import render_track

ENGINES = ("ours", "transformers", "audiocraft")
SUFFIXES = (".mp3", ".flac", ".wav")
CLIP_S = 29.0  # with what an MP3 adds, still one window of ours: else codes at the seam differ


def main() -> None:
    """Makes files and codec, runs the engines, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", choices=("toy", "full"), default="toy")
    parser.add_argument("--files", type=int, default=48, help="clips of 29 s (a full codec takes about 10 s for one)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each engine, in turns; the median counts")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--memory", action="store_true", help="memory over the length of a track, ours only")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(run_engine(options.engine, options.folder, options.device)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.memory:
            show_memory(folder, options)
        else:
            compare(folder, options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    """All engines on the same files, in turns."""
    write_codec(folder, options.codec)
    for number in range(options.files):
        write_clip(folder / f"{number:03d}{SUFFIXES[number % 3]}", number, CLIP_S)
    runs = {
        engine: [run_in_process(engine, folder, options.device) for _ in range(options.repeats)] for engine in ENGINES
    }
    audio_s = options.files * CLIP_S
    print(
        f"codec {options.codec}, {options.files} files of {CLIP_S:g} s, {os.cpu_count()} cores, device {options.device}"
    )
    print("| engine | decode, x real time | encode, x real time | times the faster peer | busy | memory, GiB |")
    print("|---|---|---|---|---|---|")
    seconds = {engine: float(np.median([run["seconds"] for run in found])) for engine, found in runs.items()}
    fastest = min(seconds[engine] for engine in ENGINES[1:])
    for engine, found in runs.items():
        decode = audio_s / float(np.median([run["decode_s"] for run in found]))
        busy = f"{np.median([run['busy'] for run in found]):.0%}"
        memory = max(run["memory"] for run in found) / 2**30
        print(
            f"| {engine} | {decode:.0f} | {audio_s / seconds[engine]:.1f} | {fastest / seconds[engine]:.2f} | {busy} "
            f"| {memory:.2f} |"
        )
    codes = [run["codes"] for found in runs.values() for run in found]
    differing = [
        sum(a != b for a, b in zip(codes[0][name], other[name], strict=True)) for other in codes for name in codes[0]
    ]
    total = sum(map(len, codes[0].values()))
    print(f"codes: {total} in all; most that differ in one file of any run: {max(differing)}")


def show_memory(folder: Path, options: argparse.Namespace) -> None:
    """Peak memory of ours for a track, and for one ten times as long."""
    for minutes in (10, 100):
        place = folder / str(minutes)
        place.mkdir()
        write_codec(place, options.codec)
        write_clip(place / "long.flac", 0, 60.0, repeats=minutes)
        memory = run_in_process("ours", place, options.device)["memory"]
        print(f"{minutes} minutes: {memory / 2**30:.2f} GiB")


def run_in_process(engine: str, folder: Path, device: str) -> dict[str, Any]:
    """One engine in a process of its own."""
    words = [sys.executable, __file__, "--engine", engine, "--folder", str(folder), "--device", device]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_engine(engine: str, folder: Path, device: str) -> dict[str, Any]:
    """Decodes and encodes every file; times both."""
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    sample_rate = json.loads((folder / "codec.json").read_text())["sampling_rate"]
    encode, workers = {"ours": ours, "transformers": transformers, "audiocraft": audiocraft}[engine](folder, device)
    spent = []

    def one(path: Path) -> np.ndarray:
        return encode(path, sample_rate, spent.append)

    one(files[0])  # warm: libraries loaded, threads started
    spent.clear()
    begin = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        codes = list(pool.map(one, files))
    seconds = time.perf_counter() - begin
    busy = sum(spent) / seconds / workers
    begin = time.perf_counter()
    for path in files:
        for _ in AudioReader(path, sample_rate=sample_rate, channels=1).blocks():
            pass
    return {
        "seconds": seconds,
        "decode_s": time.perf_counter() - begin,
        "busy": busy,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "codes": {path.name: found.flatten().tolist() for path, found in zip(files, codes, strict=True)},
    }


Encode = Callable[[Path, int, Callable[[float], None]], np.ndarray]


def ours(folder: Path, device: str) -> tuple[Encode, int]:
    """As prepare does: windows of a stream, a file per core, one thread each."""
    codec = Codec(load_encodec(folder), id="benchmark").to(device)
    is_cpu = device == "cpu"
    if is_cpu:
        torch.set_num_threads(1)

    def encode(path: Path, sample_rate: int, told: Callable[[float], None]) -> np.ndarray:
        blocks = AudioReader(path, sample_rate=sample_rate, channels=1, block_s=30.0).blocks()
        parts, mark = [], time.perf_counter()
        for window in codec.encode_windows(timed(blocks, told), windows_at_once=1 if is_cpu else 8):
            parts.append(window.kept_codes)
        told(time.perf_counter() - mark)
        return np.concatenate(parts, axis=1)

    return encode, os.cpu_count() or 1 if is_cpu else min(16, os.cpu_count() or 1)


def timed(blocks: Any, told: Callable[[float], None]) -> Any:
    """The blocks; the time that it takes to make them is told as negative."""
    while True:
        mark = time.perf_counter()
        block = next(blocks, None)
        told(mark - time.perf_counter())
        if block is None:
            return
        yield block


def transformers(folder: Path, device: str) -> tuple[Encode, int]:
    """``EncodecModel.encode`` on one file after the other."""
    model = load_encodec(folder).to(device)
    bandwidth = model.config.target_bandwidths[-1]

    def encode(path: Path, sample_rate: int, told: Callable[[float], None]) -> np.ndarray:
        waveform = torch.from_numpy(read(path, sample_rate=sample_rate, channels=1))[None].to(device)
        mark = time.perf_counter()
        with torch.no_grad():
            codes = model.encode(waveform, bandwidth=bandwidth).audio_codes[0, 0].cpu().numpy()
        told(time.perf_counter() - mark)
        return codes.astype(np.uint16)

    return encode, 1


def audiocraft(folder: Path, device: str) -> tuple[Encode, int]:
    """Its ``EncodecModel.encode`` on one file after the other."""
    from audiocraft.models.loaders import load_compression_model

    model = load_compression_model(folder, device=device)

    def encode(path: Path, sample_rate: int, told: Callable[[float], None]) -> np.ndarray:
        waveform = torch.from_numpy(read(path, sample_rate=sample_rate, channels=1))[None].to(device)
        mark = time.perf_counter()
        with torch.no_grad():
            codes = model.encode(waveform)[0][0].cpu().numpy()
        told(time.perf_counter() - mark)
        return codes.astype(np.uint16)

    return encode, 1


# ---- what they work on -----------------------------------------------------------------------------------------------


def write_codec(folder: Path, kind: str) -> None:
    """The codec in both libraries' formats, with equal weights."""
    from transformers import EncodecConfig, EncodecModel

    from musicgen_ft.checkpoint.audiocraft_format import CODEC_FILE, codec_xp_config
    from musicgen_ft.checkpoint.names import codec_pairs, lazily_from_ours
    from musicgen_ft.pretraining.untrained import NanoSizes, untrained_encodec
    from musicgen_ft.weights import write_release

    if kind == "toy":
        torch.manual_seed(0)
        model = untrained_encodec(NanoSizes(num_filters=8, latent_dim=32))
    else:
        torch.manual_seed(0)
        config = EncodecConfig(
            target_bandwidths=[2.2], sampling_rate=32_000, num_filters=64, upsampling_ratios=[8, 5, 4, 4],
            codebook_size=2048, codebook_dim=128, use_causal_conv=False, use_conv_shortcut=False,
        )  # fmt: skip
        model = EncodecModel(config).eval()
        for layer in model.quantizer.layers:
            layer.codebook.embed.normal_(std=0.1)
            layer.codebook.inited.fill_(1)
    model.save_pretrained(folder / "encodec")
    (folder / "codec.json").write_text(json.dumps({"sampling_rate": model.config.sampling_rate}))
    n_q = model.quantizer.get_num_quantizers_for_bandwidth(model.config.target_bandwidths[-1])
    import yaml

    state = model.state_dict()
    pairs = codec_pairs(state, num_residual_layers=model.config.num_residual_layers)
    text = yaml.safe_dump(codec_xp_config(model.config, n_q=n_q), sort_keys=False)
    written = lazily_from_ours(state, pairs)
    write_release(folder / CODEC_FILE, "best_state", written, {"xp.cfg": text, "version": "1.3.0", "exported": True})


def load_encodec(folder: Path) -> Any:
    """transformers' model."""
    from transformers import EncodecModel

    return EncodecModel.from_pretrained(folder / "encodec").eval()


def write_clip(path: Path, number: int, duration_s: float, *, repeats: int = 1) -> None:
    """A clip made by rule, 44.1 kHz stereo, in the format of the file's suffix."""
    samples = render_track(0, number, duration_s=duration_s).waveform
    waveform = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    if path.suffix == ".wav":
        write_wav(path, waveform, 44_100)
        return
    codec, layout = {".mp3": "libmp3lame", ".flac": "flac"}[path.suffix], "stereo"
    pcm = (waveform.clamp(-1, 1).numpy() * 32767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44_100, layout=layout)
        for _ in range(repeats):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm.T).reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate = 44_100
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
