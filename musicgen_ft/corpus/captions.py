"""Captions: the text that is given to T5, made of a track's labels."""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.corpus.labels import Labels, field_of
from musicgen_ft.errors import UserError

CAPTION_FIELDS = ("genre", "moods", "instrument", "key", "bpm", "keywords")  # from the broad to the narrow
TEMPLATE_FIELDS = (*CAPTION_FIELDS, "description", "title", "artist")

_FIELD = re.compile(r"\{([^{}]*)\}")
_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
_MARK = re.compile(r"([,;.!?]+(?=\s|$))")  # what ends a clause: "2.5" and "3/4" end none
_EMPTY = Labels()


@dataclass(frozen=True, kw_only=True)
class CaptionPolicy:
    """How labels become captions. By default a description is used as it is, and fields stand in where there is none.

    Of a track with several descriptions, training draws one each time; validation reads the first.

    Audiocraft's released recipe is ``source="description", merge_text_p=0.25, drop_desc_p=0.5``.
    """

    source: Literal["description", "fields", "auto", "template"] = "auto"
    """``description``: as it is. ``fields``: composed, "genre: electronic. bpm: 120". ``auto``: the description where
    there is one, else composed. ``template``: by ``template``."""
    template: str = ""
    """As ``fill_template`` reads it: "a {genre} track[ with {instrument}], {bpm} bpm"."""
    trigger: str = ""
    """Text before every caption, and the caption of a track of which nothing is known: the name by which a prompt
    calls the style. Neither merged, nor shuffled, nor dropped, but for classifier-free guidance. Blank is none."""
    merge_text_p: float = 0.0
    """Probability of merging fields into the description, in training; 0 leaves every description untouched."""
    drop_desc_p: float = 0.0
    """Probability of dropping the description when fields are merged."""
    field_keep_p: float = 0.5
    """Probability of keeping each field when fields are merged (audiocraft's ``drop_other_p``, which keeps too)."""
    field_dropout: float = 0.0
    """Probability of leaving each field out of a composed caption or a template, in training; one always stays."""
    shuffle_fields: bool = False
    """In training, the fields of a composed caption in any order, and in every caption the words of a list too."""
    word_dropout: float = 0.0
    """Probability of dropping each word of a caption, in training."""

    def __post_init__(self) -> None:
        if self.source not in ("description", "fields", "auto", "template"):
            raise ValueError(f"source is {self.source!r}, expected description, fields, auto or template")
        for name in ("merge_text_p", "drop_desc_p", "field_keep_p", "field_dropout", "word_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a probability in [0, 1]")
        if self.source == "template":
            check_template(self.template)
            if self.merge_text_p > 0:
                raise UserError(
                    f"merge_text_p is {self.merge_text_p} with the caption source template, expected 0: a template "
                    "says itself which fields there are. Leave one of the two out."
                )
        elif self.template:
            raise UserError(
                f"there is a caption template, but the caption source is {self.source}, expected template. "
                "Set --caption_source template, or leave the template out."
            )

    def plain(self, labels: Labels) -> str | None:
        """The caption without chance, for validation and previews; None is the null condition."""
        return self._triggered(self._caption(labels, None))

    def describe(self, labels: Labels, rng: np.random.Generator) -> str | None:
        """One caption for training, drawn by the policy; None is the null condition.

        A track without a description gets the composed caption wherever audiocraft would give it none, unless
        ``source`` is ``description``.

        Source: audiocraft's ``augment_music_info_description``, and the word dropout of its ``T5Conditioner``.
        """
        labels = self._drawn(labels, rng)
        caption = self._caption(labels, rng)
        if self.merge_text_p > 0:
            description = self._description(labels)
            merged = self._merge(labels, description, rng)
            caption = merged if merged or description else caption
        return self._triggered(drop_words(caption, self.word_dropout, rng))

    def _drawn(self, labels: Labels, rng: np.random.Generator) -> Labels:
        """The labels with one of their descriptions, and with their lists in the order of this time."""
        drawn: dict[str, Any] = {}
        if labels.captions:
            descriptions = labels.descriptions
            drawn["description"] = descriptions[int(rng.integers(len(descriptions)))]
        if self.shuffle_fields:
            for name in CAPTION_FIELDS:
                value = getattr(labels, name)
                if isinstance(value, tuple):
                    drawn[name] = tuple(value[index] for index in rng.permutation(len(value)))
        return replace(labels, **drawn)

    def _caption(self, labels: Labels, rng: np.random.Generator | None) -> str | None:
        """The caption before merging; without ``rng`` the one that knows no chance."""
        if self.source == "template":
            return fill_template(self.template, self._thinned(labels, template_fields(self.template), rng))
        description = self._description(labels)
        if description is not None or self.source == "description":
            return description
        pairs = _pairs(self._thinned(labels, CAPTION_FIELDS, rng), bpm_format="g")
        if rng is not None and self.shuffle_fields:
            pairs = [pairs[index] for index in rng.permutation(len(pairs))]
        return ". ".join(pairs) or None

    def _thinned(self, labels: Labels, names: Collection[str], rng: np.random.Generator | None) -> Labels:
        """The labels without the fields that are dropped this time, at least one of ``names`` staying."""
        known = [name for name in CAPTION_FIELDS if name in names and getattr(labels, name)]
        if rng is None or self.field_dropout == 0 or not known:
            return labels
        is_dropped = rng.random(len(known)) < self.field_dropout
        stays = int(rng.integers(len(known)))
        if is_dropped.all():
            is_dropped[stays] = False
        dropped = [name for name, drop in zip(known, is_dropped, strict=True) if drop]
        return replace(labels, **{name: getattr(_EMPTY, name) for name in dropped})

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

    def _triggered(self, caption: str | None) -> str | None:
        trigger = self.trigger.strip()
        if not trigger or caption is None:
            return trigger or caption
        return f"{trigger}{'' if trigger[-1] in ',;:.!?' else ','} {caption}"


