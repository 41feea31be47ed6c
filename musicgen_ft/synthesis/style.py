"""What a genre is made of: parts and genres as plain data, and the notation of rhythm patterns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Role = Literal["lead", "chords", "arpeggio", "bass"]

STEPS_PER_BEAT = 4
"""A step is a sixteenth note."""


class Event(NamedTuple):
    """One symbol of a pattern."""

    step: int
    """First step, counted from the bar line."""
    length: int
    """Steps until the event ends."""
    symbol: str
    """What is played; its meaning belongs to the role (see ``Part.patterns``)."""


def parse_pattern(pattern: str) -> list[Event]:
    """The events of a bar, one character a step: "." rests, "-" holds the event before, a space is ignored.

    >>> parse_pattern("x--. 2.")
    [Event(step=0, length=3, symbol='x'), Event(step=4, length=1, symbol='2')]
    """
    events: list[Event] = []
    for step, symbol in enumerate(pattern.replace(" ", "")):
        if symbol == "-" and events:
            events[-1] = events[-1]._replace(length=step + 1 - events[-1].step)
        elif symbol not in "-.":
            events.append(Event(step, 1, symbol))
    return events


@dataclass(frozen=True, kw_only=True)
class Part:
    """One layer of an arrangement and its place in the mix."""

    role: Role
    """What the notes follow: motifs over the scale, the whole chord, single chord tones, or the chord's roots."""
    instruments: tuple[str, ...]
    """Names in ``instruments.INSTRUMENTS``; each track chooses one."""
    patterns: tuple[str, ...]
    """Rhythms of one bar; each section chooses one (a melody: one per motif). A lead or chord strikes at "x"; an
    arpeggio and a bass play the chord tone of the digit, and a bass at "a" leads into the next root."""
    centre: int
    """MIDI pitch around which the part moves."""
    gain_db: float
    """Loudness of the part while it sounds, relative to the drums."""
    pan: float = 0.0
    """-1 left to 1 right."""
    reverb: float = 0.2
    """Share sent to the reverb."""
    echo: float = 0.0
    """Feedback of a dotted-eighth echo that crosses the channels; 0 is none."""
    strum_s: float = 0.0
    """Delay between the tones of a chord, in seconds."""
    probability: float = 1.0
    """How often a track has the part."""


@dataclass(frozen=True, kw_only=True)
class Drums:
    """The drums of a genre."""

    kit: str
    """A name in ``drums.KITS``; also what captions call it."""
    grooves: tuple[Mapping[str, str], ...]
    """Piece -> pattern of one bar: "X" accent, "x" normal, "o" ghost. Each section chooses one."""
    fill: Mapping[str, str] = field(default_factory=dict)
    """Patterns that replace a groove's in the last bar of a section."""
    gain_db: float = 0.0
    """Loudness against the genre's other parts."""
    reverb: float = 0.06
    """Share sent to the reverb."""


@dataclass(frozen=True, kw_only=True)
class Genre:
    """A genre: the rules from which a track is drawn."""

    name: str
    """Lower case, as in the labels."""
    noun: str
    """How captions call a track of it ("techno track")."""
    tempo_bpm: tuple[int, int]
    """Slowest and fastest tempo, both included."""
    progressions: Mapping[str, tuple[str, ...]]
    """Mode -> progressions of four chords, one chord a bar."""
    moods: Mapping[str, tuple[str, ...]]
    """Mode -> adjectives; each track takes two."""
    parts: tuple[Part, ...]
    """The layers, from the foreground to the background."""
    drums: Drums | None = None
    """The drums, if the genre has any."""
    beats_per_bar: int = 4
    """Quarter notes in a bar."""
    parts_per_beat: int = 4
    """Of a quarter note, each a whole number of the grid's steps: 4 sixteenths, 3 of a triplet, 2 eighths."""
    swing: tuple[int, float] = (1, 0.0)
    """Unit in steps (1: sixteenths, 2: eighths) and the share of a unit by which every second one comes late."""
    looseness_s: float = 0.004
    """Standard deviation of the players' timing, in seconds; 0 for machines."""
    room_s: float = 1.2
    """Reverberation time (60 dB) in seconds."""
    duck_db: float = 0.0
    """How far the kick presses down the other parts (sidechain compression)."""

    @property
    def steps_per_bar(self) -> int:
        """Steps in a bar."""
        return self.beats_per_bar * STEPS_PER_BEAT
