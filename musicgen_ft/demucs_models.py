"""demucs' models, by name, from a file or from a folder; nothing that a file holds is run."""

import importlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open

from musicgen_ft.errors import UserError
from musicgen_ft.files import sha256
from musicgen_ft.weights import read_pickle

INSTALL = "pip install 'demucs>=4.1'"
DEFAULT_MODEL = "htdemucs"
"""The one that audiocraft's melody conditioner takes."""


class _Inert:
    """Stands for a class or function that a pickle names: it can be made and given a state, and does nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_CLASSES = ("demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs", "demucs.demucs.Demucs")
_STAND_INS: dict[str, Any] = {name: type(name.rpartition(".")[2], (_Inert,), {}) for name in _CLASSES}
# Numbers of numpy's lie in what the released files tell of their training, which nobody needs here.
_IGNORED = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def open_name(name: str) -> Any:
    """A model by demucs' name for it, from a cache or fetched; a bag's YAML lies in demucs itself.

    Raises:
        UserError: if there is no such model, or it cannot be fetched.
    """
    from demucs.pretrained import REMOTE_ROOT

    bags = {path.stem: path for path in sorted(REMOTE_ROOT.glob("*.yaml")) if not path.stem.endswith("_q")}
    if name not in bags:
        raise UserError(
            f"{name} is neither a file nor a folder, nor a model of demucs', which are {', '.join(bags)}. "
            f"Use {DEFAULT_MODEL}."
        )
    return _open_bag(bags[name], lambda signature: _fetched(name, signature))


def open_folder(folder: Path) -> Any:
    """The model in a folder, or the bag that its YAML names.

    Raises:
        UserError: if the folder holds none, or several.
    """
    bags = sorted(folder.glob("*.yaml"))
    files = sorted([*folder.glob("*.th"), *folder.glob("*.safetensors")])
    if len(bags) == 1:
        return _open_bag(bags[0], lambda signature: _lying_in(folder, files, signature))
    if not bags and len(files) == 1:
        return open_file(files[0])
    raise UserError(
        f"{folder} holds {len(files)} models (.th, .safetensors) and {len(bags)} YAML files, expected one model, "
        "or one YAML file that lists its models. Give the file itself."
    )


def _lying_in(folder: Path, files: list[Path], signature: str) -> Path:
    for path in files:
        if path.stem.partition("-")[0] == signature:
            return path
    raise UserError(f"{folder} lacks the model {signature}, which its YAML file names. Fetch the folder again.")


def _open_bag(path: Path, find: Callable[[str], Path]) -> Any:
    from demucs.apply import BagOfModels

    try:
        bag = yaml.safe_load(path.read_text(encoding="utf-8"))
        signatures = [str(signature) for signature in bag["models"]]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} lists no models, as a bag of demucs' does. Fetch it again.") from error
    models = [open_file(find(signature)) for signature in signatures]
    try:
        return BagOfModels(models, bag.get("weights"), bag.get("segment"))
    except (AssertionError, TypeError) as error:
        raise UserError(f"{path} lists models that do not go together, or wrong weights. Fetch it again.") from error


def _fetched(name: str, signature: str) -> Path:
    """The file of a released model: from torch.hub's cache, or the Hugging Face hub, or demucs' own server."""
    from demucs.hf import DEFAULT_NAMESPACE, hf_repo_name
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    url = _url(signature)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if cached.is_file():
        return cached
    failures: Any = (OSError, RuntimeError, *HfHubHTTPError.__bases__)  # no connection, a cut one, another checksum
    try:
        return Path(hf_hub_download(f"{DEFAULT_NAMESPACE}/{hf_repo_name(name)}", f"{signature}.safetensors"))
    except failures as error:
        reason: Exception = error
    if not constants.HF_HUB_OFFLINE:
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(cached), hash_prefix=_checksum(cached))
            return cached
        except failures as error:
            reason = error
    raise UserError(
        f"demucs' model {name} is neither in the caches ({cached.parent}, {constants.HF_HUB_CACHE}) nor can it be "
        f"fetched ({_first_line(reason)}). Fetch it once with a network, or give its file or folder."
    ) from reason


def _url(signature: str) -> str:
    """Where demucs keeps a model: lines of names below the ``root:`` that they lie in."""
    from demucs.pretrained import REMOTE_ROOT, ROOT_URL

    root = ""
    for line in (REMOTE_ROOT / "files.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("root:"):
            root = line.removeprefix("root:").strip()
        elif line.startswith(f"{signature}-"):
            return f"{ROOT_URL}{root}{line.strip()}"
    raise UserError(f"the installed demucs does not know where its model {signature} is. Install another: {INSTALL}")


def _checksum(path: Path) -> str:
    """The first digits of the sha256, which demucs writes behind a file's signature; empty where there are none."""
    return path.stem.partition("-")[2]


def open_file(path: Path) -> Any:
    """The model of one file of demucs'.

    Raises:
        UserError: if it is damaged, or holds anything but a demucs model.
    """
    package = _read_safetensors(path) if path.suffix == ".safetensors" else _read_th(path)
    state = package.get("state")
    if isinstance(state, dict) and "__quantized" in state:
        raise UserError(f"{path}: a quantised model, which is not read here. Use {DEFAULT_MODEL}.")
    try:
        if package["klass"] not in _CLASSES:
            raise KeyError(f"class {package['klass']}")
        module, _, name = package["klass"].rpartition(".")
        klass = getattr(importlib.import_module(module), name)
        known = inspect.signature(klass).parameters
        kwargs = {name: value for name, value in package["kwargs"].items() if name in known}
        with torch.random.fork_rng(devices=[]):  # its first values are drawn, and then replaced
            model = klass(*package["args"], **kwargs)
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
        raise UserError(f"{path} holds no model of demucs': {_first_line(error)}. Fetch it again.") from error
    return model


def _read_th(path: Path) -> dict[str, Any]:
    """A package of ``demucs.states``: a pickle that names the model's class, and its constructor's arguments."""
    expected = _checksum(path)
    if expected and not sha256(path).startswith(expected):
        raise UserError(f"{path} is damaged: its sha256 does not begin with {expected}. Remove it and fetch it again.")
    inert = [(stand_in, name) for name, stand_in in _STAND_INS.items()] + [(_Inert, name) for name in _IGNORED]
    with torch.serialization.safe_globals([Fraction, *inert]):
        package = read_pickle(path)
    names = [name for name, stand_in in _STAND_INS.items() if package.get("klass") is stand_in]
    return {**package, "klass": names[0] if names else None}


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The same as the Hugging Face hub has it: tensors, and the rest as JSON in the metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if "structure" in metadata:
            state["__quantized"] = torch.tensor(True)
        args, kwargs = (json.loads(metadata[name], object_hook=_fraction) for name in ("args", "kwargs"))
        return {"klass": metadata["klass"], "args": args, "kwargs": kwargs, "state": state}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged, or holds no model of demucs'. Fetch it again.") from error


def _fraction(value: dict[str, Any]) -> Any:
    if value.get("_type") == "fraction":
        return Fraction(value["numerator"], value["denominator"])
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
