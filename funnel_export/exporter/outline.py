"""Outlining: each part of the forward becomes one marker node in the trace, which is replaced later.

A Gemma2 has dozens of decoder layers that differ only in their weights. An ordinary export spends nearly all its time
on tracing and translating them one by one. Here a `Survey` records the inputs of each part, the forward is traced with
an `Outline` as its runner, which leaves one marker node per part, and each distinct part is traced once (see `trace`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from funnel_export.exporter.translate import Operand
from funnel_export.funnel.parts import LayerPart, Part, Shape

DOMAIN, MARKER = "funnel_export", "Part"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a part in the forward."""

    part: Part
    operands: tuple[Operand, ...]
    results: int = 1
    """How many tensors the part returns."""
    ignored: frozenset[str] = frozenset()
    """Attributes of layers that do not affect what the layer computes from its operands."""

    def signature(self) -> object:
        """A value that is equal for calls whose parts compute the same, apart from their weights."""
        if not isinstance(self.part, LayerPart):
            return id(self.part)
        layer = self.part.module
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
        return type(self.part), shapes, scalars, pattern, self.results


class Survey:
    """A runner that records the inputs of each part, and skips the part."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Part, tuple[Tensor, ...], int]] = {}

    def __call__(self, name: str, part: Part, *tensors: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
        """Record the call and return uninitialized tensors of the results' shapes."""
        self.seen[name] = part, tensors, len(shapes)
        return tuple(tensors[0].new_empty(shape) for shape in shapes)


def compare_surveys(one: Survey, other: Survey, ignored: frozenset[str]) -> dict[str, Call]:
    """The calls of a forward, from two runs with different sizes: axes whose sizes differ are dynamic.

    A dynamic axis is named after its two sizes, so axes of a part with the same two sizes are the same axis.
    """
    calls = {}
    for name, (part, tensors, results) in one.seen.items():
        operands = tuple(_operand(x, y) for x, y in zip(tensors, other.seen[name][1], strict=True))
        calls[name] = Call(part, operands, results, ignored)
    return calls


def _operand(one: Tensor, other: Tensor) -> Operand:
    axes = tuple(a if a == b else f"n{a}_{b}" for a, b in zip(one.shape, other.shape, strict=True))
    return Operand(one.dtype, axes)


class Outline:
    """A runner that marks each part in the trace."""

    def __call__(self, name: str, part: Part, *tensors: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:  # noqa: ARG002 - a part runner's signature
        """Return tensors of the results' shapes from a marker node with the part's name."""
        return tuple(
            torch.onnx.ops.symbolic_multi_out(
                f"{DOMAIN}::{MARKER}",
                tensors,
                {"name": name},
                dtypes=[tensors[0].dtype] * len(shapes),
                shapes=shapes,
                version=1,
            )
        )
