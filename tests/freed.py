"""Whether models are freed as soon as they are no longer used: a large one may not wait for a garbage collection."""

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor


def watch_weights(monkeypatch: pytest.MonkeyPatch, module: Any) -> "list[weakref.ref[Tensor]]":
    """References to the weights of every model that a module loads from now on by `load_checkpoint`."""
    weights: list[weakref.ref[Tensor]] = []
    load = module.load_checkpoint

    def loaded(*given: Any) -> Any:
        model = load(*given)
        weights.extend(map(weakref.ref, model.parameters()))
        return model

    monkeypatch.setattr(module, "load_checkpoint", loaded)
    return weights


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Turn garbage collection off."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
