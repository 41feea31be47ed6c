"""Adapters at play: a base is loaded once, adapters are blended into its weights and taken out again, exactly.

Weights are changed in place, before decoding: a step costs what it costs without adapters, and whatever holds the
weights' memory, such as a captured graph, sees the new ones.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.model.lora import AdapterSpec, merged, touched_weights
from musicgen_ft.weights import LazyTensors


class AdapterMixer:
    """Blends adapters, each with a strength, into the weights W of a language model that plays.

    ``W + sum of strength * (W_adapted - W)``, computed on the CPU in fp32, the same on every device, and rounded once
    to what the model holds. Of the base it keeps the weights that an adapter changes, in host memory. So one adapter
    at strength 1 gives the bits of a merged export, none gives the base's, and what played before leaves no trace.
    """

    def __init__(self, lm: LanguageModel, base: Mapping[str, Tensor]) -> None:
        """Changes nothing yet.

        Args:
            lm: made of the base, in any dtype, on any device; its weights may be packed where they stay within reach:
                in fp32, and on a GPU (``generation/precision.py``).
            base: the base's tensors under our names, as exactly as they are known; read in ``add``, and no longer.
        """
        self._lm = lm
        self._base = base
        self._pristine: dict[str, Tensor] = {}
        self._adapted: dict[str, LazyTensors] = {}
        self._touched: dict[str, frozenset[str]] = {}
        self._changed: set[str] = set()
        self._strengths: dict[str, float] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters that were added, in their order."""
        return tuple(self._adapted)

    @property
    def strengths(self) -> dict[str, float]:
        """What plays now: the adapters whose strength is not 0."""
        return dict(self._strengths)

    def add(self, name: str, tensors: Mapping[str, Tensor], spec: AdapterSpec) -> None:
        """Takes an adapter, LoRA or DoRA, with or without modules that were trained whole; it does not play yet.

        Args:
            name: to call it by.
            tensors: whole tensors under our names, and adapters' under ``{module}.{part}`` (``model/lora.py``).
            spec: its numbers.

        Raises:
            UserError: if it does not fit the base, or there is one of that name.
        """
        if name in self._adapted:
            raise UserError(f"adapter {name}: there is one of that name. Give it once, or give another name.")
        tensors = {part: value.detach().cpu() for part, value in tensors.items()}
        try:
            merged(self._base, tensors, spec)
        except UserError as error:
            raise UserError(f"adapter {name}: {error}") from error
        touched = touched_weights(tensors)
        for weight in touched:
            if weight not in self._pristine:
                self._pristine[weight] = self._base[weight].detach().cpu().clone()
        self._touched[name] = frozenset(touched)
        self._adapted[name] = merged(self._pristine, tensors, spec)

    @torch.no_grad()
    def blend(self, strengths: Mapping[str, float]) -> None:
        """Lets these adapters play, and no others.

        Args:
            strengths: adapter -> share of its change of every weight: 1 is all of it, as in training; more, and less
                than 0, are allowed. Those that are not named, or 0, do not play; none at all is the base.

        Raises:
            UserError: if a name is unknown or a strength is no finite number; the weights are then as they were.
        """
        for name, strength in strengths.items():
            if name not in self._adapted:
                raise UserError(f"adapter {name}: found no such one, there are {', '.join(self.names) or 'none'}.")
            if not math.isfinite(strength):
                raise UserError(f"adapter {name}: found strength {strength}, expected a finite number.")
        playing = {name: float(strengths[name]) for name in sorted(strengths) if strengths[name] != 0}
        touched = set[str]().union(*(self._touched[name] for name in playing))
        for weight in sorted(touched | self._changed):
            adapted = [
                (strength, self._adapted[name][weight])
                for name, strength in playing.items()
                if weight in self._touched[name]
            ]
            self._changed.add(weight)  # before it is, so that a later blend mends what was interrupted here
            set_weight(self._lm, weight, blended(self._pristine[weight], adapted))
        self._changed = touched
        self._strengths = playing


def blended(base: Tensor, adapted: Sequence[tuple[float, Tensor]]) -> Tensor:
    """A weight between the base's and its adapted ones.

    Args:
        base: of any shape, in any dtype.
        adapted: of each adapter its strength and its weight.

    Returns:
        float32; where there is but one adapter, at strength 1, that one's bits, and the base's where there is none.
    """
    weight = base.float()
    if len(adapted) == 1:
        ((strength, whole),) = adapted
        return whole.float() if strength == 1 else torch.lerp(weight, whole.float(), strength)
    change = torch.zeros_like(weight)
    for strength, whole in adapted:
        change += strength * (whole.float() - weight)
    return weight + change if adapted else weight


def set_weight(lm: LanguageModel, name: str, value: Tensor) -> None:
    """Overwrites a weight of the model in place, rounded to its dtype; ``name`` is ours, of its state dict."""
    weight = lm.get_parameter(name)
    if weight.shape != value.shape:
        raise ValueError(f"{name} is {tuple(weight.shape)}, found {tuple(value.shape)}")
    if weight.is_meta:  # a copy would go nowhere, and say nothing
        raise ValueError(f"{name} has been packed out of reach: blend before, or pack in fp32")
    weight.copy_(value)


def parse_adapters(words: Sequence[str]) -> dict[Path, float]:
    """Folders and strengths of ``FOLDER`` and ``FOLDER=STRENGTH``; the strength is 1 where it is not said.

    Raises:
        UserError: if there is no such folder, a strength is no number, or a folder is given twice.
    """
    found: dict[Path, float] = {}
    for word in words:
        folder, strength = Path(word).expanduser(), 1.0
        if not folder.is_dir() and "=" in word:  # a folder's own name may hold the sign
            name, _, number = word.rpartition("=")
            folder, strength = Path(name).expanduser(), _strength(word, number)
        if not folder.is_dir():
            raise UserError(f"--adapter {word}: {folder} is no folder. Give one that export --format adapter wrote.")
        if folder.resolve() in {other.resolve() for other in found}:
            raise UserError(f"--adapter {word}: {folder} is given twice. Give it once, with one strength.")
        found[folder] = strength
    return found


def _strength(word: str, number: str) -> float:
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise UserError(f"--adapter {word}: found strength {number!r}, expected a number, as in FOLDER=0.5.")
    return strength
