"""What every model is asked alike: its losses first, then what it plays."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from musicgen_ft.codec import Codec
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.evaluation.figures import ModelFigures, OtherFigures
from musicgen_ft.evaluation.forgetting import forgetting_ce, let_base_play
from musicgen_ft.evaluation.likelihood import Likelihood, clips_of, likelihood, training_dtype
from musicgen_ft.evaluation.listening import Listener, longest_shared_runs
from musicgen_ft.evaluation.others import Others
from musicgen_ft.evaluation.playing import Heard, Prompt, play
from musicgen_ft.evaluation.subject import Subject
from musicgen_ft.generation.generator import Generator
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.terminal import progress_bar
from musicgen_ft.training.forgetting import FORGETTING_FILE

Told = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The questions, the same for base and tuned."""

    index: ShardIndex
    """Of the shards whose held-out tracks are predicted."""
    trained: ShardIndex
    """Of the shards whose training tracks are predicted, and in which copies are looked for."""
    config: FinetuneConfig
    """How captions and clips are made, and in which precision losses are computed."""
    prompts: list[Prompt]
    """What is played."""
    references: list[Heard]
    """The real clip of each prompt."""
    others: Others | None
    """Music that is not to be forgotten."""
    listener: Listener
    """Who measures what is played."""
    probe: Path
    """Folder in which the base's own pieces lie, by which forgetting is measured, or into which it plays them."""
    duration_s: float
    """Seconds of a piece."""
    batch_size: int
    """Clips and pieces at once."""
    device: torch.device
    """Where all is computed."""

    def take(self, model: Subject, name: str) -> tuple[ModelFigures, list[Heard]]:
        """All figures of a model, ``base`` or ``model``, and what it has played; the base goes first."""
        codec, text_encoder = model.base.codec().to(self.device), model.base.text_encoder().to(self.device)
        lm = model.lm().to(self.device)
        places: dict[Split, ShardIndex] = {"valid": self.index, "train": self.trained}
        losses: dict[str, Likelihood] = {
            split: self._loss(lm, text_encoder, index, split, name)
            for split, index in places.items()
            if index.manifest.num_tracks[split]
        }
        dtype = training_dtype(self.config, self.device)
        others_loss = None
        if self.others is not None:
            others_loss = self.others.loss(lm, text_encoder, batch_size=self.batch_size, dtype=dtype)
        forgotten = self._forgotten(lm, codec, text_encoder, name)

        generator = Generator(lm, codec, text_encoder, dtype="auto")  # takes the weights out of the model
        with _told(len(self.prompts), f"{name} plays") as told:
            heard, throughput = play(
                generator, self.prompts, duration_s=self.duration_s, batch_size=self.batch_size, told=told
            )
        shared, first = longest_shared_runs([piece.codes for piece in heard], self.trained.split("train"))
        texts, genres = [prompt.text for prompt in self.prompts], [prompt.genre for prompt in self.prompts]
        figures = ModelFigures(
            place=model.place,
            likelihood=losses,
            forgetting_ce=forgotten,
            sound=self.listener.measure(heard, self.references, texts, genres, shared=shared, shared_first=first),
            others=None if others_loss is None else self._others(generator, others_loss, name),
            throughput=throughput,
        )
        return figures, heard

    def _loss(
        self, lm: LanguageModel, text_encoder: TextEncoder, index: ShardIndex, split: Split, name: str
    ) -> Likelihood:
        clips = clips_of(index, split, self.config)
        dtype = training_dtype(self.config, self.device)
        with _told(len(clips), f"{name}: loss on {split}") as told:
            return likelihood(lm, text_encoder, clips, batch_size=self.batch_size, dtype=dtype, told=told)

    def _forgotten(self, lm: LanguageModel, codec: Codec, text_encoder: TextEncoder, name: str) -> float | None:
        if name == "base" and not (self.probe / FORGETTING_FILE).is_file():
            let_base_play(lm, codec, text_encoder, self.probe, self.config)
        return forgetting_ce(lm, text_encoder, self.probe, dtype=training_dtype(self.config, self.device))

    def _others(self, generator: Generator, loss: Likelihood, name: str) -> OtherFigures:
        assert self.others is not None
        num_clips = len(self.others.prompts)
        with _told(num_clips, f"{name} plays other music") as told:
            shares = self.others.shares(
                generator,
                self.listener,
                {prompt.genre for prompt in self.prompts},
                duration_s=self.duration_s,
                batch_size=self.batch_size,
                told=told,
            )
        return OtherFigures(
            likelihood=loss,
            num_clips=num_clips,
            heard_as_asked=None if shares is None else shares.as_asked,
            heard_as_learned=None if shares is None else shares.as_learned,
        )


@contextmanager
def _told(total: int, what: str) -> Iterator[Told]:
    """A progress bar, as what is told how much is done, and of how much."""
    with progress_bar(total=total, desc=what, unit="clip") as bar:

        def told(done: int, _: int) -> None:
            bar.update(done - bar.n)

        yield told
