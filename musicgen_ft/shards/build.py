"""Building the shards of a plan: every missing one is claimed, encoded, and put in place whole.

Several processes and machines do it together, see ``musicgen_ft.leases``; in each of them, threads decode and encode
one track each.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from musicgen_ft.audio import AudioError
from musicgen_ft.codec import Codec
from musicgen_ft.corpus.verdicts import too_hard
from musicgen_ft.errors import UserError
from musicgen_ft.leases import work_through
from musicgen_ft.shards.encode import Encoded, Encoder, encoded_of, finished_track, read_encoded, write_encoded
from musicgen_ft.shards.format import Rejected
from musicgen_ft.shards.plan import PlannedShard, PlannedTrack
from musicgen_ft.shards.sidecar import Sidecar, read_sidecar, sidecar_path
from musicgen_ft.shards.track import Track, track_of_members
from musicgen_ft.shards.work import WorkFolder
from musicgen_ft.shards.writer import write_shard

logger = logging.getLogger(__name__)

MAX_THREADS = 16


class Builder:
    """Makes shards of a plan."""

    def __init__(
        self,
        work: WorkFolder,
        encoder: Encoder,
        paths: Mapping[str, Path],
        *,
        workers: int,
        settings: str,
        min_codec_snr_db: float | None = None,
        progress: Callable[[PlannedTrack], object] = lambda _: None,
    ) -> None:
        """Gathers what building needs.

        Args:
            work: holds the plan.
            encoder: for the tracks.
            paths: audio file of each track, by relative path.
            workers: threads.
            settings: written into every index.
            min_codec_snr_db: tracks that the codec carries worse are left out.
            progress: told each track that is encoded.
        """
        self.work, self.encoder, self.paths = work, encoder, paths
        self.workers, self.settings, self.min_codec_snr_db = workers, settings, min_codec_snr_db
        self.progress = progress
        self._old = old_tracks(work.out)

    def build(self, names: Sequence[str], *, first: int = 0) -> None:
        """Makes the shards of these names, but those that other workers make; waits until all are there."""
        with one_thread_each(self.encoder.codec.device.type == "cpu"):
            work_through(names, self.work.leases, is_done=self.is_done, do=self.build_shard, first=first)

    def is_done(self, name: str) -> bool:
        """Whether a shard is in its place."""
        return (self.work.out / name).exists()

    def build_shard(self, name: str) -> None:
        """Encodes the tracks of a shard that are not encoded yet, and writes it."""
        try:
            self._build_shard(name)
        except FileNotFoundError:
            if not self.is_done(name):
                raise
            # Another worker took this one for dead, was faster, and removed the parts: the shard is the same.

    def _build_shard(self, name: str) -> None:
        shard = self.work.planned(name)
        rejected = self._encode(shard)
        for file in rejected:
            logger.warning(f"left out {file.relative_path}: {file.reason}")
        left_out = {file.relative_path for file in rejected}
        kept = [track for track in shard.tracks if track.relative_path not in left_out]
        write_shard(
            self.work.out,
            name,
            (finished_track(track, read_encoded(self.work.part_path(track))) for track in kept),
            split=shard.split,
            codec=self.encoder.codec.spec,
            chroma=self.encoder.chroma,
            settings=self.settings,
            rejected=rejected,
        )
        for track in kept:
            self.work.part_path(track).unlink(missing_ok=True)

    def _encode(self, shard: PlannedShard) -> list[Rejected]:
        """Encodes what is missing of a shard; tells what could not be."""
        with ThreadPoolExecutor(self.workers, thread_name_prefix="encode") as pool:
            try:
                found = list(pool.map(self._encode_track, shard.tracks))
            except BaseException:
                self.encoder.stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        return [file for file in found if file is not None]

    def _encode_track(self, track: PlannedTrack) -> Rejected | None:
        """Sees to it that a track's part is there; else tells why not."""
        part = self.work.part_path(track)
        encoded = read_encoded(part) if part.exists() else self._old_codes(track)
        if encoded is None:
            path = self.paths[track.relative_path]
            try:
                encoded = self.encoder.encode(path, track)
            except (AudioError, OSError) as error:
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                reason = " ".join(text.removeprefix(f"{path}: ").split())
                return Rejected(relative_path=track.relative_path, reason=reason)
        if not part.exists():
            write_encoded(part, encoded)
        self.progress(track)
        if (verdict := too_hard(encoded.snr_db, self.min_codec_snr_db)) is not None:
            return Rejected(relative_path=track.relative_path, reason=verdict, codec_snr_db=encoded.snr_db)
        return None

    def _old_codes(self, track: PlannedTrack) -> Encoded | None:
        """The codes of a shard that is there, where they are the ones that encoding would give."""
        place = self._old.get(track.codes_state)
        return None if place is None else encoded_of(read_track(self.work.out, *place))


def existing_shards(folder: Path) -> list[Sidecar]:
    """The index of every whole shard in a folder, complete or not.

    Raises:
        UserError: if a shard has not the size that its index tells.
    """
    found = []
    for path in sorted(folder.glob("*.tar")):
        if path.name.startswith(".") or not sidecar_path(path).is_file():
            continue
        sidecar = read_sidecar(folder, path.name)
        if (size := path.stat().st_size) != sidecar.shard.num_bytes:
            raise UserError(
                f"{path} is damaged: {size} bytes, its index says {sidecar.shard.num_bytes}. Remove it and run again."
            )
        found.append(sidecar)
    return found


def old_tracks(folder: Path) -> dict[str, tuple[Sidecar, int]]:
    """Where codes lie that need not be made again: state of the codes -> index and number."""
    return {
        state: (sidecar, number)
        for sidecar in existing_shards(folder)
        for number, state in enumerate(sidecar.codes_states)
        if state
    }


def read_track(folder: Path, sidecar: Sidecar, number: int) -> Track:
    """One track of a shard by its index alone."""
    with (folder / sidecar.shard.name).open("rb") as file:
        members = {}
        for name in sidecar.members:
            file.seek(getattr(sidecar, f"{name}_offset")[number])
            members["json" if name == "json" else f"{name}.npy"] = file.read(getattr(sidecar, f"{name}_bytes")[number])
    return track_of_members(sidecar.keys[number], members)


@contextmanager
def one_thread_each(is_cpu: bool) -> Iterator[None]:
    """On a CPU each track is encoded by one thread: faster for many tracks, and the same sums on every machine."""
    before = torch.get_num_threads()
    if is_cpu:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_workers(codec: Codec, *, window_s: float, cores: int) -> int:
    """Threads to encode with: one for each core, as far as half of the memory goes on a CPU.

    An EnCodec holds about 6 activations of its first layer's width at the sample rate (measured: 1.4 GiB to encode and
    decode 34 s at the size of the released one).
    """
    if codec.device.type != "cpu":
        return min(cores, MAX_THREADS)
    needed = 6 * 4 * codec.spec.sample_rate * codec.model.config.num_filters * (window_s + 4)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores, int(memory / 2 / needed)))


def rejected_of(sidecars: Sequence[Sidecar]) -> list[Rejected]:
    """What the builders of shards left out."""
    return [file for sidecar in sidecars for file in sidecar.rejected]
