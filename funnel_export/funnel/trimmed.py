"""Trimmed layers: they compute keys and values of all columns, and everything else of chosen columns only.

The last layer of a model needs no more where logits of a few columns are wanted. The layer is Hugging Face's, run on
the hidden states of the chosen columns; where its attention hands keys and values to a cache, it gets those of all
columns back.
"""

from typing import Any

from torch import Tensor

from funnel_export.funnel.parts import LayerPart


class ChunkKeys:
    """The keys and values of all columns, in place of a cache."""

    def __init__(self, layer: Any, x: Tensor, angles: tuple[Tensor, Tensor]) -> None:
        """Take the keys and values that a layer's attention makes of all columns.

        What else it computes of them is not used, so no graph has it.

        Args:
            layer: Hugging Face's decoder layer.
            x: its hidden states, [batch, length, width].
            angles: cosines and sines of all columns, each [batch, length, head_dim].
        """
        self.taken: tuple[Tensor, Tensor] | None = None
        layer.self_attn(layer.input_layernorm(x), attention_mask=None, position_embeddings=angles, past_key_values=self)

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - a cache's
        """Take the first keys and values, each [batch, key_value_heads, length, head_dim], and return them always."""
        if self.taken is None:
            self.taken = key, value
        return self.taken


class TrimmedLayerPart(LayerPart):
    """A trimmed layer: returns hidden states of the chosen columns."""

    def __call__(  # type: ignore[override]
        self,
        x: Tensor,
        chosen: Tensor,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
        chosen_cos: Tensor,
        chosen_sin: Tensor,
    ) -> Tensor:
        keys, angles = ChunkKeys(self.module, x, (cos, sin)), (chosen_cos, chosen_sin)
        out: Tensor = self.module(
            chosen, attention_mask=bias, position_embeddings=angles, past_key_values=keys, **self.kwargs
        )
        return out
