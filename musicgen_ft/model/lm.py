"""The MusicGen language model: a decoder-only transformer over K codebooks, conditioned on text, or on text and melody.

B batch, K codebooks, T frames, S sequence steps, N text tokens, F frames of chroma, P prefix steps, D width, H heads.
Equal to audiocraft's ``LMModel`` and to transformers' ``MusicgenForCausalLM`` (tests/parity); spec section 2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musicgen_ft.chroma import ChromaSpec, MelodyStates
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.patterns import Pattern, PatternName, make_pattern

TextPadding = Literal["audiocraft", "transformers"]
Conditioning = Literal["cross", "prefix"]
Recompute = Literal["none", "selective", "full"]
"""Activations that are computed again in the backward pass: none, those of the feed-forward parts, or of all layers."""


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """The numbers of an architecture; all of them are read from the base, none is asked of a user."""

    dim: int
    """Width D of the residual stream."""
    num_heads: int
    """Attention heads H."""
    num_layers: int
    """Transformer layers."""
    ffn_dim: int
    """Width of the feed-forward layer."""
    n_q: int
    """Codebooks K."""
    card: int
    """Entries of each codebook; ``card`` itself is the special token."""
    delays: tuple[int, ...]
    """Steps that each codebook lags behind, one for each; see ``make_pattern``."""
    text_dim: int
    """Width of the text encoder's hidden states."""
    dropout: float = 0.0
    """Probability on the outputs of attention and feed-forward, in training."""
    text_padding: TextPadding = "audiocraft"
    """What cross-attention does with padded text: audiocraft attends to the zero vectors, so that a prompt depends
    on its neighbours in the batch; transformers masks them (spec 8.3). Equal where nothing is padded."""
    channels: int = 1
    """Channels of the audio: in stereo the codebooks are those of left and right in turn."""
    max_duration_s: float = field(default=30.0)
    """Length that the model was trained on, in seconds."""
    pattern: PatternName = "delay"
    """The order of the codes. audiocraft has all of them; transformers knows ``delay`` alone, with the delays of the
    released models (0, 1, 2, ..., or each twice in stereo)."""
    flattening: tuple[int, ...] = ()
    """Inner step of each codebook, for ``unroll``; empty is full flattening."""
    group_by: int = 0
    """Codebooks of a group, for ``musiclm``; 0 for the others."""
    conditioning: Conditioning = "cross"
    """``cross``: every layer attends to the text. ``prefix``: chroma and text stand before the codes on the time axis,
    as in the melody models; nothing of them is masked then, whatever ``text_padding`` says."""
    chroma: ChromaSpec | None = None
    """The numbers of the melody's chroma; None for ``cross``."""

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.dim % 2:
            raise ValueError(f"dim {self.dim} must be even and a multiple of num_heads {self.num_heads}")
        if len(self.delays) != self.n_q:
            raise ValueError(f"delays {self.delays} do not fit n_q={self.n_q}")
        if (self.conditioning == "prefix") != (self.chroma is not None):
            raise ValueError(f"conditioning {self.conditioning!r} does not fit chroma {self.chroma}")
        self.make_pattern()  # refuses here what does not fit together

    @property
    def special_token_id(self) -> int:
        """Stands where the pattern holds no code, and in padding."""
        return self.card

    def make_pattern(self) -> Pattern:
        """The pattern that ``pattern``, ``delays``, ``flattening`` and ``group_by`` describe."""
        return make_pattern(self.pattern, self.delays, flattening=self.flattening, group_by=self.group_by)


def usual_top_k(card: int) -> int:
    """How many of a codebook's codes are drawn from where nobody says: audiocraft's 250 of 2048, that share of others.

    250 of nano's 256 would be nearly all of them.
    """
    return max(1, round(card * 250 / 2048))


class Predictions(NamedTuple):
    """The model's prediction of every frame of a batch of codes."""

    logits: Tensor
    """float [B, K, T, card]; NaN where the pattern leaves no prediction."""
    mask: Tensor
    """bool [K, T]: false there."""


class States(NamedTuple):
    """What the heads make the predictions of a batch from."""

    hidden: Tensor
    """float [B, S, D], after the last norm."""
    steps: Tensor
    """int64 [K, T]: the step of ``hidden`` that predicts each frame; any one where none does."""
    mask: Tensor
    """bool [K, T]: false there."""


