"""The figures of an evaluation, and their places in ``evaluation.json``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from musicgen_ft.evaluation.divergence import PairwiseKL
from musicgen_ft.evaluation.likelihood import Likelihood
from musicgen_ft.evaluation.memorisation import SharedRun
from musicgen_ft.evaluation.playing import Throughput
from musicgen_ft.generation.collapse import Collapse


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A Frechet distance to the reference."""

    value: float
    """At least 0; the embeddings' own unit, so that it compares with nothing but the same embeddings' distances."""
    num_embeddings: int
    """Of the clips."""
    num_reference: int
    """Of the reference."""
    dim: int
    """Their width."""

    @property
    def is_rough(self) -> bool:
        """Whether there are so few that the covariances lack rank, and the value is too high."""
        return min(self.num_embeddings, self.num_reference) <= self.dim


@dataclass(frozen=True, kw_only=True)
class SoundFigures:
    """Of a set of clips; what was not measured is None or empty."""

    num_clips: int
    """Clips."""
    distances: Mapping[str, Distance] = field(default_factory=dict)
    """Frechet distances to the reference, by embedding."""
    kl: PairwiseKL | None = None
    """Divergence of the classifier's probabilities from those of the reference with the same caption."""
    class_shares: Mapping[str, float] = field(default_factory=dict)
    """Mean probability of each class."""
    heard_as_asked: float | None = None
    """Share of the clips that are heard as the genre of the track with their caption, of those whose genre is known."""
    clap_score: float | None = None
    """Mean cosine similarity of clips and captions, in [-1, 1]."""
    chroma_similarity: float | None = None
    """Mean over clips, in [0, 1]: how closely the given tunes are followed."""
    collapses: Sequence[Collapse] = ()
    """Of each clip."""
    shared: Sequence[SharedRun] = ()
    """Of each clip the longest run of whole frames that a training track has, too."""
    shared_first: Sequence[SharedRun] = ()
    """The same in the first codebook alone."""

    @property
    def num_silent(self) -> int:
        """Clips that fall silent, end in silence, or are mostly silent."""
        return sum(found.is_found and not found.loops for found in self.collapses)

    @property
    def num_looping(self) -> int:
        """Clips that repeat their codes exactly."""
        return sum(bool(found.loops) for found in self.collapses)

    @property
    def longest_shared(self) -> SharedRun | None:
        """The longest run of all clips; None where none was looked for."""
        return max(self.shared, key=lambda run: run.num_frames, default=None)

    @property
    def longest_shared_first(self) -> SharedRun | None:
        """In the first codebook alone."""
        return max(self.shared_first, key=lambda run: run.num_frames, default=None)

    def to_dict(self, frame_rate: float) -> dict[str, Any]:
        """Plain JSON value."""
        values: dict[str, Any] = {"num_clips": self.num_clips}
        if self.distances:
            values["frechet"] = {name: asdict(found) for name, found in self.distances.items()}
        if self.kl is not None:
            values["kl"] = {**asdict(self.kl), "both": self.kl.both}
        if self.class_shares:
            values["class_shares"] = dict(self.class_shares)
        for name in ("heard_as_asked", "clap_score", "chroma_similarity"):
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        if self.collapses:
            values |= {"num_silent": self.num_silent, "num_looping": self.num_looping}
            values["collapses"] = [found.to_dict() for found in self.collapses]
        if self.shared:
            values["memorisation"] = {
                "all_codebooks": [run.to_dict(frame_rate) for run in self.shared],
                "first_codebook": [run.to_dict(frame_rate) for run in self.shared_first],
            }
        return values


