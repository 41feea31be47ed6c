"""The model card of a generator folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FACTS_FILE = "musicgen_ft.json"
"""What ``export`` tells of a run, beside the generator or the adapter that it made of it."""
CARD_NAME = "README.md"
_SETTINGS = (
    "method",
    "max_steps",
    "batch_size",
    "segment_s",
    "lr",
    "warmup_steps",
    "weight_decay",
    "cfg_dropout",
    "ema_decay",
)
_OF_ADAPTERS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_whole")


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
    return f"""{_front(info["base"], info["license"], formats)}
# {name}

A MusicGen, fine-tuned from **{info["base"]}** with musicgen-ft {info["toolkit_version"]}.

| | |
|---|---|
| licence of the base's weights, which these inherit | {info["license"]} |
| corpus | {info["train_hours"]:.2f} h in {info["train_tracks"]} tracks, {info["valid_tracks"]} more held out |
| exported | step {metrics["step"]}, {metrics["weights"]} weights, {metrics["dtype"]} |
| validation loss | {_loss(metrics)} |
| parameters of the language model | {info["num_parameters"] / 1e6:.1f} M |
| largest difference of a logit from the trained model | {_checked(differences)} |

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


def write_adapter_card(
    *, name: str, info: Mapping[str, Any], config: Mapping[str, Any], metrics: Mapping[str, Any], num_trained: int,
    is_melody: bool, differences: Mapping[str, float],
) -> str:  # fmt: skip
    """Markdown with the hub's front matter, for an adapter in PEFT's format.

    Args:
        name: of the adapter's folder.
        info: of the run: base, licence, corpus.
        config: of the run.
        metrics: step, weights and validation loss of what was exported.
        num_trained: numbers in it.
        is_melody: whether its base takes a melody.
        differences: reader -> largest difference of a logit from the trained model's.
    """
    model_class = f"Musicgen{'Melody' if is_melody else ''}ForConditionalGeneration"
    return f"""{_front(info["base"], info["license"], ["peft"])}
# {name}

An adapter for **{info["base"]}** in PEFT's format, trained with musicgen-ft {info["toolkit_version"]}.

| | |
|---|---|
| licence of the base's weights, which these inherit | {info["license"]} |
| corpus | {info["train_hours"]:.2f} h in {info["train_tracks"]} tracks, {info["valid_tracks"]} more held out |
| exported | step {metrics["step"]}, {metrics["weights"]} weights, {metrics["dtype"]} |
| validation loss | {_loss(metrics)} |
| parameters | {num_trained / 1e6:.2f} M, beside the base's {info["num_parameters"] / 1e6:.1f} M |
| largest difference of a logit from the trained model | {_checked(differences)} |

## Play it

```python
from peft import PeftModel
from transformers import AutoTokenizer, {model_class}

base = {model_class}.from_pretrained("{info["base"]}")
model = PeftModel.from_pretrained(base, "{name}").merge_and_unload()
tokenizer = AutoTokenizer.from_pretrained("{info["base"]}")
audio = model.generate(**tokenizer(["..."], return_tensors="pt"), max_new_tokens=503)
```

## How it was trained

| setting | value |
|---|---|
{chr(10).join(f"| {setting} | {config[setting]} |" for setting in _SETTINGS + _OF_ADAPTERS)}

`musicgen_ft.json` holds the whole configuration.
"""


def write_conversion_card(
    *, name: str, base: str, license: str, formats: list[str], text_encoder_id: str, differences: Mapping[str, float]
) -> str:
    """Markdown with the hub's front matter, for a base that was converted without training."""
    return f"""{_front(base, license, formats)}
# {name}

The weights of **{_published(base)}**, converted by musicgen-ft without training; licence: {license}. Largest difference
of a logit from the original: {_checked(differences)}.

## Play it

{_play(name, formats, text_encoder_id)}"""


def _front(base: str, license: str, formats: list[str]) -> str:
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    lines = [
        "---",
        f"license: {license}",
        *([f"base_model: {base}"] if is_hub_id else []),
        "pipeline_tag: text-to-audio",
        "library_name: " + next(name for name in ("transformers", "peft", "audiocraft") if name in formats),
        "tags: [musicgen, music, text-to-audio, musicgen-ft]",
        "---",
    ]
    return "\n".join(lines)


def _checked(differences: Mapping[str, float]) -> str:
    return ", ".join(f"{reader} {value:.1e}" for reader, value in differences.items()) or "not opened by another reader"


def without_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with only the last part of absolute paths: a card is published, a user's folders are not."""
    return {name: _published(value) for name, value in values.items()}


def _published(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


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
