"""Fine-tunes a MusicGen language model on shards.

musicgen-ft finetune shards --out run
musicgen-ft finetune shards --out run --config small --lr 3.0e-5 --max_steps 2000
musicgen-ft finetune shards --out run --config lora --lora_rank 32
musicgen-ft finetune shards --out run --config auto
musicgen-ft finetune --resume run
torchrun --nproc-per-node 4 train/finetune.py shards --out run
sbatch configs/slurm/finetune.sbatch shards run

Told to stop by SIGTERM or SIGUSR1 it saves after the step it is in and ends with status 75.
"""

import dataclasses
import sys
from typing import TYPE_CHECKING

from musicgen_ft.cli import run_recipe
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError

if TYPE_CHECKING:
    from musicgen_ft.checkpoint.base import Base
    from musicgen_ft.checkpoint.names import State
    from musicgen_ft.shards.format import Manifest
    from musicgen_ft.training.preempt import StopRequests
    from musicgen_ft.training.run import RunInfo, Saved
    from musicgen_ft.training.trainer import Placement


def main(config: FinetuneConfig) -> None:
    """Trains, and takes note of a signal to stop from the first moment on."""
    from musicgen_ft.training.preempt import StopRequests

    with StopRequests() as stop:
        train(config, stop)


def train(config: FinetuneConfig, stop: "StopRequests") -> None:
    """Config -> data -> model -> ``Trainer.fit``."""
    from musicgen_ft.checkpoint.base import build_lm, open_base, place_of
    from musicgen_ft.corpus.captions import caption_policy
    from musicgen_ft.devices import is_main_process
    from musicgen_ft.model.lora import check_method, choose_trained
    from musicgen_ft.shards.format import check_chroma, check_codec
    from musicgen_ft.shards.index import ShardIndex
    from musicgen_ft.shards.remote import local_shards
    from musicgen_ft.training.data import build_data, probe
    from musicgen_ft.training.early_stop import check_early_stop, stopped_early
    from musicgen_ft.training.listening import SAMPLES_FOLDER, Listening, let_base_play, sample_prompts
    from musicgen_ft.training.module import FinetuneModule
    from musicgen_ft.training.optim import check_optimizer
    from musicgen_ft.training.run import RunFolder, check_base, places
    from musicgen_ft.training.trainer import build_trainer, compute_dtype, place

    # Every mistake shows before weights are read.
    is_main, is_new = is_main_process(), config.resume is None
    begun = begin(config, is_main=is_main)
    if begun is None:
        return
    config, saved = begun
    shards, out = places(config)
    placement = place(config)
    check_method(config, placement.accelerator)
    check_optimizer(config)
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
    if config.is_open:
        config = resolved(config, base, placement)
        placement = place(config)
        check_method(config, placement.accelerator)
    margin_frames = base.lm_config.make_pattern().num_margin_frames
    data = build_data(config, index, placement, margin_frames=margin_frames)
    has_valid = manifest.num_tracks["valid"] > 0
    check_early_stop(config, has_valid=has_valid)
    prompts = sample_prompts(config, data) if config.sample_every_steps is not None else ()

    # Model.
    lm_config = dataclasses.replace(base.lm_config, dropout=config.dropout, text_padding=text_padding)
    state = base.lm_state()
    info = describe(config, manifest, base, state)
    run = RunFolder(out)
    if not is_new and info.base_sha256 is not None:
        check_base(run.info(), info.base_sha256)
    lm = build_lm(lm_config, state, where=base.name)
    del state
    fresh = ("text_proj",) if text_encoder is not None else ()
    choose_trained(lm, config, fresh=fresh, compute_dtype=compute_dtype(config, placement))
    codec, encoder = base.codec(), base.text_encoder()
    module = FinetuneModule(lm, encoder, config)
    if is_new and is_main:
        run = RunFolder.create(out, config, info, probe(data))
    if is_main:
        num_trained = sum(parameter.numel() for parameter in lm.parameters() if parameter.requires_grad)
        tell(config, info, None if saved is None else saved.step, is_new=is_new, num_trained=num_trained)
        if lm_config.dim == lm_config.text_dim:  # t5-large under small: known before the hours are spent
            print("its text encoder is as wide as the model: export it with --format audiocraft", file=sys.stderr)

    # Train; a new run first lets the base play, and tells the loss that it starts from.
    listening = Listening(run.path / SAMPLES_FOLDER, config, prompts, codec, encoder, stop) if prompts else None
    trainer = build_trainer(
        config,
        placement,
        run,
        n_q=manifest.codec.n_q,
        has_valid=has_valid,
        saved=saved,
        stop=stop,
        listening=listening,
    )
    if is_main and saved is None:
        let_base_play(trainer, module, codec, encoder, listening, has_valid=has_valid)
    if has_valid and saved is None:
        trainer.validate(module, data, verbose=False)
    trainer.fit(module, data, ckpt_path=None if saved is None else str(saved.path), weights_only=True)
    if is_main:
        line = [f"run: {out}", f"{trainer.global_step} steps", f"loss {module.latest['train/ce']:.3f}"]
        line += [module.standing()] if has_valid else []
        line += stopped_early(trainer)
        print(", ".join(line))


