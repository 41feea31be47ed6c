"""The report of a corpus for the terminal: plain text, 100 columns at most, no colour."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from musicgen_ft.corpus.quality import Quality
from musicgen_ft.corpus.verdicts import Action
from musicgen_ft.report.corpus_figures import (
    FINDINGS,
    ReportTrack,
    count_labels,
    count_reasons,
    duplicate_clusters,
    hours_text,
    plain,
    plural,
    quality_values,
    share_text,
)

WIDTH = 100
MAX_LABELS, MAX_REASONS = 12, 8
BAR = 40  # characters of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉"

SPREADS: tuple[tuple[str, str, Callable[[Quality], float | None]], ...] = (
    ("duration", "s", lambda q: q.duration_s),
    ("loudness", "LUFS", lambda q: q.loudness_lufs),
    ("peak", "dB", lambda q: q.peak_db),
    ("bandwidth", "kHz", lambda q: q.bandwidth_khz),
    ("silent seconds", "%", lambda q: 100 * q.silent_share),
    ("codec SNR", "dB", lambda q: q.codec_snr_db),
)


def summary_lines(tracks: Sequence[ReportTrack], title: str) -> list[str]:
    """The corpus in figures, a line each: files, hours, labels, sound, what is dropped and why."""
    title = _cut(plain(title), WIDTH)
    parts = (
        [title, "─" * _width(title)],
        _totals(tracks),
        _labels(tracks),
        _sound(tracks),
        _findings(tracks),
        _reasons(tracks),
    )
    lines: list[str] = []
    for part in filter(None, parts):
        lines += [*([""] if lines and part is not parts[1] else []), *part]
    return [line.rstrip() for line in lines]


def _totals(tracks: Sequence[ReportTrack]) -> list[str]:
    actions = Counter(track.action for track in tracks)
    kept = [track for track in tracks if track.action != "drop"]
    rows = [
        ("files", f"{len(tracks):,}", [f"{name} {actions[action]:,}" for name, action in _ACTIONS]),
        ("music kept", hours_text(sum(t.kept_s for t in kept)), [
            f"{split} {hours_text(sum(t.kept_s for t in part))} in {plural(len(part), 'track')}"
            for split in ("train", "valid")
            if (part := [t for t in kept if t.split == split])
        ]),
    ]  # fmt: skip
    unmeasured = sum(track.quality is None for track in kept)
    if unmeasured:
        rows.append(("not measured", f"{unmeasured:,}", ["their hours are not counted"]))
    clusters = duplicate_clusters(tracks)
    if clusters:
        copies = sum(len(members) for _, members in clusters)
        rows.append(("duplicates", f"{copies:,}", [f"of {plural(len(clusters), 'track')}"]))
    return [f"{name:<15}{figure:>9}   {'   '.join(notes)}" for name, figure, notes in rows]


_ACTIONS: tuple[tuple[str, Action], ...] = (("kept whole", "keep"), ("trimmed", "trim"), ("dropped", "drop"))


def _labels(tracks: Sequence[ReportTrack]) -> list[str]:
    counts = count_labels(tracks, "genre")
    if not counts:
        return ["no track has a genre"]
    total = sum(track.kept_s for track in tracks)
    lines = ["music per genre"]
    for count in counts[:MAX_LABELS]:
        label = _pad(_cut(plain(count.label), 24), 24)
        bar = _pad(_bar(count.total_s / (counts[0].total_s or 1)), BAR)
        length = hours_text(count.total_s, beside=counts[0].total_s)
        lines.append(f"  {label} {bar} {length:>9} {share_text(count.total_s, total):>9}")
    if rest := counts[MAX_LABELS:]:
        label = f"{len(rest):,} more"
        lines.append(
            f"  {label:<24} {'':{BAR}} {hours_text(sum(count.total_s for count in rest), beside=counts[0].total_s):>9}"
        )
    return lines


def _sound(tracks: Sequence[ReportTrack]) -> list[str]:
    lines = []
    for name, unit, figure in SPREADS:
        values = quality_values(tracks, figure)
        if values:
            quartiles = np.percentile(values, [0, 25, 50, 75, 100])
            lines.append(f"  {name:<16}" + "".join(f"{value:>11,.1f}" for value in quartiles) + f"  {unit}")
    if not lines:
        return []
    columns = ("least", "25%", "median", "75%", "most")
    rates = Counter(t.quality.source_sample_rate for t in tracks if t.quality is not None)
    channels = Counter(t.quality.source_channels for t in tracks if t.quality is not None)
    return [
        f"{'sound':<18}" + "".join(f"{name:>11}" for name in columns),
        *lines,
        f"  {'sample rates':<16}" + _some([f"{rate / 1000:g} kHz: {count:,}" for rate, count in rates.most_common()]),
        f"  {'channels':<16}" + _some([f"{number}: {count:,}" for number, count in channels.most_common()]),
    ]


def _findings(tracks: Sequence[ReportTrack]) -> list[str]:
    measured = [track.quality for track in tracks if track.quality is not None]
    if not measured:
        return []
    lines = [f"noticed in {plural(len(measured), 'track')}"]
    for finding in FINDINGS:
        found = sum(map(finding.holds, measured))
        lines.append(f"  {finding.name:<16}{found:>11,}  {finding.rule}")
    return lines


def _reasons(tracks: Sequence[ReportTrack]) -> list[str]:
    reasons = count_reasons(tracks)
    if not reasons:
        return []
    lines = [
        f"  {count.dropped + count.trimmed:>9,}  {_cut(plain(count.reason), WIDTH - 13)}"
        for count in reasons[:MAX_REASONS]
    ]
    more = len(reasons) - MAX_REASONS
    return ["why tracks are dropped or trimmed", *lines, *([f"  {'':9}  and {more} other reasons"] if more > 0 else [])]


def _some(texts: Sequence[str], most: int = 4) -> str:
    return "   ".join([*texts[:most], *([f"{len(texts) - most} others"] if len(texts) > most else [])])


def _bar(share: float) -> str:
    whole, eighth = divmod(round(8 * BAR * share), 8)
    return "█" * whole + _EIGHTHS[eighth].strip()


def _width(text: str) -> int:
    """Columns of a terminal; East Asian wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) >= width:
        text = text[:-1]
    return text + "…"


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
