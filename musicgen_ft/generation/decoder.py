"""The language model laid out for decoding: few projections, keys and values in buffers that stay where they are.

R rows, K codebooks, S sequence steps, N text tokens, P prefix steps, M steps that a cache has room for,
D width, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicgen_ft.chroma import MelodyStates
from musicgen_ft.generation.precision import Precision, Projection, compute_dtype, pack
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import Attention, LanguageModel, Layer, sinusoidal_positions


@dataclass(frozen=True)
class Condition:
    """What the rows of a batch are conditioned on, as the layers read it."""

    prefix: Tensor
    """float [R, P, D]: stands before the codes; P = 0 without."""
    cross: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values of the text for each layer, each [R, H, N, D/H]; empty without cross-attention."""
    mask: Tensor | None
    """bool [R, 1, 1, N], true where a row may look; None is everywhere."""

    def rows(self, rows: slice) -> "Condition":
        """That of some rows; no copy."""
        cross = tuple((keys[rows], values[rows]) for keys, values in self.cross)
        return Condition(self.prefix[rows], cross, None if self.mask is None else self.mask[rows])

    def padded(self, multiple: int = 32) -> "Condition":
        """The same with masked tokens behind, so that texts of like length have one shape."""
        if not self.cross:
            return self
        R, _, N, _ = self.cross[0][0].shape
        more = -N % multiple
        mask = torch.ones(R, 1, 1, N, dtype=torch.bool, device=self.prefix.device) if self.mask is None else self.mask
        cross = tuple((F.pad(keys, (0, 0, 0, more)), F.pad(values, (0, 0, 0, more))) for keys, values in self.cross)
        return Condition(self.prefix, cross, F.pad(mask, (0, more)))


@dataclass(frozen=True)
class Cache:
    """Keys and values of the steps so far, for each layer: [R, H, M, D/H]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def rows(self, rows: slice) -> "Cache":
        """Those of some rows; no copy."""
        return Cache(tuple(keys[rows] for keys in self.keys), tuple(values[rows] for values in self.values))


@dataclass(frozen=True)
class Place:
    """Where a single step stands, told by the device alone, so that one recorded step serves all."""

    index: Tensor
    """int64 [1]: its place in the cache."""
    mask: Tensor
    """bool [1, 1, 1, L]: true up to ``index``. The step reads the first L places of the cache."""
    positions: Tensor
    """float32 [M, D]: position embeddings of all places."""


class Decoder:
    """Runs steps of a language model, with the same numbers as its ``forward`` (tests/generation/test_decoder.py).

    The residual stream, the norms, the embeddings and the heads are in fp32; only projections, activations between them
    and the cache are in the decoder's precision.
    """

    def __init__(self, lm: LanguageModel, precision: Precision | None = None) -> None:
        """Lays the model out.

        Args:
            lm: in ``eval()``; its device is the decoder's.
            precision: None takes the model's modules as they are, adapters and all, and leaves them alone. Else the
                layers' weights move into packed projections: in bf16, fp16 and int8 on a CPU nothing is left in ``lm``.
        """
        self.lm = lm
        self.config = lm.config
        self.device = lm.out_norm.weight.device
        self.dtype = compute_dtype(precision or "fp32", self.device)
        self._layers = [_DecoderLayer(layer, precision) for layer in lm.layers if isinstance(layer, Layer)]
        self._table = sinusoidal_positions(64, self.config.dim, offset=0, device=self.device)
        self._heads: Projection | None = None
        if precision is not None:
            self._heads = pack([head for head in lm.heads if isinstance(head, nn.Linear)], "fp32")

    @property
    def full_steps(self) -> int:
        """Steps of the sequence for as many frames as 50 per second make of the model's window."""
        return self.lm.pattern.num_steps(int(50 * self.config.max_duration_s))

    @torch.no_grad()
    def condition(self, text: TextStates, melody: MelodyStates | None = None) -> Condition:
        """Computes once what all steps of a piece read of its condition."""
        projected, mask = self.lm._project(text, None)
        assert projected is not None
        rows, D = projected.shape[0], self.config.dim
        if self.config.conditioning == "prefix":
            return Condition(torch.cat([self.lm._project_melody(melody), projected], dim=1), (), None)
        cross = tuple(layer.keys_values_of_text(projected.to(self.dtype)) for layer in self._layers)
        return Condition(projected.new_zeros(rows, 0, D), cross, mask)

    def cache(self, num_rows: int, num_steps: int) -> Cache:
        """An empty cache."""
        H = self.config.num_heads
        shape = (num_rows, H, num_steps, self.config.dim // H)

        def empty() -> tuple[Tensor, ...]:
            # Zeros, since a masked place is multiplied by zero, which does not hide what is not a number.
            return tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in self._layers)

        return Cache(empty(), empty())

    def prefill(self, codes: Tensor, condition: Condition, cache: Cache, *, start: int) -> Tensor:
        """Logits behind the last of several steps.

        Args:
            codes: int64 [R, K, S], values in [0, card].
            condition: of the rows. Its prefix is put before the codes where ``start`` is 0.
            cache: filled from ``start`` on.
            start: places of the cache that are filled.

        Returns:
            float32 [R, K, card].
        """
        x = self._embed(codes)
        if start == 0 and condition.prefix.shape[1]:
            x = torch.cat([condition.prefix, x], dim=1)
        end = start + x.shape[1]
        x = x + self.positions(end)[start:end]
        mask = None
        if start and x.shape[1] > 1:  # several steps behind others: each sees the past and itself
            mask = torch.ones(x.shape[1], end, dtype=torch.bool, device=x.device).tril(start)
        for number, layer in enumerate(self._layers):
            keys, values = cache.keys[number][:, :, :end], cache.values[number][:, :, :end]
            cross = condition.cross[number] if condition.cross else None
            x = layer.prefill(x, keys, values, cross, mask, condition.mask, start=start)
        return self._logits(x[:, -1:])

    def step(self, codes: Tensor, condition: Condition, cache: Cache, place: Place) -> Tensor:
        """As ``prefill`` for one step [R, K, 1] anywhere, in a way that can be recorded: shapes and reads are fixed."""
        x = self._embed(codes) + place.positions.index_select(0, place.index)
        L = place.mask.shape[-1]
        for number, layer in enumerate(self._layers):
            cross = condition.cross[number] if condition.cross else None
            x = layer.step(x, cache.keys[number], cache.values[number], cross, place, condition.mask, L)
        return self._logits(x)

    def _embed(self, codes: Tensor) -> Tensor:
        """The sum of the codebooks' embeddings: [R, K, S] -> float32 [R, S, D]."""
        return torch.stack([embed(codes[:, k]) for k, embed in enumerate(self.lm.embeddings)]).sum(0)

    def _logits(self, x: Tensor) -> Tensor:
        normed = self.lm.out_norm(x)[:, -1]
        if self._heads is None:
            return torch.stack([head(normed) for head in self.lm.heads], dim=1)
        logits = self._heads(normed)
        return logits.view(len(logits), self.config.n_q, -1)

    def positions(self, num_steps: int) -> Tensor:
        """Position embeddings of the first steps: float32 [S, D]."""
        if num_steps > len(self._table):
            self._table = sinusoidal_positions(2 * num_steps, self.config.dim, offset=0, device=self.device)
        return self._table[:num_steps]


