"""The report of a corpus: one HTML page to see and to hear what a model would learn from."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from musicgen_ft.corpus.quality import SECOND_FIGURES, Quality
from musicgen_ft.report import charts
from musicgen_ft.report.charts import Bar, Series
from musicgen_ft.report.corpus_figures import (
    FINDINGS,
    LABEL_FIELDS,
    LOSSES,
    LabelCount,
    ReportTrack,
    clock_text,
    count_labels,
    count_reasons,
    duplicate_clusters,
    groups_in_both_parts,
    hours_text,
    plural,
    quality_values,
    rank,
    score,
    share_text,
    spread,
)
from musicgen_ft.report.corpus_summary import summary_lines
from musicgen_ft.report.page import (
    Row,
    Section,
    Tile,
    card,
    details,
    flow,
    grid,
    heading,
    join,
    listing,
    paragraph,
    render_page,
    table,
    tiles,
    write_page,
)
from musicgen_ft.report.players import player

__all__ = ["Excerpt", "ReportTrack", "summary_lines", "write_report"]

Excerpt = Callable[[ReportTrack], tuple[npt.NDArray[np.float32], int] | None]

MAX_BARS = 15
MAX_ROWS = 1000
MAX_PICTURES = 300  # strips in a listing, 0.6 kB each
MAX_CLUSTERS = 200
MAX_CAPTIONED = 24
MEDIA_BYTES = 5_500_000  # of all players together: a page that opens at once, and that a mail carries
TRIES = 4  # tracks that are tried for each player: some cannot be heard
_TONE = {"train": "one", "valid": "two", "": "one"}
_TAG = {"keep": "kept", "trim": "trimmed", "drop": "dropped"}


def write_report(
    path: Path,
    tracks: Sequence[ReportTrack],
    *,
    title: str,
    excerpt: Excerpt,
    captions: Sequence[tuple[str, list[str | None]]] = (),
    max_players: int = 12,
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: the HTML file.
        tracks: everything that was found, also what is dropped.
        title: name of the corpus.
        excerpt: gives some seconds of a track as float32 [C, L] with their sample rate, or None if it cannot be heard.
        captions: name of a track, and captions that the model reads with it; None is the empty one.
        max_players: how many tracks can be heard at most.
    """
    sections = [
        _labels_section(tracks),
        _sound_section(tracks),
        _listen_section(tracks, excerpt, max_players),
        _captions_section(captions),
        _dropped_section(tracks),
        _duplicates_section(tracks),
        _split_section(tracks),
    ]
    page = render_page(
        title=title, kicker="Corpus report", lead=_lead(tracks), header=_header(tracks), sections=sections
    )
    write_page(path, page)


# ---- the header ------------------------------------------------------------------------------------------------------


def _lead(tracks: Sequence[ReportTrack]) -> str:
    if not tracks:
        return "There is no track in this corpus."
    kept = [track for track in tracks if track.action != "drop"]
    if not kept:
        return f"None of {plural(len(tracks), 'file')} is good to train on."
    labelled = sum(bool(t.labels.descriptions or any(getattr(t.labels, f) for f in LABEL_FIELDS)) for t in kept)
    hours = hours_text(sum(t.kept_s for t in kept))
    named = {0: "None", len(kept): "All"}.get(labelled, f"{labelled:,}")
    return f"Of {plural(len(tracks), 'file')}, {len(kept):,} can be used: {hours} of music. {named} of them labelled."


def _header(tracks: Sequence[ReportTrack]) -> Markup:
    actions = Counter(track.action for track in tracks)
    kept = [track for track in tracks if track.action != "drop"]
    total_s = sum(track.kept_s for track in kept)
    split_notes = [
        f"{hours_text(sum(t.kept_s for t in kept if t.split == split))} {split}"
        for split in ("train", "valid")
        if any(t.split == split for t in kept)
    ]
    unmeasured = sum(track.quality is None for track in kept)
    loudness = quality_values(kept, lambda q: q.loudness_lufs)
    length = quality_values(kept, lambda q: q.duration_s)
    genres = count_labels(tracks, "genre")
    shown = [
        Tile(
            value=hours_text(total_s),
            label="Music kept",
            note=" · ".join(split_notes) + (f" · {unmeasured:,} not measured" if unmeasured else ""),
        ),
        Tile(value=f"{len(kept):,}", label="Tracks kept", note=f"of {plural(len(tracks), 'file')}"),
        Tile(value=_median(length, clock_text), label="Length", note="median of a track"),
        Tile(value=_median(loudness, lambda v: f"{charts.number(round(v, 1))} LUFS"), label="Loudness", note="median"),
        Tile(value=f"{len(genres):,}", label="Genres", note=f"most: {genres[0].label}" if genres else "none labelled"),
        Tile(
            value=f"{sum(t.duplicate_of is not None for t in tracks):,}",
            label="Duplicates",
            note=f"of {plural(len(duplicate_clusters(tracks)), 'track')}"
            if duplicate_clusters(tracks)
            else "none found",
        ),
    ]
    fates = [
        ("keep", "kept whole", actions["keep"], f"{actions['keep']:,}"),
        ("trim", "trimmed", actions["trim"], f"{actions['trim']:,}"),
        ("drop", "dropped", actions["drop"], f"{actions['drop']:,}"),
    ]
    label = ", ".join(f"{name} {text}" for _, name, _, text in fates)
    return join(
        [tiles(shown), charts.shares(fates, label=f"What becomes of the files: {label}") if tracks else Markup()]
    )


