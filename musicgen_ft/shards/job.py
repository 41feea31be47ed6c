"""The job of making a shards folder, step by step; each step goes on where an earlier run of it was stopped.

Any number of workers, on machines that share the corpus and the folder, may run it at the same time.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from musicgen_ft.config.plain import to_plain
from musicgen_ft.config.prepare import PrepareConfig
from musicgen_ft.corpus.assessment import Assessed, assess
from musicgen_ft.corpus.scan import Record
from musicgen_ft.corpus.survey import Survey
from musicgen_ft.corpus.surveying import SurveyEngine, survey_corpus
from musicgen_ft.corpus.verdicts import Rules, drop
from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_path
from musicgen_ft.leases import LeasesGoneError
from musicgen_ft.processes import num_cores, num_workers, worker_number
from musicgen_ft.shards.build import Builder, existing_shards
from musicgen_ft.shards.catalog import write_catalog
from musicgen_ft.shards.dataset_card import dataset_card
from musicgen_ft.shards.encode import Encoder
from musicgen_ft.shards.format import (
    CARD_NAME,
    SPLITS,
    Manifest,
    Rejected,
    Split,
    is_shard_file,
    read_manifest,
    write_manifest,
)
from musicgen_ft.shards.plan import PlannedTrack, make_plan, planned_track
from musicgen_ft.shards.sidecar import read_sidecar, sidecar_path
from musicgen_ft.shards.track import TrackMeta
from musicgen_ft.shards.work import WorkFolder, inputs_of, read_tracks

logger = logging.getLogger(__name__)

_HERE_ONLY = ("out", "corpus", "device", "workers", "engine", "lease_s")
"""Of the config: what says where and how it was run, and decides no byte of the shards."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What there is to do."""

    kept: tuple[str, ...]
    """Shards that are there and stay."""
    new: tuple[str, ...]
    """Shards that are to be made."""

    @property
    def shards(self) -> tuple[str, ...]:
        """All shards of the finished folder."""
        return tuple(sorted({*self.kept, *self.new}))


def rules_of(config: PrepareConfig) -> Rules:
    """The limits on the figures of a track."""
    return Rules(
        min_duration_s=config.min_duration_s,
        trim_silence=config.trim_silence,
        trim_fades=config.trim_fades,
        max_silent_share=config.max_silent_share,
        min_loudness_lufs=config.min_loudness_lufs,
        max_clipped_share=config.max_clipped_share,
        max_dc_offset=config.max_dc_offset,
        min_bandwidth_khz=config.min_bandwidth_khz,
        min_codec_snr_db=config.min_codec_snr_db,
    )


def settings_of(config: PrepareConfig, encoder: Encoder) -> str:
    """What a folder's shards have in common, beside the codec: a folder begun with another answer is refused."""
    return f"{encoder.settings} corpus={config.corpus.resolve().name}"


def refuse_other_settings(folder: Path, settings: str) -> None:
    """Raises UserError if the folder holds shards that were made with other settings."""
    if not folder.is_dir():
        return
    for sidecar in existing_shards(folder):
        if sidecar.settings != settings:
            raise UserError(
                f"{folder} was begun with another codec, config or corpus ({sidecar.shard.name}): found "
                f"{sidecar.settings}, expected {settings}. Remove it or choose another --out."
            )


def refuse_other_corpus(folder: Path, records: list[Record]) -> None:
    """Raises UserError if the folder was made of a corpus that has no file in common with this one."""
    before = {track.record.relative_path for track in read_tracks(folder)}
    if before and not any(record.relative_path in before for record in records):
        raise UserError(
            f"{folder} holds shards of another corpus: none of its {len(before)} files, such as {min(before)}, is in "
            "this one. Choose another --out."
        )


def survey_step(
    config: PrepareConfig,
    records: list[Record],
    work: WorkFolder,
    *,
    progress: Callable[[int], object],
    engine: SurveyEngine | None = None,
) -> dict[str, Survey]:
    """Measures every file that nobody measured yet."""
    while True:
        known = {track.survey.relative_path: track.survey for track in read_tracks(config.out)}
        try:
            return survey_corpus(
                records,
                work.surveys,
                known=known,
                listen=config.auto_labels,
                workers=config.workers or num_cores(),
                progress=progress,
                engine=engine,
            )
        except LeasesGoneError:  # a faster worker has completed the folder: its list of tracks knows all
            work.make()


def assess_step(
    config: PrepareConfig,
    records: list[Record],
    surveys: Mapping[str, Survey],
    *,
    channels: int,
    previous: Mapping[str, Split] | None = None,
) -> list[Assessed]:
    """Decides about every file as the config says, see ``assess``."""
    return assess(
        records,
        surveys,
        rules=rules_of(config),
        split_by=config.split_by,
        duplicates=config.duplicates,
        auto_labels=config.auto_labels,
        valid_fraction=config.valid_fraction,
        channels=channels,
        previous=previous,
    )


def plan_step(
    config: PrepareConfig, records: list[Record], surveys: dict[str, Survey], work: WorkFolder, encoder: Encoder
) -> Plan:
    """Decides about every file and shares the tracks among shards, once: whoever comes later takes the same plan.

    Raises:
        UserError: if no file of the corpus can be used.
    """
    inputs = inputs_of(records, surveys, {**_decides(config), "settings": encoder.settings})
    while (found := work.plan(inputs)) is None:
        work.make()  # a faster worker may have completed the folder; then the plan is to keep all
        with work.leases.claim("plan") as is_mine:
            if is_mine and work.plan(inputs) is None:
                _make_plan(config, records, surveys, work, encoder, inputs)
            elif not is_mine:
                time.sleep(0.3)
    kept, new = found
    return Plan(kept=tuple(kept), new=tuple(new))


