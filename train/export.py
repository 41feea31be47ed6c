"""Makes a generator folder of a run: audiocraft and transformers open and play it.

    musicgen-ft export run --out generator
    musicgen-ft export run --out generator --format audiocraft --dtype float16
    musicgen-ft export run --out generator --checkpoint last --weights raw

The folder appears only after its readers have opened it and given the trained model's logits on real codes.
"""

from musicgen_ft.cli import run_recipe
from musicgen_ft.config import ExportConfig, to_plain


def main(config: ExportConfig) -> None:
    """Weights of the run -> both formats -> compared -> in place."""
    import dataclasses

    import torch

    from musicgen_ft.checkpoint import audiocraft_format, transformers_format
    from musicgen_ft.checkpoint.base import build_lm, open_base
    from musicgen_ft.checkpoint.card import without_paths, write_card
    from musicgen_ft.files import atomic_folder, refuse_used, write_json
    from musicgen_ft.peers.parity import check_export
    from musicgen_ft.training.run import RunFolder, exported_weights

    # The run and its base.
    run = RunFolder.open(config.run)
    info, run_config, probe = run.info(), run.config(), run.probe()
    refuse_used(config.out)
    weights = exported_weights(run.read_checkpoint(config.checkpoint), config.weights)
    base = open_base(info.base)
    codec, text_encoder = base.codec(), base.text_encoder()
    lm_config = dataclasses.replace(base.lm_config, dropout=0.0)
    dtype = getattr(torch, config.dtype)
    state = {name: value.to(dtype) for name, value in weights.state.items()}

    # Write, then let the readers open what was written.
    formats: list[str] = ["audiocraft", "transformers"] if config.format == "both" else [config.format]
    with atomic_folder(config.out) as folder:
        if "transformers" in formats:
            transformers_format.write_folder(folder, state, lm_config, codec, text_encoder)
        if "audiocraft" in formats:
            audiocraft_format.write_folder(folder, state, lm_config, codec, text_encoder_id=base.t5_id)
            if formats == ["audiocraft"] and base.t5_id == audiocraft_format.T5_FOLDER:
                transformers_format.write_text_encoder(folder / audiocraft_format.T5_FOLDER, text_encoder)
        lm = build_lm(lm_config, state, where=str(config.run)).eval()
        differences = check_export(folder, lm, text_encoder, probe.codes, probe.description, formats=formats)
        metrics = {**weights.metrics, "dtype": config.dtype}
        facts = {"info": without_paths(dataclasses.asdict(info)), "config": without_paths(to_plain(run_config))}
        facts["metrics"] = metrics
        card = write_card(
            name=config.out.name, formats=formats, text_encoder_id=base.t5_id, differences=differences, **facts
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_json(folder / "musicgen_ft.json", {**facts, "logit_differences": differences})
    for reader, difference in differences.items():
        print(f"{reader} opens it, logits within {difference:.1e} of the trained model")
    print(f"generator: {config.out}, step {metrics['step']}, {metrics['weights']} weights")


if __name__ == "__main__":
    run_recipe(ExportConfig, main)
