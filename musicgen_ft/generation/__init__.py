"""From prompts to codes to waveforms."""