def begin(config: FinetuneConfig, *, is_main: bool) -> "tuple[FinetuneConfig, Saved | None] | None":
    """What the run is: a new one, or one to take up again with the checkpoint that it has; None where that has ended.

    Raises:
        UserError: if a new run's place is not free, there is no run to take up, or it is asked to be another one.
    """
    from musicgen_ft.training.early_stop import reason
    from musicgen_ft.training.run import RunFolder, check_free, places, resumed_config

    if config.resume is None:
        if is_main:
            check_free(config)
        return config, None
    run = RunFolder.open(config.resume)
    config = resumed_config(config, run.config())
    if config.is_open:
        raise UserError("--resume goes on as the run was planned; found auto. Leave it out, or give a number.")
    saved = run.saved()  # None: it was killed before its first save, and begins anew
    _, out = places(config)
    ended = None
    if saved is not None and saved.step >= config.max_steps:
        ended = f"run: {out}, all its {config.max_steps} steps are made"
    elif saved is not None and saved.early_stop.get("stopped"):
        ended = f"run: {out}, {saved.step} steps, {reason(saved.early_stop)}: there is nothing to go on with"
    if ended is None:
        return config, saved
    if is_main:
        print(ended)
    return None


def resolved(config: FinetuneConfig, base: "Base", placement: "Placement") -> FinetuneConfig:
    """What is left open, chosen for this machine's memory; every process comes to the same on machines that are alike.

    Raises:
        UserError: if nothing fits, with what would be needed; if the model is to be shared out among devices.
    """
    from musicgen_ft.checkpoint.released import t5_bytes
    from musicgen_ft.devices import is_main_process, total_memory
    from musicgen_ft.training.plan import Device, Job, plan, shortage, summary

    if config.strategy == "fsdp" and placement.world > 1:
        raise UserError("--config auto plans for models that are whole on each device. Leave --strategy fsdp out.")
    kind = "cuda" if placement.accelerator == "gpu" else "cpu"
    memory = total_memory(kind)
    if kind == "cpu":  # its processes share the RAM
        memory //= placement.devices
    device = Device(type="cuda" if kind == "cuda" else "cpu", memory=memory, is_here=True)
    job = Job(
        lm_config=base.lm_config,
        config=config,
        text_encoder_bytes=t5_bytes(base.t5_config()),
        frame_rate=base.codec().spec.frame_rate,
        devices=placement.world,
    )
    found = plan(job, device)
    if found.chosen is None:
        raise UserError(shortage(found, job))
    if is_main_process():
        print(f"planned: {summary(found.chosen, device)}", file=sys.stderr)
    return found.chosen.config


def describe(config: FinetuneConfig, manifest: "Manifest", base: "Base", state: "State") -> "RunInfo":
    """Where the run comes from, for its folder and its model card."""
    from musicgen_ft import __version__
    from musicgen_ft.checkpoint.base import license_of
    from musicgen_ft.model.lora import is_partial
    from musicgen_ft.training.run import RunInfo, new_wandb_id
    from musicgen_ft.weights import state_sha256

    assert config.shards is not None
    assert config.text_padding is not None
    return RunInfo(
        base=base.place,
        license=license_of(base),
        shards=config.shards,
        codec_sha256=manifest.codec.sha256,
        text_padding=config.text_padding,
        channels=manifest.codec.channels,
        text_encoder=config.text_encoder,
        train_tracks=manifest.num_tracks["train"],
        train_hours=manifest.duration_s["train"] / 3600,
        valid_tracks=manifest.num_tracks["valid"],
        num_parameters=sum(value.numel() for value in state.values()),
        wandb_id=new_wandb_id(),
        toolkit_version=__version__,
        base_sha256=state_sha256(state) if is_partial(config) else None,
    )


def tell(config: FinetuneConfig, info: "RunInfo", resume_step: int | None, *, is_new: bool, num_trained: int) -> None:
    """What is about to happen, in a few lines."""
    begins = "new run" if is_new else f"going on from step {resume_step or 0}"
    lines = [
        f"{begins} in {config.out}: {config.max_steps} steps of {config.batch_size} x {config.segment_s:g} s",
        f"base {info.base}, {info.num_parameters / 1e6:.1f} M parameters, weights under {info.license}",
        f"method {config.method}: {num_trained / 1e6:.1f} M parameters are trained",
        f"corpus {info.train_hours:.2f} h in {info.train_tracks} tracks, {info.valid_tracks} held out",
    ]
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    run_recipe(FinetuneConfig, main)
