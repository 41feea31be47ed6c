"""The folder of a run: what it was started with, and what it has come to.

``config.yaml`` the resolved config, ``run.json`` where everything came from, ``probe.safetensors`` real codes to check
an export with, ``forgetting.safetensors`` codes that the base has played, ``metrics.csv``, ``samples``,
``checkpoints/best.ckpt`` and ``checkpoints/step-N.ckpt``.
"""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.config.plain import write_yaml
from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_folder, read_json, refuse_used, write_json
from musicgen_ft.training import sharded
from musicgen_ft.training.checkpoints import BEST, damage, newest_whole
from musicgen_ft.weights import LazyTensors, like_of, read_pickle, write_safetensors

CONFIG_FILE = "config.yaml"
INFO_FILE = "run.json"
PROBE_FILE = "probe.safetensors"


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Where a run came from."""

    base: str
    """Name or folder of its base."""
    license: str
    """Licence of the base's weights, which the fine-tuned ones inherit."""
    shards: str
    """Folder of its shards."""
    codec_sha256: str
    """Hash of the codec that made them."""
    text_padding: str
    """What cross-attention did with padded text."""
    channels: int
    """Of the audio."""
    text_encoder: str | None
    """Name or folder of a text encoder in place of the base's own."""
    train_tracks: int
    """Tracks trained on."""
    train_hours: float
    """Hours of audio trained on."""
    valid_tracks: int
    """Tracks held out."""
    num_parameters: int
    """Of the language model."""
    wandb_id: str
    """Of the run in wandb, so that a resumed run goes on with it."""
    toolkit_version: str
    """The musicgen-ft that started it."""
    base_sha256: str | None = None
    """Hash of the base's weights, where the checkpoints hold only what was trained over them."""


@dataclass(frozen=True)
class Probe:
    """Real codes with their text, to compare an export with the trained model."""

    codes: Tensor
    """int64 [1, K, T]."""
    description: str
    """Their text."""
    chroma: Tensor | None = None
    """int64 [1, F], their melody, where the shards have it."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint to go on from."""

    path: Path
    """Its file or folder."""
    step: int
    """Optimizer steps made."""
    state: dict[str, Any]
    """Of ``SaveCheckpoints``."""
    early_stop: dict[str, Any] = field(default_factory=dict)
    """Of ``EarlyStop``."""


class RunFolder:
    """The paths and records of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    @classmethod
    def create(cls, path: Path, config: FinetuneConfig, info: RunInfo, probe: Probe) -> "RunFolder":
        """Makes a new run's folder with its records; the caller has made sure that the place is free."""
        with atomic_folder(path) as folder:
            (folder / "checkpoints").mkdir()
            write_yaml(folder / CONFIG_FILE, config)
            tensors = {"codes": probe.codes.to(torch.int32)}
            if probe.chroma is not None:
                tensors["chroma"] = probe.chroma.to(torch.int32)
            write_safetensors(folder / PROBE_FILE, tensors, {"description": probe.description})
            write_json(folder / INFO_FILE, asdict(info))
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run.

        Raises:
            UserError: if the folder does not exist or holds no run.
        """
        if not path.is_dir():
            raise UserError(f"run {path}: no such folder. Give the --out of a finetune.")
        if not (path / INFO_FILE).is_file() or not (path / CONFIG_FILE).is_file():
            raise UserError(
                f"{path} is no run: {INFO_FILE} or {CONFIG_FILE} is not there. Give the --out of a finetune."
            )
        return cls(path)

    def config(self) -> FinetuneConfig:
        """The resolved config that it was started with."""
        text = (self.path / CONFIG_FILE).read_text(encoding="utf-8")
        paths = ("out", "resume")
        values: dict[str, Any] = yaml.safe_load(text)
        values |= {name: Path(values[name]) for name in paths if values.get(name) is not None}
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        try:
            return FinetuneConfig(**values)
        except TypeError as error:
            raise UserError(f"{self.path / CONFIG_FILE} is of another version of the toolkit: {error}") from error

    def info(self) -> RunInfo:
        """Where it came from."""
        values = read_json(self.path / INFO_FILE)
        names = {field.name for field in fields(RunInfo)}
        if not isinstance(values, dict) or set(values) != names:
            raise UserError(f"{self.path / INFO_FILE} is of another version of the toolkit.")
        return RunInfo(**values)

    def probe(self) -> Probe:
        """The codes to check an export with."""
        with safe_open(self.path / PROBE_FILE, framework="pt") as file:
            chroma = file.get_tensor("chroma").long() if "chroma" in file.keys() else None  # noqa: SIM118
            return Probe(file.get_tensor("codes").long(), (file.metadata() or {})["description"], chroma)

    def checkpoint(self, which: str) -> Path:
        """The file of ``best``, or the newest whole one as ``last``, to which best falls back without validation.

        Raises:
            UserError: if nothing was saved yet, or what was is damaged.
        """
        best = self.checkpoints / BEST
        if which == "best" and best.exists():
            if reason := damage(best):
                raise UserError(f"{best} is damaged ({reason}). Export with --checkpoint last.")
            return best
        last = newest_whole(self.checkpoints)
        if last is None:
            raise UserError(f"{self.path} holds no checkpoint yet: the run ended before its first save.")
        return last

    def read_checkpoint(self, which: str) -> dict[str, Any]:
        """What a training checkpoint holds, without unpickling; of a sharded one without the optimizer.

        Raises:
            UserError: if there is none, or it holds anything but tensors and plain values.
        """
        return _read(self.checkpoint(which))

    def saved(self) -> Saved | None:
        """Where a resume goes on; None if the run ended before its first save.

        Raises:
            UserError: if all that was saved is damaged, or no training checkpoint.
        """
        path = newest_whole(self.checkpoints)
        if path is None:
            return None
        content = _read(path)
        state = content.get("callbacks", {}).get("SaveCheckpoints")
        if state is None:
            raise UserError(f"{path} is of another version of the toolkit: it does not say what was validated.")
        return Saved(path, content["global_step"], state, content["callbacks"].get("EarlyStop", {}))


def _read(path: Path) -> dict[str, Any]:
    content = sharded.read_weights(path) if path.is_dir() else read_pickle(path)
    if "state_dict" not in content or "global_step" not in content:
        raise UserError(f"{path} is no training checkpoint: it holds {sorted(content)[:8]}.")
    return content


@dataclass(frozen=True)
class ExportedWeights:
    """What a training checkpoint gives to a generator."""

    state: Mapping[str, Tensor]
    """The language model's tensors that were trained, under our names, adapters among them."""
    metrics: dict[str, Any]
    """Step, kind of weights, and the validation losses where there are some."""


