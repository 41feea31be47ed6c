"""What a report says of a corpus, in figures: counted here once, shown in the terminal and on the page."""

import math
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.quality import Quality, Seconds
from musicgen_ft.corpus.verdicts import (
    CLIPPED_SHARE,
    DC_OFFSET,
    MONO_WIDTH,
    NARROW_KHZ,
    QUIET_LUFS,
    SILENT_SHARE,
    Action,
    Verdict,
)

LABEL_FIELDS = ("genre", "moods", "instrument", "keywords", "key", "artist", "album")  # bpm is a number: a histogram


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportTrack:
    """What is known of one file of a corpus, or of one track of its shards."""

    id: str
    """Its name in the shards."""
    relative_path: str
    """Path under the corpus, with forward slashes."""
    labels: Labels
    """What it is labelled with."""
    split: Literal["train", "valid"] | None
    """Which part it falls into; None where it is dropped, or nothing is split."""
    verdict: Verdict
    """What the rules made of it."""
    quality: Quality | None
    """Figures of its sound; None where it was not measured."""
    seconds: Seconds | None
    """Figures of each second of it."""
    error: str | None = None
    """Why it gives no audio."""
    duplicate_of: str | None = None
    """Id or relative path of the track that it repeats."""
    group: str | None = None
    """Name of the tracks that must not be parted by the split."""

    @property
    def action(self) -> Action:
        """What becomes of it; a file without audio is dropped whatever the rules say."""
        return "drop" if self.error else self.verdict.action

    @property
    def kept_s(self) -> float:
        """Seconds of it that are kept; 0 where its duration is not known."""
        if self.action == "drop" or self.quality is None:
            return 0.0
        return max(0.0, self.verdict.duration_s(self.quality))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is dropped or trimmed, in words."""
        error = _without_path(self.error, self.relative_path) if self.error else None
        told = (("no audio:", error), ("the same recording as", self.duplicate_of))
        reasons = self.verdict.reasons  # of which one may already tell the same
        return (
            *(f"{what} {why}" for what, why in told if why and not any(why in reason for reason in reasons)),
            *reasons,
        )

    @property
    def name(self) -> str:
        """Title and artist where it has them, else the name of its file."""
        if self.labels.title is None:
            return PurePosixPath(self.relative_path).name or self.id
        return " – ".join(filter(None, (self.labels.title, self.labels.artist)))


# ---- what stands out in the sound ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about a track's sound that a reader of the report wants counted."""

    name: str
    """What it is called."""
    rule: str
    """When it counts, in words."""
    holds: Callable[[Quality], bool]
    """Whether it holds."""


FINDINGS = (  # by the limits of the rules' doubts; unlike them, counted for what is dropped, too
    Finding(
        name="much silence",
        rule=f"over {SILENT_SHARE:.0%} of the seconds",
        holds=lambda q: q.silent_share > SILENT_SHARE,
    ),
    Finding(
        name="clipped", rule=f"over {CLIPPED_SHARE:.1%} of the samples", holds=lambda q: q.clipped_share > CLIPPED_SHARE
    ),
    Finding(
        name="narrow band",
        rule=f"nothing but noise above {NARROW_KHZ:g} kHz",
        holds=lambda q: q.bandwidth_khz < NARROW_KHZ,
    ),
    Finding(
        name="mono in stereo",
        rule=f"two channels, the side below {MONO_WIDTH:.0%} of the mid",
        holds=lambda q: q.stereo_width is not None and q.stereo_width < MONO_WIDTH,
    ),
    Finding(name="DC offset", rule=f"over {DC_OFFSET:g} of full scale", holds=lambda q: abs(q.dc_offset) > DC_OFFSET),
    Finding(
        name="quiet",
        rule=f"below −{-QUIET_LUFS:g} LUFS, or no loudness at all",
        holds=lambda q: q.loudness_lufs is None or q.loudness_lufs < QUIET_LUFS,
    ),
)


# ---- the ranking -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A figure that costs a track points."""

    name: str
    """What it is called."""
    figure: Callable[[Quality], float | None]
    """The figure; None costs nothing."""
    unit: str
    """Of the figure."""
    free: float
    """Up to here it costs nothing..."""
    full: float
    """...and from here on all of ``points``, in between in proportion. It may lie on either side of ``free``."""
    points: float
    """What it costs at most."""

    def of(self, quality: Quality) -> float:
        """Points that a track loses."""
        value = self.figure(quality)
        if value is None or not math.isfinite(value):
            return 0.0
        return self.points * min(max((value - self.free) / (self.full - self.free), 0.0), 1.0)


