"""Floating point operations of training, counted from the model's numbers: those of its matrix products.

A product [n, i] x [i, o] counts 2 n i o; its backward pass as much again for each of the gradients of weight and input
that is needed. Attention counts all pairs of steps, causal or not, as torch's ``FlopCounterMode`` and the usual figure
of model FLOPs utilisation (PaLM, arXiv:2204.02311, appendix B) do. Norms, softmax and the like count nothing, neither
do the row norms of DoRA.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from musicgen_ft.model.lm import Attention, LanguageModel, Layer
from musicgen_ft.model.lora import LoRALinear


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of one clip in one training step."""

    forward: int
    """From the codes to the loss."""
    backward: int
    """Gradients of what is trained, and of all on the way to it."""
    recomputed: int
    """What ``recompute`` has computed a second time to save memory."""

    @property
    def model(self) -> int:
        """What the model asks for, whatever way it is computed: the figure of model FLOPs utilisation."""
        return self.forward + self.backward

    @property
    def hardware(self) -> int:
        """What is computed."""
        return self.model + self.recomputed


def clip_flops(lm: LanguageModel, *, num_frames: int, num_tokens: int, num_chroma: int = 0) -> Flops:
    """Operations of one clip.

    Args:
        lm: says by ``requires_grad``, adapters and ``set_recompute`` what is computed; it may be on the meta device.
        num_frames: T of the clip, none of them padding.
        num_tokens: N of the text, padding included.
        num_chroma: F of the melody, for a model that takes one.
    """
    steps = lm.pattern.num_valid_steps(num_frames) - 1
    count = _Count(lm.config.dim)
    text_has_grad = count.linear(lm.text_proj, num_tokens, has_grad=False)
    has_grad = any(embedding.weight.requires_grad for embedding in lm.embeddings if isinstance(embedding, nn.Embedding))
    if lm.config.conditioning == "prefix":
        has_grad |= count.linear(lm.chroma_proj, num_chroma, has_grad=False) or text_has_grad
        steps += num_chroma + num_tokens
    for layer in lm.layers:
        assert isinstance(layer, Layer)
        has_grad = count.layer(layer, steps, num_tokens, has_grad, text_has_grad, whole=lm.recompute == "full")
    has_grad |= lm.out_norm.weight.requires_grad
    for head in lm.heads:
        count.linear(head, num_frames, has_grad=has_grad)
    return Flops(forward=count.forward, backward=count.backward, recomputed=count.recomputed)


def model_flops_per_frame(lm: LanguageModel, num_frames: int) -> float:
    """Model FLOPs of training for each frame of a clip; the text's own path, and a melody's, are left out."""
    return clip_flops(lm, num_frames=num_frames, num_tokens=0).model / num_frames


class _Count:
    """Sums up; its methods return whether what they have computed needs a gradient."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.forward = self.backward = self.recomputed = 0
        self._last = 0

    def linear(self, module: nn.Module, rows: int, *, has_grad: bool) -> bool:
        """A linear layer with or without an adapter."""
        if isinstance(module, LoRALinear):
            base_has_grad = self.linear(module.base, rows, has_grad=has_grad)
            rank, inner = module.lora_A.shape
            self._product(rows * inner * rank, trained=module.lora_A.requires_grad, has_grad=has_grad)
            self._product(rows * rank * module.lora_B.shape[0], trained=module.lora_B.requires_grad, has_grad=True)
            return base_has_grad or module.lora_A.requires_grad
        assert isinstance(module, nn.Linear)
        trained = module.weight.requires_grad
        self._product(rows * module.in_features * module.out_features, trained=trained, has_grad=has_grad)
        return has_grad or trained or (module.bias is not None and module.bias.requires_grad)

    def _product(self, size: int, *, trained: bool, has_grad: bool) -> None:
        self._last = 2 * size
        self.forward += 2 * size
        self.backward += 2 * size * (trained + has_grad)

    def _attention(self, module: Attention, rows: int, columns: int, has_grad: bool, source_has_grad: bool) -> bool:
        """From ``rows`` steps to ``columns``, with all four projections."""
        keys = self.linear(module.k_proj, columns, has_grad=source_has_grad)
        values = self.linear(module.v_proj, columns, has_grad=source_has_grad)
        queries = self.linear(module.q_proj, rows, has_grad=has_grad)
        product = 2 * rows * columns * self.dim
        self.forward += 2 * product  # scores, and sums of values
        self.backward += product * (values + (queries or keys) + queries + keys)  # of values, scores, queries, keys
        return self.linear(module.out_proj, rows, has_grad=queries or keys or values)

    def layer(
        self, layer: Layer, rows: int, num_tokens: int, has_grad: bool, text_has_grad: bool, *, whole: bool
    ) -> bool:
        """One layer; ``whole``: it is computed again as a whole."""
        at_start = self.forward
        normed = has_grad or _trained(layer.self_norm)
        has_grad |= self._attention(layer.self_attn, rows, rows, normed, normed)
        if layer.has_cross:
            normed = has_grad or _trained(layer.cross_norm)
            has_grad |= self._attention(layer.cross_attn, rows, num_tokens, normed, text_has_grad)
        at_ffn = self.forward
        normed = has_grad or _trained(layer.ffn_norm)
        inner = self.linear(layer.fc1, rows, has_grad=normed)
        has_grad |= self.linear(layer.fc2, rows, has_grad=inner)
        if has_grad and (whole or layer.recomputes_ffn):  # the last product has nothing to keep: torch stops before it
            self.recomputed += self.forward - (at_start if whole else at_ffn) - self._last
        return has_grad


def _trained(norm: nn.LayerNorm) -> bool:
    weight: Tensor = norm.weight
    return weight.requires_grad
