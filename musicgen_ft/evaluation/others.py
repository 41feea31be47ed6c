"""Other music than what was trained on: what a fine-tuned model should not have forgotten."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from musicgen_ft.codec import Codec
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.corpus.captions import caption_policy
from musicgen_ft.evaluation.likelihood import Likelihood, clips_of, likelihood
from musicgen_ft.evaluation.listening import Listener
from musicgen_ft.evaluation.playing import Prompt, choose_prompts, hear, play
from musicgen_ft.generation.generator import Generator
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.shards.crops import ValidDataset
from musicgen_ft.shards.format import Split
from musicgen_ft.shards.index import ShardIndex


@dataclass(frozen=True)
class OtherShares:
    """What the judge hears in pieces played to captions of other music."""

    as_asked: float
    """Share that is heard as the genre asked for."""
    as_learned: float
    """Share that is heard as a genre of the main prompts, though another was asked for: played whatever the prompt."""


@dataclass(frozen=True)
class Others:
    """Clips and captions of other music, the same for every model."""

    clips: ValidDataset
    """Whose loss is measured."""
    prompts: list[Prompt]
    """What is played."""

    @classmethod
    def open(cls, index: ShardIndex, config: FinetuneConfig, *, duration_s: float, pieces: int, seed: int) -> "Others":
        """Of shards, the held-out tracks where there are any.

        Args:
            index: of the shards, made by the codec of the models.
            config: how captions are made, and how long and many the clips are whose loss is measured.
            duration_s: seconds of each piece.
            pieces: how many are played.
            seed: of the first one.
        """
        split: Split = "valid" if index.manifest.num_tracks["valid"] else "train"
        captions = caption_policy(config)
        prompts = choose_prompts(index, split, captions, duration_s=duration_s, num=pieces, seed=seed)
        return cls(clips_of(index, split, config), prompts)

    def loss(
        self, lm: LanguageModel, text_encoder: TextEncoder, *, batch_size: int, dtype: torch.dtype | None
    ) -> Likelihood:
        """Of a model, before it becomes a generator."""
        return likelihood(lm, text_encoder, self.clips, batch_size=batch_size, dtype=dtype)

    def shares(
        self,
        generator: Generator,
        listener: Listener,
        learned: Collection[str | None],
        *,
        duration_s: float,
        batch_size: int,
        told: Callable[[int, int], None] | None = None,
    ) -> OtherShares | None:
        """Plays all prompts where there is a judge that knows their genres, and lets it listen.

        ``learned`` are the genres of the main prompts: what the model was to learn.
        """
        if listener.classifier is None:
            return None
        heard, _ = play(generator, self.prompts, duration_s=duration_s, batch_size=batch_size, told=told)
        probabilities = listener.probabilities([piece.waveform for piece in heard])
        as_asked = listener.heard_as_asked(probabilities, [prompt.genre for prompt in self.prompts])
        if as_asked is None:
            return None
        return OtherShares(as_asked=as_asked, as_learned=listener.heard_as_any(probabilities, learned))

    def real_heard_as_asked(self, codec: Codec, listener: Listener) -> float | None:
        """The judge's verdict on the real tracks: the most that a model can come to."""
        if listener.classifier is None:
            return None
        clips = [hear(codec, prompt.reference).waveform for prompt in self.prompts]
        return listener.heard_as_asked(listener.probabilities(clips), [prompt.genre for prompt in self.prompts])