LOSSES = (
    Loss(name="clipping", figure=lambda q: 100 * q.clipped_share, unit="% of samples", free=0, full=0.2, points=30),
    Loss(name="narrow band", figure=lambda q: q.bandwidth_khz, unit="kHz", free=15, full=6, points=30),
    Loss(name="silence", figure=lambda q: 100 * q.silent_share, unit="% of seconds", free=5, full=50, points=20),
    Loss(name="low level", figure=lambda q: q.loudness_lufs, unit="LUFS", free=-26, full=-40, points=10),
    Loss(name="hard for the codec", figure=lambda q: q.codec_snr_db, unit="dB SNR", free=6, full=0, points=10),
)


def score(track: ReportTrack) -> float | None:
    """100 points less what LOSSES take, 0 at the worst; None where the track was not measured."""
    return None if track.quality is None else 100 - sum(loss.of(track.quality) for loss in LOSSES)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Tracks to listen to; none is in two of the lists."""

    best: list[ReportTrack]
    """Most points first."""
    worst: list[ReportTrack]
    """Kept, but with the fewest points; fewest first."""
    doubtful: list[ReportTrack]
    """Kept with doubts; most doubts first."""


def rank(tracks: Iterable[ReportTrack]) -> Ranking:
    """Sorts what is kept and measured; equal scores come in an order drawn by chance from the ids."""
    scored = [(value, _chance(t.id), t) for t in tracks if t.action != "drop" and (value := score(t)) is not None]
    scored.sort(key=lambda entry: entry[:2])
    doubtful = sorted(
        (entry for entry in scored if entry[2].verdict.doubts), key=lambda e: (-len(e[2].verdict.doubts), *e[:2])
    )
    sure = [entry for entry in scored if not entry[2].verdict.doubts]
    worst = [entry for entry in sure if round(entry[0]) < 100]
    worst = worst[: max(1, len(sure) // 2)]  # where all lost points, half of them are still the best
    best = sorted(sure[len(worst) :], key=lambda entry: (-entry[0], entry[1]))
    return Ranking(best=[e[2] for e in best], worst=[e[2] for e in worst], doubtful=[e[2] for e in doubtful])


# ---- counting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LabelCount:
    """How much music has a label."""

    label: str
    """The label."""
    tracks: int
    """Tracks that are kept and have it."""
    seconds: dict[str, float]
    """Seconds that are kept, by split ("" where there is none)."""

    @property
    def total_s(self) -> float:
        """Seconds of all splits."""
        return sum(self.seconds.values())


def values_of(labels: Labels, field: str) -> tuple[str, ...]:
    """The labels of one field, each once; an instrument's text is taken apart at its commas."""
    value = getattr(labels, field)
    parts = value.split(",") if field == "instrument" and value else value if isinstance(value, tuple) else (value,)
    return tuple(dict.fromkeys(part.strip() for part in parts if part and part.strip()))


def count_labels(tracks: Iterable[ReportTrack], field: str) -> list[LabelCount]:
    """Music per label of one field, most first; a track with two labels counts for both."""
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    numbers: Counter[str] = Counter()
    for track in tracks:
        if track.action == "drop":
            continue
        for label in values_of(track.labels, field):
            seconds[label][track.split or ""] += track.kept_s
            numbers[label] += 1
    counts = [LabelCount(label=label, tracks=numbers[label], seconds=dict(found)) for label, found in seconds.items()]
    return sorted(counts, key=lambda count: (-count.total_s, -count.tracks, count.label))


@dataclass(frozen=True, kw_only=True)
class ReasonCount:
    """How often one kind of reason counts."""

    reason: str
    """Its words, without figures."""
    dropped: int
    """Tracks that are dropped for it."""
    trimmed: int
    """Tracks that are trimmed for it."""


