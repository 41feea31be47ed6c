"""Memory of a conversion: `musicgen-ft export --from` between audiocraft's format and transformers'.

python benchmarks/convert.py
python benchmarks/convert.py --size small --dtype float32
python benchmarks/convert.py --size toy --folder scratch

Makes a checkpoint of random numbers in the shapes of a released model, with a T5-base and an EnCodec of 32 kHz, and
converts it as a user does: each conversion is a process of its own, which also opens what it wrote with both readers
and compares the logits. Needs Linux, and room for three checkpoints under --folder (21 GiB for `large` in float16).

What is measured, of the whole process, libraries included. The pages of mapped files are counted as memory, though the
system may take them back; the cache of the disk, which belongs to no process, is not.
  peak RSS        the system's own record of the largest resident memory (VmHWM)
  peak anonymous  the largest part of it that lies in no file (RssAnon), seen every 20 ms
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
SIZES = {"small": (1024, 16, 24), "medium": (1536, 24, 48), "large": (2048, 32, 48)}  # width, heads, layers
TOY = {"dim": 192, "num_heads": 3, "num_layers": 2}
GIB = 2**30
IMPORTS = "import torch, transformers, musicgen_ft.peers.parity; from audiocraft.models import musicgen"


class Measured(NamedTuple):
    """What a process came to."""

    peak_rss: int
    """Bytes."""
    peak_anonymous: int
    """Bytes."""
    seconds: float


def main() -> None:
    """Makes the checkpoint, converts it both ways and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=("toy", *SIZES), default="large", help="whose shapes")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the language model")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default, removed after")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make is not None:
        make_checkpoint(args.make, args.size, args.dtype)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        source, there = folder / "audiocraft", folder / "transformers"
        run(__file__, "--size", args.size, "--dtype", args.dtype, "--make", source)
        print("| direction | checkpoint, GiB | peak RSS, GiB | peak anonymous, GiB | RSS / checkpoint | seconds |")
        print("|---|---|---|---|---|---|")
        print_row("(imports alone)", None, run("-c", IMPORTS))
        convert(source, there, "transformers")
        convert(there, folder / "back", "audiocraft")
        shutil.rmtree(there)
        shutil.rmtree(folder / "back")
        convert(source, folder / "both", "both")


def convert(source: Path, out: Path, format: str) -> None:
    """Converts and prints a row."""
    measured = run(ROOT / "train" / "export.py", "--from", source, "--out", out, "--format", format)
    size = sum(file.stat().st_size for file in source.rglob("*") if file.suffix in (".bin", ".safetensors"))
    print_row(f"{source.name} -> {format}", size, measured)


def print_row(name: str, size: int | None, measured: Measured) -> None:
    """One row of the table."""
    sizes = f"{size / GIB:.2f}" if size else ""
    ratio = f"{measured.peak_rss / size:.2f}" if size else ""
    peaks = f"{measured.peak_rss / GIB:.2f} | {measured.peak_anonymous / GIB:.2f}"
    print(f"| {name} | {sizes} | {peaks} | {ratio} | {measured.seconds:.0f} |", flush=True)


def run(*words: object) -> Measured:
    """Runs a Python program and watches its memory."""
    begin = time.perf_counter()
    peaks = {"VmHWM": 0, "RssAnon": 0}
    with tempfile.TemporaryFile("w+") as told:
        with subprocess.Popen([sys.executable, *map(str, words)], stdout=told, stderr=told) as process:
            while process.poll() is None:
                status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                for name, _, value in (line.partition(":") for line in status):
                    if name in peaks:
                        peaks[name] = max(peaks[name], int(value.split()[0]) * 1024)
                time.sleep(0.02)
        if process.returncode:
            told.seek(0)
            raise SystemExit(told.read())
    return Measured(peaks["VmHWM"], peaks["RssAnon"], time.perf_counter() - begin)


def make_checkpoint(folder: Path, size: str, dtype: str) -> None:
    """Writes a checkpoint in audiocraft's format, T5 beside it, of which no more than a tensor is ever in memory."""
    import torch
    from torch import Tensor
    from transformers import EncodecConfig, EncodecModel, T5Config, T5EncoderModel

    from musicgen_ft.checkpoint import audiocraft_format, transformers_format
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.codec import Codec
    from musicgen_ft.model.conditioning import TextEncoder
    from musicgen_ft.model.lm import LanguageModel, LMConfig
    from musicgen_ft.weights import LazyTensors

    torch.manual_seed(0)
    folder.mkdir()
    nano = open_base("nano")
    codec, text_encoder = nano.codec(), nano.text_encoder()
    numbers: dict[str, Any] = dict(TOY)
    if size != "toy":
        numbers = dict(zip(("dim", "num_heads", "num_layers"), SIZES[size], strict=True))
        t5 = T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128)
        text_encoder = TextEncoder(T5EncoderModel(t5), text_encoder.tokenizer, id="t5")
        encodec = EncodecConfig(  # facebook/encodec_32khz
            target_bandwidths=[2.2],
            sampling_rate=32_000,
            upsampling_ratios=[8, 5, 4, 4],
            num_filters=64,
            codebook_size=2048,
            codebook_dim=128,
            use_causal_conv=False,
            use_conv_shortcut=False,
        )
        codec = Codec(EncodecModel(encodec), id="encodec")
    config = LMConfig(
        **numbers,
        ffn_dim=4 * numbers["dim"],
        n_q=4,
        card=codec.spec.card,
        delays=(0, 1, 2, 3),
        text_dim=text_encoder.dim,
    )
    with torch.device("meta"):
        like = {name: value.to(getattr(torch, dtype)) for name, value in LanguageModel(config).state_dict().items()}

    def random(name: str) -> Tensor:
        shape = like[name].shape
        scale = shape[1] ** -0.5 if len(shape) == 2 else 0.1
        return (torch.randn(shape) * scale + ("norm.weight" in name)).to(like[name].dtype)

    t5_folder = audiocraft_format.T5_FOLDER
    audiocraft_format.write_folder(folder, LazyTensors(like, random), config, codec, text_encoder_id=t5_folder)
    transformers_format.write_text_encoder(folder / t5_folder, text_encoder)


if __name__ == "__main__":
    main()
