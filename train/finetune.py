"""Fine-tunes a MusicGen language model on shards.

musicgen-ft finetune shards --out run
musicgen-ft finetune shards --out run --config small --lr 3.0e-5 --max_steps 2000
musicgen-ft finetune --resume run
torchrun --nproc-per-node 4 train/finetune.py shards --out run --devices 4
"""

import dataclasses
import sys
from typing import TYPE_CHECKING

from musicgen_ft.cli import run_recipe
from musicgen_ft.config import FinetuneConfig

if TYPE_CHECKING:
    from musicgen_ft.checkpoint.base import Base
    from musicgen_ft.shards.format import Manifest
    from musicgen_ft.training.module import FinetuneModule
    from musicgen_ft.training.run import RunInfo


def main(config: FinetuneConfig) -> None:
    """Config -> data -> model -> ``Trainer.fit``."""
    from musicgen_ft.checkpoint.base import build_lm, open_base, place_of
    from musicgen_ft.corpus.captions import caption_policy
    from musicgen_ft.devices import is_main_process
    from musicgen_ft.shards.format import check_chroma, check_codec
    from musicgen_ft.shards.index import ShardIndex
    from musicgen_ft.shards.remote import local_shards
    from musicgen_ft.training.data import build_data, probe
    from musicgen_ft.training.module import FinetuneModule
    from musicgen_ft.training.run import RunFolder, check_free, places, resumed_config
    from musicgen_ft.training.trainer import build_trainer, place

    # What the run is: a new one, or one to take up again. Every mistake shows before weights are read.
    is_main = is_main_process()
    resume_step = None
    if config.resume is not None:
        run = RunFolder.open(config.resume)
        config = resumed_config(config, run.config())
        resume_step = run.read_checkpoint("last")["global_step"]
    elif is_main:
        check_free(config)
    shards, out = places(config)
    if resume_step is not None and resume_step >= config.max_steps:
        if is_main:
            print(f"run: {out}, all its {config.max_steps} steps are made")
        return
    placement = place(config)
    caption_policy(config)  # refuses a template that it cannot read

    # Data and base, which must agree.
    index = ShardIndex.open(local_shards(shards))
    manifest = index.manifest
    text_encoder = None if config.text_encoder is None else place_of(config.text_encoder)
    base = open_base(config.base or manifest.base, channels=manifest.codec.channels, other_t5=text_encoder)
    check_codec(manifest, base.codec().spec)
    if base.lm_config.chroma is not None:
        check_chroma(manifest, base.lm_config.chroma)
    text_padding = config.text_padding or base.lm_config.text_padding
    config = dataclasses.replace(
        config, shards=shards, base=base.place, text_encoder=text_encoder, text_padding=text_padding
    )
    data = build_data(config, index, placement)

    # Model.
    lm_config = dataclasses.replace(base.lm_config, dropout=config.dropout, text_padding=text_padding)
    module = FinetuneModule(build_lm(lm_config, base.lm_state(), where=base.name), base.text_encoder(), config)
    info = describe(manifest, base, module, shards=shards, text_encoder=text_encoder, text_padding=text_padding)
    run = RunFolder(out)
    if resume_step is None and is_main:
        run = RunFolder.create(out, config, info, probe(data))
    if is_main:
        tell(config, info, resume_step)
        if lm_config.dim == lm_config.text_dim:  # t5-large under small: known before the hours are spent
            print("its text encoder is as wide as the model: export it with --format audiocraft", file=sys.stderr)

    # Train; a new run first tells the loss that it starts from, every run the one that it ends with.
    has_valid = info.valid_tracks > 0
    trainer = build_trainer(
        config, placement, run, n_q=manifest.codec.n_q, has_valid=has_valid, resume_step=resume_step
    )
    if has_valid and resume_step is None:
        trainer.validate(module, data, verbose=False)
    checkpoint = None if resume_step is None else str(run.checkpoint("last"))
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    if has_valid and config.max_steps % min(config.valid_every_steps, config.max_steps):
        trainer.validate(module, data, verbose=False)
    if is_main:
        valid = f", validation loss {module.latest['valid/ce']:.3f}" if has_valid else ""
        print(f"run: {out}, {trainer.global_step} steps, loss {module.latest['train/ce']:.3f}{valid}")


def describe(
    manifest: "Manifest",
    base: "Base",
    module: "FinetuneModule",
    *,
    shards: str,
    text_encoder: str | None,
    text_padding: str,
) -> "RunInfo":
    """Where the run comes from, for its folder and its model card."""
    from musicgen_ft import __version__
    from musicgen_ft.checkpoint.base import license_of
    from musicgen_ft.training.run import RunInfo, new_wandb_id

    return RunInfo(
        base=base.place,
        license=license_of(base),
        shards=shards,
        codec_sha256=manifest.codec.sha256,
        text_padding=text_padding,
        channels=manifest.codec.channels,
        text_encoder=text_encoder,
        train_tracks=manifest.num_tracks["train"],
        train_hours=manifest.duration_s["train"] / 3600,
        valid_tracks=manifest.num_tracks["valid"],
        num_parameters=sum(parameter.numel() for parameter in module.lm.parameters()),
        wandb_id=new_wandb_id(),
        toolkit_version=__version__,
    )


def tell(config: FinetuneConfig, info: "RunInfo", resume_step: int | None) -> None:
    """What is about to happen, in a few lines."""
    begins = "new run" if resume_step is None else f"going on from step {resume_step}"
    lines = [
        f"{begins} in {config.out}: {config.max_steps} steps of {config.batch_size} x {config.segment_s:g} s",
        f"base {info.base}, {info.num_parameters / 1e6:.1f} M parameters, weights under {info.license}",
        f"corpus {info.train_hours:.2f} h in {info.train_tracks} tracks, {info.valid_tracks} held out",
    ]
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    run_recipe(FinetuneConfig, main)
