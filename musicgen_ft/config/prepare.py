"""What a user may choose of ``prepare``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from musicgen_ft.config.checks import not_negative, positive, probability


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """A folder of labelled audio becomes EnCodec codes in WebDataset shards."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("corpus",)

    corpus: Path
    """Folder of audio with labels: .txt, .json, metadata.csv or .jsonl, tags, folder names; or a manifest."""
    out: Path
    """Folder of shards to make, to go on with, or to bring up to date."""
    base: str = "nano"
    """Whose EnCodec encodes: nano, a hub id (facebook/musicgen-small), or a folder."""
    channels: Literal[1, 2] | None = None
    """2 encodes left and right, for a stereo model: of a stereo base, or one that finetune makes of a mono base."""
    valid_fraction: float = 0.1
    """Share of the groups held out for validation; at least one of two or more."""
    split_by: str = "auto"
    """What stays on one side: track, album, artist, folder, a column; auto: album where there are five, else track."""
    duplicates: Literal["drop", "keep"] = "drop"
    """drop: of several tracks of one recording, in whatever format, the best is kept; keep: all, on one side."""
    auto_labels: bool = True
    """Hear tempo and key where the labels have none."""

    min_duration_s: float = 1.0
    """Shorter tracks are left out."""
    trim_silence: bool = True
    """Cut whole seconds of silence off both ends."""
    trim_fades: bool = False
    """Cut off the second half of fade-outs, which teach the model to end in silence."""
    max_silent_share: float = 0.5
    """Tracks with more silence are left out."""
    min_loudness_lufs: float = -50.0
    """Quieter tracks are left out."""
    max_clipped_share: float = 1.0
    """Tracks with a larger share of clipped samples are left out; square waves look clipped, so all stay by default."""
    max_dc_offset: float = 0.1
    """Tracks with a larger DC offset (full scale is 1) are left out."""
    min_bandwidth_khz: float = 0.0
    """Tracks of a narrower true bandwidth are left out; an MP3 of 128 kb/s has about 16."""
    min_codec_snr_db: float | None = None
    """Tracks that the codec carries worse are left out: what EnCodec loses, the model cannot learn."""
    codec_check_s: float = 30.0
    """Seconds of each track decoded again, to measure that; 0 measures nothing."""

    vocals: Literal["keep", "remove"] = "keep"
    """remove: encode what demucs leaves without them; the released models know no singing."""
    melody: Literal["mix", "stems"] = "mix"
    """For a melody base: take the melody of everything, or of what demucs leaves without drums and bass."""
    stems_model: str = "htdemucs"
    """Which demucs: a name, or a file."""
    window_s: float = 30.0
    """Seconds encoded at a time: more is faster and takes more memory."""
    shard_mib: int = 64
    """Size at which a shard is full, in MiB; one is 44 hours of mono at 32 kHz."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int | None = None
    """Tracks at once on this machine; none means one for each core, as far as the memory goes."""
    engine: Literal["local", "ray"] = "local"
    """ray: on all machines of a Ray cluster (ray.init finds it), or of one that is begun here."""
    lease_s: float = 60.0
    """A worker elsewhere that gave no sign for so long is taken for dead, and its shards are made by others."""

    def __post_init__(self) -> None:
        positive(self, "window_s", "shard_mib", "lease_s")
        not_negative(self, "min_duration_s", "max_dc_offset", "min_bandwidth_khz", "codec_check_s")
        probability(self, "valid_fraction", "max_silent_share", "max_clipped_share")
        if self.valid_fraction == 1:
            raise ValueError("valid_fraction: found 1, expected less: nothing would be left to train on.")
        if not self.split_by.strip():
            raise ValueError("split_by: found nothing, expected auto, track, album, artist, folder or a column.")
        if self.workers is not None:
            positive(self, "workers")
