"""The genres of the rules that nano has never heard."""

HELD_OUT_GENRES = ("reggae", "chiptune")
