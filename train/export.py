"""Makes a generator folder of a run, or of another base: audiocraft and transformers open and play it.

musicgen-ft export run --out generator
musicgen-ft export run --out generator --format audiocraft --dtype float16
musicgen-ft export run --out generator --checkpoint last --weights raw
musicgen-ft export run --out adapter --format adapter
musicgen-ft export --from facebook/musicgen-small --out converted --format audiocraft
musicgen-ft export --from facebook/musicgen-small --channels 2 --out stereo

The folder appears only after its readers have opened it and given the same logits.
"""

import dataclasses

from musicgen_ft.cli import run_recipe
from musicgen_ft.config.export import ExportConfig
from musicgen_ft.config.plain import to_plain


def main(config: ExportConfig) -> None:
    """Of a run, all of it or its adapter alone, or of a base as it is."""
    from musicgen_ft.files import refuse_used

    refuse_used(config.out)
    if config.run is None:
        convert(config)
    elif config.format == "adapter":
        export_adapter(config)
    else:
        export_run(config)


def export_run(config: ExportConfig) -> None:
    """Weights of the run -> both formats -> compared with the trained model on real codes -> in place."""
    import torch

    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.checkpoint.card import CARD_NAME, FACTS_FILE, without_paths, write_card
    from musicgen_ft.checkpoint.generator_folder import formats_of, write_generator
    from musicgen_ft.files import atomic_folder, write_json
    from musicgen_ft.peers.parity import check_export
    from musicgen_ft.training.run import RunFolder, exported_weights
    from musicgen_ft.training.trained import whole_model
    from musicgen_ft.weights import cast

    # The run and its base.
    assert config.run is not None
    run = RunFolder.open(config.run)
    info, run_config, probe = run.info(), run.config(), run.probe()
    weights = exported_weights(run.read_checkpoint(config.checkpoint), config.weights)
    base = open_base(info.base, channels=info.channels, other_t5=info.text_encoder)
    codec, text_encoder = base.codec(), base.text_encoder()
    lm_config = dataclasses.replace(base.lm_config, dropout=0.0)
    dtype = getattr(torch, config.dtype or "float32")
    state = cast(whole_model(run_config, info, base, weights.state), dtype)

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
        (folder / CARD_NAME).write_text(card, encoding="utf-8")
        write_json(folder / FACTS_FILE, {**facts, "logit_differences": differences})
    tell(differences, of="trained model")
    print(f"generator: {config.out}, step {metrics['step']}, {metrics['weights']} weights")


def export_adapter(config: ExportConfig) -> None:
    """What a run trained over its base, in PEFT's format -> read back, opened by PEFT -> in place."""
    import torch

    from musicgen_ft.checkpoint.adapter import Adapter, write_adapter
    from musicgen_ft.checkpoint.base import open_base
    from musicgen_ft.checkpoint.card import CARD_NAME, FACTS_FILE, without_paths, write_adapter_card
    from musicgen_ft.checkpoint.transformers_format import build_config
    from musicgen_ft.errors import UserError
    from musicgen_ft.files import atomic_folder, write_json
    from musicgen_ft.model.lora import adapter_spec
    from musicgen_ft.peers.peft import check_adapter
    from musicgen_ft.training.run import RunFolder, check_base, exported_weights
    from musicgen_ft.weights import from_files, state_sha256

    # The run and its base.
    assert config.run is not None
    run = RunFolder.open(config.run)
    info, run_config, probe = run.info(), run.config(), run.probe()
    spec = adapter_spec(run_config)
    if spec is None:
        raise UserError(f"{config.run} trained the weights themselves, and no adapter. Leave --format adapter out.")
    base = open_base(info.base)
    if info.text_encoder is not None or base.lm_config.channels != info.channels:
        what = "another text encoder" if info.text_encoder is not None else "stereo from mono"
        raise UserError(
            f"{config.run} made of its base another model, with {what}, which no folder holds that an adapter could be "
            "laid over. Leave --format adapter out."
        )
    lm_config = dataclasses.replace(base.lm_config, dropout=0.0)
    build_config(lm_config, base.codec(), base.text_encoder())  # refuses what transformers could not hold
    base_state = from_files(base.lm_state)
    check_base(info, state_sha256(base_state))
    weights = exported_weights(run.read_checkpoint(config.checkpoint), config.weights)
    dtype = getattr(torch, config.dtype or "float32")
    tensors = {name: value.to(dtype) for name, value in weights.state.items()}
    facts = {"info": without_paths(dataclasses.asdict(info)), "config": without_paths(to_plain(run_config))}
    facts["metrics"] = {**weights.metrics, "dtype": str(dtype).removeprefix("torch.")}
    adapter = Adapter(tensors, spec, facts["info"]["base"])

    # Write, then let the readers open what was written.
    with atomic_folder(config.out) as folder:
        write_adapter(folder, adapter, lm_config, base_state)
        differences = check_adapter(
            folder, adapter, lm_config, base, base_state, probe.codes, probe.description, chroma=probe.chroma
        )
        num_trained = sum(value.numel() for value in tensors.values())
        card = write_adapter_card(
            name=config.out.name,
            num_trained=num_trained,
            is_melody=lm_config.chroma is not None,
            differences=differences,
            **facts,
        )
        (folder / CARD_NAME).write_text(card, encoding="utf-8")
        write_json(folder / FACTS_FILE, {**facts, "logit_differences": differences})
    tell(differences, of="trained model")
    print(f"adapter: {config.out}, step {weights.metrics['step']}, {weights.metrics['weights']} weights")


def convert(config: ExportConfig) -> None:
    """A base's own weights in the other format, or in both; compared on random codes.

    The weights pass through memory tensor by tensor, also in the comparison (benchmarks/convert.py).
    """
    import torch

    from musicgen_ft.checkpoint.base import license_of, open_base
    from musicgen_ft.checkpoint.card import CARD_NAME, write_conversion_card
    from musicgen_ft.checkpoint.generator_folder import formats_of, write_generator
    from musicgen_ft.files import atomic_folder
    from musicgen_ft.peers.parity import check_export
    from musicgen_ft.weights import cast, from_files

    assert config.base is not None
    base = open_base(config.base, channels=config.channels)
    codec, text_encoder, lm_config = base.codec(), base.text_encoder(), base.lm_config
    state = from_files(base.lm_state)
    if config.dtype is not None:
        state = cast(state, getattr(torch, config.dtype))
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
        (folder / CARD_NAME).write_text(card, encoding="utf-8")
    tell(differences, of="base")
    print(f"generator: {config.out}, converted from {base.name}")


def tell(differences: dict[str, float], *, of: str) -> None:
    """What each reader found."""
    for reader, difference in differences.items():
        print(f"{reader} opens it, logits within {difference:.1e} of the {of}")


if __name__ == "__main__":
    run_recipe(ExportConfig, main)