class _DecoderLayer:
    """One layer's arithmetic, the projections packed or the module's own."""

    def __init__(self, layer: Layer, precision: Precision | None) -> None:
        self.layer = layer
        self.num_heads = layer.self_attn.num_heads
        attention: Attention = layer.self_attn
        self.qkv = _projection([attention.q_proj, attention.k_proj, attention.v_proj], precision)
        self.self_out = _projection([attention.out_proj], precision)
        if layer.has_cross:
            cross: Attention = layer.cross_attn
            self.cross_q = _projection([cross.q_proj], precision)
            self.cross_kv = _projection([cross.k_proj, cross.v_proj], precision)
            self.cross_out = _projection([cross.out_proj], precision)
        self.fc1 = _projection([layer.fc1], precision)
        self.fc2 = _projection([layer.fc2], precision)
        device = layer.self_norm.weight.device
        self.dtype = compute_dtype(precision or "fp32", device)

    def keys_values_of_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Each [R, H, N, D/H]."""
        keys, values = self._heads(self.cross_kv(text), 2)
        return keys.contiguous(), values.contiguous()

    def prefill(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        cross: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        text_mask: Tensor | None,
        *,
        start: int,
    ) -> Tensor:
        q, k, v = self._heads(self.qkv(self.layer.self_norm(x).to(self.dtype)), 3)
        keys[:, :, start:] = k
        values[:, :, start:] = v
        if not start:  # contiguous, as a first call wants
            keys, values = k, v
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=start == 0)
        x = x + self.self_out(_join(attended))
        return self._rest(x, cross, text_mask)

    def step(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        cross: tuple[Tensor, Tensor] | None,
        place: Place,
        text_mask: Tensor | None,
        length: int,
    ) -> Tensor:
        q, k, v = self._heads(self.qkv(self.layer.self_norm(x).to(self.dtype)), 3)
        keys.index_copy_(2, place.index, k)
        values.index_copy_(2, place.index, v)
        attended = F.scaled_dot_product_attention(q, keys[:, :, :length], values[:, :, :length], attn_mask=place.mask)
        x = x + self.self_out(_join(attended))
        return self._rest(x, cross, text_mask)

    def _rest(self, x: Tensor, cross: tuple[Tensor, Tensor] | None, text_mask: Tensor | None) -> Tensor:
        """Cross-attention and feed-forward."""
        layer = self.layer
        if cross is not None:
            (q,) = self._heads(self.cross_q(layer.cross_norm(x).to(self.dtype)), 1)
            x = x + self.cross_out(_join(F.scaled_dot_product_attention(q, *cross, attn_mask=text_mask)))
        return x + self.fc2(F.gelu(self.fc1(layer.ffn_norm(x).to(self.dtype))))

    def _heads(self, x: Tensor, num: int) -> Sequence[Tensor]:
        """[R, S, num D] -> num times [R, H, S, D/H]."""
        R, S, _ = x.shape
        return x.view(R, S, num, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def _join(attended: Tensor) -> Tensor:
    """[R, H, S, D/H] -> [R, S, D]."""
    return attended.transpose(1, 2).flatten(2)


def _projection(linears: Sequence[nn.Module], precision: Precision | None) -> Projection:
    if precision is not None:
        plain = [linear for linear in linears if type(linear) is nn.Linear]
        if len(plain) < len(linears):
            raise ValueError(
                f"{type(linears[0]).__name__} cannot be packed: merge the adapter first, or ask for no dtype"
            )
        return pack(plain, precision)
    if len(linears) == 1:
        return linears[0]
    return lambda x: torch.cat([linear(x) for linear in linears], dim=-1)
