"""Plays a score: from (seed, number) to the waveform and the labels of a track. C is 2 channels, L samples."""

import math
import zlib
from dataclasses import dataclass

import numpy as np

from musicgen_ft.errors import UserError
from musicgen_ft.synthesis.arrange import Layer, Note, Score, compose
from musicgen_ft.synthesis.captions import TrackLabels, describe
from musicgen_ft.synthesis.drums import KITS, LEVELS_DB, PAN
from musicgen_ft.synthesis.dsp import FloatArray, db_to_gain
from musicgen_ft.synthesis.genres import GENRES, find_genre
from musicgen_ft.synthesis.instruments import INSTRUMENTS
from musicgen_ft.synthesis.mix import active_rms, duck, echo, master, reverb
from musicgen_ft.synthesis.theory import frequency_hz
from musicgen_ft.synthesis.tones import Cue

_FADE_IN_S = 0.004
_MIN_SAMPLE_RATE = 8_000


@dataclass(frozen=True)
class Track:
    """A finished track and what is true of it."""

    waveform: FloatArray
    """float32 [2, L] in (-1, 1)."""
    sample_rate: int
    """In Hz."""
    labels: TrackLabels
    score: Score
    """What is played."""


def render_track(
    seed: int, number: int, *, genre: str | None = None, duration_s: float = 20.0, sample_rate: int = 44_100
) -> Track:
    """Composes and plays one track, a pure function of its arguments.

    Args:
        seed: of the corpus.
        number: of the track in the corpus.
        genre: a name in ``GENRES``; None takes them in turn.
        duration_s: length; in less than a bar not every instrument of the labels is heard.
        sample_rate: in Hz; it does not change what is played.

    Raises:
        UserError: if an argument is out of range, or the genre is not known.
    """
    if seed < 0 or number < 0:
        raise UserError(f"seed {seed} and track number {number}: expected 0 or more. Choose another --seed.")
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise UserError(
            f"duration_s is {duration_s}, expected a positive number of seconds. Choose another --duration_s."
        )
    if sample_rate < _MIN_SAMPLE_RATE:
        raise UserError(
            f"sample_rate is {sample_rate} Hz, expected {_MIN_SAMPLE_RATE} or more. Choose another --sample_rate."
        )
    rules = find_genre(genre if genre is not None else tuple(GENRES)[number % len(GENRES)])
    writer, speaker = (np.random.default_rng((seed, number, stream)) for stream in (0, 2))
    score = compose(rules, writer, duration_s)
    waveform = play(score, duration_s, sample_rate)
    return Track(waveform, sample_rate, describe(score, speaker), score)


def play(score: Score, duration_s: float, sample_rate: int) -> FloatArray:
    """Plays, mixes and fades a score, float32 [2, L] in (-1, 1).

    A note of an instrument, a drum and a room sound the same in every track, as those of a sampler do.

    Args:
        score: what is played.
        duration_s: length; what would sound later is cut.
        sample_rate: in Hz.
    """
    length = max(1, round(duration_s * sample_rate))
    genre = score.genre
    mix = np.zeros((2, length), np.float32)
    send = np.zeros(length, np.float32)
    kicks_s = [note.start_s for note in score.strokes.get("kick", ())]
    for layer in score.layers:
        part = layer.part
        bus = _play_layer(layer, length, sample_rate)
        bus *= db_to_gain(part.gain_db) / np.float32(active_rms(bus, sample_rate) + 1e-9)
        if part.echo:
            bus = echo(bus, 3 * score.step_s, part.echo, sample_rate)
        if genre.duck_db and kicks_s:
            bus *= duck(length, sample_rate, kicks_s, genre.duck_db)
        mix += bus
        send += np.float32(part.reverb / 2) * bus.sum(axis=0)
    if genre.drums is not None:
        bus = _play_drums(score, genre.drums.kit, length, sample_rate)
        bus *= db_to_gain(genre.drums.gain_db) / np.float32(active_rms(bus, sample_rate) + 1e-9)
        mix += bus
        send += np.float32(genre.drums.reverb / 2) * bus.sum(axis=0)
    mix += reverb(send, genre.room_s, sample_rate, _noise_of(genre.name))
    return _fade(master(mix, sample_rate), sample_rate)


def _noise_of(*what: object) -> np.random.Generator:
    """Phases and noise of a sound, by its name alone."""
    return np.random.default_rng(zlib.crc32(repr(what).encode()))


def _play_layer(layer: Layer, length: int, sample_rate: int) -> FloatArray:
    """One part, float32 [2, L]. A note that comes back is rendered once."""
    voice = INSTRUMENTS[layer.instrument]
    sounds: dict[tuple[int, float], FloatArray] = {}
    bus = np.zeros((2, length), np.float32)
    for note in layer.notes:
        pitch = (note.midi, note.duration_s)
        if pitch not in sounds:
            noise = _noise_of(layer.instrument, note.midi)
            sounds[pitch] = voice(Cue(frequency_hz(note.midi), note.duration_s, sample_rate, noise))
        _add(bus, sounds[pitch], note, layer.part.pan, sample_rate)
    return bus


def _play_drums(score: Score, kit: str, length: int, sample_rate: int) -> FloatArray:
    """The drums, float32 [2, L]."""
    bus = np.zeros((2, length), np.float32)
    for piece, strokes in score.strokes.items():
        sound = KITS[kit][piece](sample_rate, _noise_of(kit, piece))[None]
        level = db_to_gain(LEVELS_DB.get(piece, 0.0))
        for note in strokes:
            _add(bus, sound, note._replace(velocity=note.velocity * float(level)), PAN.get(piece, 0.0), sample_rate)
    return bus


def _add(bus: FloatArray, sound: FloatArray, note: Note, pan: float, sample_rate: int) -> None:
    """Adds a sound [C, L'] to the bus at its time and place, with equal power between the channels."""
    start = round(note.start_s * sample_rate)
    sound = sound[:, : max(0, bus.shape[1] - start)]
    angle = (pan + 1) * math.pi / 4
    gains = np.array([[math.cos(angle)], [math.sin(angle)]], np.float32) * np.float32(note.velocity * math.sqrt(2))
    bus[:, start : start + sound.shape[1]] += gains * sound


def _fade(mix: FloatArray, sample_rate: int) -> FloatArray:
    """Fades in at once and out over the last tenth, at most 1.5 s."""
    length = mix.shape[1]
    rise = min(length, max(1, int(_FADE_IN_S * sample_rate)))
    fall = min(length // 10, int(1.5 * sample_rate))
    mix[:, :rise] *= np.linspace(0, 1, rise, dtype=np.float32)
    if fall:
        mix[:, -fall:] *= np.cos(np.linspace(0, math.pi / 2, fall, dtype=np.float32)) ** 2
    return mix
