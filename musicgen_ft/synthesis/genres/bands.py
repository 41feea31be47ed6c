"""Genres of bands with a drummer."""

from musicgen_ft.synthesis.style import Drums, Genre, Part

_BACKBEAT = "....X.......X..."

HIP_HOP = Genre(
    name="hip hop",
    noun="hip hop beat",
    tempo_bpm=(80, 94),
    progressions={
        "minor": ("i9 iv9 i9 v7", "VImaj7 v7 i7 i7", "i7 VImaj7 iv7 v7"),
        "major": ("Imaj7 iii7 vi7 IVmaj7", "ii9 V7 Imaj7 vi7"),
    },
    moods={
        "minor": ("laid-back", "dusty", "moody", "late-night", "smooth"),
        "major": ("laid-back", "dusty", "mellow", "easygoing", "smooth"),
    },
    parts=(
        Part(
            role="lead",
            instruments=("vibraphone", "electric guitar", "muted trumpet"),
            patterns=("..x-x--x-.......", "x--x--x-....x-x-", "....x-x-x---...."),
            centre=70,
            gain_db=-8,
            echo=0.2,
            probability=0.8,
        ),
        Part(
            role="chords",
            instruments=("electric piano", "piano"),
            patterns=("x-----..x-----..", "x---------x-----", "x------x--------"),
            centre=60,
            gain_db=-6,
            strum_s=0.012,
        ),
        Part(
            role="bass",
            instruments=("upright bass", "sub bass"),
            patterns=("0-----.0--2-....", "0--..0....0-2-3-", "0---...0..0-..a-"),
            centre=36,
            gain_db=-3,
            reverb=0.0,
        ),
    ),
    drums=Drums(
        kit="boom bap drums",
        grooves=(
            {"kick": "X......x..X.....", "snare": _BACKBEAT, "hat": "x.x.x.xox.x.x.x."},
            {"kick": "X.x....x..x.....", "snare": "....X..o....X...", "hat": "x.xox.x.x.xox.x."},
        ),
        fill={"snare": "....X..o.o..X.xx", "open hat": "..............x."},
        gain_db=1,
    ),
    swing=(1, 0.28),
    looseness_s=0.006,
    room_s=0.7,
)

REGGAE = Genre(
    name="reggae",
    noun="reggae tune",
    tempo_bpm=(68, 80),
    progressions={
        "major": ("I I IV V", "I V IV IV", "I IV I V", "I vi IV V"),
        "minor": ("i i iv iv", "i VII i VII", "i VII VI v"),
    },
    moods={
        "major": ("relaxed", "sunny", "carefree", "warm", "good-natured"),
        "minor": ("smoky", "relaxed", "deep", "brooding"),
    },
    parts=(
        Part(
            role="lead",
            instruments=("melodica", "trombone", "flute"),
            patterns=("x-x-x---x-x-x---", "..x-x-x-x-----..", "x---x-x-x-x-----"),
            centre=69,
            gain_db=-5,
            echo=0.3,
        ),
        Part(
            role="chords",
            instruments=("electric guitar", "organ", "piano"),
            patterns=("..x...x...x...x.", "..xx..x...xx..x."),
            centre=64,
            gain_db=-7,
            pan=0.25,
        ),
        Part(
            role="bass",
            instruments=("dub bass",),
            patterns=("0--0-.2-3-2-....", "..0-2-3-..2-0---", "0---..0-2-2-3-2-"),
            centre=36,
            gain_db=-1,
            reverb=0.0,
        ),
    ),
    drums=Drums(
        kit="acoustic drum kit",
        grooves=(
            {"kick": "........X.......", "rim": "........X.......", "hat": "x.o.x.o.x.o.x.oo"},
            {"kick": "........X.......", "snare": "........X.......", "hat": "o.x.o.x.o.x.o.x."},
        ),
        fill={"snare": "........X..x.xx.", "tom": "............x.xx"},
        gain_db=-2,
        reverb=0.15,
    ),
    swing=(1, 0.12),
    looseness_s=0.005,
    room_s=1.1,
)

