"""Melodies from motifs: a rhythm and a contour that come back over other chords, as a listener expects."""

from dataclasses import dataclass

import numpy as np

from musicgen_ft.synthesis.style import STEPS_PER_BEAT, Event, parse_pattern
from musicgen_ft.synthesis.theory import Chord, Key, nearest_pitch, step_in_scale

_FORMS = ("AABC", "ABAC", "AAAC", "ABBC")
"""Which motif each of the four bars of a phrase takes; C closes it."""


@dataclass(frozen=True)
class Motif:
    """One bar of melody before it meets a chord."""

    events: tuple[Event, ...]
    """The rhythm."""
    contour: tuple[int, ...]
    """Scale steps of each event above the bar's first note; as many as ``events``."""


@dataclass(frozen=True)
class Phrase:
    """Four bars of melody before they meet their chords."""

    motifs: tuple[Motif, ...]
    """One motif a bar."""
    anchors: tuple[int, ...]
    """Semitones by which each bar's first note leans away from the centre of the part."""


def write_motif(pattern: str, rng: np.random.Generator) -> Motif:
    """A contour for a rhythm: mostly steps, now and then a leap, which is then filled in backwards."""
    events = tuple(parse_pattern(pattern))
    contour = [0]
    last_move = 0
    for _ in events[1:]:
        if abs(last_move) > 1:
            move = -int(np.sign(last_move))
        else:
            move = int(rng.choice((-3, -2, -1, 0, 1, 2, 3), p=(0.06, 0.12, 0.28, 0.08, 0.28, 0.12, 0.06)))
        if abs(contour[-1] + move) > 4:
            move = -move
        contour.append(contour[-1] + move)
        last_move = move
    return Motif(events, tuple(contour))


def write_phrase(patterns: tuple[str, ...], rng: np.random.Generator) -> Phrase:
    """A phrase of four bars from two or three motifs."""
    form = _FORMS[rng.integers(len(_FORMS))]
    motifs = {letter: write_motif(patterns[rng.integers(len(patterns))], rng) for letter in "AB"}
    closing = motifs["A"].events
    motifs["C"] = Motif(closing[: max(1, len(closing) // 2)], motifs["A"].contour[: max(1, len(closing) // 2)])
    arch = ((0, 2, 4, 0), (0, 3, 5, 2), (4, 2, 0, -2), (0, 0, 5, 0))[rng.integers(4)]
    return Phrase(tuple(motifs[letter] for letter in form), arch)


def sing_bar(phrase: Phrase, bar: int, chord: Chord, key: Key, centre: int, num_steps: int) -> list[tuple[Event, int]]:
    """The notes of one bar over its chord: chord tones on the beats, the scale in between.

    Args:
        phrase: the melody.
        bar: bar of the phrase, 0 to 3.
        chord: the harmony of the bar.
        key: gives the notes between the chord tones.
        centre: MIDI pitch around which the part moves.
        num_steps: steps of a bar; the phrase's last note is held up to there.

    Returns:
        Events with their MIDI pitches.
    """
    motif = phrase.motifs[bar]
    scale = key.scale_over(chord)
    first = nearest_pitch(chord.pitch_classes, centre + phrase.anchors[bar])
    notes = []
    for event, steps in zip(motif.events, motif.contour, strict=True):
        pitch = step_in_scale(scale, first, steps)
        if event.step % STEPS_PER_BEAT == 0 or event.length >= STEPS_PER_BEAT:
            pitch = nearest_pitch(chord.pitch_classes, pitch)
        notes.append((event, pitch))
    if bar == len(phrase.motifs) - 1:
        event, _ = notes[-1]
        rest = nearest_pitch(chord.triad().pitch_classes, centre)
        notes[-1] = (event._replace(length=num_steps - event.step), rest)
    return notes