def _median(values: Sequence[float], write: Callable[[float], str]) -> str:
    return write(float(np.median(values))) if values else "–"


# ---- labels ----------------------------------------------------------------------------------------------------------


def _labels_section(tracks: Sequence[ReportTrack]) -> Section:
    kept = [track for track in tracks if track.action != "drop"]
    cards = [_label_card(kept, field) for field in LABEL_FIELDS]
    tempos = [track.labels.bpm for track in kept if track.labels.bpm]
    if tempos:
        series = [Series(name="kept", tone="one", values=tempos)]
        chart = charts.histogram(series, what="tempo", unit="BPM", counted="tracks")
        cards.insert(min(4, len(cards)), card("Tempo", chart, note=_coverage(kept, "bpm")))
    splits = {track.split for track in kept if track.split}
    colours = charts.legend([("one", "train"), ("two", "valid")]) if len(splits) > 1 else Markup()
    missing = [field for field in (*LABEL_FIELDS, "bpm") if not any(getattr(t.labels, field) for t in kept)]
    nothing = paragraph(f"No track has a label for: {', '.join(missing)}.", tone="muted") if missing else Markup()
    return Section(
        anchor="labels",
        title="Music per label",
        lead="How much of what is kept carries each label. A track with two labels counts for both.",
        body=join([colours, flow([found for found in cards if found]), nothing]) if kept else Markup(),
    )


def _label_card(kept: Sequence[ReportTrack], field: str) -> Markup:
    counts = count_labels(kept, field)
    if not counts:
        return Markup()
    most_s = counts[0].total_s
    rows = [_label_bar(count, most_s) for count in counts[:MAX_BARS]]
    if rest := counts[MAX_BARS:]:
        if len(rest) > 1:
            note = f"{len(rest):,} others hold {hours_text(sum(count.total_s for count in rest), beside=most_s)} more."
            body = join([charts.bars(rows), paragraph(note, tone="note")])
        else:
            body = charts.bars([*rows, _label_bar(rest[0], most_s)])
    else:
        body = charts.bars(rows)
    return card(field.capitalize(), body, note=_coverage(kept, field))


def _label_bar(count: LabelCount, most_s: float) -> Bar:
    has_hours = count.total_s > 0
    pieces = [(_TONE[split], seconds) for split, seconds in sorted(count.seconds.items())]
    return Bar(
        label=count.label,
        pieces=pieces if has_hours else [("one", float(count.tracks))],
        text=hours_text(count.total_s, beside=most_s) if has_hours else plural(count.tracks, "track"),
    )


def _coverage(kept: Sequence[ReportTrack], field: str) -> str:
    labelled = [track for track in kept if getattr(track.labels, field)]
    heard = sum(field in track.labels.computed for track in labelled)
    text = f"{len(labelled):,} of {plural(len(kept), 'track')}"
    return f"{text}, {heard:,} of them heard in the audio" if heard else text


# ---- sound -----------------------------------------------------------------------------------------------------------

_HISTOGRAMS: tuple[tuple[str, str, str, Callable[[Quality], float | None], tuple[float, float] | None], ...] = (
    ("Loudness", "BS.1770, integrated", "LUFS", lambda q: q.loudness_lufs, None),
    ("Length", "of the file", "s", lambda q: q.duration_s, None),
    ("Bandwidth", "above it there is nothing but noise", "kHz", lambda q: q.bandwidth_khz, None),
    ("Silence", "share of silent seconds", "%", lambda q: 100 * q.silent_share, (0.0, 100.0)),
    ("Clipping", "share of samples at full scale", "%", lambda q: 100 * q.clipped_share, None),
    ("Codec SNR", "signal over the codec's error", "dB", lambda q: q.codec_snr_db, None),
)


