from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from musicgen_ft.corpus.quality import Quality
from musicgen_ft.corpus.verdicts import Rules, Verdict, drop, judge

MakeQuality = Callable[..., Quality]

RULES = Rules(
    min_duration_s=1.0,
    trim_silence=True,
    trim_fades=False,
    max_silent_share=0.5,
    min_loudness_lufs=-50.0,
    max_clipped_share=0.05,
    max_dc_offset=0.1,
    min_bandwidth_khz=8.0,
)


def test_a_good_track_is_kept_without_a_word(make_quality: MakeQuality) -> None:
    assert judge(make_quality(), RULES, channels=2) == Verdict(action="keep")


def test_a_track_that_cannot_be_used_is_dropped_with_its_reason(make_quality: MakeQuality) -> None:
    assert drop("no samples") == Verdict(action="drop", reasons=("no samples",))
    assert drop("no samples").duration_s(make_quality()) == 0


# ---- dropped ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "outside", "reason"),
    [
        ({"duration_s": 1.0}, {"duration_s": 0.99}, "0.99 s long, expected at least 1 s"),
        ({"silent_share": 0.5}, {"silent_share": 0.52}, "silent for 52% of its length, expected at most 50%"),
        ({"loudness_lufs": -50.0}, {"loudness_lufs": -50.1}, "loudness -50.1 LUFS, expected at least -50"),
        ({"clipped_share": 0.05}, {"clipped_share": 0.051}, "5.1% of its samples clipped, expected at most 5.0%"),
        ({"dc_offset": 0.1}, {"dc_offset": 0.101}, "DC offset 0.101, expected at most 0.1"),
        ({"dc_offset": -0.1}, {"dc_offset": -0.101}, "DC offset -0.101, expected at most 0.1"),
        ({"bandwidth_khz": 8.0}, {"bandwidth_khz": 7.9}, "bandwidth 7.9 kHz, expected at least 8"),
    ],
)
def test_what_is_beyond_a_limit_is_dropped(
    make_quality: MakeQuality, inside: dict[str, Any], outside: dict[str, Any], reason: str
) -> None:
    length = {"duration_s": 100.0}

    assert judge(make_quality(**{**length, **inside}), RULES).action == "keep"
    verdict = judge(make_quality(**{**length, **outside}), RULES)
    assert (verdict.action, verdict.reasons, verdict.doubts) == ("drop", (reason,), ())


def test_every_limit_that_a_track_is_beyond_is_told(make_quality: MakeQuality) -> None:
    verdict = judge(make_quality(loudness_lufs=-61.0, clipped_share=0.5, dc_offset=0.3), RULES)

    assert [reason.split(",")[0] for reason in verdict.reasons] == [
        "loudness -61.0 LUFS",
        "50.0% of its samples clipped",
        "DC offset 0.300",
    ]


def test_the_limits_are_the_users(make_quality: MakeQuality) -> None:
    quality = make_quality(clipped_share=0.5, dc_offset=0.3, loudness_lufs=-61.0, duration_s=0.5, silent_share=1.0)
    lenient = Rules(
        min_duration_s=0.0, max_silent_share=1.0, min_loudness_lufs=-99.0, max_clipped_share=1.0, max_dc_offset=1.0
    )

    assert judge(quality, lenient).action == "keep"


def test_a_track_too_short_for_a_loudness_is_not_judged_by_it(make_quality: MakeQuality) -> None:
    assert judge(make_quality(loudness_lufs=None), RULES).action == "keep"


def test_silence_from_end_to_end_is_dropped_not_trimmed_away(make_quality: MakeQuality) -> None:
    silence = make_quality(
        duration_s=30.0, silent_share=1.0, head_silence_s=30.0, loudness_lufs=None, bandwidth_khz=9.0
    )

    verdict = judge(silence, RULES)

    assert (verdict.action, verdict.start_s, verdict.stop_s) == ("drop", 0, None)
    assert verdict.reasons == ("silent for 100% of its length, expected at most 50%",)


# ---- trimmed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head_s", "tail_s", "start_s", "stop_s", "reasons"),
    [
        (0.99, 0.99, 0, None, ()),
        (1.0, 0.0, 1, None, ("1 s of silence at the start",)),
        (3.99, 0.0, 3, None, ("3 s of silence at the start",)),
        (0.0, 1.0, 0, 97, ("0.5 s of silence at the end",)),  # of 97.5 s: the second that holds the last sound stays
        (0.0, 2.5, 0, 95, ("2.5 s of silence at the end",)),
        (0.0, 2.51, 0, 95, ("2.5 s of silence at the end",)),
        (0.0, 3.49, 0, 95, ("2.5 s of silence at the end",)),
        (2.2, 9.75, 2, 88, ("2 s of silence at the start", "9.5 s of silence at the end")),
    ],
)
def test_silence_at_the_ends_is_cut_in_whole_seconds(
    make_quality: MakeQuality, head_s: float, tail_s: float, start_s: int, stop_s: int | None, reasons: tuple[str, ...]
) -> None:
    quality = make_quality(head_silence_s=head_s, tail_silence_s=tail_s, silent_share=0.1)

    verdict = judge(quality, RULES)

    assert (verdict.start_s, verdict.stop_s, verdict.reasons) == (start_s, stop_s, reasons)
    assert verdict.action == ("trim" if reasons else "keep")
    assert verdict.duration_s(quality) == (97.5 if stop_s is None else stop_s) - start_s
    assert judge(quality, replace(RULES, trim_silence=False)).action == "keep"


