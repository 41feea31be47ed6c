"""The half-done part of a shards folder, ``.work``: surveys, the plan, encoded tracks, leases.

Everything in it is whole or not there, and named after what it depends on, so that whoever comes next, after a kill or
from another machine, goes on where it was. It goes when the folder is complete.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from musicgen_ft.corpus.assessment import Assessed, assessed_from_line, assessed_to_line
from musicgen_ft.corpus.scan import Record
from musicgen_ft.corpus.survey import Survey, survey_to_dict
from musicgen_ft.corpus.surveying import SurveyStore
from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_path, read_json, refuse_file, write_json
from musicgen_ft.leases import Leases
from musicgen_ft.shards.format import CARD_NAME, CATALOG_NAME, MANIFEST_NAME, TRACKS_NAME, WORK_NAME, is_shard_file
from musicgen_ft.shards.plan import PlannedShard, PlannedTrack


class WorkFolder:
    """``.work`` in the folder of the shards."""

    def __init__(self, out: Path, *, lease_s: float = 60.0) -> None:
        """Makes the folder, if it is not there.

        Raises:
            UserError: if ``out`` holds anything but shards.
        """
        refuse_foreign_files(out)
        self.out = out
        self.folder = out / WORK_NAME
        self.parts = self.folder / "parts"
        self._plan = self.folder / "plan"
        self.leases = Leases(self.folder / "leases", stale_s=lease_s)
        self.surveys = SurveyStore(self.folder / "surveys", self.leases)
        self.make()

    def make(self) -> None:
        """Makes what is missing of it: all, where another worker has completed the folder meanwhile."""
        for folder in (self.parts, self._plan, self.leases.folder, self.surveys.folder):
            folder.mkdir(parents=True, exist_ok=True)

    # The plan.

    def write_plan(
        self, inputs: str, kept: Sequence[str], shards: Sequence[PlannedShard], tracks: Iterable[Assessed]
    ) -> None:
        """Writes the plan; it counts from the moment its list is there."""
        list_path = self._plan / "plan.json"
        list_path.unlink(missing_ok=True)
        for old in self._plan.glob("*.tar.jsonl"):  # a shard that an earlier plan began and nobody finished
            old.unlink()
        _write_tracks(self.folder / TRACKS_NAME, tracks)
        for shard in shards:
            with atomic_path(self._plan / f"{shard.name}.jsonl") as temporary:
                temporary.write_text("".join(_line(track.to_dict()) for track in shard.tracks), encoding="utf-8")
        write_json(list_path, {"inputs": inputs, "kept": list(kept), "shards": [shard.name for shard in shards]})

    def plan(self, inputs: str) -> tuple[list[str], list[str]] | None:
        """Names of the shards that stay and of those to make; None where there is no plan of these inputs."""
        path = self._plan / "plan.json"
        if not path.is_file():
            return None
        values = read_json(path)
        return (values["kept"], values["shards"]) if values["inputs"] == inputs else None

    def tracks(self) -> list[Assessed]:
        """What the plan makes of every file of the corpus."""
        return read_tracks(self.folder)

    def planned(self, name: str) -> PlannedShard:
        """One shard of the plan."""
        with (self._plan / f"{name}.jsonl").open(encoding="utf-8") as file:  # no splitlines: labels hold U+2028
            tracks = tuple(PlannedTrack.from_dict(json.loads(line)) for line in file)
        return PlannedShard(name=name, split="train" if name.startswith("train-") else "valid", tracks=tracks)

    def num_planned(self) -> int:
        """Tracks of all shards that are to be made and are not there."""
        lists = [path for path in self._plan.glob("*.tar.jsonl") if not (self.out / path.stem).exists()]
        return sum(path.read_text(encoding="utf-8").count("\n") for path in lists)

    # Encoded tracks.

    def part_path(self, track: PlannedTrack) -> Path:
        """Where a track's codes lie until its shard is written; no two tracks share it, be they of equal sound."""
        return self.parts / f"{track.key}-{track.codes_state}.npz"

    def finish(self, tracks: Iterable[Assessed]) -> None:
        """Writes the list of tracks into its place and removes the half-done part."""
        _write_tracks(self.out / TRACKS_NAME, tracks)
        # At once, so that no other worker finds a half of it; named like all that is temporary.
        grave = self.out / f".{WORK_NAME}.tmp-{os.getpid()}"
        self.folder.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)


def read_tracks(folder: Path) -> list[Assessed]:
    """What became of every file of the corpus that the shards in ``folder`` were made of; none where it is not told."""
    path = folder / TRACKS_NAME
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        try:
            found = [assessed_from_line(line, Path()) for line in file]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}). Restore or remove it.") from error
    return [track for track in found if track is not None]


def _write_tracks(path: Path, tracks: Iterable[Assessed]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for track in tracks:
            file.write(assessed_to_line(track) + "\n")


def inputs_of(records: Sequence[Record], surveys: Mapping[str, Survey], rules: Mapping[str, Any]) -> str:
    """Hash of all that a plan is made of: what is known of every file, and the rules."""
    digest = hashlib.sha256(_line(dict(rules)).encode())
    for record in records:
        survey = surveys[record.relative_path]
        known = [record.id, record.labels.to_dict(), record.fields, record.split, record.problem]
        digest.update(_line({"record": known, "survey": survey_to_dict(survey)}).encode())
    return digest.hexdigest()


def refuse_foreign_files(folder: Path) -> None:
    """Raises UserError if a folder to write into holds anything but shards, complete or begun."""
    refuse_file(folder)
    if not folder.is_dir():
        return
    ours = {MANIFEST_NAME, CATALOG_NAME, TRACKS_NAME, CARD_NAME, WORK_NAME}
    for file in sorted(folder.iterdir()):
        name = file.name.split(".tmp-")[0].removeprefix(".") if ".tmp-" in file.name else file.name
        if name not in ours and not is_shard_file(name):
            raise UserError(f"{folder} is not empty: it holds {file.name}, no shard. Choose another --out.")


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")) + "\n"
