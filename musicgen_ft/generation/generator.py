"""A MusicGen that plays: language model, codec and text encoder together.

B batch, C channels, L samples.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from musicgen_ft.chroma import MelodyStates, chromagram, generation_melody
from musicgen_ft.codec import Codec
from musicgen_ft.errors import UserError
from musicgen_ft.generation.collapse import LoopWatcher
from musicgen_ft.generation.decode import Progress, generate_codes, generate_long
from musicgen_ft.generation.options import GenerationOptions
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel

Melody = npt.NDArray[np.float32]
"""A mono waveform [L] at the sample rate of the codec."""


class Generator:
    """Prompts to waveforms, by our own decoding.

    A prompt and a seed give the same music in whatever batch they stand: padded text is masked, as transformers does,
    which is also what audiocraft gives for a prompt alone. Melody models mask nothing: prompts of different lengths are
    played one after the other there.
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
        melodies: Sequence[Melody | None] | None = None,
        progress: Progress | None = None,
        watchers: Sequence[LoopWatcher] = (),
    ) -> Tensor:
        """Plays each description; see ``codes`` for the arguments and errors, ``watchers`` are shown the codes.

        Returns:
            float32 [B, C, L] on the CPU.
        """
        codes = self.codes(descriptions, options, seeds=seeds, melodies=melodies, progress=progress)
        for watcher, of_piece in zip(watchers, codes, strict=False):
            watcher.add(of_piece)
        return self.codec.decode(codes).cpu()

    def codes(
        self,
        descriptions: Sequence[str | None],
        options: GenerationOptions,
        *,
        seeds: Sequence[int],
        melodies: Sequence[Melody | None] | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """As ``generate``, before the codec makes it audible.

        Args:
            descriptions: B prompts; None or blank is unconditional.
            options: length and rule of drawing.
            seeds: B of them.
            melodies: B of them, for a model that takes melodies; None is no melody.
            progress: told after every step of decoding.

        Returns:
            int64 [B, K, T].

        Raises:
            UserError: if the duration is less than a frame, the stride does not fit the model's window, or there is a
                melody for a model that takes none.
        """
        frame_rate = self.codec.spec.frame_rate
        num_frames = int(options.duration_s * frame_rate)
        if num_frames < 1:
            raise UserError(f"duration_s {options.duration_s}: found less than a frame of {1 / frame_rate:g} s.")
        window_s = self.lm.config.max_duration_s
        text = self.text_encoder.encode(descriptions)
        chroma = self.lm.config.chroma
        if melodies is None:
            melodies = [None] * len(descriptions)
        if chroma is None and any(melody is not None for melody in melodies):
            raise UserError("this generator takes no melody, found one. Use one made from facebook/musicgen-melody.")
        lengths = text.mask.sum(-1)
        if chroma is not None and len(lengths.unique()) > 1:
            alone = [
                self.codes([description], options, seeds=[seed], melodies=[melody], progress=progress)
                for description, seed, melody in zip(descriptions, seeds, melodies, strict=True)
            ]
            return torch.cat(alone)

        def melody_at(start: int) -> MelodyStates:
            return self._melody(melodies, start, is_whole=options.duration_s <= window_s)

        if options.duration_s <= window_s:
            return generate_codes(
                self.lm,
                text,
                num_frames=num_frames,
                sampling=options.sampling,
                seeds=seeds,
                cfg_coef=options.cfg_coef,
                melody=None if chroma is None else melody_at(0),
                progress=progress,
            )
        if not 0 < int(options.stride_s * frame_rate) < int(window_s * frame_rate):
            raise UserError(
                f"stride_s {options.stride_s}: expected at least a frame of {1 / frame_rate:g} s and less than the "
                f"model's window of {window_s:g} s."
            )
        return generate_long(
            self.lm,
            text,
            num_frames=num_frames,
            window_frames=int(window_s * frame_rate),
            stride_frames=int(options.stride_s * frame_rate),
            sampling=options.sampling,
            seeds=seeds,
            cfg_coef=options.cfg_coef,
            melody=None if chroma is None else melody_at,
            progress=progress,
        )

    def _melody(self, melodies: Sequence[Melody | None], start: int, *, is_whole: bool) -> MelodyStates:
        """The melodies' condition for a window from frame ``start`` on.

        A piece that fits one window takes a melody from its start. Of a longer one each window takes its own part of
        the melody, which begins again where it ends (audiocraft's ``_generate_tokens``, spec 6).
        """
        spec, window_s = self.lm.config.chroma, self.lm.config.max_duration_s
        assert spec is not None
        rows = []
        for melody in melodies:
            if melody is not None and not is_whole:
                first = start * self.codec.spec.hop_length
                melody = melody[np.arange(first, first + int(window_s * spec.sample_rate)) % len(melody)]
            found = np.zeros(1, np.uint8) if melody is None else chromagram(melody, spec)
            rows.append(generation_melody(torch.from_numpy(found)[None].long(), spec, duration_s=window_s))
        one_hot, mask = torch.cat([row.one_hot for row in rows]), torch.cat([row.mask for row in rows])
        return MelodyStates(one_hot, mask).to(next(self.lm.parameters()).device)
