"""What the container of an audio file promises of its length, and whether the file keeps it."""

from pathlib import Path
from typing import TYPE_CHECKING

import av

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

MAX_MP3_FRAME = 1441  # bytes
MAX_OGG_PAGE = 65307  # bytes
ENDLESS = 0x7FFF0000  # a WAV written to a pipe declares 2 or 4 GiB
OGG_LAST_PAGE = 4  # flag


def promised_s(path: Path, container: "InputContainer", stream: "AudioStream") -> float | None:
    """Seconds by the header; None where FFmpeg would only guess them from the bit rate of the first frames."""
    kind = container.format.name
    if kind == "aac" or (kind == "mp3" and not _has_length_frame(path)):
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def lacks_its_end(path: Path) -> bool:
    """Whether a WAV or Ogg file is cut; FFmpeg takes the duration of these two from what is there, and sees nothing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if head.startswith(b"RIFF"):
            declared = int.from_bytes(head[4:], "little")
            return declared < ENDLESS and size < 0.98 * declared
        if head.startswith(b"OggS"):
            file.seek(max(0, size - MAX_OGG_PAGE))
            _, mark, last_page = file.read().rpartition(b"OggS")
            flags = last_page[1] if mark and len(last_page) > 1 else 0
            return not flags & OGG_LAST_PAGE
    return False


def _has_length_frame(path: Path) -> bool:
    """Whether an MP3 opens with the frame that tells its length (Xing, Info or VBRI)."""
    with path.open("rb") as file:
        head = file.read(10)
        audio_start = 10 + _synchsafe(head[6:]) if head.startswith(b"ID3") else 0
        file.seek(audio_start)
        frame = file.read(MAX_MP3_FRAME)
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


def _synchsafe(digits: bytes) -> int:
    """The number that ID3 writes with seven bits to the byte."""
    number = 0
    for digit in digits:
        number = number << 7 | digit
    return number