def _sound_section(tracks: Sequence[ReportTrack]) -> Section:
    measured = [track for track in tracks if track.quality is not None]
    cards = []
    for name, note, unit, figure, limits in _HISTOGRAMS:
        series = [
            Series(name=word, tone=tone, values=quality_values((t for t in measured if t.action in actions), figure))
            for word, tone, actions in (("kept", "keep", ("keep", "trim")), ("dropped", "drop", ("drop",)))
        ]
        if any(part.values for part in series):
            chart = charts.histogram(series, what=name.lower(), unit=unit, counted="tracks", limits=limits)
            cards.append(card(name, chart, note=note))
    return Section(
        anchor="sound",
        title="Sound",
        lead=f"Measured on the files' own samples, in {plural(len(measured), 'track')}.",
        body=join(
            [
                charts.legend([("keep", "kept or trimmed"), ("drop", "dropped"), ("median", "median")]),
                grid(cards, width_rem=19),
                grid([_findings_card(measured), _formats_card(measured)], width_rem=24),
            ]
        )
        if measured
        else Markup(),
    )


def _findings_card(measured: Sequence[ReportTrack]) -> Markup:
    rows = []
    for finding in FINDINGS:
        found = [track for track in measured if track.quality is not None and finding.holds(track.quality)]
        dropped = sum(track.action == "drop" for track in found)
        rows.append([_two_lines(finding.name, finding.rule), f"{len(found):,}", f"{len(found) - dropped:,}"])
    return card("Noticed", table("What stands out in the sound", ["", "Tracks", "of them kept"], rows))


def _two_lines(name: str, rule: str) -> Markup:
    return Markup("{}<small>{}</small>").format(name, rule)


def _formats_card(measured: Sequence[ReportTrack]) -> Markup:
    rates = Counter(t.quality.source_sample_rate for t in measured if t.quality is not None)
    channels = Counter(t.quality.source_channels for t in measured if t.quality is not None)
    names = {1: "mono", 2: "stereo"}
    parts = [heading("Sample rate"), charts.bars(_count_bars({f"{r / 1000:g} kHz": n for r, n in rates.most_common()}))]
    named = {names.get(number, f"{number} channels"): count for number, count in channels.most_common()}
    return card("Files", join([*parts, heading("Channels"), charts.bars(_count_bars(named))]))


def _count_bars(counts: dict[str, int], most: int = 8) -> list[Bar]:
    rows = [Bar(label=name, pieces=[("one", n)], text=f"{n:,}") for name, n in list(counts.items())[:most]]
    if rest := list(counts.values())[most:]:
        rows.append(Bar(label=f"{len(rest)} others", pieces=[("mute", sum(rest))], text=f"{sum(rest):,}", is_rest=True))
    return rows


# ---- players ---------------------------------------------------------------------------------------------------------


