"""Decoder layers with split attention, as parts: they take earlier keys and values, and return the chunk's too."""

from torch import Tensor

from funnel_export.funnel.parts import LayerPart
from funnel_export.funnel.split import Past
from funnel_export.funnel.trimmed import ChunkKeys


class SplitLayerPart(LayerPart):
    """A decoder layer: returns hidden states, new keys and new values."""

    def __call__(  # type: ignore[override]
        self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor, past_bias: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, ...]:
        past = Past(key, value, past_bias)
        out: Tensor = self.module(x, attention_mask=bias, position_embeddings=(cos, sin), past=past)
        return out, *past.new


class SplitTrimmedLayerPart(LayerPart):
    """A trimmed layer: returns hidden states of the chosen columns, and new keys and values of all."""

    def __call__(  # type: ignore[override]
        self,
        x: Tensor,
        chosen: Tensor,
        cos: Tensor,
        sin: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        past_bias: Tensor,
        chosen_cos: Tensor,
        chosen_sin: Tensor,
    ) -> tuple[Tensor, ...]:
        keys, angles = ChunkKeys(self.module, x, (cos, sin)), (chosen_cos, chosen_sin)
        past = Past(key, value, past_bias)
        out: Tensor = self.module(
            chosen, attention_mask=bias, position_embeddings=angles, past_key_values=keys, past=past
        )
        return out, *past.new
