"""What becomes of a track: kept, trimmed or dropped, each with its reasons.

S seconds of a track.
"""

import math
from dataclasses import dataclass
from typing import Literal

from musicgen_ft.corpus.quality import Quality

Action = Literal["keep", "trim", "drop"]

QUIET_LUFS = -35.0
CLIPPED_SHARE = 0.001
DC_OFFSET = 0.01
NARROW_KHZ = 11.0
SILENT_SHARE = 0.2
FADE_S = 10.0
MONO_WIDTH = 0.01
CODEC_SNR_DB = 3.0


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Limits on the figures of a track. What is beyond a limit is dropped; what comes near one is doubted."""

    min_duration_s: float = 1.0
    """Shorter tracks are dropped, before and after trimming."""
    trim_silence: bool = True
    """Whole seconds of silence at both ends are cut off."""
    trim_fades: bool = False
    """The second half of a fade-out is cut off, which teaches to end in silence."""
    max_silent_share: float = 0.5
    """Share of silent seconds in what is left after trimming."""
    min_loudness_lufs: float = -50.0
    """Integrated loudness."""
    max_clipped_share: float = 1.0
    """Share of clipped samples. Square waves, as in chiptunes, look all clipped: by default they are only doubted."""
    max_dc_offset: float = 0.1
    """Mean of the samples."""
    min_bandwidth_khz: float = 0.0
    """True bandwidth."""
    min_codec_snr_db: float | None = None
    """How well the codec carries it, where it has been encoded before."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the rules make of a track's figures."""

    action: Action
    """``trim`` keeps the part from ``start_s`` to ``stop_s``."""
    start_s: int = 0
    """Second at which the kept part begins."""
    stop_s: int | None = None
    """Second before which it ends; None is the track's end."""
    reasons: tuple[str, ...] = ()
    """Why it is trimmed or dropped, in words, with figure and limit."""
    doubts: tuple[str, ...] = ()
    """What a listener should check, in words: too little to drop the track."""

    def duration_s(self, quality: Quality) -> float:
        """Seconds of the kept part of a track; 0 where it is dropped."""
        if self.action == "drop":
            return 0.0
        return min(quality.duration_s, self.stop_s or math.inf) - self.start_s


def drop(reason: str) -> Verdict:
    """The verdict on a track that cannot be used at all."""
    return Verdict(action="drop", reasons=(reason,))


def judge(quality: Quality, rules: Rules, *, channels: int = 1) -> Verdict:
    """Applies the rules to the figures of a track.

    Args:
        quality: of the track.
        rules: the limits.
        channels: that will be encoded; 2 makes a stereo file with equal channels doubtful.
    """
    start_s, stop_s, reasons = _trim(quality, rules)
    left_s = (quality.duration_s if stop_s is None else stop_s) - start_s
    silent_share = _silent_share(quality, start_s=start_s, left_s=left_s)
    too_bad = _beyond(quality, rules, left_s=left_s, silent_share=silent_share)
    if too_bad:
        return Verdict(action="drop", reasons=tuple(too_bad))
    action: Action = "trim" if reasons else "keep"
    doubts = tuple(_doubts(quality, rules, silent_share=silent_share, channels=channels))
    return Verdict(action=action, start_s=start_s, stop_s=stop_s, reasons=tuple(reasons), doubts=doubts)


def _trim(quality: Quality, rules: Rules) -> tuple[int, int | None, list[str]]:
    """First second, second after the last (None: the end), and why. Whole seconds, so that figures need no shifting."""
    start_s, stop_s, reasons = 0, None, []
    end_s = quality.duration_s - quality.tail_silence_s
    if rules.trim_silence and quality.silent_share < 1:
        start_s = math.floor(quality.head_silence_s)
        if start_s:
            reasons.append(f"{start_s} s of silence at the start")
        if quality.tail_silence_s >= 1:
            stop_s = math.ceil(end_s)
            reasons.append(f"{quality.duration_s - stop_s:.1f} s of silence at the end")
    if rules.trim_fades and quality.fade_out_s >= 2:
        stop_s = max(math.ceil(end_s - quality.fade_out_s / 2), start_s + 1)
        reasons.append(f"half of a fade-out of {quality.fade_out_s:.0f} s")
    if stop_s is not None and stop_s >= quality.duration_s:
        stop_s = None
    return start_s, stop_s, reasons