@pytest.mark.parametrize(
    ("fade_s", "tail_s", "stop_s"),
    [(1.9, 0.0, None), (2.0, 0.0, 97), (12.0, 0.0, 92), (12.0, 2.1, 90)],  # the second half goes, and what is after it
)
def test_half_of_a_fade_is_cut_where_it_is_asked_for(
    make_quality: MakeQuality, fade_s: float, tail_s: float, stop_s: int | None
) -> None:
    quality = make_quality(fade_out_s=fade_s, tail_silence_s=tail_s)
    asked = replace(RULES, trim_fades=True)

    assert judge(quality, asked).stop_s == stop_s
    assert (f"half of a fade-out of {fade_s:.0f} s" in judge(quality, asked).reasons) == (stop_s is not None)
    assert judge(quality, RULES).stop_s == (96 if tail_s else None)


def test_what_is_left_has_to_be_long_enough(make_quality: MakeQuality) -> None:
    quality = make_quality(duration_s=9.0, head_silence_s=3.2, tail_silence_s=2.6, silent_share=5 / 9)

    assert judge(quality, replace(RULES, min_duration_s=4.0)).duration_s(quality) == 4.0
    verdict = judge(quality, replace(RULES, min_duration_s=4.5))
    assert verdict.reasons == ("4.00 s are left without silence, expected at least 4.5 s",)


def test_silence_that_was_cut_off_counts_no_more(make_quality: MakeQuality) -> None:
    ends = make_quality(duration_s=100.0, head_silence_s=40.0, tail_silence_s=30.0, silent_share=0.7)
    middle = make_quality(duration_s=100.0, silent_share=0.7)

    assert judge(ends, RULES) == Verdict(
        action="trim",
        start_s=40,
        stop_s=70,
        reasons=("40 s of silence at the start", "30.0 s of silence at the end"),
    )
    assert judge(middle, RULES).reasons == ("silent for 70% of its length, expected at most 50%",)
    both = replace(ends, silent_share=0.9)  # and 20 of the 30 s between
    assert judge(both, RULES).reasons == ("silent for 67% of its length, expected at most 50%",)


def test_the_sounding_half_of_a_fade_counts_as_sound(make_quality: MakeQuality) -> None:
    quality = make_quality(duration_s=100.0, silent_share=0.48, fade_out_s=20.0)

    verdict = judge(quality, replace(RULES, trim_fades=True))

    assert verdict.reasons == ("silent for 53% of its length, expected at most 50%",)  # 48 of 90 s


# ---- doubted ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "outside", "doubt"),
    [
        ({"loudness_lufs": -35.0}, {"loudness_lufs": -35.1}, "quiet: -35.1 LUFS"),
        ({"clipped_share": 0.001}, {"clipped_share": 0.0011}, "clipped: 0.11% of its samples"),
        ({"dc_offset": -0.01}, {"dc_offset": -0.011}, "DC offset -0.011"),
        ({"bandwidth_khz": 11.0}, {"bandwidth_khz": 10.9}, "narrow band: nothing above 10.9 kHz"),
        ({"silent_share": 0.2}, {"silent_share": 0.21}, "silent for 21% of its length"),
        ({"fade_out_s": 10.0}, {"fade_out_s": 10.6}, "fades out over 11 s"),
    ],
)
def test_what_comes_near_a_limit_is_kept_and_doubted(
    make_quality: MakeQuality, inside: dict[str, Any], outside: dict[str, Any], doubt: str
) -> None:
    length = {"duration_s": 100.0}

    assert judge(make_quality(**{**length, **inside}), RULES) == Verdict(action="keep")
    assert judge(make_quality(**{**length, **outside}), RULES) == Verdict(action="keep", doubts=(doubt,))


def test_a_fade_that_is_cut_is_no_doubt(make_quality: MakeQuality) -> None:
    assert judge(make_quality(fade_out_s=30.0), replace(RULES, trim_fades=True)).doubts == ()


@pytest.mark.parametrize(
    ("channels", "source_channels", "width", "doubts"),
    [
        (2, 2, 0.01, ()),
        (2, 2, 0.009, ("mono in two channels",)),
        (2, 1, None, ("mono",)),
        (1, 2, 0.0, ()),
        (1, 1, None, ()),
    ],
)
def test_mono_is_doubted_where_stereo_is_encoded(
    make_quality: MakeQuality, channels: int, source_channels: int, width: float | None, doubts: tuple[str, ...]
) -> None:
    quality = make_quality(source_channels=source_channels, stereo_width=width)

    assert judge(quality, RULES, channels=channels).doubts == doubts
