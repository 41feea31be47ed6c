"""What recipes show: progress bars and names of files."""

import re
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*, total: int, desc: str, unit: str) -> "tqdm[Any]":
    """A bar on stderr; nothing is drawn where that is no terminal."""
    return tqdm(total=total, desc=desc, unit=unit, file=sys.stderr, dynamic_ncols=True, disable=not sys.stderr.isatty())


def slug(text: str, *, most: int = 40) -> str:
    """A short name for a file: lower-case letters and digits of the text, joined by hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:most].strip("-") or "unconditional"
