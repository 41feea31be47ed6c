"""What the page does, without the page: models opened when they are played, wishes checked, one piece at a time.

C channels, L samples.
"""

import gc
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from musicgen_ft import __version__
from musicgen_ft.audio import ENERGY_FLOOR, AudioError, AudioReader, Samples, normalize_loudness
from musicgen_ft.checkpoint.base import Base, open_base
from musicgen_ft.devices import resolve_device
from musicgen_ft.errors import UserError
from musicgen_ft.generation.generator import Generator
from musicgen_ft.generation.options import Request
from musicgen_ft.generation.sampling import Sampling
from musicgen_ft.model.lm import LanguageModel, usual_top_k

MAX_PROMPT = 1000
"""Characters: a pasted page is a mistake, not a prompt."""
MAX_SEED = 2**32 - 1
MAX_STRENGTH = 2.0
"""Of an adapter, in both directions."""
_MAX_FILE_S = 600.0
"""Seconds of a melody or a clip that are read: what is longer is refused before it fills the memory."""


class Mixer(Protocol):
    """Lays adapters over a language model while it stays loaded."""

    def blend(self, strengths: Mapping[str, float]) -> None:
        """Lets these adapters play, each with its strength, and no others."""


OpenMixer = Callable[[LanguageModel, Base, Mapping[str, Path]], Mixer]
"""Of a model, the base that it is made of, and name -> folder of the adapters."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What both sides are to play."""

    prompt: str = ""
    """Empty is unconditional."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    duration_s: float = 10.0
    """Seconds, those of the clip included."""
    seed: int = 0
    """Of the draws."""
    cfg_coef: float = 3.0
    """Scale of classifier-free guidance."""
    temperature: float = 1.0
    """0 takes the most likely code."""
    top_k: int | None = None
    """0 takes all codes, None the usual share of them."""
    top_p: float = 0.0
    """Above 0 it replaces ``top_k``."""
    melody: Path | None = None
    """Audio file whose tune is followed, by a model that takes one."""
    clip: Path | None = None
    """Audio file to go on from."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """Who plays it."""

    generator: str
    """One of the studio's."""
    strengths: Mapping[str, float] = field(default_factory=dict)
    """Adapter -> strength; those that are not named do not play."""


@dataclass(frozen=True)
class Facts:
    """What the page has to know of a generator before its weights are read."""

    takes_melody: bool
    """Whether it was trained on melodies."""
    window_s: float
    """Seconds that it was trained on; longer pieces are played by a moving window."""
    top_k: int
    """From how many codes it draws, unless the listener wishes otherwise."""


@dataclass(frozen=True)
class Piece:
    """A piece, as far as it has been played."""

    waveform: Tensor
    """float32 [C, L], at the loudness of ``sample`` once it is done."""
    sample_rate: int
    """In Hz."""
    duration_s: float
    """Seconds that it will have."""
    is_done: bool
    """Whether that is all of it."""
    how: dict[str, Any]
    """How it was made, as ``sample`` writes it beside a WAV file."""
    notes: tuple[str, ...] = ()
    """What the listener should be told."""

    @property
    def played_s(self) -> float:
        """Seconds so far."""
        return self.waveform.shape[1] / self.sample_rate


@dataclass(frozen=True)
class _Opened:
    generator: Generator
    mixer: Mixer | None


