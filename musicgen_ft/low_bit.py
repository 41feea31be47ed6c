"""bitsandbytes, where weights or an optimizer's state take few bits."""

from typing import Any

from musicgen_ft.errors import UserError


def bitsandbytes(option: str, *, instead: str) -> Any:
    """The library.

    Args:
        option: that needs it, as a user writes it.
        instead: what works without.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f'bitsandbytes is not installed, which {option} needs: pip install "musicgen-ft[bitsandbytes]", '
            f"or use {instead}."
        ) from error
    return bitsandbytes
