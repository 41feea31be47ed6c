"""Genres of machines."""

from musicgen_ft.synthesis.style import Drums, Genre, Part

_BACKBEAT = "....X.......X..."
_FOUR = "X...X...X...X..."
_OFFBEATS = "..x...x...x...x."

TECHNO = Genre(
    name="techno",
    noun="techno track",
    tempo_bpm=(125, 150),
    progressions={"minor": ("i i i i", "i i VI VI", "i i i iv", "i i VII i")},
    moods={"minor": ("dark", "hypnotic", "driving", "relentless", "industrial", "mechanical")},
    parts=(
        Part(
            role="arpeggio",
            instruments=("acid synth", "synth pluck"),
            patterns=("0.30.20.0.3.02.0", "00.03.0.00.02.3.", "0.0.3.0.2.0.03.0"),
            centre=50,
            gain_db=-7,
            echo=0.25,
        ),
        Part(
            role="chords",
            instruments=("synth stabs", "choir"),
            patterns=("...x..x.........", "..x.......x..x..", "......x..x......"),
            centre=62,
            gain_db=-10,
            reverb=0.4,
            echo=0.5,
            probability=0.7,
        ),
        Part(
            role="bass",
            instruments=("synth bass", "sub bass"),
            patterns=("..0...0...0...0.", ".000.000.000.000", "..00..00..00..00"),
            centre=35,
            gain_db=-4,
            reverb=0.0,
        ),
    ),
    drums=Drums(
        kit="drum machine",
        grooves=(
            {"kick": _FOUR, "clap": _BACKBEAT, "hat": "oooooooooooooooo", "open hat": _OFFBEATS},
            {"kick": _FOUR, "rim": "...x..x....x..x.", "hat": "x.oox.oox.oox.oo", "open hat": _OFFBEATS},
        ),
        fill={"kick": "X...X...X.......", "snare": "........o.o.xxxX"},
        gain_db=2,
    ),
    looseness_s=0.0,
    room_s=1.4,
    duck_db=7,
)

HOUSE = Genre(
    name="house",
    noun="house track",
    tempo_bpm=(118, 126),
    progressions={
        "minor": ("i7 iv7 VII7 IIImaj7", "i9 VImaj7 iv7 v7", "VImaj7 VII i7 i7"),
        "major": ("Imaj7 vi7 ii7 V7", "IVmaj7 iii7 vi7 vi7", "ii7 iii7 IVmaj7 V7"),
    },
    moods={
        "minor": ("groovy", "deep", "soulful", "warm", "sultry"),
        "major": ("uplifting", "groovy", "sunny", "warm", "joyful"),
    },
    parts=(
        Part(
            role="lead",
            instruments=("soft synth", "flute", "vibraphone"),
            patterns=("x--x--x---..x-x-", "..x-x-x---x---..", "x---..x-x--x----"),
            centre=74,
            gain_db=-8,
            echo=0.35,
            probability=0.75,
        ),
        Part(
            role="chords",
            instruments=("piano", "organ", "electric piano"),
            patterns=("x-.x--.x-.x-.x-.", "..x-..x-..x-..x-", "x--x--x-..x-..x-"),
            centre=63,
            gain_db=-5,
            reverb=0.25,
        ),
        Part(
            role="bass",
            instruments=("synth bass", "bass guitar"),
            patterns=("0-.0..3-..0-..2-", "..0-..0-..0-..3-", "0..0..0-..2-3-.."),
            centre=38,
            gain_db=-4,
            reverb=0.0,
        ),
    ),
    drums=Drums(
        kit="drum machine",
        grooves=(
            {"kick": _FOUR, "clap": _BACKBEAT, "open hat": "..X...X...X...X.", "shaker": "xoxoxoxoxoxoxoxo"},
            {"kick": _FOUR, "clap": _BACKBEAT, "open hat": "..X...X...X...X.", "hat": "x..ox..ox..ox.oo"},
        ),
        fill={"clap": "....X..x..x.X.xx"},
    ),
    swing=(1, 0.14),
    looseness_s=0.001,
    room_s=1.3,
    duck_db=5,
)

DRUM_AND_BASS = Genre(
    name="drum and bass",
    noun="drum and bass track",
    tempo_bpm=(162, 178),
    parts_per_beat=2,
    progressions={"minor": ("i i VI VII", "i VI iv v", "i i iv VI", "VI VII i i")},
    moods={"minor": ("energetic", "intense", "futuristic", "urgent", "restless", "nocturnal")},
    parts=(
        Part(
            role="lead",
            instruments=("glass bells", "synth lead"),
            patterns=("x-----x-----x---", "x---x---x-------", "....x---x---x---"),
            centre=76,
            gain_db=-8,
            reverb=0.4,
            echo=0.45,
        ),
        Part(
            role="chords",
            instruments=("airy pad", "strings"),
            patterns=("x---------------",),
            centre=65,
            gain_db=-9,
            reverb=0.4,
        ),
        Part(
            role="bass",
            instruments=("reese bass",),
            patterns=("0-----0---2-----", "0---------0--30-", "0--0--0---..0-3-"),
            centre=33,
            gain_db=-2,
            reverb=0.0,
        ),
    ),
    drums=Drums(
        kit="breakbeat drums",
        grooves=(
            {"kick": "X.........X.....", "snare": "....X..o.o..X..o", "hat": "x.x.x.x.x.x.x.x."},
            {"kick": "X.x.......x.....", "snare": "....X..o.o..X.o.", "ride": "x.x.x.x.x.x.x.x."},
        ),
        fill={"kick": "X.x.......x.....", "snare": "....X..x.xx.X.xx"},
        gain_db=2,
    ),
    looseness_s=0.0,
    room_s=1.8,
    duck_db=3,
)

CHIPTUNE = Genre(
    name="chiptune",
    noun="chiptune",
    tempo_bpm=(125, 166),
    progressions={
        "major": ("I V vi IV", "I IV V V", "IV V iii vi"),
        "minor": ("i VI VII i", "i VII VI V", "VI VII i i"),
    },
    moods={
        "major": ("playful", "cheerful", "bouncy", "retro", "quirky"),
        "minor": ("adventurous", "retro", "tense", "heroic"),
    },
    parts=(
        Part(
            role="lead",
            instruments=("pulse lead", "square lead"),
            patterns=("x-x-x-x-x-x-x---", "x--x--x-x--x--x-", "x-xxx-x-x---x-x-", "x---x-x-x-x-x---"),
            centre=78,
            gain_db=-2,
            reverb=0.0,
        ),
        Part(
            role="arpeggio",
            instruments=("chip arpeggio",),
            patterns=("0123012301230123", "0121012101210121", "0232023202320232"),
            centre=69,
            gain_db=-7,
            pan=0.35,
            reverb=0.0,
        ),
        Part(
            role="bass",
            instruments=("triangle bass",),
            patterns=("0-3-0-3-0-3-0-3-", "0-0-3-0-0-0-3-2-", "0-..0-2-0-..0-3-"),
            centre=43,
            gain_db=-1,
            reverb=0.0,
        ),
    ),
    drums=Drums(
        kit="8-bit drums",
        grooves=(
            {"kick": "X.....x.X.......", "snare": _BACKBEAT, "hat": "x.x.x.x.x.x.x.x."},
            {"kick": _FOUR, "snare": _BACKBEAT, "hat": _OFFBEATS},
        ),
        fill={"snare": "....X...x.x.xxxx"},
        gain_db=-2,
        reverb=0.0,
    ),
    looseness_s=0.0,
    room_s=0.3,
)
