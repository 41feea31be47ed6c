"""From a condition to codes, one step at a time, with classifier-free guidance.

B batch, K codebooks, T frames, S sequence steps.
"""

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from musicgen_ft.chroma import MelodyStates
from musicgen_ft.generation.decoder import Decoder
from musicgen_ft.generation.sampling import Sampling
from musicgen_ft.generation.session import UNKNOWN, Guidance, Sessions
from musicgen_ft.generation.watch import LOOK_FRAMES, PieceWatch
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel

Progress = Callable[[int, int], None]
"""Called with the number of steps done and of all steps."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one row of a batch plays; its codes do not depend on the rows beside it."""

    num_frames: int
    """T, the prompt's frames included."""
    seed: int
    """Of its draws."""
    sampling: Sampling = field(default_factory=Sampling)
    """The rule of drawing."""
    cfg_coef: float = 3.0
    """Guidance scale; 1 switches guidance off."""
    cfg_coef_beta: float | None = None
    """Of double guidance, for a model that takes melodies: scale of the text over the melody alone."""
    prompt: Tensor | None = None
    """int64 [K, Tp] with Tp < T: codes to go on from; they begin the result."""

    @property
    def num_known(self) -> int:
        """Frames of the prompt."""
        return 0 if self.prompt is None else self.prompt.shape[1]

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames {self.num_frames}: expected at least one")
        if self.num_known >= self.num_frames:
            raise ValueError(f"the prompt has {self.num_known} frames, of {self.num_frames} in all")


@dataclass(frozen=True)
class Conditions:
    """What B pieces are conditioned on, and what their guidance leads away from."""

    text: TextStates
    """B rows; a row that is masked whole is unconditional."""
    melody: MelodyStates | None = None
    """B rows, for a model that takes one."""
    negative: TextStates | None = None
    """B rows of as many tokens as ``text``; None is the null condition."""

    def rows(self, num_ways: int) -> tuple[TextStates, MelodyStates | None]:
        """All W B rows: with the prompts; for three ways, with the melodies alone; without either."""
        null = TextStates(torch.zeros_like(self.text.states), torch.zeros_like(self.text.mask))
        texts = [self.text, null, self.negative or null] if num_ways == 3 else [self.text, self.negative or null]
        texts = texts[:num_ways]
        text = TextStates(torch.cat([t.states for t in texts]), torch.cat([t.mask for t in texts]))
        if self.melody is None:
            return text, None
        melodies = [self.melody] * (num_ways - 1) + [_null_melody(self.melody)] if num_ways > 1 else [self.melody]
        one_hot = torch.cat([melody.one_hot for melody in melodies])
        return text, MelodyStates(one_hot, torch.cat([melody.mask for melody in melodies]))


