"""A base: whatever a name or a folder calls a MusicGen, opened part by part (D11).

``nano``, a hub id, an audiocraft folder or a transformers folder; a generator folder that we export is a base again.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor, nn
from transformers import EncodecConfig, T5Config

from musicgen_ft.checkpoint import audiocraft_format, transformers_format
from musicgen_ft.checkpoint.names import State
from musicgen_ft.checkpoint.stereo import stereo_config, stereo_state
from musicgen_ft.codec import Codec
from musicgen_ft.errors import UserError
from musicgen_ft.files import read_json
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel, Layer, LMConfig
from musicgen_ft.weights import like_of

Flavour = Literal["audiocraft", "transformers"]

NANO_FOLDER = Path(__file__).parents[1] / "assets" / "nano"
"""What the name ``nano`` means: the bundled base, a complete MusicGen at toy size, made by train/pretrain_nano.py."""
_CONFIGS = ["*.json", "spiece.model", "README.md"]
_WEIGHTS = {  # by file that tells the flavour, in the order of preference
    "model.safetensors": ["*.safetensors"],
    "model.safetensors.index.json": ["*.safetensors"],
    "state_dict.bin": ["state_dict.bin", "compression_state_dict.bin"],
    "pytorch_model.bin": ["pytorch_model*.bin"],
    "pytorch_model.bin.index.json": ["pytorch_model*.bin"],
}
# OSError and the HTTP client's errors (no connection, a cut one); which client it is changes with huggingface_hub.
_NETWORK_ERRORS = cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)


@dataclass(frozen=True)
class Base:
    """An opened base. Its parts are read when they are asked for: ``prepare`` never touches the language model."""

    name: str
    """As the user gave it."""
    folder: Path
    """Where its files lie."""
    flavour: Flavour
    """Whose format they have; it decides what the model does with padded text."""
    channels: int | None = None
    """Channels to open it with; none means its own. 2 makes a mono base stereo."""
    other_t5: str | None = None
    """Hub id or folder of a T5 that takes the place of its own; the projection of the text begins anew."""

    @property
    def place(self) -> str:
        """What finds it again from any working directory."""
        return place_of(self.name)

    @cached_property
    def lm_config(self) -> LMConfig:
        """The numbers of its language model."""
        config = stereo_config(self._own_lm_config) if self._is_widened else self._own_lm_config
        if self.other_t5 is None:
            return config
        return dataclasses.replace(config, text_dim=int(_t5_config(_locate(self.other_t5)).d_model))

    @cached_property
    def _is_widened(self) -> bool:
        """Whether it is a mono base that is opened in stereo.

        Raises:
            UserError: if a stereo base is asked for in mono.
        """
        if self.channels == 1 and self._own_channels == 2:
            raise UserError(f"{self.name} is a stereo base, found mono shards: prepare them with --channels 2.")
        return self.channels == 2 and self._own_channels == 1

    @cached_property
    def _own_channels(self) -> int:
        if self.flavour == "audiocraft":
            return audiocraft_format.channels(self._lm_package.config())
        decoder: Any = transformers_format.read_config(self.folder).decoder
        return int(decoder.audio_channels)

    @cached_property
    def _own_lm_config(self) -> LMConfig:
        if self.flavour == "transformers":
            return transformers_format.lm_config(transformers_format.read_config(self.folder), self.folder)
        package = self._lm_package
        return audiocraft_format.lm_config(package.config(), package.state, text_dim=self._t5_dim())

    def lm_state(self) -> State:
        """The language model's tensors under our names, in the files' own dtype."""
        state = self._own_lm_state()
        if self._is_widened:
            state = stereo_state(state)
        if self.other_t5 is not None:
            state |= fresh_text_projection(self.lm_config)
        return state

    def _own_lm_state(self) -> State:
        if self.flavour == "transformers":
            return transformers_format.read_lm(self.folder, self._own_lm_config)
        # Read anew, since a model in fp32 takes the tensors as they are: training it must not change a second call's.
        package = audiocraft_format.Package(self.folder / audiocraft_format.LM_FILE)
        return audiocraft_format.read_lm(package, self._own_lm_config)

    def lm(self) -> LanguageModel:
        """The language model in fp32."""
        return build_lm(self.lm_config, self.lm_state(), where=str(self.folder))

    def codec(self) -> Codec:
        """The frozen EnCodec."""
        channels = 2 if self._is_widened else self._own_channels
        if self.flavour == "transformers":
            config: Any = transformers_format.read_config(self.folder).audio_encoder
            return transformers_format.read_codec(
                self.folder, config, prefix="audio_encoder.", id=self.name, channels=channels
            )
        package = audiocraft_format.Package(self.folder / audiocraft_format.CODEC_FILE)
        if package.pretrained is None:
            return audiocraft_format.read_codec(package, id=self.name, channels=channels)
        folder = _locate(package.pretrained)
        values = read_json(folder / "config.json")
        config = EncodecConfig(**values)
        return transformers_format.read_codec(folder, config, prefix="", id=package.pretrained, channels=channels)

    def text_encoder(self) -> TextEncoder:
        """The frozen T5 encoder with its tokenizer."""
        if self.other_t5 is not None:
            folder = _locate(self.other_t5)
        elif self.flavour == "transformers":
            return transformers_format.read_text_encoder(
                self.folder, self.t5_config(), prefix="text_encoder.", id=self.t5_id
            )
        else:
            folder = self._t5_folder()
        return transformers_format.read_text_encoder(folder, _t5_config(folder), prefix="", id=self.t5_id)

    def t5_config(self) -> T5Config:
        """The numbers of its text encoder."""
        if self.other_t5 is not None:
            return _t5_config(_locate(self.other_t5))
        if self.flavour == "transformers":
            config: Any = transformers_format.read_config(self.folder).text_encoder
            return cast(T5Config, config)
        return _t5_config(self._t5_folder())

    @cached_property
    def t5_id(self) -> str:
        """The hub id of its text encoder where it is one that audiocraft knows, else ``t5``: a folder beside."""
        if self.other_t5 is not None:
            return self.other_t5 if self.other_t5 in audiocraft_format.KNOWN_T5 else audiocraft_format.T5_FOLDER
        if self.flavour == "audiocraft":
            return str(self._lm_package.config().conditioners.description.t5.name)
        config: Any = transformers_format.read_config(self.folder).text_encoder
        known = getattr(config, "_name_or_path", "") or ""
        if known in audiocraft_format.KNOWN_T5:
            return str(known)
        # Released transformers folders hold t5-base without always naming it.
        is_t5_base = (config.d_model, config.num_layers, config.vocab_size, config.feed_forward_proj) == (
            768,
            12,
            32128,
            "relu",
        )
        return "t5-base" if is_t5_base else audiocraft_format.T5_FOLDER

    @cached_property
    def _lm_package(self) -> audiocraft_format.Package:
        return audiocraft_format.Package(self.folder / audiocraft_format.LM_FILE)

    def _t5_folder(self) -> Path:
        beside = self.folder / audiocraft_format.T5_FOLDER
        return beside if beside.is_dir() else _locate(self.t5_id)

    def _t5_dim(self) -> int:
        beside = self.folder / audiocraft_format.T5_FOLDER
        if not beside.is_dir() and self.t5_id in audiocraft_format.KNOWN_T5:
            return audiocraft_format.KNOWN_T5[self.t5_id]
        return int(_t5_config(self._t5_folder()).d_model)


def place_of(name: str) -> str:
    """What finds a name again from any working directory: a folder's absolute path, else the name."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def open_base(name: str, *, channels: int | None = None, other_t5: str | None = None) -> Base:
    """Opens a base by name or folder.

    Args:
        name: ``nano``, a folder, or a hub id such as ``facebook/musicgen-small``. The hub is reached through
            ``huggingface_hub``: its cache (``HF_HOME``), its offline switch (``HF_HUB_OFFLINE``) and its token apply.
        channels: 2 makes a mono base stereo; none takes it as it is.
        other_t5: hub id or folder of a T5 in place of its own; a flan-T5 or mT5 will do.

    Raises:
        UserError: if there is no such base here or on the hub, or the hub cannot be reached.
    """
    folder = NANO_FOLDER if name == "nano" else _locate(name)
    config = folder / "config.json"
    if config.is_file() and any((folder / file).is_file() for file in _WEIGHTS if file != audiocraft_format.LM_FILE):
        return Base(name, folder, "transformers", channels, other_t5)
    if (folder / audiocraft_format.LM_FILE).is_file() and (folder / audiocraft_format.CODEC_FILE).is_file():
        return Base(name, folder, "audiocraft", channels, other_t5)
    raise UserError(
        f"{name} is no MusicGen base: {folder} holds neither config.json with weights (transformers) nor "
        f"{audiocraft_format.LM_FILE} with {audiocraft_format.CODEC_FILE} (audiocraft)."
    )


