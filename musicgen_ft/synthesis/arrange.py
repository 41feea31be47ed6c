"""From a genre to a score: form, harmony, melody, bass and drums of one track, as notes in seconds."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from musicgen_ft.synthesis.drums import VELOCITIES
from musicgen_ft.synthesis.melody import Phrase, sing_bar, write_phrase
from musicgen_ft.synthesis.style import STEPS_PER_BEAT, Event, Genre, Part, parse_pattern
from musicgen_ft.synthesis.theory import Chord, Key, nearest_pitch

_BARS_PER_SECTION = 4
_FORM = "AABA"
GRID_S = 0.02
"""A beat and its parts are whole numbers of these, frames of EnCodec at 50 Hz: what is played again has nearly the same
codes again, and there are few tempi, so that a small model learns within an hour that music has a beat."""
_ROUNDING = 1e-6
"""Of a quotient that should be whole: 60 / 125 / 0.08 is a little more than 6."""


class Note(NamedTuple):
    """One note of a part, or one stroke of a drum (whose pitch and duration are 0)."""

    start_s: float
    duration_s: float
    midi: int
    velocity: float


@dataclass(frozen=True)
class Layer:
    """A part as one track plays it."""

    part: Part
    instrument: str
    """The one of the part's instruments that plays."""
    notes: tuple[Note, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """All that is played in one track."""

    genre: Genre
    beat_s: float
    """Length of a quarter note in seconds."""
    key: Key
    moods: tuple[str, ...]
    layers: tuple[Layer, ...]
    strokes: Mapping[str, tuple[Note, ...]]
    """Piece of the kit -> when it is struck."""

    @property
    def bpm(self) -> int:
        """Quarter notes in a minute, rounded as captions tell them."""
        return round(60 / self.beat_s)

    @property
    def step_s(self) -> float:
        """Length of a sixteenth note in seconds."""
        return self.beat_s / STEPS_PER_BEAT

    @property
    def instruments(self) -> tuple[str, ...]:
        """The instruments that play, from the foreground to the drums, each once."""
        kit = [self.genre.drums.kit] if self.genre.drums else []
        return tuple(dict.fromkeys([layer.instrument for layer in self.layers] + kit))


class Bar(NamedTuple):
    """One bar of the form."""

    number: int
    """Position in the track."""
    section: str
    """A letter: sections of one letter share harmony, rhythms and melody; the intro is an "A" without its lead."""
    position: int
    """Bar of the section, 0 to 3."""
    chord: Chord
    next_chord: Chord
    is_intro: bool
    is_fill: bool
    """Whether the drums lead into the next section."""


class _Feel(NamedTuple):
    """How one player plays the bars of a section: the same every time, as a loop or a habit is."""

    late_s: NDArray[np.float64]
    """Of each step, against the even time, [steps]."""
    velocity: NDArray[np.float64]
    """Of each step, [steps]."""


def compose(genre: Genre, rng: np.random.Generator, duration_s: float) -> Score:
    """Writes a track.

    Args:
        genre: the rules.
        rng: what is left open by them is drawn from here.
        duration_s: bars are written until this time is filled.

    Returns:
        The score; its last notes may end after ``duration_s``.
    """
    beat_s = _choose_beat_s(genre, rng)
    key = Key(int(rng.integers(12)), _choose(rng, tuple(genre.progressions)))
    moods = tuple(str(mood) for mood in rng.choice(genre.moods[key.mode], size=2, replace=False))
    bars = list(_form(genre, key, rng, math.ceil(duration_s / (genre.beats_per_bar * beat_s))))

    layers: list[Layer] = []
    for part in genre.parts:
        plays = rng.random() < part.probability
        taken = {layer.instrument for layer in layers}
        instrument = _choose(rng, tuple(name for name in part.instruments if name not in taken))
        notes = tuple(_play_part(part, genre, key, bars, beat_s / STEPS_PER_BEAT, rng))
        if plays:
            layers.append(Layer(part, instrument, notes))
    return Score(
        genre=genre,
        beat_s=beat_s,
        key=key,
        moods=moods,
        layers=tuple(layers),
        strokes=_play_drums(genre, bars, beat_s / STEPS_PER_BEAT, rng),
    )


def _choose_beat_s(genre: Genre, rng: np.random.Generator) -> float:
    """A tempo of the genre's whose beat, in as many parts as the genre has it, lies on the grid."""
    part_s = GRID_S * genre.parts_per_beat
    slowest, fastest = (60 / bpm / part_s for bpm in genre.tempo_bpm)
    return part_s * int(rng.integers(math.ceil(fastest - _ROUNDING), math.floor(slowest + _ROUNDING) + 1))


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _form(genre: Genre, key: Key, rng: np.random.Generator, num_bars: int) -> Iterator[Bar]:
    """The bars of the track: a short intro if there is time for one, then sections of four bars."""
    num_intro = int(rng.integers(1, 3)) if num_bars >= 8 else 0
    progressions = {section: _choose(rng, genre.progressions[key.mode]).split() for section in "AB"}
    places = []
    for number in range(num_bars + 1):
        section, position = divmod(number - num_intro, _BARS_PER_SECTION)
        letter = _FORM[section % len(_FORM)] if number >= num_intro else "A"
        places.append((letter, position if number >= num_intro else number))
    chords = []
    for letter, position in places:
        progression = progressions[letter]
        chords.append(key.chord(progression[position % len(progression)]))
    for number in range(num_bars):
        letter, position = places[number]
        is_fill = position == _BARS_PER_SECTION - 1 and number >= num_intro
        yield Bar(number, letter, position, chords[number], chords[number + 1], number < num_intro, is_fill)


def _draw_feel(genre: Genre, softest: float, rng: np.random.Generator) -> _Feel:
    """Timing and loudness of a section's bars; a stroke has between ``softest`` and all of its loudness."""
    steps = genre.steps_per_bar
    return _Feel(rng.normal(0, genre.looseness_s, steps), rng.uniform(softest, 1.0, steps))


def _start_s(bar: Bar, step: int, genre: Genre, feel: _Feel, step_s: float) -> float:
    """When a step of a bar sounds: every second unit comes late, and players are not machines."""
    unit, late = genre.swing
    pair, inside = divmod(bar.number * genre.steps_per_bar + step, 2 * unit)
    share = inside * (1 + late) if inside <= unit else 2 * unit - (2 * unit - inside) * (1 - late)
    start_s = (pair * 2 * unit + share) * step_s
    if late:  # a share of a step lies between frames; the even steps are on them already
        start_s = GRID_S * math.floor(start_s / GRID_S + 0.5 + _ROUNDING)
    return max(0.0, start_s + float(feel.late_s[step]))


def _play_part(
    part: Part, genre: Genre, key: Key, bars: list[Bar], step_s: float, rng: np.random.Generator
) -> Iterator[Note]:
    patterns = {section: _choose(rng, part.patterns) for section in "AB"}
    phrases = {section: write_phrase(part.patterns, rng) for section in "AB"}
    feels = {section: _draw_feel(genre, 0.9, rng) for section in "AB"}
    for bar in bars:
        if part.role == "lead" and bar.is_intro:
            continue
        if part.role == "lead":
            notes = _lead(phrases[bar.section], bar, key, part, genre)
        elif part.role == "chords":
            notes = _chords(patterns[bar.section], bar, part)
        else:
            notes = _single_tones(patterns[bar.section], bar, part)
        feel = feels[bar.section]
        for event, pitches in notes:
            start_s = _start_s(bar, event.step, genre, feel, step_s)
            accent = 1.0 if event.step % STEPS_PER_BEAT == 0 else 0.82
            velocity = accent * float(feel.velocity[event.step])
            for order, midi in enumerate(pitches):
                late_s = order * part.strum_s
                yield Note(start_s + late_s, event.length * step_s, midi, velocity)


def _lead(phrase: Phrase, bar: Bar, key: Key, part: Part, genre: Genre) -> list[tuple[Event, list[int]]]:
    """The melody of one bar."""
    sung = sing_bar(phrase, bar.position, bar.chord, key, part.centre, genre.steps_per_bar)
    return [(event, [pitch]) for event, pitch in sung]


def _chords(pattern: str, bar: Bar, part: Part) -> list[tuple[Event, list[int]]]:
    """Every tone in the octave around the centre, so that the voices move as little as they can."""
    voicing = sorted(
        {nearest_pitch(frozenset({(bar.chord.root + interval) % 12}), part.centre) for interval in bar.chord.intervals}
    )
    return [(event, voicing) for event in parse_pattern(pattern)]


def _single_tones(pattern: str, bar: Bar, part: Part) -> list[tuple[Event, list[int]]]:
    """Chord tones by their digits, counted from the root; "a" leads into the next root from a semitone below."""
    root = nearest_pitch(frozenset({bar.chord.root}), part.centre)
    next_root = nearest_pitch(frozenset({bar.next_chord.root}), part.centre)
    chord = bar.chord.triad() if part.role == "bass" else bar.chord
    notes = []
    for event in parse_pattern(pattern):
        pitch = next_root - 1 if event.symbol == "a" else chord.tone(int(event.symbol), root)
        notes.append((event, [pitch]))
    return notes


def _play_drums(genre: Genre, bars: list[Bar], step_s: float, rng: np.random.Generator) -> dict[str, tuple[Note, ...]]:
    if genre.drums is None:
        return {}
    grooves = {section: genre.drums.grooves[int(rng.integers(len(genre.drums.grooves)))] for section in "AB"}
    pieces = dict.fromkeys(piece for groove in (*grooves.values(), genre.drums.fill) for piece in groove)
    feels = {(section, piece): _draw_feel(genre, 0.92, rng) for section in "AB" for piece in pieces}
    strokes: dict[str, list[Note]] = {}
    for bar in bars:
        groove = {**grooves[bar.section], **(genre.drums.fill if bar.is_fill else {})}
        for piece, pattern in groove.items():
            feel = feels[bar.section, piece]
            for event in parse_pattern(pattern):
                start_s = _start_s(bar, event.step, genre, feel, step_s)
                velocity = VELOCITIES[event.symbol] * float(feel.velocity[event.step])
                strokes.setdefault(piece, []).append(Note(start_s, 0.0, 0, velocity))
    return {piece: tuple(notes) for piece, notes in strokes.items()}
