"""A config as plain values, for YAML, checkpoints and loggers."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml


def to_plain(config: Any) -> dict[str, Any]:
    """The config as plain values, for YAML, checkpoints and loggers."""
    return {name: _plain(value) for name, value in asdict(config).items()}


def write_yaml(path: Path, config: Any) -> None:
    """Writes the resolved config."""
    path.write_text(yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