@dataclass(frozen=True, kw_only=True)
class OtherFigures:
    """Of one model, on other music."""

    likelihood: Likelihood
    """Loss on its clips."""
    num_clips: int
    """Pieces played to its captions."""
    heard_as_asked: float | None = None
    """Share of them that the judge hears as the genre asked for; None without a judge."""
    heard_as_learned: float | None = None
    """Share of them that it hears as a genre of the main prompts, though another was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {**asdict(self), "likelihood": self.likelihood.to_dict()}


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """Of one model."""

    place: str
    """As the user gave it."""
    likelihood: Mapping[str, Likelihood]
    """By split: ``valid``, ``train``."""
    forgetting_ce: float | None
    """Loss on what the base has played to captions of common genres."""
    sound: SoundFigures
    """Of what it plays."""
    others: OtherFigures | None = None
    """On other music than was trained on."""
    throughput: Throughput
    """How fast it has played."""

    def to_dict(self, frame_rate: float) -> dict[str, Any]:
        """Plain JSON value."""
        speed = self.throughput
        return {
            "place": self.place,
            "likelihood": {split: found.to_dict() for split, found in self.likelihood.items()},
            **({} if self.forgetting_ce is None else {"forgetting_ce": self.forgetting_ce}),
            "sound": self.sound.to_dict(frame_rate),
            **({} if self.others is None else {"others": self.others.to_dict()}),
            "throughput": {
                **asdict(speed),
                "frames_per_s": speed.frames_per_s,
                "realtime_factor": speed.realtime_factor,
            },
        }


@dataclass(frozen=True, kw_only=True)
class PlayedPrompt:
    """A prompt, as the figures tell of it."""

    text: str | None
    """Its caption."""
    seed: int
    """Of the draws."""
    track: str
    """Key of the track whose caption it is."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All figures."""

    models: Mapping[str, ModelFigures]
    """``base``, where there is one to compare with, and ``model``."""
    yardsticks: Mapping[str, SoundFigures]
    """``held_out``, the reference itself, and ``train``, other real music of the corpus."""
    prompts: Sequence[PlayedPrompt]
    """What was played, in order."""
    split: str
    """Whose captions and clips are the reference: ``valid``, or ``train`` where nothing is held out."""
    real_others_heard_as_asked: float | None = None
    """The judge's verdict on the real tracks of other music."""
    frame_rate: int
    """Frames of codes per second."""
    facts: Mapping[str, Any]
    """How it was made: config, run, shards. Plain JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value, keys sorted."""
        values = {
            "models": {name: figures.to_dict(self.frame_rate) for name, figures in self.models.items()},
            "yardsticks": {name: figures.to_dict(self.frame_rate) for name, figures in self.yardsticks.items()},
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "split": self.split,
            "frame_rate": self.frame_rate,
            **self.facts,
        }
        if self.real_others_heard_as_asked is not None:
            values["real_others_heard_as_asked"] = self.real_others_heard_as_asked
        ordered: dict[str, Any] = _sorted(values)
        return ordered

    def metrics(self) -> dict[str, float]:
        """The numbers that one run is compared with another by, with flat names: ``model/valid/ce``."""
        return dict(self._metrics())

    def _metrics(self) -> Iterator[tuple[str, float]]:
        for name, figures in self.models.items():
            for split, found in figures.likelihood.items():
                yield f"{name}/{split}/ce", found.ce
                yield f"{name}/{split}/ppl", found.ppl
                for k, ce in enumerate(found.ce_per_codebook, start=1):
                    yield f"{name}/{split}/ce_q{k}", ce
            if figures.forgetting_ce is not None:
                yield f"{name}/forgetting_ce", figures.forgetting_ce
            if figures.others is not None:
                yield f"{name}/others/ce", figures.others.likelihood.ce
                if figures.others.heard_as_asked is not None:
                    yield f"{name}/others/heard_as_asked", figures.others.heard_as_asked
                if figures.others.heard_as_learned is not None:
                    yield f"{name}/others/heard_as_learned", figures.others.heard_as_learned
            yield f"{name}/frames_per_s", figures.throughput.frames_per_s
            yield f"{name}/realtime_factor", figures.throughput.realtime_factor
            yield from self._sound_metrics(name, figures.sound)
        for name, sound in self.yardsticks.items():
            yield from self._sound_metrics(name, sound)

    def _sound_metrics(self, name: str, sound: SoundFigures) -> Iterator[tuple[str, float]]:
        for embedding, distance in sound.distances.items():
            yield f"{name}/frechet_{embedding.lower()}", distance.value
        if sound.kl is not None:
            yield f"{name}/kl", sound.kl.from_reference
        for key in ("heard_as_asked", "clap_score", "chroma_similarity"):
            if getattr(sound, key) is not None:
                yield f"{name}/{key}", getattr(sound, key)
        if sound.collapses:
            yield f"{name}/silent_share", sound.num_silent / sound.num_clips
            yield f"{name}/looping_share", sound.num_looping / sound.num_clips
        if sound.longest_shared is not None and sound.longest_shared_first is not None:
            yield f"{name}/longest_shared_s", sound.longest_shared.num_frames / self.frame_rate
            yield f"{name}/longest_shared_first_s", sound.longest_shared_first.num_frames / self.frame_rate


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _sorted(value[name]) for name in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_sorted(part) for part in value]
    return value
