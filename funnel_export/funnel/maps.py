"""The linear maps of recovery `linear`: what they compute, and where a model has them."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from funnel_export.funnel.wide import widen
from funnel_export.spec.choices import Recovery
from funnel_export.spec.funnel import MAPS, FunnelSpec


class SlotMaps(nn.Module):
    """Maps for the tokens of a model whose middle layers run on slots.

    A token with hidden state x before the pool layer reads a slot that the middle layers changed by d = out - in. It
    gets x + d, as with `delta`, plus a linear map of (x, d). There is one map for tokens that close their window, whose
    slot has just been computed, and one for the others, whose slot is stale. A row's first token is a window of its
    own, for which `delta` is exact, so it has no map. New maps are zero: the recovery then equals `delta`.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.closed = _zero_map(2 * width, width)
        self.stale = _zero_map(2 * width, width)

    def forward(
        self,
        x: Float[Tensor, "batch column width"],
        change: Float[Tensor, "batch column width"],
        numbers: Int[Tensor, "batch column"],
    ) -> Float[Tensor, "batch column width"]:
        """Recover tokens from the change of the slot that each reads; `numbers` count the tokens of each row."""
        both = torch.cat([x, change.to(x.dtype)], dim=-1)
        closed = (numbers % self.stride == 0)[..., None]
        mapped = torch.where(closed, self.closed(both), self.stale(both))
        mapped = torch.where((numbers <= 0)[..., None], torch.zeros((), dtype=x.dtype, device=x.device), mapped)
        return (widen(x) + widen(change) + widen(mapped)).to(x.dtype)


class DropMap(nn.Module):
    """The map for the tokens of a model that drops its middle layers.

    A token with hidden state x before the dropped layers gets x plus a linear map of x. A row's first token, which sees
    only itself, gets x plus a constant. New maps are zero: tokens then go on as they are.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(width))
        self.rest = _zero_map(width, width)

    def forward(
        self, x: Float[Tensor, "batch column width"], numbers: Int[Tensor, "batch column"]
    ) -> Float[Tensor, "batch column width"]:
        """Move tokens past the dropped layers; `numbers` count the tokens of each row."""
        mapped = torch.where((numbers <= 0)[..., None], self.first, self.rest(x))
        return (widen(x) + widen(mapped)).to(x.dtype)


def make_maps(spec: FunnelSpec | None, width: int) -> SlotMaps | DropMap | None:
    """New maps for a funnel of a model with hidden states of `width`; None if its recovery is not `linear`."""
    if spec is None or spec.recovery is not Recovery.LINEAR:
        return None
    return DropMap(width) if spec.drop else SlotMaps(width, spec.stride)


def attach_maps(base: Any, maps: SlotMaps | DropMap | None) -> None:
    """Give a model without its head maps, in its dtype and on its device; nothing without maps."""
    if maps is None:
        return
    weight, own = base.embed_tokens.weight, next(maps.parameters())
    if (own.dtype, own.device) != (weight.dtype, weight.device):  # tensors without values cannot be converted
        maps = maps.to(dtype=weight.dtype, device=weight.device)
    setattr(base, MAPS, maps)


def detach_maps(base: Any) -> None:
    """Remove a model's maps, if it has some."""
    if maps_of(base) is not None:
        delattr(base, MAPS)


def maps_of(base: Any) -> SlotMaps | DropMap | None:
    """The maps of a model without its head, None if it has none."""
    maps: SlotMaps | DropMap | None = getattr(base, MAPS, None)
    return maps


def _zero_map(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