def fresh_text_projection(config: LMConfig) -> State:
    """A projection of the text that knows nothing yet: torch's initial values of a linear layer, from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projection = torch.nn.Linear(config.text_dim, config.dim)
    return {f"text_proj.{name}": value.detach() for name, value in projection.state_dict().items()}


def license_of(base: Base) -> str:
    """The licence of the base's weights, as its card says; the released models are CC-BY-NC 4.0."""
    if base.name == "nano":
        return "mit"
    card = base.folder / "README.md"
    if card.is_file():
        found = re.search(r"^license:\s*(\S+)\s*$", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if found:
            return found[1]
    return "cc-by-nc-4.0" if base.name.startswith("facebook/musicgen-") else "unknown"


def build_lm(config: LMConfig, state: State, *, where: str) -> LanguageModel:
    """A language model in fp32 with exactly these weights, built without initialising it first.

    Raises:
        UserError: if a tensor has another shape than the config says.
    """
    lm = _empty_lm(config, state, where=where)
    lm.load_state_dict({name: value.float() for name, value in state.items()}, strict=True, assign=True)
    return lm.requires_grad_(True)


def stream_lm(config: LMConfig, state: Mapping[str, Tensor], *, where: str) -> LanguageModel:
    """A frozen language model in fp32 that reads the weights of a layer when it computes it, and then drops them.

    Args:
        config: its numbers.
        state: tensors under our names, e.g. from ``from_files``.
        where: for the error message.

    Raises:
        UserError: if a tensor has another shape than the config says.
    """
    lm = _empty_lm(config, state, where=where).eval().requires_grad_(False)
    lm.load_state_dict(
        {name: state[name].float() for name in state if not name.startswith("layers.")}, strict=False, assign=True
    )

    # Every layer in turn has the same memory, which allocating it anew would spread over the heap.
    like = lm.layers[0].state_dict()
    memory = {name: torch.empty_like(value, device="cpu") for name, value in like.items()}

    def read(layer: nn.Module, _: Any) -> None:
        assert isinstance(layer, Layer)
        for name, value in memory.items():
            value.copy_(state[f"layers.{layer.index}.{name}"])
        layer.load_state_dict(memory, assign=True)

    def drop(layer: nn.Module, *_: Any) -> None:
        layer.load_state_dict(like, assign=True)

    for layer in lm.layers:
        layer.register_forward_pre_hook(read)
        layer.register_forward_hook(drop)
    return lm


def _empty_lm(config: LMConfig, state: Mapping[str, Tensor], *, where: str) -> LanguageModel:
    """A model on the meta device that the state fits."""
    with torch.device("meta"):
        lm = LanguageModel(config)
    like = like_of(state)
    for name, value in lm.state_dict().items():
        if like[name].shape != value.shape:
            found, expected = tuple(like[name].shape), tuple(value.shape)
            raise UserError(f"{where}: {name} has shape {found}, its config says {expected}. Fetch the base again.")
    return lm


def _locate(name: str) -> Path:
    """The local folder of a folder's name or a hub id, fetched where it has to be."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if (
        path.exists()
        or name.startswith((".", "/", "~"))
        or (name.count("/") != 1 and name not in audiocraft_format.KNOWN_T5)
    ):
        raise UserError(
            f"base {name}: no such folder, and no hub id. Give 'nano', a folder with a MusicGen in it, "
            "or a hub id such as facebook/musicgen-small."
        )
    return _fetch(name)


def _fetch(repo_id: str) -> Path:
    """Configs first; what they hold decides which of the weights are worth the download."""
    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=_CONFIGS))
        names = _hub_names(repo_id, folder)
        wanted = next((patterns for file, patterns in _WEIGHTS.items() if file in names), None)
        if wanted is None:
            raise UserError(f"{repo_id} on the hub holds no weights of a MusicGen, only {sorted(names)[:8]}.")
        return Path(snapshot_download(repo_id, allow_patterns=_CONFIGS + wanted))
    except _NETWORK_ERRORS as error:
        if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code < 500:
            raise UserError(
                f"base {repo_id}: the hub answered {error.response.status_code} and there is no folder of that name. "
                "Check the spelling; for a private or gated base log in with `hf auth login`."
            ) from error
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise UserError(
            f"base {repo_id} is neither a folder nor in the local cache ({constants.HF_HUB_CACHE}), and {why}. "
            "Fetch it once with a network, or give a folder, or use --base nano."
        ) from error
    except HFValidationError as error:
        raise UserError(f"base {repo_id} is neither a folder nor a valid hub id: {error}") from error


def _hub_names(repo_id: str, folder: Path) -> set[str]:
    """Names of the repository's files: the hub's where it answers, else those in the cache."""
    if not constants.HF_HUB_OFFLINE:
        try:
            # Not list_repo_files, which tries for 20 s where there is no network.
            siblings = HfApi().model_info(repo_id, revision=folder.name).siblings
            return {file.rfilename for file in siblings or []}
        except _NETWORK_ERRORS:
            pass  # the cache may be complete
    names = set(os.listdir(folder))
    if not names & set(_WEIGHTS):
        raise FileNotFoundError(f"{folder} holds the configs alone")
    return names


def _t5_config(folder: Path) -> T5Config:
    values = read_json(folder / "config.json")
    if not isinstance(values, dict) or values.get("model_type") not in ("t5", "mt5"):
        raise UserError(
            f"{folder / 'config.json'} describes no T5: expected model_type t5 or mt5, with config and weights."
        )
    return T5Config(**{name: value for name, value in values.items() if name != "model_type"})