def caption_policy(config: FinetuneConfig) -> CaptionPolicy:
    """The policy of a run.

    Raises:
        UserError: if the template cannot be read, or choices exclude each other.
    """
    return CaptionPolicy(
        source=config.caption_source,
        template=config.caption_template,
        trigger=config.trigger,
        merge_text_p=config.merge_text_p,
        drop_desc_p=config.drop_desc_p,
        field_keep_p=config.field_keep_p,
        field_dropout=config.field_dropout,
        shuffle_fields=config.shuffle_fields,
        word_dropout=config.word_dropout,
    )


def preview(policy: CaptionPolicy, labels: Labels, n: int, rng: np.random.Generator) -> list[str | None]:
    """``n`` captions of a track as training draws them; None is the null condition.

    T5 reads each of them whole: nothing is cut at any length.
    """
    return [policy.describe(labels, rng) for _ in range(n)]


def compose(labels: Labels) -> str | None:
    """A caption of the fields that are known, in a fixed order: "genre: electronic. moods: uplifting, calm. bpm: 120".

    Written as audiocraft merges fields, so that the words are those MusicGen was trained on, but for the tempo: a
    whole number without its ".0". Title and artist are left out: they name the track, and say nothing of its sound.
    """
    return ". ".join(_pairs(labels, bpm_format="g")) or None


def check_template(template: str) -> None:
    """Refuses a template that cannot be filled.

    Raises:
        UserError: if it is blank or names an unknown field, or its brackets are open, nested or without a field.
    """
    if not template.strip():
        raise UserError(
            "the caption source is template, but there is no template. "
            "Give --caption_template, such as 'a {genre} track, {bpm} bpm'."
        )
    for name in _FIELD.findall(template):
        if name not in TEMPLATE_FIELDS:
            known = ", ".join(TEMPLATE_FIELDS)
            raise UserError(f"caption template: {{{name}}} is no field{_did_you_mean(name)}; there are {known}.")
    for kind, rest in (("braces", _FIELD.sub("", template)), ("brackets", _OPTIONAL.sub("", template))):
        left = next((sign for sign in rest if sign in ("{}" if kind == "braces" else "[]")), None)
        if left is not None:
            raise UserError(
                f"caption template: {left!r} is left over in {template!r}, expected {kind} in pairs and not nested. "
                "Correct it."
            )
    for part in _OPTIONAL.findall(template):
        if not _FIELD.search(part):
            raise UserError(
                f"caption template: [{part}] names no field, expected one such as {{genre}} in what may vanish. "
                "Take the brackets away."
            )