def count_reasons(tracks: Iterable[ReportTrack]) -> list[ReasonCount]:
    """How often each kind of reason drops or trims a track, most often first; figures count as equal."""
    kinds: dict[str, Counter[Action]] = defaultdict(Counter)
    for track in tracks:
        if track.action != "keep":
            for kind in {reason_kind(reason, track.duplicate_of) for reason in track.reasons}:
                kinds[kind][track.action] += 1
    counts = [ReasonCount(reason=kind, dropped=n["drop"], trimmed=n["trim"]) for kind, n in kinds.items()]
    return sorted(counts, key=lambda count: (-count.dropped - count.trimmed, count.reason))


def reason_kind(reason: str, other: str | None = None) -> str:
    """A reason without its figures, and without the name of the track that it repeats.

    >>> reason_kind("3.2% of its samples clipped, expected at most 0.5%")
    '…% of its samples clipped, expected at most …%'
    >>> reason_kind("the same recording as live/take 2.wav", "live/take 2.wav")
    'the same recording as another track'
    """
    reason = reason.replace(other, "another track") if other else reason
    return re.sub(r"(?<![\w.])[-−+]?\d(?:[\d.,]*\d)?", "…", reason)


def quality_values(tracks: Iterable[ReportTrack], figure: Callable[[Quality], float | None]) -> list[float]:
    """One figure of all tracks that have it."""
    found = (figure(track.quality) for track in tracks if track.quality is not None)
    return [value for value in found if value is not None and math.isfinite(value)]


def duplicate_clusters(tracks: Sequence[ReportTrack]) -> list[tuple[str, list[ReportTrack]]]:
    """Relative path of each repeated track (its name, where it is not there) and what repeats it, most copies first."""
    paths = {track.id: track.relative_path for track in tracks}
    clusters: dict[str, list[ReportTrack]] = defaultdict(list)
    for track in tracks:
        if track.duplicate_of:
            clusters[paths.get(track.duplicate_of, track.duplicate_of)].append(track)
    return sorted(clusters.items(), key=lambda cluster: (-len(cluster[1]), cluster[0]))


def groups_in_both_parts(tracks: Iterable[ReportTrack]) -> list[str]:
    """Names of the groups that the split parts, which it should not."""
    sides: dict[str, set[str]] = defaultdict(set)
    for track in tracks:
        if track.group and track.split:
            sides[track.group].add(track.split)
    return sorted(name for name, found in sides.items() if len(found) > 1)


# ---- words -----------------------------------------------------------------------------------------------------------


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "track"), plural(4812, "track")
    ('1 track', '4,812 tracks')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def share_text(part: float, whole: float) -> str:
    """A part in per cent, "under 1%" where rounding would make it nothing."""
    share = 100 * part / whole if whole else 0.0
    return "under 1%" if 0 < share < 1 else f"{share:.0f}%"


def hours_text(seconds: float, *, beside: float = 0) -> str:
    """A duration of music, in the unit that it is read best in, or in that of a longer one that it stands beside.

    >>> hours_text(45), hours_text(480), hours_text(9000), hours_text(2_000_000)
    ('45 s', '8.0 min', '2.5 h', '556 h')
    >>> hours_text(480, beside=9000)
    '0.1 h'
    """
    longest = max(seconds, beside)
    if longest < 60:
        return f"{seconds:.0f} s"
    if longest < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if longest < 360_000 else f"{seconds / 3600:,.0f} h"


def clock_text(seconds: float) -> str:
    """A position in a track, or its length.

    >>> clock_text(65.4), clock_text(3725)
    ('1:05', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def plain(text: str) -> str:
    """One line of text that a terminal only shows: no control characters, nothing that UTF-8 cannot hold."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cn"))


def spread(tracks: Sequence[ReportTrack], most: int) -> list[ReportTrack]:
    """The first ``most`` of a list, each label of genre once before any comes twice."""
    seen: Counter[str | None] = Counter()
    turns = []
    for position, track in enumerate(tracks):
        turns.append((seen[track.labels.genre], position))
        seen[track.labels.genre] += 1
    return [tracks[position] for _, position in sorted(turns)[:most]]


def _chance(id_: str) -> int:
    return zlib.crc32(id_.encode("utf-8", "surrogateescape"))


def _without_path(error: str, relative_path: str) -> str:
    """What is wrong, without the folders of the machine that found it."""
    name = PurePosixPath(relative_path).name
    return error.partition(f"{name}: ")[2] or error
