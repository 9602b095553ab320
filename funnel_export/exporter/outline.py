"""Outlining: a trace in which each part of the forward is one node, to be filled in later.

A Gemma2 has dozens of decoder layers that differ in nothing but their weights. Tracing and translating each of them is
nearly all the work of an ordinary export. Here a `Survey` notes what goes into each part, the forward is traced with an
`Outline` as its runner, which leaves one marker node per part, and each distinct part is traced once (see `trace`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from funnel_export.exporter.translate import Operand
from funnel_export.funnel.model import LayerPart, Part

DOMAIN, MARKER = "funnel_export", "Part"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a part in the forward."""

    part: Part
    operands: tuple[Operand, ...]
    ignored: frozenset[str] = frozenset()
    """Attributes of layers that do not change what a layer computes from its operands."""

    def signature(self) -> object:
        """Equal for calls whose parts compute the same, given their weights."""
        if not isinstance(self.part, LayerPart):
            return id(self.part)
        layer = self.part.layer
        shapes = tuple((name, tuple(p.shape), p.dtype) for name, p in layer.named_parameters())
        scalars = tuple(
            (f"{prefix}.{name}", value)
            for prefix, module in layer.named_modules()
            for name, value in sorted(vars(module).items())
            if isinstance(value, int | float | str | bool | None) and name not in self.ignored
        )
        axes = list(dict.fromkeys(a for o in self.operands for a in o.axes if isinstance(a, str)))
        pattern = tuple(
            (o.dtype, tuple(f"axis {axes.index(a)}" if isinstance(a, str) else a for a in o.axes))
            for o in self.operands
        )
        return shapes, scalars, pattern


class Survey:
    """A runner that notes what goes into each part, and skips the part."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Part, tuple[Tensor, ...]]] = {}

    def __call__(self, name: str, part: Part, *tensors: Tensor, length: int) -> Tensor:
        """Stand in for the part: hidden states of its shape."""
        self.seen[name] = part, tensors
        x = tensors[0]
        return x.new_empty(x.shape[0], length, x.shape[2])


def compare_surveys(one: Survey, other: Survey, ignored: frozenset[str]) -> dict[str, Call]:
    """The calls of a forward, from two runs with other sizes: axes that differ are dynamic.

    An axis is named after its two sizes, so axes of one part that have one size in both runs are one axis.
    """
    calls = {}
    for name, (part, tensors) in one.seen.items():
        operands = tuple(_operand(x, y) for x, y in zip(tensors, other.seen[name][1], strict=True))
        calls[name] = Call(part, operands, ignored)
    return calls


def _operand(one: Tensor, other: Tensor) -> Operand:
    axes = tuple(a if a == b else f"n{a}_{b}" for a, b in zip(one.shape, other.shape, strict=True))
    return Operand(one.dtype, axes)


class Outline:
    """A runner that marks each part in the trace."""

    def __call__(self, name: str, part: Part, *tensors: Tensor, length: int) -> Tensor:  # noqa: ARG002 - a part runner's signature
        """Stand in for the part: hidden states of its shape, from a node that bears its name."""
        x = tensors[0]
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{MARKER}",
            tensors,
            {"name": name},
            dtype=x.dtype,
            shape=(x.shape[0], length, x.shape[2]),
            version=1,
        )
