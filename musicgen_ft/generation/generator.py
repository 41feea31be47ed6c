"""A MusicGen that plays: language model, codec and text encoder together.

B batch, C channels, L samples, K codebooks, T frames.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from musicgen_ft.checkpoint.base import Base, open_base
from musicgen_ft.chroma import MelodyStates, chromagram, generation_melody
from musicgen_ft.codec import Codec
from musicgen_ft.devices import resolve_device
from musicgen_ft.errors import UserError
from musicgen_ft.generation.decode import (
    Conditions,
    Engine,
    Piece,
    Progress,
    Windows,
    long_codes,
    long_stream,
)
from musicgen_ft.generation.decoder import Decoder
from musicgen_ft.generation.options import GenerationOptions, Melody, Request, requests_of
from musicgen_ft.generation.precision import choose_precision
from musicgen_ft.generation.sound import CONTEXT_FRAMES, SoundStream
from musicgen_ft.generation.watch import PieceWatch
from musicgen_ft.model.conditioning import TextEncoder, TextStates
from musicgen_ft.model.lm import LanguageModel

__all__ = ["MAX_TOKENS", "Generator", "Melody"]

MAX_TOKENS = 4096
"""Of a prompt. T5 cuts nothing, and its attention takes memory by the square: 3 GB for T5-base's 12 heads."""