class KVCache:
    """Keys and values of the steps that a generation has behind it, in buffers of fixed size.

    Cross-attention's keys and values depend on the text alone: they are computed at the first step and kept. A prefix
    stands before the steps of the first call, and needs no room of the caller's.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self.num_prefix = 0
        """Steps P of the prefix."""
        self.length = 0
        """Steps that the cache holds, the prefix included: the position of the next one."""
        self.cross: dict[int, tuple[Tensor, Tensor]] = {}
        """Layer -> keys and values of the text, each [B, H, N, D/H]."""
        self.text_mask: Tensor | None = None
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    @property
    def offset(self) -> int:
        """Steps of the sequence that the cache holds."""
        return max(0, self.length - self.num_prefix)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new steps' keys and values [B, H, S, D/H] of a layer; returns those of all steps so far."""
        B, H, S, head_dim = keys.shape
        if layer not in self._keys:
            self._keys[layer] = keys.new_empty(B, H, self.num_prefix + self.max_steps, head_dim)
            self._values[layer] = values.new_empty(B, H, self.num_prefix + self.max_steps, head_dim)
        end = self.length + S
        self._keys[layer][:, :, self.length : end] = keys
        self._values[layer][:, :, self.length : end] = values
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]


PLAIN_STEPS = 1024
"""Steps up to which attention may keep the products of all steps with all others."""
CAUSAL_BLOCK = 128
"""Steps whose products are made at once where none sees those after it."""


