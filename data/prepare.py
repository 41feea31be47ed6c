"""Encodes a folder of labelled audio into shards of EnCodec codes.

    musicgen-ft prepare corpus --out shards
    musicgen-ft prepare corpus --out shards --base facebook/musicgen-small
    python data/prepare.py corpus --out shards --config small

Labels: a .txt or .json beside each file, one metadata.csv or .jsonl, embedded tags, or the folder's name as genre.
Stopped half-way, the same command goes on where it was.
"""

from musicgen_ft.cli import run_recipe
from musicgen_ft.config import PrepareConfig, to_plain
from musicgen_ft.terminal import progress_bar


def main(config: PrepareConfig) -> None:
    """Scans, encodes, and writes the manifest that completes the folder."""
    from musicgen_ft import __version__
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.corpus.scan import scan_corpus
    from musicgen_ft.devices import resolve_device
    from musicgen_ft.errors import UserError
    from musicgen_ft.shards.encode import encode_corpus
    from musicgen_ft.shards.format import Manifest, write_manifest
    from musicgen_ft.shards.writer import ShardWriter, refuse_foreign_files

    # What there is: every mistake in the corpus shows before the first second is encoded.
    refuse_foreign_files(config.out)
    device = resolve_device(config.device)
    records = scan_corpus(config.corpus, valid_fraction=config.valid_fraction)

    # Encode.
    base = open_base(config.base, channels=config.channels)
    codec = base.codec().to(device)
    # What else decides the codes: a folder begun with another answer is refused.
    decides = {
        "channels": codec.spec.channels,
        "corpus": str(config.corpus.resolve()),
        "window_s": config.window_s,
        "valid": config.valid_fraction,
    }
    with (
        ShardWriter(
            config.out,
            codec.spec,
            chroma=base.lm_config.chroma,
            fingerprint=str(decides),
            max_shard_bytes=config.shard_mib * 2**20,
        ) as writer,
        progress_bar(total=len(records), desc="prepare", unit="track") as bar,
    ):
        seconds = 0.0

        def progress(duration_s: float) -> None:
            nonlocal seconds
            seconds += duration_s
            bar.update()
            bar.set_postfix_str(f"{seconds / 3600:.2f} h of audio")

        rejected = encode_corpus(
            records, codec, writer, window_s=config.window_s, min_duration_s=config.min_duration_s, progress=progress
        )
    if len(rejected) == len(records):
        config.out.rmdir()  # no shard was begun
        raise UserError(f"{config.corpus}: none of its {len(records)} audio files can be used, see the lines above.")

    # Complete.
    manifest = Manifest(
        codec=codec.spec,
        base=base.place,
        shards=writer.shards,
        config=to_plain(config),
        toolkit_version=__version__,
        rejected=tuple(rejected),
        chroma=writer.chroma,
    )
    write_manifest(config.out, manifest)
    for split in ("train", "valid"):
        print(f"{split}: {manifest.num_tracks[split]} tracks, {manifest.duration_s[split] / 60:.1f} minutes")
    if rejected:
        print(f"left out: {len(rejected)} of {len(records)} files:")
        for file in rejected:
            print(f"  {file.relative_path}: {file.reason}")
    print(f"shards: {config.out}")


if __name__ == "__main__":
    run_recipe(PrepareConfig, main)
