"""musicgen-ft: fine-tune MusicGen on your own music."""

__version__ = "0.1.0"
