"""Keys, chords and pitches."""

import pytest

from musicgen_ft.synthesis.theory import Key, nearest_pitch, step_in_scale

C, D, E, F, G, A, B = 0, 2, 4, 5, 7, 9, 11
A_MINOR = Key(A, "minor")


@pytest.mark.parametrize(
    ("key", "numeral", "pitch_classes"),
    [
        (Key(C, "major"), "I", {C, E, G}),
        (Key(C, "major"), "ii7", {D, F, A, C}),
        (Key(C, "major"), "IVmaj7", {F, A, C, E}),
        (Key(C, "major"), "bVII", {10, D, F}),
        (A_MINOR, "i", {A, C, E}),
        (A_MINOR, "VI", {F, A, C}),
        (A_MINOR, "V7", {E, 8, B, D}),
    ],
)
def test_a_roman_numeral_gives_its_chord(key: Key, numeral: str, pitch_classes: set[int]) -> None:
    assert key.chord(numeral).pitch_classes == pitch_classes


@pytest.mark.parametrize("numeral", ["", "X", "iiv", "I13", "Iv"])
def test_a_numeral_that_is_none_is_refused(numeral: str) -> None:
    with pytest.raises(ValueError, match="is not a Roman numeral"):
        A_MINOR.chord(numeral)


def test_a_borrowed_note_keeps_its_neighbours_out_of_the_scale() -> None:
    assert A_MINOR.scale_over(A_MINOR.chord("V")) == {B, C, D, E, F, 8}


def test_a_chord_of_the_key_leaves_its_scale_as_it_is() -> None:
    assert A_MINOR.scale_over(A_MINOR.chord("iv")) == {A, B, C, D, E, F, G}


def test_keys_are_spelled_as_musicians_spell_them() -> None:
    assert [Key(1, "major").name, Key(1, "minor").name, Key(10, "minor").name] == ["Db major", "C# minor", "Bb minor"]


def test_steps_in_a_scale_go_up_and_down() -> None:
    c_major = Key(C, "major").pitch_classes
    assert [step_in_scale(c_major, 60, steps) for steps in (-1, 0, 2, 7)] == [59, 60, 64, 72]


def test_the_nearest_pitch_is_never_more_than_half_an_octave_away() -> None:
    for pitch_class in range(12):
        pitch = nearest_pitch(frozenset({pitch_class}), 60)
        assert pitch % 12 == pitch_class
        assert abs(pitch - 60) <= 6