def exported_weights(checkpoint: dict[str, Any], kind: str) -> ExportedWeights:
    """The averaged or the raw weights of a training checkpoint.

    Args:
        checkpoint: as ``RunFolder.read_checkpoint`` gives it.
        kind: ``ema``, ``raw``, or ``auto`` for the average where there is one.

    Raises:
        UserError: if an average is asked for and there is none.
    """
    ema = checkpoint.get("ema")
    if ema is not None and ema["count"] == 0:  # no step was averaged yet: it holds the base's own weights
        ema = None
    if kind == "ema" and ema is None:
        raise UserError("--weights ema: the run kept no average (ema_decay 0, or too few steps). Use --weights raw.")
    metrics = {"step": checkpoint["global_step"], "weights": "raw", **checkpoint["musicgen_ft"]}
    if ema is not None and kind != "raw":
        return ExportedWeights(ema["weights"], {**metrics, "weights": "averaged"})  # of all that is trained
    raw: Mapping[str, Tensor] = checkpoint["state_dict"]
    like = {name.removeprefix("lm."): value for name, value in like_of(raw).items()}
    return ExportedWeights(LazyTensors(like, lambda name: raw[f"lm.{name}"]), metrics)


def check_base(info: RunInfo, sha256: str) -> None:
    """Refuses to lay what a run trained over another base.

    Raises:
        UserError: if the base's weights are not those that the run began with.
    """
    if sha256 != info.base_sha256:
        found, expected = sha256[:8], (info.base_sha256 or "none")[:8]
        raise UserError(
            f"the base {info.base} is not what the run was trained on: found weights {found}, expected {expected}. "
            "Put the old ones back."
        )


def places(config: FinetuneConfig) -> tuple[str, Path]:
    """Where the shards are, as an absolute path or a URL, and the folder of the run.

    Raises:
        UserError: if one is not given.
    """
    if config.shards is None or config.out is None:
        raise UserError("expected SHARDS and --out RUN, or --resume RUN. See musicgen-ft finetune --help.")
    return config.shards if "://" in config.shards else str(Path(config.shards).resolve()), config.out


def check_free(config: FinetuneConfig) -> None:
    """Refuses a new run over what another one left.

    Raises:
        UserError: saying how to go on.
    """
    _, out = places(config)
    if (out / INFO_FILE).is_file():
        raise UserError(
            f"{out} holds another run. Go on with it: musicgen-ft finetune --resume {out}; or choose another --out."
        )
    refuse_used(out)


def resumed_config(asked: FinetuneConfig, of_run: FinetuneConfig) -> FinetuneConfig:
    """The config of a run that is taken up again; only where it runs and what it keeps may be given anew.

    Raises:
        UserError: if anything else was given.
    """
    assert asked.resume is not None
    free = {
        "resume",
        "devices",
        "num_nodes",
        "num_workers",
        "micro_batch_size",
        "accelerator",
        "timeout_minutes",
        "strategy",
    }
    free |= {"save_every_minutes", "keep_last", "milestone_every_steps"}
    given = {
        field.name: getattr(asked, field.name)
        for field in fields(FinetuneConfig)
        if getattr(asked, field.name) != field.default
    }
    if refused := sorted(set(given) - free):
        raise UserError(f"--resume takes {refused[0]} from the run; found it given too. Leave it out.")
    return replace(of_run, **{**given, "resume": None, "out": asked.resume})


def new_wandb_id() -> str:
    """Eight letters and digits, as wandb's own."""
    return secrets.token_hex(4)
