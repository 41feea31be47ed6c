"""Shows what is in a corpus, or in shards: hours, labels, quality, duplicates, what would be left out and why.

    musicgen-ft inspect corpus
    musicgen-ft inspect shards --out report.html
    musicgen-ft inspect corpus --captions 3 --finetune_config small

A table in the terminal, and one page to look at and listen to. Files are measured once: their figures are kept in the
user's cache until they change.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from musicgen_ft.cli import run_recipe
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.config.inspect import InspectConfig
from musicgen_ft.config.prepare import PrepareConfig
from musicgen_ft.terminal import progress_bar

if TYPE_CHECKING:
    from musicgen_ft.corpus.assessment import Assessed
    from musicgen_ft.corpus.captions import CaptionPolicy
    from musicgen_ft.report.corpus_figures import ReportTrack
    from musicgen_ft.report.corpus_report import Excerpt

EXCERPT_S = 12.0
CAPTIONED = 8
"""Tracks whose captions are shown."""


def main(config: InspectConfig) -> None:
    """Measures, prints, writes the page."""
    from musicgen_ft.cli import read_config
    from musicgen_ft.corpus.captions import caption_policy
    from musicgen_ft.files import refuse_folder
    from musicgen_ft.report.corpus_report import write_report
    from musicgen_ft.report.corpus_summary import summary_lines
    from musicgen_ft.shards.format import MANIFEST_NAME, WORK_NAME

    title = config.place.resolve().name
    page = config.out or Path(f"{title}.html")
    refuse_folder(page)
    policy = caption_policy(read_config(FinetuneConfig, "finetune", config.finetune_config))
    if any((config.place / name).exists() for name in (MANIFEST_NAME, WORK_NAME)):
        tracks, excerpt = of_shards(config.place)
    else:
        rules = read_config(PrepareConfig, "prepare", config.prepare_config, corpus=config.place, out=Path("shards"))
        tracks, excerpt = of_corpus(config, rules)

    print("\n".join(summary_lines(tracks, title)))
    drawn = draw_captions(tracks, policy, n=config.captions or 3, seed=config.seed)
    if config.captions:
        for name, captions in drawn:
            print(f"\n{name}")
            for caption in captions:
                print(f"  {caption if caption is not None else '(no caption: the null condition)'}")
    write_report(page, tracks, title=title, excerpt=excerpt, captions=drawn, max_players=config.players)
    print(f"\npage: {page}")


def of_corpus(config: InspectConfig, rules: PrepareConfig) -> "tuple[list[ReportTrack], Excerpt]":
    """Every file of a corpus, as prepare would judge it, and a way to hear it."""
    from musicgen_ft.corpus.scan import scan_corpus
    from musicgen_ft.corpus.surveying import SurveyStore, survey_corpus
    from musicgen_ft.files import user_cache
    from musicgen_ft.leases import Leases
    from musicgen_ft.processes import num_cores
    from musicgen_ft.report.excerpts import of_file
    from musicgen_ft.shards.job import assess_step

    records = scan_corpus(config.place, read_tags=False)
    cache = user_cache() / "surveys" / hashlib.sha256(str(config.place.resolve()).encode()).hexdigest()[:16]
    with progress_bar(total=len(records), desc="survey", unit="file") as bar:
        surveys = survey_corpus(
            records,
            SurveyStore(cache, Leases(cache / "leases")),
            known={},
            listen=rules.auto_labels,
            workers=config.workers or num_cores(),
            progress=lambda done: bar.update(done - bar.n),
        )
    assessed = assess_step(rules, records, surveys, channels=rules.channels or 1)
    paths = {record.id: record.path for record in records}
    return [report_track(track) for track in assessed], of_file(paths, duration_s=EXCERPT_S)


def of_shards(folder: Path) -> "tuple[list[ReportTrack], Excerpt]":
    """Every file that shards were made of, and a way to hear what the codec makes of it."""
    import dataclasses

    from musicgen_ft.errors import UserError
    from musicgen_ft.report.excerpts import of_codes
    from musicgen_ft.shards.format import PREPARE_COMMAND, SPLITS, TRACKS_NAME, Split
    from musicgen_ft.shards.index import ShardIndex
    from musicgen_ft.shards.work import read_tracks

    index = ShardIndex.open(folder)
    places: dict[str, tuple[Split, int]] = {
        key: (split, i) for split in SPLITS for i, key in enumerate(index.split(split).keys)
    }
    tracks = []
    for track in map(report_track, read_tracks(folder)):
        if track.id in places:  # here the figures of the codec are known, too
            split, i = places[track.id]
            track = dataclasses.replace(track, quality=index.split(split).meta(i).quality)
        tracks.append(track)
    if not tracks:
        raise UserError(f"{folder / TRACKS_NAME} is missing: what became of every file. Run: {PREPARE_COMMAND}")
    return tracks, of_codes(index, places, duration_s=EXCERPT_S)


def report_track(track: "Assessed") -> "ReportTrack":
    """One file, as the page tells of it."""
    from musicgen_ft.report.corpus_figures import ReportTrack

    return ReportTrack(
        id=track.record.id,
        relative_path=track.record.relative_path,
        labels=track.record.labels,
        split=track.split,
        verdict=track.verdict,
        quality=track.survey.quality,
        seconds=track.survey.seconds,
        duplicate_of=track.duplicate_of,
        group=track.group,
    )


def draw_captions(
    tracks: "Sequence[ReportTrack]", policy: "CaptionPolicy", *, n: int, seed: int
) -> list[tuple[str, list[str | None]]]:
    """What the model would read with a few tracks, drawn as in training."""
    import numpy as np

    from musicgen_ft.corpus.captions import preview

    kept = [track for track in tracks if track.action != "drop"]
    chosen = kept[:: max(1, len(kept) // CAPTIONED)][:CAPTIONED]
    return [
        (track.relative_path, preview(policy, track.labels, n, np.random.default_rng((seed, number))))
        for number, track in enumerate(chosen)
    ]


if __name__ == "__main__":
    run_recipe(InspectConfig, main)
