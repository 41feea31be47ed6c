"""The model card of a generator folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SETTINGS = ("max_steps", "batch_size", "segment_s", "lr", "warmup_steps", "weight_decay", "cfg_dropout", "ema_decay")


def write_card(
    *, name: str, info: Mapping[str, Any], config: Mapping[str, Any], metrics: Mapping[str, Any], formats: list[str],
    text_encoder_id: str, differences: Mapping[str, float],
) -> str:  # fmt: skip
    """Markdown with the hub's front matter.

    Args:
        name: of the generator.
        info: of the run: base, licence, corpus.
        config: of the run.
        metrics: step, weights and validation loss of what was exported.
        formats: of ``audiocraft`` and ``transformers``.
        text_encoder_id: the name that audiocraft knows its text encoder by, or ``t5``.
        differences: reader -> largest difference of a logit from the trained model's.
    """
    base_model = (
        [f"base_model: {info['base']}"] if "/" in info["base"] and not info["base"].startswith((".", "/")) else []
    )
    front = [
        "---",
        f"license: {info['license']}",
        *base_model,
        "pipeline_tag: text-to-audio",
        "library_name: " + ("transformers" if "transformers" in formats else "audiocraft"),
        "tags: [musicgen, music, text-to-audio, musicgen-ft]",
        "---",
    ]
    checked = (
        ", ".join(f"{reader} {value:.1e}" for reader, value in differences.items()) or "not opened by another reader"
    )
    body = f"""
# {name}

A MusicGen, fine-tuned from **{info["base"]}** with musicgen-ft {info["toolkit_version"]}.

| | |
|---|---|
| licence of the base's weights, which these inherit | {info["license"]} |
| corpus | {info["train_hours"]:.2f} h in {info["train_tracks"]} tracks, {info["valid_tracks"]} more held out |
| exported | step {metrics["step"]}, {metrics["weights"]} weights, {metrics["dtype"]} |
| validation loss | {_loss(metrics)} |
| parameters of the language model | {info["num_parameters"] / 1e6:.1f} M |
| largest difference of a logit from the trained model | {checked} |

## Play it

{_play(name, formats, text_encoder_id)}
## How it was trained

| setting | value |
|---|---|
{chr(10).join(f"| {setting} | {config[setting]} |" for setting in _SETTINGS)}

`musicgen_ft.json` holds the whole configuration.

## Limits

Prompts are best written in English, like the captions it was trained on. It makes no intelligible vocals. Music close
to the training tracks can come out: listen before you publish.
"""
    return "\n".join(front) + body


def without_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with only the last part of absolute paths: a card is published, a user's folders are not."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in values.items()
    }


def _loss(metrics: Mapping[str, Any]) -> str:
    if metrics["valid_ce"] is None:
        return "none was held out"
    return f"{metrics['valid_ce']:.3f} nats; the base had {metrics['base_ce']:.3f}"


def _play(name: str, formats: list[str], text_encoder_id: str) -> str:
    parts = [f'```\nmusicgen-ft sample {name} --prompt "..." --out wavs\n```\n']
    if "transformers" in formats:
        parts.append(
            "```python\n"
            "from transformers import AutoTokenizer, MusicgenForConditionalGeneration\n\n"
            f'model = MusicgenForConditionalGeneration.from_pretrained("{name}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
            'audio = model.generate(**tokenizer(["..."], return_tensors="pt"), max_new_tokens=503)\n'
            "```\n"
        )
    if "audiocraft" in formats and text_encoder_id != "t5":
        parts.append(
            "```python\n"
            "from audiocraft.models import MusicGen\n\n"
            f'model = MusicGen.get_pretrained("{name}")\n'
            "model.set_generation_params(duration=10)\n"
            'audio = model.generate(["..."])\n'
            "```\n"
        )
    elif "audiocraft" in formats:
        parts.append(
            "audiocraft accepts a fixed list of text encoders, and this base has its own: there, play it with\n"
            f"`musicgen-ft sample {name} --engine audiocraft`, which hands the text encoder over.\n"
        )
    return "\n".join(parts)
