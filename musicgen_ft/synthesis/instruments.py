"""The instruments by the names that captions use, each a voice with its settings."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from musicgen_ft.synthesis.dsp import FloatArray
from musicgen_ft.synthesis.ensembles import driven, pad
from musicgen_ft.synthesis.tones import Cue
from musicgen_ft.synthesis.voices import LowPass, bell, fm, pluck, synth

Voice: TypeAlias = Callable[[Cue], FloatArray]
"""A note to play -> float32 [C, L], C 1 or 2."""

INSTRUMENTS: dict[str, Voice] = {
    # strings that are plucked or struck
    "piano": partial(pluck, slope=1.25, position=0.13, ring_s=1.6, damping=0.035, detune_cents=1.5, knock=0.05),
    "acoustic guitar": partial(pluck, slope=0.95, position=0.18, ring_s=0.9, damping=0.05, knock=0.08),
    "electric guitar": partial(pluck, slope=1.1, position=0.27, ring_s=0.8, damping=0.03, release_s=0.05),
    "banjo": partial(pluck, slope=0.55, position=0.08, ring_s=0.28, damping=0.03, knock=0.12),
    "harp": partial(pluck, slope=1.5, position=0.45, ring_s=1.6, damping=0.06, release_s=0.6),
    "upright bass": partial(pluck, slope=1.35, position=0.3, ring_s=0.45, damping=0.05, release_s=0.08, knock=0.1),
    "bass guitar": partial(pluck, slope=1.05, position=0.22, ring_s=0.8, damping=0.02, release_s=0.05, knock=0.03),
    "dub bass": partial(pluck, slope=2.0, position=0.4, ring_s=0.9, damping=0.1, release_s=0.06),
    "distorted guitar": partial(driven, intervals=(0, 7, 12), gain=5.0),
    "lead guitar": partial(driven, intervals=(0,), gain=9.0, cabinet_hz=5000.0, vibrato_cents=18.0, release_s=0.1),
    # bars and tines
    "music box": partial(bell, modes=((1, 1.0, 0.55), (2.0, 0.18, 0.3), (6.27, 0.22, 0.07)), release_s=0.8),
    "glockenspiel": partial(bell, modes=((1, 1.0, 0.7), (2.76, 0.45, 0.25), (5.4, 0.25, 0.08)), release_s=0.6),
    "vibraphone": partial(bell, modes=((1, 1.0, 1.4), (4.0, 0.2, 0.3), (9.9, 0.06, 0.06)), tremolo=0.45),
    "marimba": partial(bell, modes=((1, 1.0, 0.28), (3.93, 0.3, 0.07), (9.2, 0.1, 0.025)), release_s=0.2),
    "electric piano": partial(fm, ratio=1.0, index=1.3, index_decay_s=0.35, decay_s=1.3, tremolo=0.2),
    "glass bells": partial(fm, ratio=3.5, index=2.0, index_decay_s=0.5, decay_s=1.1, release_s=1.0),
    # winds, bows and reeds
    "flute": partial(
        synth, partials=(1, 0.42, 0.16, 0.06, 0.03), attack_s=0.05, release_s=0.09, vibrato_cents=14.0, breath=0.05
    ),
    "clarinet": partial(
        synth, partials=(1, 0.05, 0.55, 0.06, 0.3, 0.05, 0.2, 0.04, 0.1), attack_s=0.03, release_s=0.07, breath=0.015
    ),
    "muted trumpet": partial(
        synth, partials=(0.45, 0.6, 0.8, 1, 0.9, 0.7, 0.45, 0.3, 0.2, 0.12, 0.08), attack_s=0.025, vibrato_cents=8.0
    ),
    "trombone": partial(
        synth,
        low_pass=LowPass(1300.0, sweep_octaves=-1.6, sweep_s=0.05),
        attack_s=0.04,
        release_s=0.09,
        vibrato_cents=6.0,
    ),
    "violin": partial(
        synth,
        low_pass=LowPass(3200.0),
        attack_s=0.07,
        release_s=0.12,
        spread_cents=5.0,
        vibrato_cents=22.0,
        breath=0.01,
    ),
    "accordion": partial(
        synth,
        partials=(1, 0.7, 0.8, 0.5, 0.45, 0.3, 0.3, 0.2, 0.15, 0.12, 0.1, 0.08),
        attack_s=0.03,
        release_s=0.08,
        spread_cents=16.0,
    ),
    "melodica": partial(
        synth, partials=(1, 0.5, 0.75, 0.35, 0.4, 0.25, 0.2, 0.12, 0.1), attack_s=0.03, vibrato_cents=6.0, breath=0.02
    ),
    "organ": partial(
        synth, partials=(1, 0.8, 0.6, 0.45, 0, 0.3, 0, 0.25), attack_s=0.004, release_s=0.03, spread_cents=4.0
    ),
    # synthesizers
    "acid synth": partial(
        synth, low_pass=LowPass(350.0, sweep_octaves=3.0, sweep_s=0.09, resonance=3.5), decay_s=0.4, sustain=0.4
    ),
    "synth lead": partial(synth, low_pass=LowPass(3500.0), spread_cents=14.0, attack_s=0.01, release_s=0.12),
    "soft synth": partial(synth, partials="triangle", attack_s=0.015, release_s=0.15, vibrato_cents=7.0),
    "synth stabs": partial(
        synth, low_pass=LowPass(900.0, sweep_octaves=2.0, sweep_s=0.08), decay_s=0.18, sustain=0.0, spread_cents=18.0
    ),
    "synth pluck": partial(
        synth, low_pass=LowPass(500.0, sweep_octaves=3.2, sweep_s=0.07), decay_s=0.25, sustain=0.0, spread_cents=8.0
    ),
    "pulse lead": partial(synth, partials="pulse", attack_s=0.002, decay_s=0.3, sustain=0.6, release_s=0.02),
    "square lead": partial(synth, partials="square", attack_s=0.002, decay_s=0.4, sustain=0.5, release_s=0.02),
    "chip arpeggio": partial(synth, partials="square", attack_s=0.001, decay_s=0.09, sustain=0.15, release_s=0.01),
    "synth bass": partial(
        synth, low_pass=LowPass(280.0, sweep_octaves=1.8, sweep_s=0.08, resonance=0.8), decay_s=0.3, release_s=0.03
    ),
    "sub bass": partial(synth, partials=(1, 0.12, 0.04), attack_s=0.01, release_s=0.06),
    "reese bass": partial(synth, low_pass=LowPass(420.0), spread_cents=28.0, attack_s=0.02, release_s=0.05),
    "triangle bass": partial(synth, partials="triangle", attack_s=0.002, release_s=0.01),
    # ensembles
    "warm pad": partial(pad, slope=1.3, cutoff_hz=1200.0, bandwidth_cents=40.0, attack_s=0.4, release_s=0.8),
    "airy pad": partial(pad, slope=0.8, cutoff_hz=5000.0, bandwidth_cents=60.0, attack_s=0.8, release_s=1.2),
    "strings": partial(
        pad, slope=1.0, cutoff_hz=3500.0, bandwidth_cents=28.0, formants=((1100, 0.8), (2600, 0.6)), attack_s=0.12
    ),
    "choir": partial(
        pad,
        slope=1.1,
        cutoff_hz=3000.0,
        bandwidth_cents=32.0,
        formants=((700, 1.5), (1150, 0.9), (2700, 0.7)),
        attack_s=0.3,
        release_s=0.7,
    ),
}
