"""A MusicGen that plays: language model, codec and text encoder together.

B batch, C channels, L samples.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from musicgen_ft.codec import Codec
from musicgen_ft.errors import UserError
from musicgen_ft.generation.decode import Progress, generate_codes, generate_long
from musicgen_ft.generation.options import GenerationOptions
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel


class Generator:
    """Prompts to waveforms, by our own decoding.

    A prompt and a seed give the same music in whatever batch they stand: padded text is masked, as transformers does,
    which is also what audiocraft gives for a prompt alone.
    """

    def __init__(self, lm: LanguageModel, codec: Codec, text_encoder: TextEncoder) -> None:
        self.lm = lm.eval().requires_grad_(False)
        self.lm.config = dataclasses.replace(lm.config, text_padding="transformers")
        self.codec = codec
        self.text_encoder = text_encoder

    def to(self, device: torch.device | str) -> "Generator":
        """Moves all three; returns itself."""
        self.lm.to(device)
        self.codec.to(device)
        self.text_encoder.to(device)
        return self

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return self.codec.spec.sample_rate

    def generate(
        self,
        descriptions: Sequence[str | None],
        options: GenerationOptions,
        *,
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> Tensor:
        """Plays each description.

        Args:
            descriptions: B prompts; None or blank is unconditional.
            options: length and rule of drawing.
            seeds: B of them.
            progress: told after every step of decoding.

        Returns:
            float32 [B, C, L] on the CPU.

        Raises:
            UserError: if the duration is less than a frame, or the stride does not fit the model's window.
        """
        frame_rate = self.codec.spec.frame_rate
        num_frames = int(options.duration_s * frame_rate)
        if num_frames < 1:
            raise UserError(f"duration_s {options.duration_s}: found less than a frame of {1 / frame_rate:g} s.")
        window_s = self.lm.config.max_duration_s
        text = self.text_encoder.encode(descriptions)
        if options.duration_s <= window_s:
            codes = generate_codes(
                self.lm,
                text,
                num_frames=num_frames,
                sampling=options.sampling,
                seeds=seeds,
                cfg_coef=options.cfg_coef,
                progress=progress,
            )
        elif not 0 < int(options.stride_s * frame_rate) < int(window_s * frame_rate):
            raise UserError(
                f"stride_s {options.stride_s}: expected at least a frame of {1 / frame_rate:g} s and less than the "
                f"model's window of {window_s:g} s."
            )
        else:
            codes = generate_long(
                self.lm,
                text,
                num_frames=num_frames,
                window_frames=int(window_s * frame_rate),
                stride_frames=int(options.stride_s * frame_rate),
                sampling=options.sampling,
                seeds=seeds,
                cfg_coef=options.cfg_coef,
                progress=progress,
            )
        return self.codec.decode(codes).cpu()
