"""A drawing of a funnel: bars with labels for pooling and recovery between them, also as text."""

from collections.abc import Sequence
from typing import NamedTuple

from funnel_export.spec.funnel import Segment

WIDTH = 32
"""Characters of the longest bar."""
SHORTEST = 0.02
"""Least width of a bar as a share of the longest."""


class Bar(NamedTuple):
    """The bar of a segment, as long as its sequence."""

    name: str
    layers: str
    length: str
    share: float
    """Its width as a share of the longest bar's."""
    before: str = ""
    """Label before the bar: the pooling that makes its sequence."""
    after: str = ""
    """Label after the bar: the recovery."""


def funnel_bars(segments: Sequence[Segment]) -> list[Bar]:
    """A bar for each segment."""
    return [_bar(segment) for segment in segments]


def _bar(segment: Segment) -> Bar:
    funnel = segment.funnel
    if funnel is not None and funnel.drop:
        dropped = _layers(funnel.pool_layer, funnel.recover_layer - 1)
        return Bar(segment.name, dropped, "dropped", SHORTEST, after=f"▲ recover: {funnel.recovery}")
    layers = _layers(segment.layers[0], segment.layers[-1])
    if funnel is None:
        return Bar(segment.name, layers, "L tokens", 1.0)
    length = f"L/{funnel.stride} slots" if funnel.stride > 1 else "L slots"
    ahead = ", lookahead" if funnel.lookahead else ""
    pool = f"▼ pool: {funnel.pooling} of {funnel.stride} tokens{ahead}, {funnel.slot_positions} positions"
    share = max(SHORTEST, 1 / funnel.stride)
    return Bar(segment.name, layers, length, share, pool, f"▲ recover: {funnel.recovery}")


def _layers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}-{last}"


def draw_text(segments: Sequence[Segment]) -> str:
    """The drawing as lines of text."""
    lines: list[str] = []
    for bar in funnel_bars(segments):
        blocks = "█" * max(1, int(WIDTH * bar.share))
        line = f"{bar.name:<7} {bar.layers:<13} {blocks:<{WIDTH}} {bar.length}"
        links = [f"{'':22}{link}" if link else "" for link in (bar.before, bar.after)]
        lines += [links[0], line, links[1]]
    return "\n".join(line for line in lines if line)
