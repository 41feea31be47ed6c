"""Captions: the text that is given to T5, made of a track's labels."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from musicgen_ft.corpus.labels import Labels

CAPTION_FIELDS = ("genre", "moods", "instrument", "key", "bpm", "keywords")  # from the broad to the narrow


@dataclass(frozen=True, kw_only=True)
class CaptionPolicy:
    """How labels become captions. By default a description is used as it is, and fields stand in where there is none.

    Audiocraft's released recipe is ``source="description", merge_text_p=0.25, drop_desc_p=0.5``.
    """

    source: Literal["description", "fields", "auto"] = "auto"
    """``description``: as it is. ``fields``: composed, "genre: electronic. bpm: 120". ``auto``: the description where
    there is one, else composed."""
    merge_text_p: float = 0.0
    """Probability of merging fields into the description, in training; 0 leaves every description untouched."""
    drop_desc_p: float = 0.0
    """Probability of dropping the description when fields are merged."""
    field_keep_p: float = 0.5
    """Probability of keeping each field when fields are merged (audiocraft's ``drop_other_p``, which keeps too)."""
    word_dropout: float = 0.0
    """Probability of dropping each word of a caption, in training."""

    def __post_init__(self) -> None:
        if self.source not in ("description", "fields", "auto"):
            raise ValueError(f"source is {self.source!r}, expected description, fields or auto")
        for name in ("merge_text_p", "drop_desc_p", "field_keep_p", "word_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a probability in [0, 1]")

    def plain(self, labels: Labels) -> str | None:
        """The caption without chance, for validation and previews; None is the null condition."""
        description = self._description(labels)
        return compose(labels) if description is None and self.source != "description" else description

    def describe(self, labels: Labels, rng: np.random.Generator) -> str | None:
        """One caption for training, drawn by the policy; None is the null condition.

        A track without a description gets the composed caption wherever audiocraft would give it none, unless
        ``source`` is ``description``.

        Source: audiocraft's ``augment_music_info_description``, and the word dropout of its ``T5Conditioner``.
        """
        caption = self.plain(labels)
        if self.merge_text_p > 0:
            description = self._description(labels)
            merged = self._merge(labels, description, rng)
            caption = merged if merged or description else caption
        return drop_words(caption, self.word_dropout, rng)

    def _description(self, labels: Labels) -> str | None:
        return None if self.source == "fields" else labels.description

    def _merge(self, labels: Labels, description: str | None, rng: np.random.Generator) -> str | None:
        merged = ""
        if rng.random() < self.merge_text_p:
            pairs = [pair for pair in _pairs(labels, bpm_format="") if rng.random() < self.field_keep_p]
            merged = ". ".join(pairs[index] for index in rng.permutation(len(pairs)))
            description = None if rng.random() < self.drop_desc_p else description
        if description is None:
            return merged or None
        return f"{description.rstrip('.')}. {merged}".strip()  # the trailing dot is there with nothing merged, too


def compose(labels: Labels) -> str | None:
    """A caption of the fields that are known, in a fixed order: "genre: electronic. moods: uplifting, calm. bpm: 120".

    Written as audiocraft merges fields, so that the words are those MusicGen was trained on, but for the tempo: a
    whole number without its ".0". Title and artist are left out: they name the track, and say nothing of its sound.
    """
    return ". ".join(_pairs(labels, bpm_format="g")) or None


def drop_words(caption: str | None, p: float, rng: np.random.Generator) -> str | None:
    """Drops each word of a caption with probability ``p``; None when none is left."""
    if caption is None or p == 0:
        return caption
    words = caption.split(" ")
    kept = rng.random(len(words)) >= p
    return " ".join(word for word, is_kept in zip(words, kept, strict=True) if is_kept) or None


def _pairs(labels: Labels, *, bpm_format: str) -> list[str]:
    """``name: value`` of the fields that are known; ``bpm_format`` "" gives "120.0", "g" gives "120"."""
    pairs = []
    for name in CAPTION_FIELDS:
        value = getattr(labels, name)
        if isinstance(value, tuple):
            value = ", ".join(value)
        elif isinstance(value, float):
            value = format(value, bpm_format)
        if value:
            pairs.append(f"{name}: {value}")
    return pairs