def template_fields(template: str) -> list[str]:
    """The fields that a template names, in its order.

    >>> template_fields("a {genre} track, {bpm} bpm")
    ['genre', 'bpm']
    """
    return list(dict.fromkeys(_FIELD.findall(template)))


def fill_template(template: str, labels: Labels) -> str | None:
    """A caption by a template, without what is not known.

    ``{field}`` stands for a label. A part in ``[ ]`` vanishes when one of its fields is unknown. Then a clause, which
    is what commas, semicolons, full stops and the like divide, is left out when one of its own is unknown; the caption
    ends with the template's last mark.

    Args:
        template: as ``check_template`` accepts it.
        labels: of a track.

    Returns:
        The caption, with single blanks; None if no clause is left.

    >>> fill_template("a {genre} track[ with {instrument}], {bpm} bpm.", Labels(genre="jazz", bpm=97.5))
    'a jazz track, 97.5 bpm.'
    >>> fill_template("a {genre} track[ with {instrument}], {bpm} bpm.", Labels(instrument="piano", genre="jazz"))
    'a jazz track with piano.'
    """
    values = {name: _value(labels, name, bpm_format="g") for name in template_fields(template)}
    values = {name: value.rstrip(".") if name == "description" else value for name, value in values.items()}

    def is_known(text: str) -> bool:
        return all(values[name] for name in _FIELD.findall(text))

    text = _OPTIONAL.sub(lambda match: match[1] if is_known(match[1]) else "", template)
    *parts, last = _MARK.split(text)  # clause, mark, clause, mark, ..., clause: the last one is blank after a mark
    parts = [*parts, last, ""] if last.strip() else parts
    kept: list[tuple[str, str]] = []
    for clause, mark in zip(parts[::2], parts[1::2], strict=True):
        if clause.strip() and is_known(clause):
            kept.append((" ".join(clause.split()), mark))
        elif kept:  # a full stop that ended what is left out still ends what goes before it
            kept[-1] = (kept[-1][0], max(kept[-1][1], mark, key=_strength))
    if not kept:
        return None
    kept[-1] = (kept[-1][0], parts[-1])
    return _FIELD.sub(lambda match: values[match[1]], " ".join(f"{clause}{mark}" for clause, mark in kept))


def drop_words(caption: str | None, p: float, rng: np.random.Generator) -> str | None:
    """Drops each word of a caption with probability ``p``; None when none is left."""
    if caption is None or p == 0:
        return caption
    words = caption.split(" ")
    kept = rng.random(len(words)) >= p
    return " ".join(word for word, is_kept in zip(words, kept, strict=True) if is_kept) or None


def _strength(mark: str) -> int:
    return 0 if not mark else 1 + ",;".find(mark[-1]) if mark[-1] in ",;" else 3


def _did_you_mean(name: str) -> str:
    """The field that was probably meant, as a question: by its alias ("tempo"), or by its spelling."""
    by_alias = field_of(name)
    close = difflib.get_close_matches(name.strip().lower(), TEMPLATE_FIELDS, n=1)
    meant = by_alias if by_alias in TEMPLATE_FIELDS else next(iter(close), None)
    return f", did you mean {{{meant}}}?" if meant else ""


def _pairs(labels: Labels, *, bpm_format: str) -> list[str]:
    """``name: value`` of the fields that are known; ``bpm_format`` "" gives "120.0", "g" gives "120"."""
    values = ((name, _value(labels, name, bpm_format=bpm_format)) for name in CAPTION_FIELDS)
    return [f"{name}: {value}" for name, value in values if value]


def _value(labels: Labels, name: str, *, bpm_format: str) -> str:
    """A field as text; "" where it is not known."""
    value = getattr(labels, name)
    if isinstance(value, tuple):
        return ", ".join(value)
    return format(value, bpm_format) if isinstance(value, float) else value or ""
