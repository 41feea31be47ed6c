"""Genres without a drum kit."""

from musicgen_ft.synthesis.style import Drums, Genre, Part

FOLK = Genre(
    name="folk",
    noun="folk song",
    tempo_bpm=(92, 118),
    progressions={
        "major": ("I IV I V", "I vi IV V", "I V vi IV", "I IV V I"),
        "minor": ("i VII VI VII", "i VI III VII", "i III VII i"),
    },
    moods={
        "major": ("heartfelt", "rustic", "warm", "hopeful", "homely"),
        "minor": ("wistful", "earthy", "melancholic", "rustic"),
    },
    parts=(
        Part(
            role="lead",
            instruments=("violin", "flute", "banjo"),
            patterns=("x---x-x-x---x-x-", "x-x-x-x-x-------", "x-----x-x---x---"),
            centre=74,
            gain_db=-4,
            pan=0.15,
        ),
        Part(
            role="chords",
            instruments=("acoustic guitar",),
            patterns=("x---x-x-..x-x-x-", "x-..x-x-x-..x-xx", "x-x-x-x-x-x-x-x-"),
            centre=57,
            gain_db=-2,
            pan=-0.2,
            strum_s=0.014,
        ),
        Part(
            role="bass",
            instruments=("upright bass",),
            patterns=("0-------2-------", "0-----0-2---a---"),
            centre=38,
            gain_db=-4,
            reverb=0.05,
        ),
    ),
    drums=Drums(
        kit="hand percussion",
        grooves=(
            {"kick": "x.......x.......", "shaker": "xoxoxoxoxoxoxoxo"},
            {"kick": "x.......x.......", "tambourine": "....x.......x..."},
        ),
        gain_db=-6,
    ),
    looseness_s=0.007,
    room_s=0.8,
)

WALTZ = Genre(
    name="waltz",
    noun="waltz",
    tempo_bpm=(96, 168),
    beats_per_bar=3,
    progressions={
        "major": ("I vi ii7 V7", "I IV V7 I", "I V7 V7 I"),
        "minor": ("i iv V7 i", "i VI iv V7", "i i V7 i"),
    },
    moods={
        "major": ("elegant", "graceful", "romantic", "charming", "festive"),
        "minor": ("nostalgic", "romantic", "bittersweet", "elegant"),
    },
    parts=(
        Part(
            role="lead",
            instruments=("violin", "accordion", "clarinet"),
            patterns=("x-------x---", "x---x---x---", "x-----x-x-x-", "x-x-x-x-x---"),
            centre=76,
            gain_db=-1,
            reverb=0.3,
        ),
        Part(
            role="chords",
            instruments=("strings", "piano", "accordion"),
            patterns=("....x--.x--.",),
            centre=62,
            gain_db=-5,
            reverb=0.3,
        ),
        Part(
            role="bass",
            instruments=("upright bass",),
            patterns=("0---........", "0-------2---"),
            centre=40,
            gain_db=-2,
            reverb=0.2,
        ),
    ),
    looseness_s=0.008,
    room_s=1.8,
)

AMBIENT = Genre(
    name="ambient",
    noun="ambient piece",
    tempo_bpm=(57, 76),
    progressions={
        "major": ("Imaj7 IVmaj7 Imaj7 IVmaj7", "Iadd9 vi7 IVmaj7 Iadd9", "IVmaj7 Imaj7 ii7 vi7"),
        "minor": ("iadd9 VImaj7 iadd9 VImaj7", "i7 VII VImaj7 VImaj7", "iadd9 iv7 VImaj7 VII"),
    },
    moods={
        "major": ("calm", "dreamy", "serene", "floating", "luminous"),
        "minor": ("mysterious", "vast", "melancholic", "ethereal", "cold"),
    },
    parts=(
        Part(
            role="lead",
            instruments=("glass bells", "soft synth", "harp"),
            patterns=("x-----------x---", "....x-------x---", "x-------x-------", "......x---------"),
            centre=76,
            gain_db=-6,
            reverb=0.7,
            echo=0.6,
            probability=0.85,
        ),
        Part(
            role="chords",
            instruments=("warm pad", "choir", "airy pad"),
            patterns=("x---------------",),
            centre=62,
            gain_db=-3,
            reverb=0.6,
        ),
        Part(
            role="bass",
            instruments=("sub bass",),
            patterns=("0---------------",),
            centre=38,
            gain_db=-8,
            reverb=0.1,
        ),
    ),
    looseness_s=0.02,
    room_s=4.5,
)

LULLABY = Genre(
    name="lullaby",
    noun="lullaby",
    tempo_bpm=(66, 84),
    beats_per_bar=3,
    progressions={"major": ("I IV I V", "I V IV I", "I vi IV V7", "I IV V7 I")},
    moods={"major": ("gentle", "tender", "sleepy", "soothing", "innocent", "quiet")},
    parts=(
        Part(
            role="lead",
            instruments=("music box", "glockenspiel"),
            patterns=("x-------x---", "x---x---x---", "x-----x-x---"),
            centre=84,
            gain_db=-2,
            reverb=0.35,
        ),
        Part(
            role="arpeggio",
            instruments=("harp", "music box", "marimba"),
            patterns=("0-1-2-3-2-1-", "0-2-1-2-3-2-", "0---2-1-2-1-"),
            centre=65,
            gain_db=-4,
            pan=-0.2,
            reverb=0.35,
        ),
    ),
    looseness_s=0.012,
    room_s=2.0,
)
