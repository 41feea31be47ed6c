"""musicgen-ft: fine-tune MusicGen on your own music."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musicgen_ft.generation.generator import Generator
    from musicgen_ft.generation.options import Request

__version__ = "0.1.0"
__all__ = ["Generator", "Request", "__version__"]


def __getattr__(name: str) -> object:
    """What plays, imported when it is asked for: the command line answers without torch."""
    if name == "Generator":
        from musicgen_ft.generation.generator import Generator

        return Generator
    if name == "Request":
        from musicgen_ft.generation.options import Request

        return Request
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
