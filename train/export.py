"""Makes a generator folder of a run, or of another base: audiocraft and transformers open and play it.

musicgen-ft export run --out generator
musicgen-ft export run --out generator --format audiocraft --dtype float16
musicgen-ft export run --out generator --checkpoint last --weights raw
musicgen-ft export --from facebook/musicgen-small --out converted --format audiocraft
musicgen-ft export --from facebook/musicgen-small --channels 2 --out stereo

The folder appears only after its readers have opened it and given the same logits.
"""

import dataclasses

from musicgen_ft.cli import run_recipe
from musicgen_ft.config import ExportConfig, to_plain


def main(config: ExportConfig) -> None:
    """Of a run, or of a base as it is."""
    from musicgen_ft.files import refuse_used

    refuse_used(config.out)
    if config.run is not None:
        export_run(config)
    else:
        convert(config)


def export_run(config: ExportConfig) -> None:
    """Weights of the run -> both formats -> compared with the trained model on real codes -> in place."""
    import torch

    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.checkpoint.card import without_paths, write_card
    from musicgen_ft.checkpoint.generator_folder import formats_of, write_generator
    from musicgen_ft.files import atomic_folder, write_json
    from musicgen_ft.peers.parity import check_export
    from musicgen_ft.training.run import RunFolder, exported_weights

    # The run and its base.
    assert config.run is not None
    run = RunFolder.open(config.run)
    info, run_config, probe = run.info(), run.config(), run.probe()
    weights = exported_weights(run.read_checkpoint(config.checkpoint), config.weights)
    base = open_base(info.base, channels=info.channels, other_t5=info.text_encoder)
    codec, text_encoder = base.codec(), base.text_encoder()
    lm_config = dataclasses.replace(base.lm_config, dropout=0.0)
    dtype = getattr(torch, config.dtype or "float32")
    state = {name: value.to(dtype) for name, value in weights.state.items()}

    # Write, then let the readers open what was written.
    formats = formats_of(config.format)
    with atomic_folder(config.out) as folder:
        write_generator(folder, state, lm_config, base, codec, text_encoder, formats=formats)
        differences = check_export(
            folder, state, lm_config, text_encoder, probe.codes, probe.description, formats=formats, chroma=probe.chroma
        )
        metrics = {**weights.metrics, "dtype": str(dtype).removeprefix("torch.")}
        facts = {"info": without_paths(dataclasses.asdict(info)), "config": without_paths(to_plain(run_config))}
        facts["metrics"] = metrics
        card = write_card(
            name=config.out.name, formats=formats, text_encoder_id=base.t5_id, differences=differences, **facts
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_json(folder / "musicgen_ft.json", {**facts, "logit_differences": differences})
    tell(differences, of="trained model")
    print(f"generator: {config.out}, step {metrics['step']}, {metrics['weights']} weights")


def convert(config: ExportConfig) -> None:
    """A base's own weights in the other format, or in both; compared on random codes."""
    import torch

    from musicgen_ft.checkpoint.base import license_of, open_base
    from musicgen_ft.checkpoint.card import write_conversion_card
    from musicgen_ft.checkpoint.generator_folder import formats_of, write_generator
    from musicgen_ft.files import atomic_folder
    from musicgen_ft.peers.parity import check_export

    assert config.base is not None
    base = open_base(config.base, channels=config.channels)
    codec, text_encoder, lm_config = base.codec(), base.text_encoder(), base.lm_config
    state = base.lm_state()
    if config.dtype is not None:
        state = {name: value.to(getattr(torch, config.dtype)) for name, value in state.items()}
    formats = formats_of(config.format)
    with atomic_folder(config.out) as folder:
        write_generator(folder, state, lm_config, base, codec, text_encoder, formats=formats)
        codes = torch.randint(lm_config.card, (1, lm_config.n_q, 50), generator=torch.Generator().manual_seed(0))
        chroma = None if lm_config.chroma is None else torch.arange(31)[None] % lm_config.chroma.n_chroma
        differences = check_export(
            folder, state, lm_config, text_encoder, codes, "music", formats=formats, chroma=chroma
        )
        card = write_conversion_card(
            name=config.out.name,
            base=base.name,
            license=license_of(base),
            formats=formats,
            text_encoder_id=base.t5_id,
            differences=differences,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    tell(differences, of="base")
    print(f"generator: {config.out}, converted from {base.name}")


def tell(differences: dict[str, float], *, of: str) -> None:
    """What each reader found."""
    for reader, difference in differences.items():
        print(f"{reader} opens it, logits within {difference:.1e} of the {of}")


if __name__ == "__main__":
    run_recipe(ExportConfig, main)
