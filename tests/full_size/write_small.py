"""Writes a full-size `small` with random weights, by audiocraft's own builders, in the layout of its releases.

Run as a program, in a process of its own, so that its memory is not counted with that of what is tested.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from audiocraft.models import builders
from omegaconf import OmegaConf
from transformers import T5Config, T5EncoderModel

from musicgen_ft.checkpoint.audiocraft_format import codec_xp_config, lm_xp_config
from musicgen_ft.checkpoint.base import open_base
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LMConfig
from musicgen_ft.peers.audiocraft import text_encoder_given

SMALL = LMConfig(
    dim=1024,
    num_heads=16,
    num_layers=24,
    ffn_dim=4096,
    n_q=4,
    card=2048,
    delays=(0, 1, 2, 3),
    text_dim=768,
)


def main(folder: Path) -> None:
    """Writes state_dict.bin (fp16), compression_state_dict.bin (fp32) and a t5 folder in place of the hub's t5-base."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    t5 = T5EncoderModel(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128))
    tokenizer = open_base("nano").text_encoder().tokenizer
    t5.save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")

    lm_config = lm_xp_config(SMALL, text_encoder_id="t5-base")
    with text_encoder_given(TextEncoder(t5, tokenizer, id="t5-base")):
        lm = builders.get_lm_model(OmegaConf.create({**lm_config, "device": "cpu", "dtype": "float32"}))
    save(folder / "state_dict.bin", {name: value.half() for name, value in lm.state_dict().items()}, lm_config)

    codec_config = codec_xp_config(encodec_32khz(), n_q=4)
    codec: Any = builders.get_compression_model(OmegaConf.create({**codec_config, "device": "cpu"}))
    for layer in codec.quantizer.vq.layers:  # as if trained: else the first batch would initialise them by k-means
        layer._codebook.inited.fill_(1)
        layer._codebook.embed.normal_()
    save(folder / "compression_state_dict.bin", codec.state_dict(), codec_config)


def encodec_32khz() -> Any:
    """The numbers of facebook/encodec_32khz (spec 8.1)."""
    from transformers import EncodecConfig

    return EncodecConfig(
        target_bandwidths=[2.2],
        sampling_rate=32_000,
        num_filters=64,
        upsampling_ratios=[8, 5, 4, 4],
        codebook_size=2048,
        codebook_dim=128,
        use_causal_conv=False,
        use_conv_shortcut=False,
    )


def save(path: Path, state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    torch.save({"best_state": state, "xp.cfg": yaml.safe_dump(config), "version": "1.3.0", "exported": True}, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