def _make_plan(
    config: PrepareConfig,
    records: list[Record],
    surveys: dict[str, Survey],
    work: WorkFolder,
    encoder: Encoder,
    inputs: str,
) -> None:
    spec = encoder.codec.spec
    previous: dict[str, Split] = {track.group: track.split for track in read_tracks(config.out) if track.split}
    assessed = assess_step(config, records, surveys, channels=spec.channels, previous=previous)
    if not any(track.is_kept for track in assessed):
        reasons = "; ".join(f"{track.record.relative_path}: {track.verdict.reasons[0]}" for track in assessed[:5])
        raise UserError(f"{config.corpus}: none of its {len(records)} audio files can be used ({reasons}).")
    tracks: dict[Split, list[PlannedTrack]] = {
        split: [planned_track(track, encoder.settings) for track in assessed if track.split == split]
        for split in SPLITS
    }
    existing = {sidecar.shard.name: sidecar.states for sidecar in existing_shards(config.out)}
    kept, new = make_plan(tracks, spec, existing=existing, max_shard_bytes=config.shard_mib * 2**20)
    work.write_plan(inputs, kept, new, assessed)


def build_step(
    config: PrepareConfig,
    paths: Mapping[str, Path],
    plan: Plan,
    work: WorkFolder,
    encoder: Encoder,
    *,
    workers: int,
    progress: Callable[[PlannedTrack], object],
) -> None:
    """Makes the shards that are missing, together with whoever else is at it."""
    if plan.new:
        builder = Builder(
            work,
            encoder,
            paths,
            workers=workers,
            settings=settings_of(config, encoder),
            min_codec_snr_db=config.min_codec_snr_db,
            progress=progress,
        )
        builder.build(plan.new, first=worker_number() * len(plan.new) // num_workers())


def complete_step(config: PrepareConfig, base: str, encoder: Encoder, plan: Plan, work: WorkFolder) -> Manifest:
    """Writes manifest and card, puts the list of tracks in its place, and removes what is not of this plan."""
    while True:
        with work.leases.claim("complete") as is_mine:
            if is_mine:
                return _complete(config, base, encoder, plan, work)
        time.sleep(0.3)
        if not work.folder.exists():
            return read_manifest(config.out)


def _complete(config: PrepareConfig, base: str, encoder: Encoder, plan: Plan, work: WorkFolder) -> Manifest:
    from musicgen_ft import __version__

    sidecars = [read_sidecar(config.out, name) for name in plan.shards]
    rejected = {file.relative_path: file for sidecar in sidecars for file in sidecar.rejected}
    written = {key for sidecar in sidecars for key in sidecar.keys}
    tracks = work.tracks()
    for number, track in enumerate(tracks):
        # What an earlier run could not encode, a later one may have put into another shard.
        if track.record.id not in written and (file := rejected.get(track.record.relative_path)) is not None:
            survey = track.survey
            if survey.quality is not None:  # the codec's figure is kept: the next run need not encode it to know
                quality = replace(survey.quality, codec_snr_db=file.codec_snr_db)
                survey = replace(survey, quality=quality)
            tracks[number] = replace(track, survey=survey, verdict=drop(file.reason), split=None)
    manifest = Manifest(
        codec=encoder.codec.spec,
        base=base,
        shards=tuple(sidecar.shard for sidecar in sidecars if sidecar.shard.num_samples),
        config=_decides(config) | {"corpus": config.corpus.resolve().name},
        toolkit_version=__version__,
        rejected=tuple(
            Rejected(relative_path=track.record.relative_path, reason="; ".join(track.verdict.reasons))
            for track in tracks
            if not track.is_kept
        ),
        chroma=encoder.chroma,
    )
    if not manifest.shards:
        remove_shards(config.out, plan.new)  # they are empty, and the next run is to try again
        raise UserError(f"{config.corpus}: none of its files could be encoded, see the lines above.")
    write_manifest(config.out, manifest)
    write_catalog(config.out, manifest)
    with atomic_path(config.out / CARD_NAME) as temporary:
        temporary.write_text(dataset_card(manifest, map(_meta, filter(_is_kept, tracks))), encoding="utf-8")
    remove_others(config.out, {shard.name for shard in manifest.shards})
    work.finish(tracks)
    return manifest


def _decides(config: PrepareConfig) -> dict[str, Any]:
    return {name: value for name, value in to_plain(config).items() if name not in _HERE_ONLY}


def _is_kept(track: Assessed) -> bool:
    return track.is_kept


def _meta(track: Assessed) -> TrackMeta:
    assert track.survey.quality is not None
    return TrackMeta(
        labels=track.record.labels,
        relative_path=track.record.relative_path,
        num_frames=0,
        duration_s=track.verdict.duration_s(track.survey.quality),
    )


def remove_others(folder: Path, names: Iterable[str]) -> None:
    """Removes what the manifest does not list: shards that an update made again under other names, torn files."""
    wanted = {name for shard in names for name in (shard, sidecar_path(Path(shard)).name)}
    for path in folder.iterdir():
        is_torn = path.name.startswith(".") and ".tmp-" in path.name
        if is_torn and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif is_torn or (is_shard_file(path.name) and path.name not in wanted):
            path.unlink(missing_ok=True)


def remove_shards(folder: Path, names: Iterable[str]) -> None:
    """Removes shards with their indices; the tar first, so that none is ever without."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
        sidecar_path(folder / name).unlink(missing_ok=True)
