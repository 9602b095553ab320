"""Split attention: a chunk's queries see the keys and values of earlier positions, which are read-only, and its own.

The usual cache appends the chunk's keys and values to the earlier ones, which copies all of them in every step. Here
they stay apart: scores over both are concatenated, which are small, and the caller stores the new keys and values.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

SPLIT = "funnel_export_split"
"""Name of this attention in Hugging Face's registry."""


@dataclass(slots=True)
class Past:
    """Keys and values of one layer, each [batch, key_value_heads, length, head_dim]."""

    key: Tensor
    """Keys of earlier positions."""
    value: Tensor
    bias: Tensor
    """[batch, 1, queries, earlier], added to the scores of earlier positions."""
    new_key: Tensor | None = None
    """Keys of the chunk, set by the attention."""
    new_value: Tensor | None = None

    @property
    def new(self) -> tuple[Tensor, Tensor]:
        """The chunk's keys and values, after the attention."""
        assert self.new_key is not None
        assert self.new_value is not None
        return self.new_key, self.new_value


def split_attention(
    module: nn.Module,  # noqa: ARG001 - the signature of an attention function
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    past: Past | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as Hugging Face's eager one computes it, over earlier keys and the chunk's.

    The queries that share a key/value head are folded into rows of one product, so keys and values are not repeated.

    Args:
        module: Hugging Face's attention; not used.
        query: [batch, heads, queries, head_dim].
        key: the chunk's, [batch, key_value_heads, length, head_dim].
        value: the chunk's, as `key`.
        attention_mask: [batch, 1, queries, length], added to the scores of the chunk's positions; None without `past`.
        scaling: what scores are multiplied by.
        past: the earlier keys and values; gets the chunk's. None where only the chunk's keys and values are of use, and
            a cache takes them: then nothing is computed, and the result is the queries.
        softcap: the cap c of tanh(scores / c) * c, None without one.

    Returns:
        [batch, queries, heads, head_dim], and no weights.
    """
    if past is None:
        return query.transpose(1, 2), None
    assert attention_mask is not None
    past.new_key, past.new_value = key, value
    batch, heads, queries, width = query.shape
    groups, length, earlier = key.shape[1], key.shape[2], past.key.shape[2]
    folded = query.reshape(batch, groups, -1, width)
    scores = torch.cat([folded @ past.key.transpose(2, 3), folded @ key.transpose(2, 3)], dim=-1)
    scores = scores.reshape(batch, heads, queries, earlier + length) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    bias = torch.cat([past.bias, attention_mask], dim=-1)
    weights = nn.functional.softmax(scores + bias, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = weights.reshape(batch, groups, -1, earlier + length)
    result = weights[..., :earlier] @ past.value + weights[..., earlier:] @ value
    return result.reshape(batch, heads, queries, width).transpose(1, 2), None


AttentionInterface.register(SPLIT, split_attention)