class Engine:
    """Decodes batches with one model; what a batch has set up serves the next of its shape."""

    def __init__(self, decoder: Decoder, sessions: Sessions | None = None) -> None:
        self.decoder = decoder
        self._sessions = sessions or Sessions(decoder)

    def codes(
        self,
        conditions: Conditions,
        pieces: Sequence[Piece],
        *,
        two_step: bool = False,
        progress: Progress | None = None,
        watches: Sequence[PieceWatch] = (),
        first_frame: int = 0,
    ) -> list[Tensor]:
        """Codes int64 [K, T] of each piece.

        A piece that its watch gives up is not waited for: the batch ends when no other is being played. Until then its
        row stays, so that the shapes, and with them the bits of the others, are what they would have been.

        Args:
            conditions: a row for each piece.
            pieces: what to play.
            two_step: as in ``generate_codes``.
            progress: as there.
            watches: one for each piece, or none; each is shown whole frames, every ``LOOK_FRAMES``, but not the last
                ones. Behind what one of a lost piece has seen, codes are ``UNKNOWN`` or not to be used.
            first_frame: place of the pieces' first frame in what the watches see.
        """
        batch = _Batch(self.decoder, pieces)
        looks = _Looks(batch, watches, first_frame)
        with closing(self._run(batch, conditions, two_step=two_step, progress=progress)) as steps:
            for sequence, step in steps:
                if step == batch.last_step or looks.end_batch(sequence, step):
                    return batch.codes(sequence)
        raise AssertionError("a batch has a last step")

    def stream(
        self,
        conditions: Conditions,
        piece: Piece,
        *,
        chunk_frames: Callable[[int], int],
        two_step: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[Tensor]:
        """Codes int64 [1, K, n] of one piece behind its prompt, as soon as frames are whole.

        Args:
            conditions: of one row.
            piece: what to play.
            chunk_frames: how many frames to hand out at least, by the number of those that have been; the last may be
                fewer.
            two_step: as in ``generate_codes``.
            progress: as there.
        """
        batch = _Batch(self.decoder, [piece])
        whole_at = batch.whole_at(0)
        given = piece.num_known
        for sequence, step in self._run(batch, conditions, two_step=two_step, progress=progress):
            end = given
            while end < piece.num_frames and whole_at[end] <= step:
                end += 1
            if end == piece.num_frames or end - given >= max(1, chunk_frames(given)):
                yield batch.codes(sequence)[0][None, :, given:end]
                given = end
            if given == piece.num_frames:
                return

    @torch.no_grad()
    def _run(
        self, batch: "_Batch", conditions: Conditions, *, two_step: bool, progress: Progress | None
    ) -> Generator[tuple[Tensor, int], None, None]:
        """The sequence [B, K, S] as it lies on the device, and the step that has just been drawn."""
        pieces = batch.pieces
        guidance = Guidance(
            cfg_coef=tuple(piece.cfg_coef for piece in pieces),
            cfg_coef_beta=tuple(piece.cfg_coef_beta for piece in pieces),
        )
        condition = self.decoder.condition(*conditions.rows(guidance.num_ways))
        samplings = [piece.sampling for piece in pieces]
        session = self._sessions.take(batch.sequence(), condition, samplings, guidance, two_step=two_step)
        total = sum(map(any, batch.draws))
        try:
            for done, step in enumerate(session.run(batch.draws, [piece.seed for piece in pieces]), start=1):
                if progress is not None:
                    progress(done, total)
                yield session.sequence, step
        finally:
            self._sessions.give_back(session)


class _Batch:
    """The sequences of pieces of any lengths, side by side: each row is what its piece would be alone."""

    def __init__(self, decoder: Decoder, pieces: Sequence[Piece]) -> None:
        config, self.pattern, self.pieces = decoder.config, decoder.lm.pattern, pieces
        self._device, self._special = decoder.device, config.special_token_id
        self.steps = [self.pattern.steps(piece.num_frames) for piece in pieces]
        """Step of each code, int64 [K, T]."""
        S = max(self.pattern.num_steps(piece.num_frames) for piece in pieces)
        unknown = torch.zeros(len(pieces), S, dtype=torch.bool)
        for row, piece, steps in zip(unknown, pieces, self.steps, strict=True):
            row[steps[:, piece.num_known :].flatten()] = True
        self.draws: list[list[bool]] = unknown.T.tolist()
        """For each step, which pieces have a code to draw in it."""
        self.last_step = max(step for step, rows in enumerate(self.draws) if any(rows))

    def sequence(self) -> Tensor:
        """int64 [B, K, S]: prompts, ``UNKNOWN``, and the special token behind the end of shorter pieces."""
        rows = []
        for piece in self.pieces:
            codes = torch.full((1, self.steps[0].shape[0], piece.num_frames), UNKNOWN, device=self._device)
            if piece.prompt is not None:
                codes[0, :, : piece.num_known] = piece.prompt
            row = self.pattern.interleave(codes, self._special)
            rows.append(torch.nn.functional.pad(row, (0, len(self.draws) - row.shape[2]), value=self._special))
        return torch.cat(rows)

    def whole_at(self, row: int) -> list[int]:
        """The step that makes each frame of a piece whole, T of them."""
        steps: list[int] = self.steps[row].amax(0).cummax(0).values.tolist()
        return steps

    def frames(self, sequence: Tensor, row: int, start: int, stop: int) -> Tensor:
        """Some frames of a piece: int64 [K, n]."""
        return sequence[row].gather(1, self.steps[row][:, start:stop].to(self._device, non_blocking=True))

    def codes(self, sequence: Tensor) -> list[Tensor]:
        """int64 [K, T] of each piece; ``UNKNOWN`` where not yet drawn."""
        return [
            row[:, : self.pattern.num_steps(piece.num_frames)].gather(1, steps.to(self._device))
            for row, piece, steps in zip(sequence, self.pieces, self.steps, strict=True)
        ]


class _Looks:
    """Shows the watches of a batch what has become whole.

    On a GPU a look copies the frames without waiting, and the next one shows them: the device always has steps to do.
    """

    def __init__(self, batch: _Batch, watches: Sequence[PieceWatch], first_frame: int) -> None:
        self._batch, self._watches, self._first_frame = batch, watches, first_frame
        self._whole_at = [batch.whole_at(row) for row in range(len(watches))]
        self._given = [max(0, watch.num_seen - first_frame) for watch in watches]
        self._copied: list[tuple[PieceWatch, Tensor]] = []
        self._event: torch.cuda.Event | None = None
        longest = max(self._whole_at, key=len, default=[])
        self._steps = frozenset(longest[LOOK_FRAMES - 1 :: LOOK_FRAMES])

    def end_batch(self, sequence: Tensor, step: int) -> bool:
        """Looks if it is time to, behind a step of the sequence [B, K, S]; tells whether nobody is playing any more."""
        if step not in self._steps:
            return False
        is_cuda = sequence.device.type == "cuda"
        if is_cuda:
            self._show()
        self._copy(sequence, step)
        if is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._show()
        whole = [given == len(whole_at) for given, whole_at in zip(self._given, self._whole_at, strict=True)]
        return all(watch.is_lost or is_whole for watch, is_whole in zip(self._watches, whole, strict=True))

    def _copy(self, sequence: Tensor, step: int) -> None:
        for row, watch in enumerate(self._watches):
            start, stop = self._given[row], bisect_right(self._whole_at[row], step)
            if stop > start and not watch.is_lost:
                frames = self._batch.frames(sequence, row, start, stop)
                self._copied.append((watch, frames.to("cpu", non_blocking=True)))
            self._given[row] = max(start, stop)

    def _show(self) -> None:
        if self._event is not None:
            self._event.synchronize()
        for watch, frames in self._copied:
            watch.add(frames)
        self._copied = []


def generate_codes(
    lm: LanguageModel,
    text: TextStates,
    *,
    num_frames: int,
    sampling: Sampling,
    seeds: Sequence[int],
    cfg_coef: float = 3.0,
    melody: MelodyStates | None = None,
    prompt: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Generates codes of one length for each row of the text condition.

    Args:
        lm: in ``eval()``.
        text: B rows; a row that is masked whole is unconditional.
        num_frames: T, the prompt's frames included.
        sampling: the rule of drawing.
        seeds: one for each row.
        cfg_coef: guidance scale; 1 switches guidance off.
        melody: B rows, for a model that takes one.
        prompt: int64 [B, K, Tp] with Tp < T: codes to go on from; they begin the result.
        progress: told after every step that holds a new code.

    Returns:
        int64 [B, K, T], values in [0, card).

    Source: audiocraft's ``LMModel.generate`` (spec 6): one batch of conditional and null rows, logits
    ``null + (cond - null) * cfg_coef``.
    """
    pieces = _pieces(text, num_frames, sampling, seeds, cfg_coef, prompt)
    return torch.stack(Engine(Decoder(lm)).codes(Conditions(text, melody), pieces, progress=progress))


def generate_long(
    lm: LanguageModel,
    text: TextStates,
    *,
    num_frames: int,
    window_frames: int,
    stride_frames: int,
    sampling: Sampling,
    seeds: Sequence[int],
    cfg_coef: float = 3.0,
    melody: Callable[[int], MelodyStates] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """As ``generate_codes`` for more frames than the model was trained on: see ``long_codes``.

    ``melody`` gives the melody of a window by the window's first frame.

    Returns:
        int64 [B, K, T].
    """

    def conditions(start: int) -> Conditions:
        return Conditions(text, None if melody is None else melody(start))

    pieces = _pieces(text, num_frames, sampling, seeds, cfg_coef, None)
    windows = Windows(window_frames, stride_frames)
    return torch.stack(long_codes(Engine(Decoder(lm)), conditions, pieces, windows, progress=progress))


@dataclass(frozen=True)
class Windows:
    """How a long piece is played: each window goes on from the end of the one before (``extend_stride``)."""

    window_frames: int
    """Frames that the model plays at once."""
    stride_frames: int
    """Frames by which the window moves on; the rest of it is kept."""

    def __post_init__(self) -> None:
        if not 0 < self.stride_frames < self.window_frames:
            raise ValueError(f"stride_frames {self.stride_frames}: expected in (0, {self.window_frames})")

    def piece(self, whole: Piece, window: int, prompt: Tensor | None) -> Piece:
        """The part of a piece that a window plays; else every window would draw the same noise."""
        frames = min(self.window_frames, whole.num_frames - window * self.stride_frames)
        return replace(whole, num_frames=frames, seed=whole.seed + window, prompt=prompt)


def long_codes(
    engine: Engine,
    conditions: Callable[[int], Conditions],
    pieces: Sequence[Piece],
    windows: Windows,
    *,
    two_step: bool = False,
    progress: Progress | None = None,
    watches: Sequence[PieceWatch] = (),
) -> list[Tensor]:
    """Codes int64 [K, T] of pieces of one length, longer than the model's window, prompts of one length.

    ``conditions`` are those of a window by its first frame. Positions are part of what the cache holds, so that each
    window feeds its beginning anew, in one pass. ``watches`` as in ``Engine.codes``; once all pieces are lost, the
    rest of their windows is left out.
    """
    parts: list[Tensor] = []
    codes = [piece.prompt for piece in pieces]
    for window, start in enumerate(range(0, pieces[0].num_frames, windows.stride_frames)):
        prompts = [None if row is None else row[:, start:] for row in codes]
        now = [windows.piece(piece, window, prompt) for piece, prompt in zip(pieces, prompts, strict=True)]
        parts = engine.codes(
            conditions(start), now, two_step=two_step, progress=progress, watches=watches, first_frame=start
        )
        codes = [
            part if row is None else torch.cat([row[:, :start], part], dim=1)
            for row, part in zip(codes, parts, strict=True)
        ]
        is_lost = bool(watches) and all(watch.is_lost for watch in watches)
        if is_lost or parts[0].shape[1] + start >= pieces[0].num_frames:
            break
    return [row for row in codes if row is not None]


def long_stream(
    engine: Engine,
    conditions: Callable[[int], Conditions],
    piece: Piece,
    windows: Windows,
    *,
    chunk_frames: Callable[[int], int],
    two_step: bool = False,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """As ``Engine.stream`` for a piece longer than the model's window."""
    codes = piece.prompt
    for window, start in enumerate(range(0, piece.num_frames, windows.stride_frames)):
        prompt = None if codes is None else codes[:, start:]
        now = windows.piece(piece, window, prompt)

        def frames(given: int, start: int = start) -> int:
            return chunk_frames(start + given)

        for chunk in engine.stream(conditions(start), now, chunk_frames=frames, two_step=two_step, progress=progress):
            codes = chunk[0] if codes is None else torch.cat([codes, chunk[0]], dim=1)
            yield chunk
        if codes is not None and codes.shape[1] >= piece.num_frames:
            return


def _pieces(
    text: TextStates, num_frames: int, sampling: Sampling, seeds: Sequence[int], cfg_coef: float, prompt: Tensor | None
) -> list[Piece]:
    if len(seeds) != len(text.mask):
        raise ValueError(f"{len(seeds)} seeds for {len(text.mask)} rows")
    prompts = [None] * len(seeds) if prompt is None else list(prompt)
    return [
        Piece(num_frames=num_frames, seed=seed, sampling=sampling, cfg_coef=cfg_coef, prompt=known)
        for seed, known in zip(seeds, prompts, strict=True)
    ]


def _null_melody(melody: MelodyStates) -> MelodyStates:
    """As many rows of the null condition in generation: pitch class 0, not masked."""
    null = torch.zeros_like(melody.one_hot)
    null[..., 0] = 1
    return MelodyStates(null, torch.ones_like(melody.mask))
