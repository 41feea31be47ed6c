"""Music theory in numbers: keys, chords written as Roman numerals, and MIDI pitches."""

import math
import re
from dataclasses import dataclass

MODES: dict[str, tuple[int, ...]] = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
"""Semitones above the tonic of the seven degrees of each mode."""

TONICS: dict[str, tuple[str, ...]] = {
    "major": ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"),
    "minor": ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B"),
}
"""Usual spelling of the twelve tonics of each mode."""

_DEGREES = {"i": 0, "ii": 1, "iii": 2, "iv": 3, "v": 4, "vi": 5, "vii": 6}
_EXTENSIONS: dict[str, tuple[int, ...]] = {"": (), "7": (10,), "maj7": (11,), "9": (10, 14), "add9": (14,)}
_NUMERAL = re.compile(r"(b?)([iv]+|[IV]+)(maj7|7|9|add9|)")


@dataclass(frozen=True)
class Chord:
    """A chord, free of octave."""

    root: int
    """Pitch class of the root, 0 (C) to 11."""
    intervals: tuple[int, ...]
    """Semitones of the chord tones above the root, ascending, the root first."""

    @property
    def pitch_classes(self) -> frozenset[int]:
        """The pitch classes that the chord sounds."""
        return frozenset((self.root + interval) % 12 for interval in self.intervals)

    def tone(self, index: int, root_midi: int) -> int:
        """MIDI pitch of the chord tone ``index`` above ``root_midi``; past the last tone it goes on an octave up."""
        octave, position = divmod(index, len(self.intervals))
        return root_midi + self.intervals[position] + 12 * octave

    def triad(self) -> "Chord":
        """The chord without its sevenths and ninths."""
        return Chord(self.root, self.intervals[:3])


@dataclass(frozen=True)
class Key:
    """A tonic and a mode."""

    tonic: int
    """Pitch class of the tonic, 0 (C) to 11."""
    mode: str
    """A name in ``MODES``."""

    @property
    def name(self) -> str:
        """The key as it is written in a caption ("F# minor")."""
        return f"{TONICS[self.mode][self.tonic]} {self.mode}"

    @property
    def pitch_classes(self) -> frozenset[int]:
        """The pitch classes of the scale."""
        return frozenset((self.tonic + semitones) % 12 for semitones in MODES[self.mode])

    def chord(self, numeral: str) -> Chord:
        """The chord of a Roman numeral: lower case is minor, "b" lowers the root ("ii7", "Imaj7", "bVII").

        Raises:
            ValueError: if the numeral is not understood.
        """
        match = _NUMERAL.fullmatch(numeral)
        if match is None or match[2].lower() not in _DEGREES:
            raise ValueError(f"chord {numeral!r} is not a Roman numeral with one of the endings {list(_EXTENSIONS)}")
        flat, degree, extension = match.groups()
        root = self.tonic + MODES[self.mode][_DEGREES[degree.lower()]] - len(flat)
        third = 3 if degree.islower() else 4
        return Chord(root % 12, (0, third, 7, *_EXTENSIONS[extension]))

    def scale_over(self, chord: Chord) -> frozenset[int]:
        """Pitch classes that sound well over a chord: the scale, giving way where the chord borrows a note.

        Over V in minor, for instance, the raised seventh keeps out its neighbours, the natural seventh and the tonic.
        """
        borrowed = chord.pitch_classes - self.pitch_classes
        clashes = {(pitch + step) % 12 for pitch in borrowed for step in (-1, 1)} - chord.pitch_classes
        return (self.pitch_classes - clashes) | chord.pitch_classes


def frequency_hz(midi: float) -> float:
    """Frequency of a MIDI pitch in equal temperament, A4 (69) at 440 Hz.

    >>> frequency_hz(57)
    220.0
    """
    return 440.0 * math.pow(2.0, (midi - 69) / 12)


def nearest_pitch(pitch_classes: frozenset[int], midi: float) -> int:
    """The MIDI pitch of one of ``pitch_classes`` that lies nearest to ``midi``, the lower one of two.

    >>> nearest_pitch(frozenset({0, 7}), 61)
    60
    """
    return min(
        (round(midi) + offset for offset in range(-11, 12) if (round(midi) + offset) % 12 in pitch_classes),
        key=lambda pitch: (abs(pitch - midi), pitch),
    )


def step_in_scale(pitch_classes: frozenset[int], midi: int, steps: int) -> int:
    """The pitch ``steps`` scale steps above ``midi`` (below, if negative)."""
    direction = 1 if steps > 0 else -1
    for _ in range(abs(steps)):
        midi += direction
        while midi % 12 not in pitch_classes:
            midi += direction
    return midi