class Generator:
    """Prompts to waveforms, by our own decoding.

    A prompt and a seed give the same music in whatever batch they stand: padded text is masked, as transformers does,
    which is also what audiocraft gives for a prompt alone. Melody models mask nothing: prompts of different lengths are
    played one after the other there.
    """

    def __init__(self, lm: LanguageModel, codec: Codec, text_encoder: TextEncoder, *, dtype: str | None = None) -> None:
        """Takes the three parts, which the first piece lays out for decoding.

        Args:
            lm: the language model.
            codec: its codec.
            text_encoder: its T5.
            dtype: ``auto``, ``fp32``, ``bf16``, ``fp16`` or ``int8``, see ``generation/precision.py``; the weights move
                out of ``lm``. None plays the modules of ``lm`` as they are, in fp32, and leaves them usable.
        """
        self.lm = lm.eval().requires_grad_(False)
        self.lm.config = dataclasses.replace(lm.config, text_padding="transformers")
        self.codec = codec
        self.text_encoder = text_encoder
        self._dtype = dtype
        self._engine: Engine | None = None

    @classmethod
    def open(cls, base: str | Base, *, device: str = "auto", dtype: str = "auto") -> "Generator":
        """Opens a generator to play with.

        Args:
            base: ``nano``, a hub id, a folder, or an opened base.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: of the layers: ``auto``, ``fp32``, ``bf16``, ``fp16`` or ``int8``.

        Raises:
            UserError: if there is no such base, device or dtype.
        """
        place = resolve_device(device)
        opened = open_base(base) if isinstance(base, str) else base
        return cls(opened.lm(), opened.codec(), opened.text_encoder(), dtype=dtype).to(place)

    def to(self, device: torch.device | str) -> "Generator":
        """Moves all three; returns itself.

        Raises:
            ValueError: if the weights have been packed for another device.
        """
        if self._engine is not None and self._engine.decoder.device != torch.device(device):
            if self._dtype is not None:
                raise ValueError(f"{device}: the generator has played on {self._engine.decoder.device}, open it anew")
            self._engine = None
        self.lm.to(device)
        self.codec.to(device)
        self.text_encoder.to(device)
        return self

    @property
    def engine(self) -> Engine:
        """What decodes: laid out at the first use."""
        if self._engine is None:
            precision = None
            if self._dtype is not None:
                weights = [
                    parameter for layer in self.lm.layers for parameter in layer.parameters() if parameter.ndim == 2
                ]
                precision = choose_precision(self._dtype, weights, self.lm.out_norm.weight.device)
            self._engine = Engine(Decoder(self.lm, precision))
        return self._engine

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
    ) -> Tensor:
        """Plays descriptions that differ in their words, seeds and melodies alone; see ``play`` for all else.

        Args:
            descriptions: B prompts; None or blank is unconditional.
            options: length and rule of drawing.
            seeds: B of them.
            melodies: B of them, for a model that takes melodies; None is no melody.
            progress: told after every step of decoding.

        Returns:
            float32 [B, C, L] on the CPU.

        Raises:
            UserError: as ``play``.
        """
        requests = requests_of(descriptions, options, seeds=seeds, melodies=melodies)
        return torch.stack(
            self.play(requests, stride_s=options.stride_s, two_step_cfg=options.two_step_cfg, progress=progress)
        )

    def play(
        self,
        requests: Sequence[Request],
        *,
        stride_s: float = 18.0,
        two_step_cfg: bool = False,
        progress: Progress | None = None,
        watches: Sequence[PieceWatch] = (),
    ) -> list[Tensor]:
        """Plays requests of any kind and length, as many at once as can be.

        Args:
            requests: what to play.
            stride_s: seconds by which the window moves on, in what is longer than the model was trained on.
            two_step_cfg: predictions with and without the prompt in two passes in place of one: less memory, more time.
            progress: told after every step of decoding; counts begin anew for those that cannot be played together.
            watches: one for each request, or none; each is shown the codes of its piece while they are made. A piece
                that its watch gives up ends there.

        Returns:
            float32 [C, L] on the CPU for each request.

        Raises:
            UserError: if a duration is less than a frame or no longer than its audio prompt, the stride does not fit
                the model's window, or there is a melody for a model that takes none.
        """
        codes = self.codes(requests, stride_s=stride_s, two_step_cfg=two_step_cfg, progress=progress, watches=watches)
        waveforms: list[Tensor | None] = [None] * len(codes)
        for rows in _alike([row.shape[1] for row in codes]):
            sound = self.codec.decode(torch.stack([codes[row] for row in rows])).cpu()
            for row, waveform in zip(rows, sound, strict=True):
                waveforms[row] = waveform
        return [waveform for waveform in waveforms if waveform is not None]

    def codes(
        self,
        requests: Sequence[Request],
        *,
        stride_s: float = 18.0,
        two_step_cfg: bool = False,
        progress: Progress | None = None,
        watches: Sequence[PieceWatch] = (),
    ) -> list[Tensor]:
        """As ``play``, without the codec: int64 [K, T] for each request."""
        pieces = [self._piece(request) for request in requests]
        for watch, piece in zip(watches, pieces, strict=bool(watches)):
            watch.begin(piece.num_frames, self.codec)
        windows = self._windows(stride_s, longest=max((piece.num_frames for piece in pieces), default=0))
        texts = self._texts(requests)
        found: list[Tensor | None] = [None] * len(requests)
        for rows in _alike([self._fits_with(piece, text) for piece, text in zip(pieces, texts, strict=True)]):
            chosen = [pieces[row] for row in rows]
            conditions = _Conditions(self, [requests[row] for row in rows], [texts[row] for row in rows])
            watching = [watches[row] for row in rows] if watches else []
            if windows is None or chosen[0].num_frames <= windows.window_frames:
                codes = self.engine.codes(
                    conditions.whole(), chosen, two_step=two_step_cfg, progress=progress, watches=watching
                )
            else:
                codes = long_codes(
                    self.engine,
                    conditions.window,
                    chosen,
                    windows,
                    two_step=two_step_cfg,
                    progress=progress,
                    watches=watching,
                )
            for watch, of_row in zip(watching, codes, strict=bool(watching)):
                watch.add(of_row[:, watch.num_seen :])  # the last frames; passed over where the piece is lost
            for number, (row, of_row) in enumerate(zip(rows, codes, strict=True)):
                is_lost = bool(watching) and watching[number].is_lost
                found[row] = of_row[:, : watching[number].num_seen] if is_lost else of_row
        return [codes for codes in found if codes is not None]

    def stream(
        self,
        request: Request,
        *,
        chunk_s: float = 1.0,
        first_chunk_s: float = 0.5,
        stride_s: float = 18.0,
        two_step_cfg: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[Tensor]:
        """Plays a request and hands out its sound while it is still being made.

        The chunks, joined, are what ``play`` gives, up to the rounding of sums (tests/generation/test_sound.py says how
        far): nothing is cross-faded.

        Args:
            request: what to play.
            chunk_s: seconds of a chunk; the last may be shorter, others longer by less than a frame.
            first_chunk_s: of the first chunk, which is there the sooner the shorter it is.
            stride_s: as in ``play``.
            two_step_cfg: as in ``play``.
            progress: as in ``play``.

        Yields:
            float32 [C, L] on the CPU.

        Raises:
            UserError: as ``play``; at once, not at the first chunk.
        """
        piece = self._piece(request)
        windows = self._windows(stride_s, longest=piece.num_frames)
        if min(chunk_s, first_chunk_s) <= 0:
            raise UserError(f"chunk_s {chunk_s}, first_chunk_s {first_chunk_s}: expected more than 0 seconds.")
        conditions = _Conditions(self, [request], self._texts([request]))
        frame_rate = self.codec.spec.frame_rate
        first, later = (max(1, round(seconds * frame_rate)) for seconds in (first_chunk_s, chunk_s))

        def chunk_frames(given: int) -> int:
            # The sound lags behind the codes, by frames that have to be known first.
            return first + 2 * CONTEXT_FRAMES if given == piece.num_known else later

        if windows is None or piece.num_frames <= windows.window_frames:
            chunks = self.engine.stream(
                conditions.whole(), piece, chunk_frames=chunk_frames, two_step=two_step_cfg, progress=progress
            )
        else:
            chunks = long_stream(
                self.engine,
                conditions.window,
                piece,
                windows,
                chunk_frames=chunk_frames,
                two_step=two_step_cfg,
                progress=progress,
            )
        return self._sound(piece, chunks)

    def _sound(self, piece: Piece, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
        sound, num_frames = SoundStream(self.codec), piece.num_known
        if piece.prompt is not None:
            waveform = sound.decode(piece.prompt[None], is_last=False)
            if waveform.shape[1]:
                yield waveform
        for codes in chunks:
            num_frames += codes.shape[2]
            waveform = sound.decode(codes, is_last=num_frames == piece.num_frames)
            if waveform.shape[1]:
                yield waveform

    def _piece(self, request: Request) -> Piece:
        """What the decoder is to do."""
        frame_rate = self.codec.spec.frame_rate
        num_frames = int(request.duration_s * frame_rate)
        if num_frames < 1:
            raise UserError(f"duration_s {request.duration_s}: found less than a frame of {1 / frame_rate:g} s.")
        if self.lm.config.chroma is None and request.melody is not None:
            raise UserError("this generator takes no melody, found one. Use one made from facebook/musicgen-melody.")
        if request.cfg_coef_beta is not None and request.melody is None:
            raise UserError(
                "cfg_coef_beta sets the prompt against a melody, found none. Give a melody, or leave it out."
            )
        prompt = None if request.audio_prompt is None else self._prompt(request.audio_prompt)
        if prompt is not None and prompt.shape[1] >= num_frames:
            raise UserError(
                f"audio_prompt: found {prompt.shape[1] / frame_rate:g} s, expected less than the duration of "
                f"{request.duration_s:g} s, which it begins. Cut it, or ask for more."
            )
        return Piece(
            num_frames=num_frames,
            seed=request.seed,
            sampling=request.sampling,
            cfg_coef=request.cfg_coef,
            cfg_coef_beta=request.cfg_coef_beta,
            prompt=prompt,
        )

    def _prompt(self, sound: Tensor) -> Tensor:
        """Codes int64 [K, T] of a waveform or of codes."""
        spec = self.codec.spec
        if not sound.is_floating_point():
            codes = sound.to(self.codec.device, torch.long)
            if codes.ndim != 2 or codes.shape[0] != spec.n_q or not codes.shape[1]:
                raise UserError(f"audio_prompt: found codes {tuple(codes.shape)}, expected [{spec.n_q}, T].")
            if codes.min() < 0 or codes.max() >= spec.card:
                raise UserError(f"audio_prompt: found codes beyond [0, {spec.card}).")
            return codes
        if sound.ndim != 2 or sound.shape[0] != spec.channels or not sound.shape[1]:
            raise UserError(
                f"audio_prompt: found a waveform {tuple(sound.shape)}, expected [{spec.channels}, L] at "
                f"{spec.sample_rate} Hz."
            )
        return self.codec.encode(sound[None])[0]

    def _windows(self, stride_s: float, *, longest: int) -> Windows | None:
        """How what is longer than the model's window is played; None if nothing is."""
        frame_rate, window_s = self.codec.spec.frame_rate, self.lm.config.max_duration_s
        window_frames, stride_frames = int(window_s * frame_rate), int(stride_s * frame_rate)
        if longest <= window_frames:
            return None
        if not 0 < stride_frames < window_frames:
            raise UserError(
                f"stride_s {stride_s}: expected at least a frame of {1 / frame_rate:g} s and less than the model's "
                f"window of {window_s:g} s."
            )
        return Windows(window_frames, stride_frames)

    def _texts(self, requests: Sequence[Request]) -> list[tuple[TextStates, TextStates | None]]:
        """Of each request the prompt's states and those of the negative prompt, each of one row without padding."""
        words = [request.prompt for request in requests]
        negative = [request.negative_prompt for request in requests]
        for words_of_one in {*words, *negative}:
            num_tokens = self.text_encoder.tokenize([words_of_one])[0].shape[1]
            if num_tokens > MAX_TOKENS:
                raise UserError(
                    f"prompt {(words_of_one or '')[:40]!r}...: found {num_tokens} tokens, expected at most "
                    f"{MAX_TOKENS}: T5 attends from each to each. Shorten it."
                )
        states = self.text_encoder.encode([*words, *negative])
        rows = [_row(states, row) for row in range(len(states.mask))]
        return [
            (prompt, other if (request.negative_prompt or "").strip() else None)
            for request, prompt, other in zip(requests, rows[: len(words)], rows[len(words) :], strict=True)
        ]

    def _fits_with(self, piece: Piece, texts: tuple[TextStates, TextStates | None]) -> tuple[int, ...]:
        """What must be equal in pieces that are played at once."""
        window_frames = int(self.lm.config.max_duration_s * self.codec.spec.frame_rate)
        length = (piece.num_frames, piece.num_known) if piece.num_frames > window_frames else (0, 0)
        if self.lm.config.conditioning == "cross":
            return length
        # A prefix is not masked: as long as for the piece alone.
        return (*length, _num_tokens(texts))


class _Conditions:
    """The condition of some requests, for any window."""

    def __init__(
        self, generator: Generator, requests: Sequence[Request], texts: Sequence[tuple[TextStates, TextStates | None]]
    ) -> None:
        self._generator, self._requests = generator, requests
        N = max(_num_tokens(text) for text in texts)
        self._text = _stacked([text for text, _ in texts], N)
        negative = [other for _, other in texts]
        null = TextStates(texts[0][0].states[:, :0], texts[0][0].mask[:, :0])
        self._negative = None if not any(negative) else _stacked([other or null for other in negative], N)

    def whole(self) -> Conditions:
        """Of pieces that fit one window."""
        return self._at(0, is_whole=True)

    def window(self, start: int) -> Conditions:
        """Of the window of a longer piece that begins with frame ``start``."""
        return self._at(start, is_whole=False)

    def _at(self, start: int, *, is_whole: bool) -> Conditions:
        melody = None
        if self._generator.lm.config.chroma is not None:
            melody = _melody(self._generator, [request.melody for request in self._requests], start, is_whole=is_whole)
        return Conditions(self._text, melody, self._negative)


def _melody(generator: Generator, melodies: Sequence[Melody | None], start: int, *, is_whole: bool) -> MelodyStates:
    """The melodies' condition for a window from frame ``start`` on.

    A piece that fits one window takes a melody from its start. Of a longer one each window takes its own part of the
    melody, which begins again where it ends (audiocraft's ``_generate_tokens``, spec 6).
    """
    spec, window_s = generator.lm.config.chroma, generator.lm.config.max_duration_s
    assert spec is not None
    rows = []
    for melody in melodies:
        if melody is not None and not is_whole:
            first = start * generator.codec.spec.hop_length
            melody = melody[np.arange(first, first + int(window_s * spec.sample_rate)) % len(melody)]
        found = np.zeros(1, np.uint8) if melody is None else chromagram(melody, spec)
        rows.append(generation_melody(torch.from_numpy(found)[None].long(), spec, duration_s=window_s))
    one_hot, mask = torch.cat([row.one_hot for row in rows]), torch.cat([row.mask for row in rows])
    return MelodyStates(one_hot, mask).to(generator.lm.out_norm.weight.device)


def _row(states: TextStates, row: int) -> TextStates:
    """One row without its padding; the null condition has one masked token."""
    length = max(1, int(states.mask[row].sum()))
    return TextStates(states.states[row : row + 1, :length], states.mask[row : row + 1, :length])


def _num_tokens(texts: tuple[TextStates, TextStates | None]) -> int:
    """Of the longer one of a prompt and its negative prompt."""
    return max(text.mask.shape[1] for text in texts if text is not None)


def _stacked(rows: Sequence[TextStates], num_tokens: int) -> TextStates:
    """Rows padded to one length."""
    states = rows[0].states.new_zeros(len(rows), num_tokens, rows[0].states.shape[2])
    mask = rows[0].mask.new_zeros(len(rows), num_tokens)
    for number, row in enumerate(rows):
        length = row.mask.shape[1]
        states[number, :length], mask[number, :length] = row.states[0], row.mask[0]
    return TextStates(states, mask)


def _alike(keys: Sequence[object]) -> list[list[int]]:
    """The numbers of equal keys together."""
    groups: dict[object, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        groups[key].append(number)
    return list(groups.values())
