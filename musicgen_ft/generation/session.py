"""One batch being decoded: all that its steps read and write lies in tensors of fixed shape and place.

B pieces, W rows of each (with its prompt, with its melody alone, without), K codebooks, S sequence steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from musicgen_ft.generation.decoder import Cache, Condition, Decoder, Place
from musicgen_ft.generation.sampling import Rules, Sampling, SeededNoise

UNKNOWN = -1
"""In a sequence: a code that is yet to be drawn."""

Mode = Literal["eager", "static", "graph"]
"""eager reads only the filled part of the cache; static runs the step that can be recorded; graph records it on CUDA
and plays the record."""

NOISE_STEPS = 32
"""Steps whose noise is made and copied at once."""

_BUCKET = 256
"""A recorded step reads a multiple of so many places of the cache, so that it does not read all that is yet empty."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How the W predictions of each piece become one."""

    cfg_coef: tuple[float, ...]
    """One for each piece; 1 is the conditional prediction."""
    cfg_coef_beta: tuple[float | None, ...]
    """Of double guidance, one for each piece; none is single guidance."""

    @property
    def num_ways(self) -> int:
        """Rows W of each piece."""
        if any(beta is not None for beta in self.cfg_coef_beta):
            return 3
        return 1 if all(coef == 1 for coef in self.cfg_coef) else 2


class _Key(NamedTuple):
    """What a session's tensors and records fit."""

    num_pieces: int
    num_ways: int
    num_prefix: int
    num_tokens: int
    is_masked: bool
    rules: tuple[object, ...]
    two_step: bool
    mode: Mode


class Session:
    """Decodes sequences [B, K, S] step by step, where they lie."""

    def __init__(self, decoder: Decoder, key: _Key, num_steps: int) -> None:
        self.key, self.num_steps, self._decoder = key, num_steps, decoder
        B, W, K, device = key.num_pieces, key.num_ways, decoder.config.n_q, decoder.device
        room = key.num_prefix + num_steps
        room = -(-room // _BUCKET) * _BUCKET if key.mode != "eager" else room
        self._cache = decoder.cache(W * B, room)
        self._positions = decoder.positions(room).clone()  # at one place for ever: the decoder's grow
        self.sequence = torch.full((B, K, num_steps), UNKNOWN, device=device)
        shape = (NOISE_STEPS, B, K, decoder.config.card)
        is_cuda = device.type == "cuda"
        # Two on the host: one is copied while the other is written.
        self._host_noise = [torch.ones(shape, pin_memory=is_cuda) for _ in range(2 if is_cuda else 1)]
        self._copied = [torch.cuda.Event() for _ in self._host_noise] if is_cuda else []
        self._noise = torch.ones(shape, device=device) if is_cuda else self._host_noise[0]
        self._condition: Condition | None = None
        self._rules: Rules | None = None
        self._coef = torch.ones(B, 1, 1, device=device)
        self._beta = torch.ones(B, 1, 1, device=device)
        self._step = torch.zeros(1, dtype=torch.long, device=device)
        """The step of the sequence that is fed next."""
        self._drawn = torch.zeros(1, dtype=torch.long, device=device)
        """Codes drawn since the noise was last written."""
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._warm: set[int] = set()

    def begin(self, sequence: Tensor, condition: Condition, samplings: Sequence[Sampling], guidance: Guidance) -> None:
        """Takes a batch: int64 [B, K, S] with what is known, ``UNKNOWN`` where a code is to be drawn."""
        device = self._decoder.device
        S = sequence.shape[2]
        self.sequence[:, :, :S].copy_(sequence)
        self.sequence[:, :, S:] = self._decoder.config.special_token_id
        rules = Rules(samplings, self._decoder.config.card, device)
        if self._rules is None:
            self._rules = rules
        else:
            self._rules.copy_(rules)
        self._coef.copy_(torch.tensor(guidance.cfg_coef)[:, None, None])
        betas = [1.0 if beta is None else beta for beta in guidance.cfg_coef_beta]
        self._beta.copy_(torch.tensor(betas)[:, None, None])
        if self._condition is None or self.key.mode == "eager":
            self._condition = condition
        else:
            _copy_condition(self._condition, condition)

    def run(self, draws: Sequence[Sequence[bool]], seeds: Sequence[int]) -> Iterator[int]:
        """Draws step by step; yields each step of the sequence that now holds its codes.

        Args:
            draws: for each step of the sequence, which pieces have a code to draw in it. A step without any is fed
                together with those after it.
            seeds: of the pieces.
        """
        assert self._rules is not None
        noise = SeededNoise(seeds)
        steps = [step for step, rows in enumerate(draws) if any(rows)]
        fed = 0
        for number, step in enumerate(steps):
            if number % NOISE_STEPS == 0:
                self._write_noise(noise, [draws[at] for at in steps[number : number + NOISE_STEPS]], number)
                self._drawn.zero_()
            if step - fed == 1 and fed:
                self._advance(fed)
            else:
                self._advance_several(fed, step)
            fed = step
            yield step

    def _write_noise(self, noise: SeededNoise, draws: Sequence[Sequence[bool]], number: int) -> None:
        assert self._rules is not None
        if not self._rules.needs_noise:
            return
        turn = number // NOISE_STEPS % len(self._host_noise)
        if self._copied:
            self._copied[turn].synchronize()  # of two blocks ago: long done
        host = self._host_noise[turn]
        for block, rows in zip(host, draws, strict=False):
            noise.fill(block, [drawn and not greedy for drawn, greedy in zip(rows, self._rules.greedy, strict=True)])
        if self._copied:
            self._noise.copy_(host, non_blocking=True)
            self._copied[turn].record()

    def _advance_several(self, fed: int, step: int) -> None:
        """Feeds the steps [fed, step), and draws the codes of ``step``."""
        codes = self.sequence[:, :, fed:step]
        start = fed + self.key.num_prefix if fed else 0
        assert self._condition is not None
        logits = [
            self._decoder.prefill(part, condition, cache, start=start)
            for part, condition, cache in self._parts(codes, self._condition)
        ]
        self._step.fill_(step - 1)
        self._draw(torch.cat(logits))

    def _advance(self, fed: int) -> None:
        """Feeds the step ``fed``, and draws the codes of the next."""
        if self.key.mode == "eager":
            self._advance_several(fed, fed + 1)
            return
        place = fed + self.key.num_prefix
        length = (place // _BUCKET + 1) * _BUCKET
        if self.key.mode == "static":
            self._static_step(length)
        elif length in self._graphs:
            self._graphs[length].replay()
        elif length not in self._warm:  # what a first call sets up must not be recorded
            self._static_step(length)
            self._warm.add(length)
        else:
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self._graphs.values())).pool() if self._graphs else None
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._static_step(length)
            self._graphs[length] = graph
            graph.replay()

    def _static_step(self, length: int) -> None:
        """One step by what lies on the device alone: reads ``sequence`` at ``_step``, writes it at the next."""
        assert self._condition is not None
        index = self._step + self.key.num_prefix
        mask = (torch.arange(length, device=index.device) <= index)[None, None, None]
        place = Place(index, mask, self._positions)
        codes = self.sequence.index_select(2, self._step)
        logits = [
            self._decoder.step(part, condition, cache, place)
            for part, condition, cache in self._parts(codes, self._condition)
        ]
        self._draw(torch.cat(logits))

    def _draw(self, logits: Tensor) -> None:
        """Draws the step behind ``_step`` from logits [W B, K, card], and moves on to it."""
        assert self._rules is not None
        guided = self._guided(logits.float())
        noise = self._noise.index_select(0, self._drawn)[0]
        self._step.add_(1)
        self._drawn.add_(1)
        now = self.sequence.index_select(2, self._step)[..., 0]
        drawn = self._rules.draw(guided, noise)
        self.sequence.index_copy_(2, self._step, torch.where(now == UNKNOWN, drawn, now)[..., None])

    def _guided(self, logits: Tensor) -> Tensor:
        """One prediction from the W of each piece: [W B, K, card] -> [B, K, card].

        Source: audiocraft's ``LMModel._sample_next_token``, of its main branch for W = 3 (spec 4.4).
        """
        ways = logits.chunk(self.key.num_ways)
        if len(ways) == 1:
            return logits
        full, null = ways[0], ways[-1]
        if len(ways) == 3:
            full = torch.where(self._beta == 1, full, ways[1] + (full - ways[1]) * self._beta)
        # Where nothing is guided, bit for bit what the piece would be alone.
        return torch.where(self._coef == 1, full, null + (full - null) * self._coef)

    def _parts(self, codes: Tensor, condition: Condition) -> Iterator[tuple[Tensor, Condition, Cache]]:
        """What goes through the model at once: all ways, or one after the other."""
        B, W = self.key.num_pieces, self.key.num_ways
        if not self.key.two_step:
            yield codes.repeat(W, 1, 1), condition, self._cache
            return
        for way in range(W):
            rows = slice(way * B, (way + 1) * B)
            yield codes, condition.rows(rows), self._cache.rows(rows)


