"""Measures what can be heard: a set of clips against the reference.

N clips.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from musicgen_ft.chroma import ChromaSpec
from musicgen_ft.evaluation.chroma_similarity import chroma_similarity
from musicgen_ft.evaluation.clap import Clap
from musicgen_ft.evaluation.clip_features import MIN_S
from musicgen_ft.evaluation.divergence import Classifier, pairwise_kl
from musicgen_ft.evaluation.embeddings import Embedder, embedding_moments
from musicgen_ft.evaluation.figures import Distance, SoundFigures
from musicgen_ft.evaluation.frechet import Moments, frechet_distance
from musicgen_ft.evaluation.memorisation import SharedRun, SharedRuns
from musicgen_ft.evaluation.playing import Heard, at_rate
from musicgen_ft.shards.index import SplitIndex


class Listener:
    """Everything that is at hand to measure sound with, and the reference."""

    def __init__(
        self,
        embedders: Sequence[Embedder],
        *,
        sample_rate: int,
        classifier: Classifier | None = None,
        clap: Clap | None = None,
        chroma: ChromaSpec | None = None,
    ) -> None:
        """Knows no reference yet.

        Args:
            embedders: in which distances are taken.
            sample_rate: of all waveforms.
            classifier: tells what is heard; None measures no classes.
            clap: tells how well sound fits its text; None measures no fit.
            chroma: of a melody model; None compares no tunes.
        """
        self.embedders = tuple(embedders)
        self.classifier, self.clap, self._chroma = classifier, clap, chroma
        self._sample_rate = sample_rate
        self._moments: dict[str, Moments] = {}

    def take_reference(self, waveforms: Sequence[Tensor]) -> None:
        """What distances are taken to, float [C, L] each.

        Raises:
            UserError: if there is less than two embeddings' worth of it.
        """
        for embedder in self.embedders:
            moments = embedding_moments(embedder, waveforms, self._sample_rate)
            if moments.count >= 2 or embedder.name == "EnCodec":
                _ = moments.covariance  # refuses too few, before anything is played
                self._moments[embedder.name] = moments

    def distances(self, waveforms: Sequence[Tensor]) -> dict[str, Distance]:
        """From the reference, by embedding; none in one of which there are fewer than two."""
        found = {}
        for embedder in self.embedders:
            reference = self._moments.get(embedder.name)
            moments = embedding_moments(embedder, waveforms, self._sample_rate)
            if reference is not None and moments.count >= 2:
                found[embedder.name] = Distance(
                    value=frechet_distance(moments, reference),
                    num_embeddings=moments.count,
                    num_reference=reference.count,
                    dim=embedder.dim,
                )
        return found

    def probabilities(self, waveforms: Sequence[Tensor]) -> Tensor | None:
        """Of each clip and class, float64 [N, classes]; None without a classifier."""
        if self.classifier is None:
            return None
        rows = [self.classifier.probabilities(self._lasting(clip).numpy(), self._sample_rate) for clip in waveforms]
        return torch.from_numpy(np.stack(rows)).double()

    def _lasting(self, waveform: Tensor) -> Tensor:
        """A clip of ``MIN_S`` or more: the rest of a track may be shorter, and is then heard again and again."""
        times = math.ceil(MIN_S * self._sample_rate / waveform.shape[-1])
        return waveform.repeat(1, times)

    def class_shares(self, probabilities: Tensor | None) -> dict[str, float]:
        """Mean probability of each class."""
        if self.classifier is None or probabilities is None:
            return {}
        return dict(zip(self.classifier.classes, probabilities.mean(0).tolist(), strict=True))

    def heard_as_asked(self, probabilities: Tensor | None, genres: Sequence[str | None]) -> float | None:
        """Share of N clips whose most probable class is their genre; None where no genre is one of the classes."""
        if self.classifier is None or probabilities is None:
            return None
        classes, heard = self.classifier.classes, self._most_probable(probabilities)
        hits = [one == genre for one, genre in zip(heard, genres, strict=True) if genre in classes]
        return float(np.mean(hits)) if hits else None

    def heard_as_any(self, probabilities: Tensor | None, genres: Collection[str | None]) -> float:
        """Share of N clips whose most probable class is one of the genres."""
        assert self.classifier is not None and probabilities is not None
        return float(np.mean([one in genres for one in self._most_probable(probabilities)]))

    def _most_probable(self, probabilities: Tensor) -> list[str]:
        """The class of each clip."""
        assert self.classifier is not None
        return [self.classifier.classes[place] for place in probabilities.argmax(1).tolist()]

    def measure(
        self,
        heard: Sequence[Heard],
        references: Sequence[Heard],
        texts: Sequence[str | None],
        genres: Sequence[str | None],
        *,
        shared: Sequence[SharedRun] = (),
        shared_first: Sequence[SharedRun] = (),
    ) -> SoundFigures:
        """Figures of what a model has played.

        Args:
            heard: N pieces.
            references: N real clips with the same captions.
            texts: N captions.
            genres: N genres that were asked for, where they are known.
            shared: N runs, from ``longest_shared_runs``.
            shared_first: N runs in the first codebook alone.
        """
        waveforms = [piece.waveform for piece in heard]
        probabilities = self.probabilities(waveforms)
        of_references = self.probabilities([clip.waveform for clip in references])
        return SoundFigures(
            num_clips=len(heard),
            distances=self.distances(waveforms),
            kl=None if probabilities is None or of_references is None else pairwise_kl(probabilities, of_references),
            class_shares=self.class_shares(probabilities),
            heard_as_asked=self.heard_as_asked(probabilities, genres),
            clap_score=self._clap_score(waveforms, texts),
            chroma_similarity=self._chroma_similarity(heard, references),
            collapses=[piece.collapse for piece in heard],
            shared=shared,
            shared_first=shared_first,
        )

    def measure_reference(
        self,
        references: Sequence[Heard],
        texts: Sequence[str | None],
        genres: Sequence[str | None],
        *,
        shared: Sequence[SharedRun] = (),
        shared_first: Sequence[SharedRun] = (),
    ) -> SoundFigures:
        """The same of the references themselves, as far as it makes sense: what real music has."""
        waveforms = [clip.waveform for clip in references]
        probabilities = self.probabilities(waveforms)
        return SoundFigures(
            num_clips=len(references),
            class_shares=self.class_shares(probabilities),
            heard_as_asked=self.heard_as_asked(probabilities, genres),
            clap_score=self._clap_score(waveforms, texts),
            collapses=[clip.collapse for clip in references],
            shared=shared,
            shared_first=shared_first,
        )

    def measure_others(self, waveforms: Sequence[Tensor]) -> SoundFigures:
        """Of other real music: how far apart two sets of it are, which is as near as a model can be asked to come."""
        return SoundFigures(
            num_clips=len(waveforms),
            distances=self.distances(waveforms),
            class_shares=self.class_shares(self.probabilities(waveforms)),
        )

    def _clap_score(self, waveforms: Sequence[Tensor], texts: Sequence[str | None]) -> float | None:
        if self.clap is None:
            return None
        pairs = [(waveform, text) for waveform, text in zip(waveforms, texts, strict=True) if text]
        scores = [self.clap.score(waveform, self._sample_rate, text) for waveform, text in pairs]
        return float(np.mean(scores)) if scores else None

    def _chroma_similarity(self, heard: Sequence[Heard], references: Sequence[Heard]) -> float | None:
        if self._chroma is None:
            return None
        found = []
        for piece, clip in zip(heard, references, strict=True):
            one, other = (at_rate(each.waveform, self._sample_rate, self._chroma.sample_rate) for each in (piece, clip))
            length = min(len(one), len(other))
            found.append(chroma_similarity(one[:length], other[:length], self._chroma))
        return float(np.mean(found))


def longest_shared_runs(pieces: Sequence[Tensor], tracks: SplitIndex) -> tuple[list[SharedRun], list[SharedRun]]:
    """Of pieces, int64 [K, T] each, the longest runs that tracks share: in all codebooks, and in the first alone.

    One pass over the tracks, which are read one after the other.
    """
    codes = [piece.cpu().numpy() for piece in pieces]
    whole, first = SharedRuns(codes), SharedRuns([piece[0] for piece in codes])
    for number in range(len(tracks)):
        of_track = tracks.codes(number)
        whole.add(tracks.keys[number], of_track)
        first.add(tracks.keys[number], of_track[0])
    return whole.found, first.found
