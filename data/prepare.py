"""Encodes a folder of labelled audio into shards of EnCodec codes.

    musicgen-ft prepare corpus --out shards
    musicgen-ft prepare corpus --out shards --base facebook/musicgen-small
    python data/prepare.py corpus --out shards --config small
    torchrun --nproc-per-node 8 data/prepare.py corpus --out shards

Labels: a .txt or .json beside each file, one metadata.csv or .jsonl, embedded tags, or the folder's name as genre.
Stopped half-way, the same command goes on where it was; on a corpus that grew, it encodes what is new. Several of them
at once, on machines that share the folders, work together.
"""

from typing import TYPE_CHECKING

from musicgen_ft.cli import run_recipe
from musicgen_ft.config.prepare import PrepareConfig
from musicgen_ft.terminal import progress_bar

if TYPE_CHECKING:
    from musicgen_ft.shards.format import Manifest


def main(config: PrepareConfig) -> None:
    """Scan, survey, plan, build, complete."""
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.corpus.scan import scan_corpus
    from musicgen_ft.devices import is_main_process
    from musicgen_ft.processes import num_cores
    from musicgen_ft.shards import job
    from musicgen_ft.shards.build import default_workers
    from musicgen_ft.shards.work import WorkFolder, refuse_foreign_files
    from musicgen_ft.workers.encoder import build_encoder
    from musicgen_ft.workers.ray_engine import RayEngine

    # What there is: every mistake in the corpus shows before the first second is decoded.
    refuse_foreign_files(config.out)
    records = scan_corpus(config.corpus, read_tags=False)
    base = open_base(config.base, channels=config.channels)
    encoder = build_encoder(config, base)
    job.refuse_other_settings(config.out, job.settings_of(config, encoder))
    job.refuse_other_corpus(config.out, records)
    engine = RayEngine() if config.engine == "ray" else None
    work = WorkFolder(config.out, lease_s=config.lease_s)

    # Survey: what is in each file. Then what becomes of it, and which shard it goes into.
    with progress_bar(total=len(records), desc="survey", unit="file") as bar:
        surveys = job.survey_step(config, records, work, progress=lambda done: bar.update(done - bar.n), engine=engine)
    plan = job.plan_step(config, records, surveys, work, encoder)

    # Encode.
    paths = {record.relative_path: record.path for record in records}
    with progress_bar(total=(total := work.num_planned()), desc="encode", unit="track") as bar:
        if engine is not None:
            engine.build(plan.new, config, paths, lambda: bar.update(total - work.num_planned() - bar.n))
        else:
            workers = config.workers or default_workers(encoder.codec, window_s=config.window_s, cores=num_cores())
            job.build_step(config, paths, plan, work, encoder, workers=workers, progress=lambda _: bar.update())
    manifest = job.complete_step(config, base.place, encoder, plan, work)
    if is_main_process():  # of those that torchrun has started, one speaks
        tell(config, manifest, num_files=len(records))


def tell(config: PrepareConfig, manifest: "Manifest", *, num_files: int) -> None:
    """What there is now, and what was left out."""
    for split in ("train", "valid"):
        print(f"{split}: {manifest.num_tracks[split]} tracks, {manifest.duration_s[split] / 60:.1f} minutes")
    if manifest.rejected:
        print(f"left out: {len(manifest.rejected)} of {num_files} files:")
        for file in manifest.rejected[:20]:
            print(f"  {file.relative_path}: {file.reason}")
        if len(manifest.rejected) > 20:
            print(f"  ... and {len(manifest.rejected) - 20} more, see: musicgen-ft inspect {config.out}")
    print(f"shards: {config.out}")


if __name__ == "__main__":
    run_recipe(PrepareConfig, main)
