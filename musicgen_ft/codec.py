"""Frozen EnCodec: waveforms to codes and back.

B batch, C channels, L samples, K codebooks, T frames.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """What has to agree between shards, codec and language model."""

    id: str
    """Where the codec came from: a hub id, a folder's name, or ``nano``."""
    sha256: str
    """Hash over the names and values of its weights: two codecs with the same hash give the same codes."""
    sample_rate: int
    """Samples per second of its waveforms."""
    frame_rate: int
    """Frames of codes per second."""
    channels: int
    """Channels of its waveforms."""
    n_q: int
    """Codebooks."""
    card: int
    """Entries of each codebook; codes lie in [0, card)."""

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.sample_rate // self.frame_rate
