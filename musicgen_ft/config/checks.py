"""What numbers must be, told with the field's name: a ValueError, of which the command line makes one line."""

from typing import Any


def positive(config: Any, *names: str) -> None:
    """These fields are above 0.

    Raises:
        ValueError: for the first that is not.
    """
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name}: found {getattr(config, name)}, expected a number above 0.")


def not_negative(config: Any, *names: str) -> None:
    """These fields are 0 or above.

    Raises:
        ValueError: for the first that is not.
    """
    for name in names:
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name}: found {getattr(config, name)}, expected 0 or more.")


def probability(config: Any, *names: str) -> None:
    """These fields are from 0 to 1.

    Raises:
        ValueError: for the first that is not.
    """
    for name in names:
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise ValueError(f"{name}: found {getattr(config, name)}, expected a number from 0 to 1.")
