"""The largest values inside a model, compared with float16's range. This module does not import torch."""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

FLOAT16_MAX = 65504.0
"""The largest finite number in float16."""

Magnitude = Annotated[float, Field(ge=0)]


class Range(BaseModel):
    """The largest absolute values at one place of the model, in the reference, over all batches and tokens.

    They are infinite if a value is not finite.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    """A boundary (`layers.3`, `funnel.pooled`, `funnel.recovered`), `embed_tokens`, `norm`, or the head's name."""
    largest: Magnitude
    """Largest value of the result of this place."""
    inside: str | None = None
    """What has the largest value inside a layer: `mlp.down_proj`, `input of mlp.down_proj` or `matmul in self_attn`."""
    largest_inside: Magnitude = 0.0

    @property
    def peak(self) -> float:
        """The larger of the two values."""
        return max(self.largest, self.largest_inside)

    @property
    def fits_float16(self) -> bool:
        """Whether all values are within float16's range."""
        return self.peak <= FLOAT16_MAX

    @property
    def place(self) -> str:
        """Where the peak is: `layers.3`, or `layers.3 (mlp.down_proj)` if it is inside the layer."""
        return self.name if self.peak == self.largest else f"{self.name} ({self.inside})"


def first_overflow(ranges: Sequence[Range]) -> Range | None:
    """The first place, in the order of computation, with values beyond float16's range; None if there is none."""
    return next((found for found in ranges if not found.fits_float16), None)


def describe_ranges(ranges: Sequence[Range]) -> str:
    """The largest value of a model, and from where on float16 overflows; empty if nothing was measured."""
    if not ranges:
        return ""
    largest = max(ranges, key=lambda found: found.peak)
    text = f"largest value: {magnitude(largest.peak)} at {largest.place}"
    first = first_overflow(ranges)
    if first is None:
        return f"{text}, {share_of_float16(largest.peak)} of float16's largest, {magnitude(FLOAT16_MAX)}"
    return f"{text}; float16 (at most {magnitude(FLOAT16_MAX)}) overflows from {first.name} on"


def magnitude(value: float) -> str:
    """An absolute value with three significant digits or more: `0.123`, `12.3`, `68,407`, `1.2e+12`."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}" if value < 1e9 else f"{value:.1e}"


def share_of_float16(value: float) -> str:
    """A value over float16's largest: `48.7 %`, rounded down, or from 100 times on `1,234 ×`."""
    share = value / FLOAT16_MAX
    if share < 100:
        return f"{math.floor(share * 1000) / 10:.1f} %"
    return f"{magnitude(share)} ×" if math.isfinite(share) else magnitude(share)
