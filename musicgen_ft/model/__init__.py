"""The MusicGen language model and what stands right at it."""