class Sessions:
    """The sessions of a decoder that nobody uses now: the next batch of their shape takes one up again."""

    def __init__(self, decoder: Decoder, mode: Mode | None = None) -> None:
        self.decoder = decoder
        self.mode: Mode = mode or ("graph" if decoder.device.type == "cuda" else "eager")
        self._idle: list[Session] = []

    def take(
        self,
        sequence: Tensor,
        condition: Condition,
        samplings: Sequence[Sampling],
        guidance: Guidance,
        *,
        two_step: bool = False,
    ) -> Session:
        """A session that has begun with a batch; to be given back."""
        if self.mode != "eager":
            condition = condition.padded()
        num_tokens = condition.cross[0][0].shape[2] if condition.cross else 0
        is_masked = condition.mask is not None
        shape = (condition.prefix.shape[1], num_tokens if self.mode != "eager" else 0, is_masked)
        rules = Rules(samplings, self.decoder.config.card).kind
        key = _Key(len(sequence), guidance.num_ways, *shape, rules, two_step, self.mode)
        S = sequence.shape[2]
        fitting = [session for session in self._idle if session.key == key and session.num_steps >= S]
        if fitting:
            session = fitting[0]
            self._idle.remove(session)
        else:
            self._idle.clear()  # their memory goes to the new one
            room = max(S, self.decoder.full_steps) if self.mode != "eager" else S
            session = Session(self.decoder, key, room)
        session.begin(sequence, condition, samplings, guidance)
        return session

    def give_back(self, session: Session) -> None:
        """Its buffers may serve again."""
        self._idle = [session]


def _copy_condition(into: Condition, condition: Condition) -> None:
    into.prefix.copy_(condition.prefix)
    for (keys, values), (new_keys, new_values) in zip(into.cross, condition.cross, strict=True):
        keys.copy_(new_keys)
        values.copy_(new_values)
    if into.mask is not None and condition.mask is not None:
        into.mask.copy_(condition.mask)
