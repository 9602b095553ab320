"""Outlining: each part of the forward becomes one marker node in the trace, which is replaced later.

A Gemma2 has dozens of decoder layers that differ only in their weights. An ordinary export spends nearly all its time
on tracing and translating them one by one. Here a `Survey` records the inputs of each part, the forward is traced with
an `Outline` as its runner, which leaves one marker node per part, and each distinct part is traced once (see `trace`).
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
    """Attributes of layers that do not affect what the layer computes from its operands."""

    def signature(self) -> object:
        """A value that is equal for calls whose parts compute the same, apart from their weights."""
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
    """A runner that records the inputs of each part, and skips the part."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Part, tuple[Tensor, ...]]] = {}

    def __call__(self, name: str, part: Part, *tensors: Tensor, length: int) -> Tensor:
        """Record the call and return uninitialized hidden states of the part's output shape."""
        self.seen[name] = part, tensors
        x = tensors[0]
        return x.new_empty(x.shape[0], length, x.shape[2])


def compare_surveys(one: Survey, other: Survey, ignored: frozenset[str]) -> dict[str, Call]:
    """The calls of a forward, from two runs with different sizes: axes whose sizes differ are dynamic.

    A dynamic axis is named after its two sizes, so axes of a part with the same two sizes are the same axis.
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
        """Return hidden states of the part's output shape from a marker node with the part's name."""
        x = tensors[0]
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{MARKER}",
            tensors,
            {"name": name},
            dtype=x.dtype,
            shape=(x.shape[0], length, x.shape[2]),
            version=1,
        )
