"""The data of a run, by its config."""

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.corpus.captions import caption_policy
from musicgen_ft.errors import UserError
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.training.run import Probe
from musicgen_ft.training.throughput import TimedData
from musicgen_ft.training.trainer import Placement

_PROBE_S = 4.0


def build_data(
    config: FinetuneConfig, index: ShardIndex, placement: Placement, *, margin_frames: int | None
) -> TimedData:
    """Crops, captions and dropout as the config says; ``margin_frames`` is the pattern's, see ``collate``.

    Raises:
        UserError: if there is nothing to train on, or validation would be on what is trained on.
    """
    index.refuse_leaks()
    if index.manifest.num_tracks["train"] == 0:
        raise UserError(f"{config.shards} holds no track to train on. Prepare more tracks, or lower --valid_fraction.")
    return TimedData(
        index=index,
        segment_frames=max(1, round(config.segment_s * index.manifest.codec.frame_rate)),
        global_batch=config.batch_size,
        micro_batch=placement.micro_batch,
        num_steps=config.max_steps,
        seed=config.seed,
        captions=caption_policy(config),
        cfg_dropout=config.cfg_dropout,
        cfg_dropout_scope=config.cfg_dropout_scope,
        melody_dropout=config.melody_dropout,
        num_workers=config.num_workers,
        valid_max_crops=config.valid_max_clips,
        margin_frames=margin_frames,
    )


def probe(data: TimedData) -> Probe:
    """A few seconds of real codes with their text: of a held-out track where there is one."""
    crop = data.valid_crops[0] if len(data.valid_crops) else data.train_crops[0]
    num_frames = min(int(crop.mask.sum()), round(_PROBE_S * data.index.manifest.codec.frame_rate))
    chroma, spec = None, data.index.manifest.chroma
    if crop.chroma is not None and spec is not None:
        known = crop.chroma[: max(1, num_frames * data.index.manifest.codec.hop_length // spec.hop_length)]
        chroma = known.clamp(min=0)[None]
    return Probe(crop.codes[None, :, :num_frames], crop.description or "", chroma)
