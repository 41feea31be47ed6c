"""What is evaluated: a run, a generator folder, or a base, and what it was made from."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from musicgen_ft.checkpoint.base import Base, build_lm, open_base
from musicgen_ft.checkpoint.card import FACTS_FILE
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.files import read_json
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.shards.format import Manifest, check_chroma, check_codec
from musicgen_ft.training.run import INFO_FILE, RunFolder, exported_weights
from musicgen_ft.training.trained import whole_model


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is there, and whose weights are not read yet."""

    place: str
    """As the user gave it."""
    base: Base
    """Whose codec, text encoder and numbers it has."""
    config: FinetuneConfig
    """How it was trained: captions, clips, precision; the defaults where nobody says."""
    run: RunFolder | None = None
    """The run, where it is one."""
    weights: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of a run or its export: step, averaged or raw, validation losses."""
    origin: str | None = None
    """The base that it was trained from, where that is known and can be found from here."""
    read: Callable[[], Mapping[str, Tensor]]
    """Reads its weights."""

    def lm(self) -> LanguageModel:
        """The language model in fp32 on the CPU, frozen, with the ``text_padding`` that it was trained with."""
        lm_config = self.base.lm_config
        padding = self.config.text_padding or lm_config.text_padding
        lm_config = dataclasses.replace(lm_config, dropout=0.0, text_padding=padding)
        return build_lm(lm_config, dict(self.read()), where=self.place).eval().requires_grad_(False)

    def check(self, manifest: Manifest) -> None:
        """Refuses shards that it cannot read.

        Raises:
            UserError: if another codec made them, or they lack the melody that it takes.
        """
        check_codec(manifest, self.base.codec().spec)
        if self.base.lm_config.chroma is not None:
            check_chroma(manifest, self.base.lm_config.chroma)


def open_run(place: str, *, checkpoint: str, weights: str) -> Subject:
    """A run.

    Args:
        place: its folder.
        checkpoint: ``best`` or ``last``.
        weights: ``auto``, ``ema`` or ``raw``.

    Raises:
        UserError: if it is none, holds no such checkpoint or weights, or its base is not there.
    """
    run = RunFolder.open(Path(place))
    info, config = run.info(), run.config()
    metrics = exported_weights(run.read_checkpoint(checkpoint), weights).metrics
    base = open_base(info.base, channels=info.channels, other_t5=info.text_encoder)

    def read() -> Mapping[str, Tensor]:
        return whole_model(config, info, base, exported_weights(run.read_checkpoint(checkpoint), weights).state)

    return Subject(place=place, base=base, config=config, run=run, weights=metrics, origin=info.base, read=read)


def open_generator(place: str, *, channels: int | None = None) -> Subject:
    """Anything that D11 calls a base; of what ``export`` made of a run it is known how it was trained.

    Raises:
        UserError: if there is no such base.
    """
    base = open_base(place, channels=channels)
    facts = _facts(base.folder / FACTS_FILE)
    config, info = facts.get("config", {}), facts.get("info", {})
    origin = info.get("base")
    return Subject(
        place=place,
        base=base,
        config=_known(config),
        weights=facts.get("metrics", {}),
        origin=origin if origin == "nano" or (origin or "").count("/") == 1 else None,  # folders' paths are left out
        read=base.lm_state,
    )


def open_subject(place: str, *, checkpoint: str, weights: str, channels: int | None = None) -> Subject:
    """A run where the folder holds one, else a generator.

    Args:
        place: a run's folder, ``nano``, a hub id, or a generator's folder.
        checkpoint: of a run.
        weights: of a run.
        channels: of the shards, for a generator.

    Raises:
        UserError: if it is neither.
    """
    if (Path(place) / INFO_FILE).is_file():
        return open_run(place, checkpoint=checkpoint, weights=weights)
    if Path(place).is_dir() and not any(Path(place).iterdir()):
        raise UserError(f"{place} is empty, expected a run or a generator. Give the --out of a finetune or an export.")
    return open_generator(place, channels=channels)


def beside(subject: Subject, place: str, *, channels: int) -> Subject:
    """The base that a subject is compared with: its own weights, heard and measured as the subject is.

    Raises:
        UserError: if there is no such base.
    """
    try:
        found = open_generator(place, channels=channels)
    except UserError as error:
        raise UserError(f"{error} Or compare with none: --base none.") from error
    return dataclasses.replace(found, config=subject.config, run=None, origin=None)


def _facts(path: Path) -> dict[str, Any]:
    values = read_json(path) if path.is_file() else {}
    return values if isinstance(values, dict) else {}


def _known(values: Mapping[str, Any]) -> FinetuneConfig:
    """A config of an export, whatever toolkit wrote it: what this one does not know is left out."""
    names = {field.name for field in dataclasses.fields(FinetuneConfig)} - {"out", "resume", "shards"}
    known = {name: value for name, value in values.items() if name in names}
    known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
    return FinetuneConfig(**known)
