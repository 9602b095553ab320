"""Which tokens each window has, the position of each slot, and which slot each token reads, in integer arithmetic.

The real tokens of a row have numbers p = 0 .. L-1. Window 0 is {0}; window j >= 1 is {(j-1)S+1 .. jS}. A window is
closed when all its tokens are there. Every closed window has a slot; with lookahead, an unfinished last window has one
too. `ABSENT` is the number of a padding column, and the position of a slot that a row does not have.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from funnel_export.spec.choices import SlotPositions
from funnel_export.spec.funnel import FunnelSpec

ABSENT = -1


def token_numbers(
    real: Bool[Tensor, "batch column"], count: Int[Tensor, "batch column"]
) -> Int[Tensor, "batch column"]:
    """Number each row's real tokens from 0; padding gets `ABSENT`. `count` is the running count of real tokens."""
    return torch.where(real, count - 1, ABSENT)


def closed_slots(length: Int[Tensor, "batch 1"] | int, stride: int) -> Any:
    """Number of closed windows in a row of `length` >= 0 tokens: floor((L-1)/S)+1, or 0 for an empty row.

    Returns a tensor for a tensor and an int for an int.
    """
    return (length + (stride - 1)) // stride


def window_tokens(slots: Int[Tensor, "rows slot"], stride: int) -> Int[Tensor, "rows slot stride"]:
    """Token numbers of each slot's window. Window 0 gets 1-S .. 0, of which only token 0 exists."""
    last = (slots * stride)[:, :, None]
    return last + torch.arange(1 - stride, 1, device=slots.device)


def slot_positions(
    slots: Int[Tensor, "rows slot"], length: Int[Tensor, "batch 1"], spec: FunnelSpec
) -> Int[Tensor, "batch slot"]:
    """Position of each slot for RoPE and masks; `ABSENT` for slots that a row of `length` tokens does not have."""
    last = slots * spec.stride
    needed = (last - (spec.stride - 1)).clamp(min=0) if spec.lookahead else last
    original = spec.slot_positions is SlotPositions.ORIGINAL
    position = torch.minimum(last, length - 1) if original else slots.expand(length.shape[0], -1)
    return torch.where(needed < length, position, ABSENT)


def read_slots(numbers: Int[Tensor, "batch column"], spec: FunnelSpec) -> Int[Tensor, "batch column"]:
    """Number of the slot that each token reads: floor(p/S), or ceil(p/S) with lookahead; padding reads slot 0."""
    ahead = spec.stride - 1 if spec.lookahead else 0
    return (numbers.clamp(min=0) + ahead) // spec.stride