ROCK = Genre(
    name="rock",
    noun="rock song",
    tempo_bpm=(107, 150),
    progressions={
        "minor": ("i VI III VII", "i VII VI VII", "i iv VI VII"),
        "major": ("I bVII IV I", "I V vi IV", "I IV V IV"),
    },
    moods={
        "minor": ("aggressive", "gritty", "heavy", "angry", "defiant"),
        "major": ("energetic", "raw", "rousing", "loud", "confident"),
    },
    parts=(
        Part(
            role="lead",
            instruments=("lead guitar",),
            patterns=("x-x-x---x-x-x---", "x---x-x-x-------", "x--x--x-x---x---"),
            centre=71,
            gain_db=-6,
            echo=0.2,
            probability=0.8,
        ),
        Part(
            role="bass",
            instruments=("distorted guitar",),
            patterns=("0-0-0-0-0-0-0-0-", "0---0-0-0---0-0-", "0--0--0-0--0--0-"),
            centre=44,
            gain_db=-3,
        ),
        Part(
            role="bass",
            instruments=("bass guitar",),
            patterns=("0-0-0-0-0-0-0-0-", "0-0-0-0-0-0-0-2-"),
            centre=33,
            gain_db=-5,
            reverb=0.0,
        ),
    ),
    drums=Drums(
        kit="acoustic drum kit",
        grooves=(
            {"kick": "X.....x.X.......", "snare": _BACKBEAT, "hat": "X.x.X.x.X.x.X.x."},
            {"kick": "X.x.....X.x.....", "snare": _BACKBEAT, "crash": "x...x...x...x..."},
        ),
        fill={"kick": "X...X...X...X...", "snare": "....X...xxxx....", "tom": "............xxxx"},
        gain_db=1,
        reverb=0.07,
    ),
    room_s=0.9,
)

SWING_JAZZ = Genre(
    name="swing jazz",
    noun="swing jazz tune",
    tempo_bpm=(140, 184),
    parts_per_beat=3,
    progressions={
        "major": ("ii7 V7 Imaj7 vi7", "Imaj7 vi7 ii7 V7", "Imaj7 IVmaj7 ii7 V7"),
        "minor": ("i7 iv7 V7 i7", "i7 VImaj7 iv7 V7"),
    },
    moods={
        "major": ("playful", "lively", "sophisticated", "witty", "cheerful"),
        "minor": ("cool", "smoky", "sophisticated", "sly"),
    },
    parts=(
        Part(
            role="lead",
            instruments=("clarinet", "muted trumpet", "vibraphone"),
            patterns=("x-x-x-x-x---x-x-", "..x-x-x-x-x-x---", "x---..x-x-x-..x-", "x-x-x---..x-x---"),
            centre=72,
            gain_db=-4,
            reverb=0.25,
        ),
        Part(
            role="chords",
            instruments=("piano", "electric guitar"),
            patterns=("x-....x-........", "..x-......x-....", "x-..x-......x-.."),
            centre=61,
            gain_db=-9,
            pan=-0.3,
        ),
        Part(
            role="bass",
            instruments=("upright bass",),
            patterns=("0---1---2---a---", "0---2---3---a---", "0---2---1---a---"),
            centre=38,
            gain_db=-3,
            reverb=0.08,
        ),
    ),
    drums=Drums(
        kit="brushed drum kit",
        grooves=(
            {"ride": "X...x.x.X...x.x.", "hat": "....x.......x...", "kick": "o...o...o...o..."},
            {"ride": "X...x...X...x.x.", "hat": "....x.......x...", "snare": "....x...o...x..."},
        ),
        fill={"snare": "....x...x.x.x.x."},
        gain_db=-11,
        reverb=0.12,
    ),
    swing=(2, 0.32),
    looseness_s=0.008,
    room_s=1.0,
)
