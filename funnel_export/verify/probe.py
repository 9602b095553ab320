"""Recording the largest absolute values inside eager PyTorch while it runs."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from funnel_export.verify.ranges import Range

_PLACE = re.compile(r"(?:model\.)?(layers\.\d+|\w+)(?:\.(.+))?")
"""The name of a module: its place, which is a layer or a part outside of the layers, and its name inside of that."""


class RangeProbe(TorchFunctionMode):
    """The largest absolute values of all that modules take and return; the model must run in this context.

    The operands and results of `torch.matmul` count too, because attention's scores are the result of no module.
    """

    def __init__(self) -> None:
        super().__init__()
        self._largest: dict[str, dict[str, float]] = {}
        """Magnitudes by place and by name inside the place; the name of the place's own result is empty."""
        self._running: list[tuple[str, str]] = []
        """Place and name of each module that is running, the innermost last."""
        self._entered: object = None
        """What the running layer takes: the result of the boundary before it, and not of this layer."""

    def watch(self, model: nn.Module) -> None:
        """Record the values of a model, by hooks that do not change it."""
        for name, module in model.named_modules():
            found = _PLACE.fullmatch(name)
            if found is None:
                continue
            place, inner = found[1], found[2] or ""
            if inner or next(module.parameters(), None) is not None:  # RoPE's angles have none
                module.register_forward_pre_hook(partial(self._enter, place, inner))
                module.register_forward_hook(partial(self._leave, place, inner))

    def _enter(self, place: str, inner: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self._running.append((place, inner))
        if inner:
            self._record(place, f"input of {inner}", *(each for each in args if each is not self._entered))
        else:
            self._entered = args[0] if args else None

    def _leave(self, place: str, inner: str, _module: nn.Module, _args: tuple[Any, ...], result: Any) -> None:
        self._running.pop()
        self._record(place, inner, *(result if isinstance(result, tuple) else (result,)))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.matmul and self._running:
            place, inner = self._running[-1]
            self._record(place, f"matmul in {inner}", *args, result)
        return result

    def see(self, place: str, result: Tensor) -> None:
        """Record the result of a place that is no module: pooling or recovery."""
        self._record(place, "", result)

    def _record(self, place: str, inner: str, *values: object) -> None:
        for value in values:
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                low, high = map(float, value.aminmax())
                largest = math.inf if math.isnan(high) else max(-low, high)
                seen = self._largest.setdefault(place, {})
                seen[inner] = max(largest, seen.get(inner, 0.0))

    def ranges(self) -> list[Range]:
        """The largest values at each place, in the order of computation."""
        found = []
        for place, values in self._largest.items():
            inside = max((name for name in values if name), key=lambda name: values[name], default=None)
            within = 0.0 if inside is None else values[inside]
            found.append(Range(name=place, largest=values[""], inside=inside, largest_inside=within))
        return found
