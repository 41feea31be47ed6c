"""What is said of a track: labels under audiocraft's names, and a sentence that is true of it."""

from dataclasses import dataclass

import numpy as np

from musicgen_ft.synthesis.arrange import Score

ARTIST = "musicgen-ft"

_SENTENCES = (
    "{A_mood1}, {mood2} {noun} in {key} at {bpm} BPM, with {instruments}.",
    "{A_mood1} {noun} at {bpm} bpm in the key of {key}. {Instruments} play together; the mood is {mood2}.",
    "{Noun} in {key}, {bpm} BPM, {mood1} and {mood2}, played on {instruments}.",
    "{Instruments} in {a_mood1} and {mood2} {noun}. {Pace} tempo of {bpm} BPM, key of {key}.",
    "{Pace}, {mood1} {noun} with {instruments}, {bpm} bpm, {key}. It feels {mood2}.",
    "This {noun} in {key} sounds {mood1} and {mood2}: {instruments} at {bpm} BPM.",
)

_TITLES = (
    ("Amber", "Paper", "Northern", "Hidden", "Slow", "Copper", "Second", "Open", "Velvet", "Distant", "Blue", "Wooden"),
    ("Harbour", "Lantern", "Orbit", "Garden", "Signal", "Meadow", "Engine", "River", "Window", "Staircase", "Tide"),
)


@dataclass(frozen=True, kw_only=True)
class TrackLabels:
    """The labels of a track, under audiocraft's names and in its types."""

    description: str
    """One or two sentences, given to T5."""
    title: str
    artist: str
    genre: str
    key: str
    """Tonic and mode ("F# minor")."""
    bpm: int
    """Quarter notes in a minute."""
    moods: tuple[str, ...]
    instrument: str
    """The instruments, from the foreground to the drums, separated by commas."""
    keywords: tuple[str, ...]
    """Metre, pace and mode."""


def describe(score: Score, rng: np.random.Generator) -> TrackLabels:
    """Labels that are true of a score; ``rng`` chooses the words."""
    adjective, noun = (words[int(rng.integers(len(words)))] for words in _TITLES)
    return TrackLabels(
        description=_sentence(score, rng),
        title=f"{adjective} {noun}",
        artist=ARTIST,
        genre=score.genre.name,
        key=score.key.name,
        bpm=score.bpm,
        moods=score.moods,
        instrument=", ".join(score.instruments),
        keywords=(f"{score.genre.beats_per_bar}/4", pace(score.bpm), score.key.mode),
    )


def pace(bpm: int) -> str:
    """A tempo in a word."""
    return "slow" if bpm < 85 else "moderate" if bpm < 116 else "fast"


def _sentence(score: Score, rng: np.random.Generator) -> str:
    instruments = _list(list(score.instruments))
    mood1, mood2 = score.moods
    article = "an" if mood1[0] in "aeiou" else "a"
    return _SENTENCES[int(rng.integers(len(_SENTENCES)))].format(
        A_mood1=f"{article.capitalize()} {mood1}",
        a_mood1=f"{article} {mood1}",
        mood1=mood1,
        mood2=mood2,
        noun=score.genre.noun,
        Noun=_capital(score.genre.noun),
        instruments=instruments,
        Instruments=_capital(instruments),
        Pace=_capital(pace(score.bpm)),
        bpm=score.bpm,
        key=score.key.name,
    )


def _list(words: list[str]) -> str:
    """The words as English lists them: "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
