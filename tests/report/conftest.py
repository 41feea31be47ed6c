"""Makes tracks that a report can tell of, and reads pages."""

from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from musicgen_ft.corpus.labels import Labels
from musicgen_ft.corpus.quality import Quality
from musicgen_ft.corpus.verdicts import Verdict
from musicgen_ft.report.corpus_figures import ReportTrack

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """A page as a browser reads it; whatever is left open or closed twice is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID and tag not in ("path", "rect"):
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag == "rect":
            return
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "script":
            self.scripts.append(data)
        elif not self.stack or self.stack[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that a reader reads, white space made even."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def values(self) -> list[str]:
        """Every value of an attribute."""
        return [value for _, attributes in self.tags for value in attributes.values() if value]


@pytest.fixture(scope="session")
def read_page() -> type[Page]:
    return Page


@pytest.fixture(scope="session")
def make_quality() -> Callable[..., Quality]:
    """A function that makes figures of a flawless track; it takes changes."""

    def make(**changes: Any) -> Quality:
        figures: dict[str, Any] = {
            "source_sample_rate": 44100,
            "source_channels": 2,
            "duration_s": 180.0,
            "loudness_lufs": -14.0,
            "peak_db": -1.0,
            "silent_share": 0.0,
            "head_silence_s": 0.0,
            "tail_silence_s": 0.0,
            "fade_out_s": 0.0,
            "clipped_share": 0.0,
            "dc_offset": 0.0,
            "bandwidth_khz": 20.0,
            "stereo_width": 0.5,
        }
        return Quality(**{**figures, **changes})

    return make


@pytest.fixture(scope="session")
def make_track(make_quality: Callable[..., Quality]) -> Callable[..., ReportTrack]:
    """A function that makes a kept, measured track; it takes changes, and labels as a dict."""

    def make(id_: str = "a", *, labels: dict[str, Any] | None = None, **changes: Any) -> ReportTrack:
        values: dict[str, Any] = {
            "id": id_,
            "relative_path": f"music/{id_}.flac",
            "labels": Labels(**(labels or {})),
            "split": "train",
            "verdict": Verdict(action="keep"),
            "quality": make_quality(),
            "seconds": np.full((4, 180), -18, np.float16),
        }
        return ReportTrack(**{**values, **changes})

    return make