def _attention(q: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Scaled dot-product attention [B, H, S, D/H], by torch's own but for training in half precision on a CPU.

    There torch's backward in bf16 gains nothing by a second thread, and in fp32 forgoes the matrix units: a step of
    nano's training takes 2.2 and 1.3 times as long as with plain products.
    """
    is_half = q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type != "cpu" or not is_half or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=is_causal)
    with torch.autocast("cpu", enabled=False):
        if max(q.shape[2], keys.shape[2]) <= PLAIN_STEPS:
            return _plain_attention(q, keys.to(q.dtype), values.to(q.dtype), mask=mask, is_causal=is_causal)
        out = F.scaled_dot_product_attention(
            q.float(), keys.float(), values.float(), attn_mask=mask, is_causal=is_causal
        )
    return out.to(q.dtype)


def _plain_attention(q: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
    """The products of all steps with all others; causal, of a block of steps with those up to its end alone."""
    keys = keys / math.sqrt(q.shape[3])
    if not is_causal:
        bias = None if mask is None else torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
        return _attend(q, keys, values, bias)
    blocks = []
    for begin in range(0, q.shape[2], CAUSAL_BLOCK):
        block = q[:, :, begin : begin + CAUSAL_BLOCK]
        end = begin + block.shape[2]
        bias = torch.full((end - begin, end), -torch.inf, dtype=q.dtype).triu(1 + begin)
        blocks.append(_attend(block, keys[:, :, :end], values[:, :, :end], bias))
    return torch.cat(blocks, dim=2)


def _attend(q: Tensor, scaled_keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    scores = q @ scaled_keys.transpose(-1, -2)  # [B, H, S, N]
    return torch.softmax(scores if bias is None else scores + bias, dim=-1) @ values


class Attention(nn.Module):
    """Multi-head attention without biases, on PyTorch's scaled dot product."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of ``source`` [B, N, D], each [B, H, N, D/H]."""
        return self._split(self.k_proj(source)), self._split(self.v_proj(source))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
        """Attends from ``x`` [B, S, D] to keys and values [B, H, N, D/H]; ``mask`` is bool, true where it may look."""
        q = self._split(self.q_proj(x))
        out = _attention(q, keys, values, mask=mask, is_causal=is_causal)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))  # [B, H, S, D/H] -> [B, S, D]
        return projected

    def _split(self, x: Tensor) -> Tensor:
        B, S, D = x.shape
        return x.view(B, S, self.num_heads, D // self.num_heads).transpose(1, 2)  # [B, S, D] -> [B, H, S, D/H]


class Layer(nn.Module):
    """One pre-norm layer: self-attention, cross-attention where the model has it, feed-forward."""

    def __init__(self, config: LMConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.self_norm = nn.LayerNorm(config.dim)
        self.self_attn = Attention(config.dim, config.num_heads)
        if config.conditioning == "cross":
            self.cross_norm = nn.LayerNorm(config.dim)
            self.cross_attn = Attention(config.dim, config.num_heads)
        self.has_cross = config.conditioning == "cross"
        self.ffn_norm = nn.LayerNorm(config.dim)
        self.fc1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.fc2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.recomputes_ffn = False
        """Whether training keeps nothing of the feed-forward part, whose inner width is the largest."""

    def forward(self, x: Tensor, text: Tensor | None, text_mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """One layer's update of ``x`` [B, S, D]; ``text`` [B, N, D] may be None once the cache holds its keys."""
        x = x + self.dropout(self._attend_self(self.self_norm(x), cache))
        if self.has_cross:
            x = x + self.dropout(self._attend_text(self.cross_norm(x), text, text_mask, cache))
        if self.recomputes_ffn and torch.is_grad_enabled() and cache is None:
            return x + _recomputed(self._feed_forward, x)
        return x + self._feed_forward(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        update: Tensor = self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(self.ffn_norm(x))))))
        return update

    def _attend_self(self, x: Tensor, cache: KVCache | None) -> Tensor:
        keys, values = self.self_attn.keys_values(x)
        offset = 0
        if cache is not None:
            offset = cache.length
            keys, values = cache.append(self.index, keys, values)
        mask = None
        if offset and x.shape[1] > 1:  # several steps after the first call: each sees the past and itself
            mask = torch.ones(x.shape[1], keys.shape[2], dtype=torch.bool, device=x.device).tril(offset)
        attended: Tensor = self.self_attn(x, keys, values, mask=mask, is_causal=offset == 0)
        return attended

    def _attend_text(self, x: Tensor, text: Tensor | None, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        if cache is not None and self.index in cache.cross:
            keys, values = cache.cross[self.index]
        else:
            assert text is not None
            keys, values = self.cross_attn.keys_values(text)
            if cache is not None:
                cache.cross[self.index] = (keys, values)
        attended: Tensor = self.cross_attn(x, keys, values, mask=mask, is_causal=False)
        return attended


class LanguageModel(nn.Module):
    """MusicGen's transformer: embeddings of K codebooks summed, layers, K heads."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute: Recompute = "none"
        self.pattern = config.make_pattern()
        self.embeddings = nn.ModuleList(nn.Embedding(config.card + 1, config.dim) for _ in range(config.n_q))
        self.text_proj = nn.Linear(config.text_dim, config.dim)
        if config.chroma is not None:
            self.chroma_proj = nn.Linear(config.chroma.n_chroma, config.dim)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.out_norm = nn.LayerNorm(config.dim)
        self.heads = nn.ModuleList(nn.Linear(config.dim, config.card, bias=False) for _ in range(config.n_q))

    def forward(
        self,
        sequence: Tensor,
        text: TextStates | None = None,
        cache: KVCache | None = None,
        melody: MelodyStates | None = None,
    ) -> Tensor:
        """Logits of the step after each step of the sequence.

        Args:
            sequence: int64 [B, K, S], values in [0, card]; with a cache, the steps after those that it holds.
            text: the condition of each row; None only where the cache already holds its keys and values.
            cache: filled and moved on by S steps.
            melody: of each row, given with the text to a model that takes one.

        Returns:
            float [B, K, S, card].
        """
        x = self.hidden(sequence, text, cache, melody)
        return torch.stack([head(x) for head in self.heads], dim=1)

    def hidden(
        self,
        sequence: Tensor,
        text: TextStates | None = None,
        cache: KVCache | None = None,
        melody: MelodyStates | None = None,
    ) -> Tensor:
        """What the heads read: float [B, S, D]; see ``forward`` for the arguments."""
        x = torch.stack([embed(sequence[:, k]) for k, embed in enumerate(self.embeddings)]).sum(0)  # [B, S, D]
        S, offset = sequence.shape[2], cache.length if cache is not None else 0
        projected, text_mask = self._project(text, cache)
        if self.config.conditioning == "prefix" and projected is not None:
            x = torch.cat([self._project_melody(melody), projected, x], dim=1)  # [B, S, D] -> [B, P + S, D]
            if cache is not None:
                cache.num_prefix = x.shape[1] - S
        x = x + sinusoidal_positions(x.shape[1], self.config.dim, offset=offset, device=x.device).to(x.dtype)
        for layer in self.layers:
            if self.recompute == "full" and torch.is_grad_enabled() and cache is None:
                x = _recomputed(layer, x, projected, text_mask, None)
            else:
                x = layer(x, projected, text_mask, cache)
        if cache is not None:
            cache.length += x.shape[1]
        normed: Tensor = self.out_norm(x[:, -S:])
        return normed

    def predict(self, codes: Tensor, text: TextStates, melody: MelodyStates | None = None) -> Predictions:
        """Predicts every frame from the ones before it, for training and validation.

        Args:
            codes: int64 [B, K, T], values in [0, card]; ``card`` where a frame is padding.
            text: the condition of each row.
            melody: of each row, for a model that takes one.

        Source: audiocraft's ``LMModel.compute_predictions`` with ``keep_only_valid_steps`` (spec 3.2). It feeds
        all valid steps; the last one predicts nothing that is kept, so one less is enough: T of the delay pattern.
        """
        T, pattern = codes.shape[2], self.pattern
        sequence = pattern.interleave(codes, self.config.special_token_id)[:, :, : pattern.num_valid_steps(T) - 1]
        logits = pattern.align_logits(self(sequence, text, melody=melody), T)
        return Predictions(logits, pattern.frame_mask(T, device=codes.device))

    def states(self, codes: Tensor, text: TextStates, melody: MelodyStates | None = None) -> States:
        """As ``predict``, up to the heads: a loss that runs them in parts never holds all logits at once."""
        T, pattern = codes.shape[2], self.pattern
        sequence = pattern.interleave(codes, self.config.special_token_id)[:, :, : pattern.num_valid_steps(T) - 1]
        hidden = self.hidden(sequence, text, melody=melody)
        steps = (pattern.steps(T).to(codes.device) - 1).clamp(max=hidden.shape[1] - 1)
        return States(hidden, steps, pattern.frame_mask(T, device=codes.device))

    def set_recompute(self, recompute: Recompute) -> None:
        """Chooses what training computes again in the backward pass rather than keeps."""
        self.recompute = recompute
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.recomputes_ffn = recompute == "selective"

    def _project(self, text: TextStates | None, cache: KVCache | None) -> tuple[Tensor | None, Tensor | None]:
        """Text states [B, N, D], zero where masked (bias included), and the mask of cross-attention [B, 1, 1, N]."""
        if text is None:
            if cache is None or not cache.length:
                raise ValueError("text is None, but no cache holds its keys and values")
            return None, cache.text_mask
        projected = self.text_proj(text.states.to(self.text_proj.weight.dtype))
        projected = projected.masked_fill(~text.mask[..., None], 0.0)
        mask = None
        if self.config.text_padding == "transformers" and self.config.conditioning == "cross":
            # A row with no token at all attends evenly to its zero vectors: zero, where a masked softmax gives NaN.
            mask = (text.mask | ~text.mask.any(-1, keepdim=True))[:, None, None, :]
        if cache is not None:
            cache.text_mask = mask
        return projected, mask

    def _project_melody(self, melody: MelodyStates | None) -> Tensor:
        """The melody [B, F, D], zero where it is masked (bias included)."""
        if melody is None:
            raise ValueError("this model is conditioned on a melody too, expected one or its null condition")
        projected: Tensor = self.chroma_proj(melody.one_hot.to(self.chroma_proj.weight.dtype))
        return projected.masked_fill(~melody.mask[..., None], 0.0)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initial weights of a model trained from nothing, as audiocraft's released recipes have them (spec 2.3).

        Truncated normals of width 1/sqrt(fan_in), divided by sqrt(2 (i + 1)) inside layer i; but q, k and v keep
        the uniform +-1/sqrt(D) of the packed projection that audiocraft's initialiser does not reach.
        """
        for module in (*self.embeddings, *self.heads):
            assert isinstance(module, nn.Embedding | nn.Linear)
            _truncated_normal(module.weight, 1 / math.sqrt(self.config.dim))
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            for attention in (layer.self_attn, layer.cross_attn) if layer.has_cross else (layer.self_attn,):
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                    nn.init.uniform_(projection.weight, -1 / math.sqrt(self.config.dim), 1 / math.sqrt(self.config.dim))
                _truncated_normal(attention.out_proj.weight, 1 / math.sqrt(self.config.dim * 2 * (i + 1)))
            for linear in (layer.fc1, layer.fc2):
                _truncated_normal(linear.weight, 1 / math.sqrt(linear.in_features * 2 * (i + 1)))


def sinusoidal_positions(num_steps: int, dim: int, *, offset: int, device: torch.device) -> Tensor:
    """Position embeddings of the steps from ``offset`` on: float32 [S, D], cosines first, then sines.

    Always in fp32: in bf16 positions beyond 256 are not representable, with errors up to 2.0 (spec 2.2).
    Source: audiocraft's ``create_sin_embedding``, whose frequencies run over D/2 - 1.
    """
    half = dim // 2
    with torch.autocast(device.type, enabled=False):
        positions = torch.arange(offset, offset + num_steps, device=device, dtype=torch.float32)[:, None]
        frequencies = torch.arange(half, device=device, dtype=torch.float32)[None] / (half - 1)
        phase = positions / torch.full([], 10000.0, device=device) ** frequencies
        return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)


def _recomputed(function: Callable[..., Tensor], *args: Tensor | None) -> Tensor:
    """What ``function`` gives; nothing inside it is kept for the backward pass."""
    out = checkpoint(function, *args, use_reentrant=False)
    assert isinstance(out, Tensor)
    return out


def _truncated_normal(weight: Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, 0.0, std, -3 * std, 3 * std)