class Studio:
    """Generators and adapters at hand. Any thread may play; pieces wait for each other.

    Adapters lie over the first generator, so that base and tuned share one model in memory.
    """

    def __init__(
        self,
        generators: Sequence[str],
        *,
        adapters: Mapping[str, Path] | None = None,
        open_mixer: OpenMixer | None = None,
        device: str = "auto",
        max_duration_s: float = 120.0,
        max_models: int = 2,
    ) -> None:
        """Finds the generators; no weights are read yet.

        Args:
            generators: one or more names or folders.
            adapters: name -> folder, over the first generator.
            open_mixer: of those; wanted where there are any.
            device: to play on.
            max_duration_s: longest piece.
            max_models: so many stay in memory; the one that has not played for longest goes.

        Raises:
            UserError: if there is no such generator or device, or one is given twice.
        """
        if adapters and open_mixer is None:
            raise ValueError("adapters want open_mixer")
        self.device = resolve_device(device)
        self.adapters = dict(adapters or {})
        self.max_duration_s = max_duration_s
        self._max_models, self._open_mixer = max_models, open_mixer
        self._bases: dict[str, Base] = {}
        for name in generators:
            if name in self._bases:
                raise UserError(f"{name} is given twice. Give each generator once: both sides can play it.")
            self._bases[name] = open_base(name)
        self._facts = {
            name: Facts(
                base.lm_config.chroma is not None, base.lm_config.max_duration_s, usual_top_k(base.lm_config.card)
            )
            for name, base in self._bases.items()
        }
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._turn = threading.Lock()

    @property
    def generators(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._bases)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Those whose weights are in memory, the latest last."""
        return tuple(self._opened)

    def facts(self, generator: str) -> Facts:
        """Of one of the generators.

        Raises:
            UserError: if there is no such one.
        """
        if generator not in self._facts:
            raise UserError(f"model {generator!r}: found no such one, there are {', '.join(self.generators)}.")
        return self._facts[generator]

    def adapters_of(self, generator: str) -> tuple[str, ...]:
        """Names of the adapters that lie over a generator."""
        return tuple(self.adapters) if generator == self.generators[0] else ()

    def check(self, side: Side, wish: Wish) -> None:
        """Everything that can be known to be wrong before a model is opened.

        Raises:
            UserError: in one line.
        """
        facts = self.facts(side.generator)
        for name, text in (("prompt", wish.prompt), ("negative prompt", wish.negative_prompt)):
            if len(text) > MAX_PROMPT:
                raise UserError(f"{name}: found {len(text)} characters, expected at most {MAX_PROMPT}. Say it shorter.")
        _in_range("duration", wish.duration_s, 0.1, self.max_duration_s, unit=" s")
        _in_range("seed", wish.seed, 0, MAX_SEED)
        _in_range("guidance", wish.cfg_coef, 0, 20)
        _in_range("temperature", wish.temperature, 0, 5)
        _in_range("top-k", wish.top_k or 0, 0, 100_000)
        _in_range("top-p", wish.top_p, 0, 1)
        for adapter, strength in side.strengths.items():
            if adapter not in self.adapters_of(side.generator):
                raise UserError(f"adapter {adapter}: found none of that name over {side.generator}.")
            _in_range(f"strength of {adapter}", strength, -MAX_STRENGTH, MAX_STRENGTH)
        if wish.melody is not None and not facts.takes_melody:
            raise UserError(
                f"melody: {side.generator} takes none. Remove the melody, or choose a model made from "
                "facebook/musicgen-melody."
            )

    def play(self, side: Side, wish: Wish) -> Iterator[Piece]:
        """Plays; whoever stops asking, stops it.

        Yields:
            The piece as it grows, about once for every second of it; the last one is done.

        Raises:
            UserError: if the wish cannot be met, in one line.
        """
        self.check(side, wish)
        with self._turn:
            opened = self._open(side.generator)
            strengths = {name: float(strength) for name, strength in side.strengths.items() if strength}
            if opened.mixer is not None:
                opened.mixer.blend(strengths)
            generator = opened.generator
            request = self._request(generator, wish)
            began = time.monotonic()
            chunks: list[Tensor] = []
            how = {**_plain(wish), "generator": side.generator, "adapter": strengths, "toolkit_version": __version__}
            how["sample_rate"], how["top_k"] = generator.sample_rate, request.sampling.k_of(generator.codec.spec.card)
            for chunk in generator.stream(request):
                chunks.append(chunk)
                yield Piece(torch.cat(chunks, dim=1), generator.sample_rate, wish.duration_s, False, how)
            waveform = torch.cat(chunks, dim=1)
            notes = self._notes(side, wish, waveform)
            notes.append(f"{waveform.shape[1] / generator.sample_rate:.1f} s in {time.monotonic() - began:.1f} s")
            waveform = normalize_loudness(waveform, generator.sample_rate)
            yield Piece(waveform, generator.sample_rate, wish.duration_s, True, how, tuple(notes))

    def _open(self, name: str) -> _Opened:
        if name in self._opened:
            self._opened.move_to_end(name)
            return self._opened[name]
        while len(self._opened) >= self._max_models:  # before the new one is read: it wants the room
            self._opened.popitem(last=False)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        base = self._bases[name]
        mixer: Mixer | None = None
        if self.adapters_of(name):
            assert self._open_mixer is not None
            # Packed in these, weights are still the modules', which adapters change in place. What a CPU packs in fewer
            # bits is out of reach; and fp16 would not be exact: weights with an adapter in them are no numbers of it.
            dtype = "fp16" if self.device.type == "cuda" else "fp32"
            generator = Generator.open(base, device=str(self.device), dtype=dtype)
            mixer = self._open_mixer(generator.lm, base, self.adapters)
        else:
            generator = Generator.open(base, device=str(self.device))
        self._opened[name] = _Opened(generator, mixer)
        return self._opened[name]

    def _request(self, generator: Generator, wish: Wish) -> Request:
        chroma, spec = generator.lm.config.chroma, generator.codec.spec
        melody = clip = None
        if wish.melody is not None and chroma is not None:
            melody = read_sound("melody", wish.melody, sample_rate=chroma.sample_rate, channels=1)[0]
        if wish.clip is not None:
            clip = torch.from_numpy(read_sound("clip", wish.clip, sample_rate=spec.sample_rate, channels=spec.channels))
            found_s = clip.shape[1] / spec.sample_rate
            if found_s >= wish.duration_s:
                raise UserError(
                    f"clip: it has {found_s:.1f} s, expected less than the {wish.duration_s:g} s of the piece, which "
                    "begins with it. Trim it, or ask for a longer piece."
                )
        return Request(
            prompt=wish.prompt,
            duration_s=wish.duration_s,
            seed=wish.seed,
            sampling=Sampling(top_k=wish.top_k, top_p=wish.top_p, temperature=wish.temperature),
            cfg_coef=wish.cfg_coef,
            negative_prompt=wish.negative_prompt,
            melody=melody,
            audio_prompt=clip,
        )

    def _notes(self, side: Side, wish: Wish, waveform: Tensor) -> list[str]:
        notes = []
        if not wish.prompt.strip():
            notes.append("no prompt: played without a condition")
        if wish.duration_s > (window_s := self.facts(side.generator).window_s):
            notes.append(f"longer than the {window_s:g} s it was trained on: played by a moving window")
        if waveform.square().mean().sqrt().item() < ENERGY_FLOOR:
            notes.append("nearly silent: try another seed or prompt")
        return notes


def read_sound(what: str, path: Path, *, sample_rate: int, channels: int) -> Samples:
    """A file that was dropped on the page, as float32 [C, L].

    Args:
        what: the name of the field, for the message.
        path: any format that FFmpeg reads.
        sample_rate: to resample to, in Hz.
        channels: to mix to.

    Raises:
        UserError: if it does not play, is silent, or is longer than ten minutes.
    """
    blocks: list[Samples] = []
    try:
        for block in AudioReader(path, sample_rate=sample_rate, channels=channels).blocks():
            blocks.append(block)
            if sum(found.shape[1] for found in blocks) > _MAX_FILE_S * sample_rate:
                raise UserError(f"{what}: {path.name} is longer than {_MAX_FILE_S:g} s. Cut it.")
    except AudioError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{what}: {path.name} gives no sound ({reason}). Give a file that plays.") from error
    samples = torch.cat([torch.from_numpy(block) for block in blocks], dim=1)
    if samples.square().mean().sqrt().item() < ENERGY_FLOOR:
        raise UserError(f"{what}: {path.name} is silent. Give one with sound in it.")
    return samples.numpy()


def _in_range(name: str, value: float | None, low: float, high: float, *, unit: str = "") -> None:
    """None is what an emptied field gives."""
    if value is None or not math.isfinite(value) or not low <= value <= high:
        found = "nothing" if value is None else f"{value:g}{unit}"
        raise UserError(f"{name}: found {found}, expected {low:.10g} to {high:.10g}{unit}.")


def _plain(wish: Wish) -> dict[str, Any]:
    return {name: value.name if isinstance(value, Path) else value for name, value in asdict(wish).items()}


def by_short_name(folders: Iterable[Path]) -> dict[str, Path]:
    """Each folder by its last part, as the page calls it, or by all of it where two have the same last part."""
    folders = list(folders)
    times = Counter(folder.name for folder in folders)
    return {folder.name if times[folder.name] == 1 else str(folder): folder for folder in folders}
