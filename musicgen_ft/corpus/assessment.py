"""What becomes of every file of a corpus: labels completed, a verdict, its duplicates, its side of the split."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from musicgen_ft.corpus.auto_labels import fill_missing
from musicgen_ft.corpus.duplicates import Match, clusters, exact_duplicates, find_matches
from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.scan import Record, with_tags
from musicgen_ft.corpus.split import Split, assign_splits, group_values, join_groups
from musicgen_ft.corpus.survey import Survey, survey_from_dict, survey_to_dict
from musicgen_ft.corpus.verdicts import Rules, Verdict, drop, judge

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Assessed:
    """One file of the corpus, and what becomes of it."""

    record: Record
    """The file, with all of its labels: given, embedded and heard."""
    survey: Survey
    """What was found in it."""
    verdict: Verdict
    """Kept, trimmed or dropped."""
    group: str
    """Tracks of one group are on one side of the split."""
    duplicate_of: str | None
    """Relative path of the track of the same recording that was kept in its place."""
    split: Split | None
    """Its side; None where it is dropped."""

    @property
    def is_kept(self) -> bool:
        """Whether it is trained or validated with."""
        return self.verdict.action != "drop"


def assess(
    records: Sequence[Record],
    surveys: Mapping[str, Survey],
    *,
    rules: Rules,
    split_by: str,
    duplicates: Literal["drop", "keep"],
    auto_labels: bool,
    valid_fraction: float,
    channels: int = 1,
    previous: Mapping[str, Split] | None = None,
) -> list[Assessed]:
    """Decides about every file of a corpus; a pure function of what is known of it.

    Args:
        records: the corpus, in the order of its paths.
        surveys: by relative path, one of each record.
        rules: limits on the figures.
        split_by: what tracks are grouped by, see ``group_values``.
        duplicates: ``drop`` keeps the best track of a recording; ``keep`` keeps all, on one side.
        auto_labels: fills tempo and key as heard where they are missing.
        valid_fraction: expected part of the groups that is held out.
        channels: that will be encoded.
        previous: split of the groups of an earlier run of the same folder.

    Raises:
        UserError: if the corpus contradicts itself, or no track has the field to split by.
    """
    found = [surveys[record.relative_path] for record in records]
    records = [_labelled(record, survey, auto_labels) for record, survey in zip(records, found, strict=True)]
    verdicts = [_verdict(record, survey, rules, channels) for record, survey in zip(records, found, strict=True)]
    kept = [number for number, verdict in enumerate(verdicts) if verdict.action != "drop"]

    matches = _matches([found[number] for number in kept])
    same = [(kept[match.first], kept[match.second]) for match in matches]
    best_of = _best(records, found, verdicts, same)
    duplicate_of: dict[int, int] = {}
    if duplicates == "drop":
        duplicate_of = {number: best for number, best in best_of.items() if number != best}
    for number, best in duplicate_of.items():
        verdicts[number] = drop(f"the same recording as {records[best].relative_path}, which is kept")
    kept = [number for number in kept if number not in duplicate_of]

    groups = join_groups(group_values(records, split_by), same) if records else []
    splits = assign_splits(
        [groups[number] for number in kept],
        [records[number].split for number in kept],
        valid_fraction=valid_fraction,
        previous=previous,
        name=lambda place: records[kept[place]].relative_path,
    )
    split_of: dict[int, Split] = dict(zip(kept, splits, strict=True))
    return [
        Assessed(
            record=record,
            survey=survey,
            verdict=verdict,
            group=group,
            duplicate_of=records[duplicate_of[number]].relative_path if number in duplicate_of else None,
            split=split_of.get(number),
        )
        for number, (record, survey, verdict, group) in enumerate(zip(records, found, verdicts, groups, strict=True))
    ]


def assessed_to_line(track: Assessed) -> str:
    """One file of the corpus as a line of JSON, without its end; ``assessed_from_line`` is its inverse."""
    record = track.record
    values = {
        "id": record.id,
        "relative_path": record.relative_path,
        "labels": record.labels.to_dict(),
        "fields": record.fields,
        "problem": record.problem,
        "split": track.split,
        "group": track.group,
        "duplicate_of": track.duplicate_of,
        "verdict": asdict(track.verdict),
        "survey": survey_to_dict(track.survey),
    }
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def assessed_from_line(line: str, corpus: Path) -> Assessed | None:
    """The file of a line, in the folder that the corpus is in; None where the line is of another version.

    Raises:
        ValueError, KeyError, TypeError: if the line is damaged.
    """
    values = json.loads(line)
    survey = survey_from_dict(values["survey"])
    if survey is None:
        return None
    record = Record(
        id=values["id"],
        path=corpus / values["relative_path"],
        relative_path=values["relative_path"],
        labels=Labels.from_dict(values["labels"]),
        split=None,
        fields=values["fields"],
        problem=values["problem"],
    )
    verdict: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values["verdict"].items()
    }
    return Assessed(
        record=record,
        survey=survey,
        verdict=Verdict(**verdict),
        group=values["group"],
        duplicate_of=values["duplicate_of"],
        split=values["split"],
    )


def _labelled(record: Record, survey: Survey, auto_labels: bool) -> Record:
    record = with_tags(record, survey.tags)
    if not auto_labels or survey.heard is None:
        return record
    return replace(record, labels=fill_missing(record.labels, survey.heard))


def _verdict(record: Record, survey: Survey, rules: Rules, channels: int) -> Verdict:
    if record.problem is not None:
        return drop(record.problem)
    if survey.error is not None:
        return drop(survey.error)
    assert survey.quality is not None, "a survey without an error has figures"
    verdict = judge(survey.quality, rules, channels=channels)
    doubts = list(verdict.doubts)
    if survey.is_truncated:
        doubts.append("truncated: the file ends before its container says it does")
    if survey.num_bad_packets:
        doubts.append(f"{survey.num_bad_packets} damaged packets were skipped")
    return replace(verdict, doubts=tuple(doubts))


def _matches(surveys: Sequence[Survey]) -> list[Match]:
    """Pairs of the same recording, by the numbers of the surveys."""
    exact = exact_duplicates([survey.audio_sha256 for survey in surveys])
    near = find_matches([survey.fingerprint for survey in surveys])
    known = {(match.first, match.second) for match in near}
    return [
        *near,
        *(Match(first=a, second=b, offset_s=0.0, share=1.0) for a, b in exact if (a, b) not in known),
    ]


def _best(
    records: Sequence[Record], surveys: Sequence[Survey], verdicts: Sequence[Verdict], same: Sequence[tuple[int, int]]
) -> dict[int, int]:
    """For each track that has a duplicate, the one of its cluster to keep."""
    members: dict[int, list[int]] = {}
    touched = sorted({number for pair in same for number in pair})
    place = {number: index for index, number in enumerate(touched)}
    for number, cluster in zip(touched, clusters(len(touched), [(place[a], place[b]) for a, b in same]), strict=True):
        members.setdefault(cluster, []).append(number)

    def worth(number: int) -> tuple[float, ...]:
        """Most music left, widest band, few clipped samples, no trimming, most labels given; else the first by path."""
        quality, verdict, labels = surveys[number].quality, verdicts[number], records[number].labels
        assert quality is not None
        is_whole = verdict.action == "keep"
        heard = {"computed", *labels.computed}
        num_labels = sum(bool(value) for name, value in labels.to_dict().items() if name not in heard)
        sound = (round(verdict.duration_s(quality)), round(quality.bandwidth_khz), -round(quality.clipped_share, 3))
        return (*sound, is_whole, num_labels, -number)

    return {number: max(cluster, key=worth) for cluster in members.values() for number in cluster}