def _listen_section(tracks: Sequence[ReportTrack], excerpt: Excerpt, max_players: int) -> Section:
    ranking = rank(tracks)
    groups = (
        ("Best", "Most points; of each genre one before any comes twice.", ranking.best),
        ("Worst of what is kept", "Fewest points, though the rules have no doubt.", ranking.worst),
        ("Doubtful", "Kept, though a rule has a doubt: listen and decide.", ranking.doubtful),
    )
    blocks: list[Markup] = []
    for number, (name, note, candidates) in enumerate(groups):
        most = (max_players + len(groups) - 1 - number) // len(groups)
        tried = spread(candidates, most * TRIES) if name == "Best" else candidates[: most * TRIES]
        cards = _player_cards(tried, excerpt, most, MEDIA_BYTES // len(groups))
        if cards:
            words = note if len(cards) == len(candidates) else f"{note} Here are {len(cards)} of {len(candidates):,}."
            blocks.append(join([heading(name, words), grid(cards, width_rem=24)]))
    return Section(
        anchor="listen",
        title="Listen",
        lead="Excerpts as small MP3s: enough to recognise a track and its faults. "
        "A click on a picture plays from there.",
        body=join([*blocks, _rules()]) if blocks else Markup(),
    )


def _player_cards(candidates: Sequence[ReportTrack], excerpt: Excerpt, most: int, max_bytes: int) -> list[Markup]:
    """Players of the first tracks that can be heard, as many as fit."""
    cards: list[Markup] = []
    for track in candidates:
        if len(cards) == most or (made := _player_card(track, excerpt)) is None:
            continue
        max_bytes -= len(made)
        if max_bytes < 0:
            break
        cards.append(made)
    return cards


def _player_card(track: ReportTrack, excerpt: Excerpt) -> Markup | None:
    """The player of a track; None if it cannot be heard."""
    heard = excerpt(track)
    if heard is None or heard[0].size == 0 or track.quality is None:
        return None
    quality = track.quality
    lost = [
        f"{loss.name} costs {loss.of(quality):.0f}: {charts.with_unit(round(value, 2), loss.unit)}"
        for loss in LOSSES
        if loss.of(quality) >= 0.5 and (value := loss.figure(quality)) is not None
    ]
    facts = [
        track.labels.genre,
        f"{track.labels.bpm:.0f} BPM" if track.labels.bpm else None,
        track.labels.key,
        f"{charts.number(round(quality.loudness_lufs, 1))} LUFS" if quality.loudness_lufs is not None else None,
        clock_text(quality.duration_s),
        track.relative_path,
    ]
    points = score(track)
    return player(
        title=track.name,
        samples=heard[0],
        sample_rate=heard[1],
        facts=" · ".join(filter(None, facts)),
        badge="" if points is None else plural(round(points), "point"),
        notes=[*(("trim", doubt) for doubt in track.verdict.doubts), *(("mute", text) for text in lost)],
        below=_strip(track, caption=f"whole track, {clock_text(quality.duration_s)}"),
    )


def _strip(track: ReportTrack, caption: str = "") -> Markup:
    """The level of the whole track, a bar a second."""
    if track.seconds is None or track.seconds.size == 0:
        return Markup()
    levels = track.seconds[SECOND_FIGURES.index("level_db")]
    is_dropped = track.action == "drop"
    stop_s = 0.0 if is_dropped else track.verdict.stop_s
    strip = charts.level_strip(levels, start_s=track.verdict.start_s, stop_s=stop_s, columns=160 if caption else 60)
    if not caption:
        return strip
    return Markup('<div class="whole" role="img" aria-label="Level of the {0}">{1}<span>{0}</span></div>').format(
        caption, strip
    )


def _rules() -> Markup:
    rows = [
        [
            loss.name.capitalize(),
            charts.with_unit(loss.free, loss.unit),
            charts.with_unit(loss.full, loss.unit),
            f"{loss.points:.0f}",
        ]
        for loss in LOSSES
    ]
    words = (
        "Every track starts with 100 points. A figure costs nothing up to the first limit, all of its points from the "
        "second on, and a part of them in between. What was not measured costs nothing. The ranking only decides what "
        "is shown here: it keeps and drops no track."
    )
    body = join([paragraph(words), table("What costs points", ["", "Nothing up to", "All from", "Points"], rows)])
    return details("How the tracks are ranked", body)


# ---- captions --------------------------------------------------------------------------------------------------------


def _captions_section(captions: Sequence[tuple[str, list[str | None]]]) -> Section:
    one = Markup('<article class="card captions"><h3>{}</h3><ul role="list">{}</ul></article>')
    shown = [one.format(name, join(map(_caption, Counter(texts).items()))) for name, texts in captions[:MAX_CAPTIONED]]
    more = len(captions) - len(shown)
    note = paragraph(f"Showing {len(shown)} of {len(captions):,} tracks.", tone="muted") if more > 0 else Markup()
    return Section(
        anchor="captions",
        title="Captions",
        lead="Exactly what the model reads with a track, drawn as in training.",
        body=join([flow(shown, width_rem=24), note]) if shown else Markup(),
    )


def _caption(entry: tuple[str | None, int]) -> Markup:
    text, times = entry
    count = Markup('<span class="times-read">× {}</span>').format(times) if times > 1 else ""
    if text is None:
        return Markup('<li class="muted">no caption: it learns to play without one{}</li>').format(count)
    return Markup("<li><q>{}</q>{}</li>").format(text, count)


# ---- dropped, duplicates, split --------------------------------------------------------------------------------------


def _dropped_section(tracks: Sequence[ReportTrack]) -> Section:
    order = {"drop": 0, "trim": 1}
    told = sorted((t for t in tracks if t.action in order), key=lambda t: (order[t.action], t.relative_path))
    reasons = count_reasons(tracks)
    rows = [
        Bar(
            label=count.reason,
            pieces=[("drop", count.dropped), ("trim", count.trimmed)],
            text=f"{count.dropped + count.trimmed:,}",
        )
        for count in reasons[:MAX_BARS]
    ]
    more = len(reasons) - len(rows)
    kinds = [charts.bars(rows), paragraph(f"and {more} other reasons", tone="note") if more > 0 else Markup()]
    why = card("Most frequent reasons", Markup('<div class="wide">{}</div>').format(join(kinds)))
    listed = [
        Row(
            tag=_TAG[track.action],
            tone=track.action,
            name=track.relative_path,
            notes=track.reasons or ("no reason given",),
            figure=_lengths(track),
            picture=_strip(track) if number < MAX_PICTURES else Markup(),
        )
        for number, track in enumerate(told[:MAX_ROWS])
    ]
    dropped = sum(track.action == "drop" for track in told)
    return Section(
        anchor="dropped",
        title="Dropped and trimmed",
        lead=f"{plural(dropped, 'file')} dropped and {len(told) - dropped:,} trimmed, and why."
        if told
        else "Nothing was dropped, and nothing trimmed.",
        body=join([why, listing("Dropped and trimmed files", listed, noun="file", total=len(told))])
        if told
        else Markup(" " if tracks else ""),  # that nothing was dropped is worth a section of its own
    )


def _lengths(track: ReportTrack) -> str:
    if track.quality is None:
        return "–"
    if track.action == "trim":
        return f"{clock_text(track.quality.duration_s)} → {clock_text(track.kept_s)}"
    return clock_text(track.quality.duration_s)


def _duplicates_section(tracks: Sequence[ReportTrack]) -> Section:
    clusters = duplicate_clusters(tracks)
    rows = [
        Row(
            tag=f"{len(members) + 1} files",
            tone="mute",
            name=path,
            notes=[
                *(f"{_TAG[member.action]}: {member.relative_path}" for member in members[:20]),
                *([f"and {len(members) - 20:,} more"] if len(members) > 20 else []),
            ],
        )
        for path, members in clusters[:MAX_CLUSTERS]
    ]
    copies = sum(len(members) for _, members in clusters)
    verb = "repeats" if copies == 1 else "repeat"
    return Section(
        anchor="duplicates",
        title="Duplicates",
        lead=f"{plural(copies, 'file')} {verb} {plural(len(clusters), 'track')}: first in each row what is repeated.",
        body=listing("Duplicates", rows, noun="track", total=len(clusters)),
    )


def _split_section(tracks: Sequence[ReportTrack]) -> Section:
    parts: dict[str, list[ReportTrack]] = defaultdict(list)
    for track in tracks:
        if track.split and track.action != "drop":
            parts[track.split].append(track)
    if not parts:
        return Section(anchor="split", title="Split", body=Markup())
    train, valid = parts["train"], parts["valid"]
    total = sum(track.kept_s for track in (*train, *valid))
    rows = [
        ["Tracks", f"{len(train):,}", f"{len(valid):,}"],
        ["Music", *(_with_share(sum(t.kept_s for t in part), total) for part in (train, valid))],
    ]
    for field in ("genre", "artist", "album"):
        if any(getattr(track.labels, field) for track in (*train, *valid)):
            rows.append([f"{field.capitalize()}s", *(f"{len(count_labels(part, field)):,}" for part in (train, valid))])
    if any(track.group for track in (*train, *valid)):
        rows.append(["Groups", *(f"{len({t.group for t in part if t.group}):,}" for part in (train, valid))])
    notes = [note for note in (_absent_note(train, valid), _group_note([*train, *valid])) if note]
    return Section(
        anchor="split",
        title="Split",
        lead="What is learned from, and what is held out to judge it by.",
        body=grid(
            [
                card("Train and valid", table("The two parts", ["", "Train", "Valid"], rows)),
                card("Is it a fair judge?", join(map(paragraph, notes or ["There is no genre or group to tell by."]))),
            ],
            width_rem=24,
        ),
    )


def _with_share(seconds: float, total: float) -> str:
    return f"{hours_text(seconds)} ({share_text(seconds, total)})"


def _absent_note(train: Sequence[ReportTrack], valid: Sequence[ReportTrack]) -> str:
    known = {count.label for count in count_labels(train, "genre")}
    absent = sorted(known - {count.label for count in count_labels(valid, "genre")})
    if not absent:
        return "Every genre of the training part is in the held-out part." if known else ""
    named = ", ".join(absent[:12]) + (f" and {len(absent) - 12} more" if len(absent) > 12 else "")
    return f"Genres that the held-out part lacks: {named}."


def _group_note(tracks: Sequence[ReportTrack]) -> str:
    if not any(track.group for track in tracks):
        return ""
    parted = groups_in_both_parts(tracks)
    if not parted:
        return "No group of related tracks lies in both parts."
    named = ", ".join(parted[:12]) + (f" and {len(parted) - 12} more" if len(parted) > 12 else "")
    return f"Groups that lie in both parts, so that the held-out loss is too good: {named}."
