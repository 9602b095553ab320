"""Ports: what goes into a graph and comes out of it, by kind and with named axes."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from funnel_export.bundle.record import Record
from funnel_export.errors import BundleError, SpecError
from funnel_export.spec.profile import AxisName


class PortKind(StrEnum):
    """What a tensor that a graph takes or gives stands for."""

    TOKENS = "tokens"
    """Token ids, [batch, sequence]."""
    MASK = "mask"
    """1 for real tokens and 0 for padding, [batch, sequence]."""
    STATE = "state"
    """Hidden states on their way from one graph to another."""
    HIDDEN = "hidden_states"
    """Hidden states after the final norm."""
    LOGITS = "logits"
    """Scores of tokens or classes."""


class Port(Record):
    """An input or output of a graph."""

    name: str
    kind: PortKind
    dtype: str
    shape: list[int | AxisName]
    """Sizes; dynamic axes by name."""

    @property
    def axes(self) -> list[str]:
        """Names of the dynamic axes."""
        return [size for size in self.shape if isinstance(size, str)]


def dynamic_axes(ports: Iterable[Port]) -> list[str]:
    """The dynamic axes of ports, each once, in the order in which they are first named."""
    return list(dict.fromkeys(axis for port in ports for axis in port.axes))


def feed(ports: Sequence[Port], values: Mapping[PortKind, Any]) -> dict[str, Any]:
    """Values by the names of the ports that take them; `BundleError` for a port whose kind has no value."""
    missing = [f"{port.name} ({port.kind})" for port in ports if port.kind not in values]
    if missing:
        raise BundleError("the graph takes inputs that are not at hand", got=missing, wanted=[*values])
    return {port.name: values[port.kind] for port in ports}


def sizes_of(ports: Sequence[Port], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes of the dynamic axes, from the shapes of the tensors at these ports.

    Raises:
        SpecError: if a tensor has another rank than its port, or an axis two sizes.
    """
    sizes: dict[str, int] = {}
    for port in ports:
        shape = shapes[port.name]
        same = len(shape) == len(port.shape) and all(
            size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
            for axis, size in zip(port.shape, shape, strict=True)
        )
        if not same:
            raise SpecError(
                "an input has another shape than the graph takes", got=f"{port.name} {[*shape]}", wanted=port.shape
            )
    return sizes
