"""docs/traps.md names, for every trap, tests that exist, or a reason."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| (\d+) \| .+? \| (.+) \|$", (ROOT / "docs" / "traps.md").read_text(encoding="utf-8"), re.MULTILINE
)


def test_all_34_traps_have_a_test_or_a_reason() -> None:
    assert [int(number) for number, _ in ROWS] == list(range(1, 35))
    assert all("`test_" in held or "cannot happen" in held for _, held in ROWS)


def test_every_test_that_the_traps_name_exists() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", " ".join(held for _, held in ROWS))

    assert [name for name in named if f"def {name}(" not in text] == []
