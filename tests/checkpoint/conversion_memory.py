"""Prints by how much a conversion makes the process grow, as a share of the checkpoint, for each direction.

Run as a program, in a process of its own. A toy is converted first, so that libraries are not counted.
"""

import gc
import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from musicgen_ft.checkpoint import audiocraft_format, transformers_format
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.cli import main as console_command
from musicgen_ft.model.lm import LanguageModel, LMConfig
from musicgen_ft.weights import LazyTensors


def main(folder: Path) -> None:
    """Converts a toy, then 0.4 GB: 202 million numbers in fp16."""
    write_base(folder / "toy", dim=96, num_layers=1)
    convert(folder / "toy", folder / "toy-both", "both")
    source = folder / "audiocraft"
    write_base(source, dim=1024, num_layers=12)
    growth = {
        "transformers": convert(source, folder / "transformers", "transformers"),
        "audiocraft": convert(folder / "transformers", folder / "back", "audiocraft"),
        "both": convert(source, folder / "both", "both"),
    }
    num_bytes = (source / audiocraft_format.LM_FILE).stat().st_size  # codec and T5, nano's, are small
    json.dump({"num_bytes": num_bytes, **{way: value / num_bytes for way, value in growth.items()}}, sys.stdout)


def convert(source: Path, out: Path, format: str) -> int:
    """Bytes that were resident at most, above those before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the record of the largest begins anew
    before = resident("VmRSS")
    words = ["musicgen-ft", "export", "--from", str(source), "--out", str(out), "--format", format]
    with patch.object(sys, "argv", words), patch.object(sys, "stdout", sys.stderr):
        console_command()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """A line of the system's record of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def write_base(folder: Path, *, dim: int, num_layers: int) -> None:
    """Random weights in audiocraft's format, fp16, with nano's codec and T5, made one by one."""
    nano = open_base("nano")
    codec, text_encoder = nano.codec(), nano.text_encoder()
    config = LMConfig(
        dim=dim,
        num_heads=dim // 32,
        num_layers=num_layers,
        ffn_dim=4 * dim,
        n_q=4,
        card=codec.spec.card,
        delays=(0, 1, 2, 3),
        text_dim=text_encoder.dim,
    )
    with torch.device("meta"):
        like = {name: value.half() for name, value in LanguageModel(config).state_dict().items()}

    def random(name: str) -> Tensor:
        shape = like[name].shape
        scale: float = shape[-1] ** -0.5
        return (torch.randn(shape) * scale + ("norm.weight" in name)).half()

    folder.mkdir()
    audiocraft_format.write_folder(folder, LazyTensors(like, random), config, codec, text_encoder_id="t5")
    transformers_format.write_text_encoder(folder / "t5", text_encoder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
