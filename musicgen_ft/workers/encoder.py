"""The encoder that a prepare config asks for."""

from musicgen_ft.checkpoint.base import Base
from musicgen_ft.config.prepare import PrepareConfig
from musicgen_ft.devices import local_device
from musicgen_ft.shards.encode import EncodeOptions, Encoder
from musicgen_ft.stems import Separator

GPU_WINDOWS = 8
"""Windows of one batch on a GPU, where none was measured; on a CPU one of 30 s takes 1.4 GiB at the released size."""


def build_encoder(config: PrepareConfig, base: Base) -> Encoder:
    """Codec, chroma and demucs of a base, on the config's device.

    Raises:
        UserError: if there is no such device, or demucs is asked for and cannot be opened.
    """
    device = local_device(config.device)
    codec = base.codec().to(device)
    chroma = base.lm_config.chroma
    options = EncodeOptions(
        window_s=config.window_s,
        codec_check_s=config.codec_check_s,
        vocals=config.vocals,
        melody=config.melody,
        stems_model=config.stems_model,
        windows_at_once=1 if device.type == "cpu" else GPU_WINDOWS,
    )
    needs_stems = config.vocals == "remove" or (chroma is not None and config.melody == "stems")
    separator = Separator.open(config.stems_model, device=device) if needs_stems else None
    return Encoder(codec, options, chroma=chroma, separator=separator)