def _silent_share(quality: Quality, *, start_s: int, left_s: float) -> float:
    """Share of silent seconds in what is left after trimming."""
    cut_s = start_s + min(quality.tail_silence_s, quality.duration_s - start_s - left_s)
    silent_s = quality.silent_share * math.ceil(quality.duration_s)
    return min(1.0, max(0.0, silent_s - cut_s) / max(left_s, 1.0))


def _beyond(quality: Quality, rules: Rules, *, left_s: float, silent_share: float) -> list[str]:
    """Every limit that the track is beyond."""
    found = []
    if quality.duration_s < rules.min_duration_s:
        found.append(f"{quality.duration_s:.2f} s long, expected at least {rules.min_duration_s:g} s")
    elif left_s < rules.min_duration_s:
        found.append(f"{left_s:.2f} s are left without silence, expected at least {rules.min_duration_s:g} s")
    if silent_share > rules.max_silent_share:
        found.append(f"silent for {silent_share:.0%} of its length, expected at most {rules.max_silent_share:.0%}")
    loudness = quality.loudness_lufs
    if loudness is not None and loudness < rules.min_loudness_lufs:
        found.append(f"loudness {loudness:.1f} LUFS, expected at least {rules.min_loudness_lufs:g}")
    if quality.clipped_share > rules.max_clipped_share:
        found.append(
            f"{quality.clipped_share:.1%} of its samples clipped, expected at most {rules.max_clipped_share:.1%}"
        )
    if abs(quality.dc_offset) > rules.max_dc_offset:
        found.append(f"DC offset {quality.dc_offset:.3f}, expected at most {rules.max_dc_offset:g}")
    if quality.bandwidth_khz < rules.min_bandwidth_khz:
        found.append(f"bandwidth {quality.bandwidth_khz:.1f} kHz, expected at least {rules.min_bandwidth_khz:g}")
    if (reason := too_hard(quality.codec_snr_db, rules.min_codec_snr_db)) is not None:
        found.append(reason)
    return found


def too_hard(snr_db: float | None, min_snr_db: float | None) -> str | None:
    """Why a track is too hard for the codec, in words; None where it is not, or nobody measured."""
    if snr_db is None or min_snr_db is None or not snr_db < min_snr_db:
        return None
    return f"the codec carries it with {snr_db:.1f} dB, expected at least {min_snr_db:g}"


def _doubts(quality: Quality, rules: Rules, *, silent_share: float, channels: int) -> list[str]:
    found = []
    if quality.loudness_lufs is not None and quality.loudness_lufs < QUIET_LUFS:
        found.append(f"quiet: {quality.loudness_lufs:.1f} LUFS")
    if quality.clipped_share > CLIPPED_SHARE:
        found.append(f"clipped: {quality.clipped_share:.2%} of its samples")
    if abs(quality.dc_offset) > DC_OFFSET:
        found.append(f"DC offset {quality.dc_offset:.3f}")
    if quality.bandwidth_khz < NARROW_KHZ:
        found.append(f"narrow band: nothing above {quality.bandwidth_khz:.1f} kHz")
    if silent_share > SILENT_SHARE:
        found.append(f"silent for {silent_share:.0%} of its length")
    if quality.fade_out_s > FADE_S and not rules.trim_fades:
        found.append(f"fades out over {quality.fade_out_s:.0f} s")
    if channels == 2 and (quality.stereo_width is None or quality.stereo_width < MONO_WIDTH):
        found.append("mono in two channels" if quality.source_channels > 1 else "mono")
    return found
