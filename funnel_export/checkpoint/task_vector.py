"""Adds a task vector to a checkpoint: what tuning changed in a base model, as the difference of two checkpoints.

Weights are read in chunks, so memory does not depend on the size of the model. All arithmetic is in float32.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, isfinite, prod, sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from funnel_export.checkpoint.safetensors import WeightFile
from funnel_export.checkpoint.same_model import Place, Weight
from funnel_export.checkpoint.values import NUMPY_DTYPES, not_finite, read_exactly
from funnel_export.system.files import open_regular

CHUNK = 1 << 22
"""Most values of a weight that are read at once."""
Difference = Literal["adapted", "instruct", "apart"]
"""A difference whose squares `Squares` sums up."""


@dataclass(slots=True)
class Squares:
    """Sums of squares of a weight, or of several, and of their differences between checkpoints."""

    base: float = 0.0
    """Sum of squares of the base model's values."""
    adapted: float = 0.0
    """Sum of squares of adapted - base."""
    instruct: float = 0.0
    """Sum of squares of instruct - base."""
    apart: float = 0.0
    """Sum of squares of adapted - instruct."""

    def __add__(self, other: "Squares") -> "Squares":
        return Squares(
            self.base + other.base,
            self.adapted + other.adapted,
            self.instruct + other.instruct,
            self.apart + other.apart,
        )

    def relative(self, difference: Difference) -> float:
        """The norm of a difference over the norm of the base model's values; infinite if only these are zero."""
        square: float = getattr(self, difference)
        if square == 0.0:
            return 0.0
        return sqrt(square / self.base) if self.base else inf


def measure(name: str, weight: Weight) -> Squares:
    """The differences of a weight between three checkpoints.

    Raises:
        CheckpointError: if a value is infinite or not a number.
        OSError: if a file cannot be read.
    """
    total = Squares()
    for adapted, base, instruct in _chunks(weight):
        with np.errstate(invalid="ignore", over="ignore"):  # found below
            found = Squares(*map(_square, (base, adapted - base, instruct - base, adapted - instruct)))
        total += found
    for role, square in (("base", total.base), ("adapted", total.adapted), ("instruct", total.instruct)):
        if not isfinite(square):
            raise not_finite(f"{name} of the {role} model", "finite weights")
    return total


def write_sums(out: Path, file: WeightFile, source: Path, weights: Mapping[str, Weight]) -> Iterator[int]:
    """Write a weight file with adapted + (instruct - base) for each weight, in the adapted checkpoint's dtypes.

    Header and layout are those of the adapted checkpoint's file. Its other tensors are copied.

    Args:
        out: where to write.
        file: the adapted checkpoint's file.
        source: the path of that file.
        weights: the weights that are added up, by name.

    Yields:
        The size in bytes of each tensor that was written.

    Raises:
        CheckpointError: if a result is too large for its dtype, or a file has changed since it was opened.
        OSError: if a file cannot be read or written.
    """
    with out.open("wb") as stream, open_regular(source) as adapted:
        length = adapted.read(8)
        stream.write(length + adapted.read(int.from_bytes(length, "little")))
        for name, tensor in sorted(file.tensors.items(), key=lambda item: item[1].offset):
            if name in weights:
                for part in _sums(name, weights[name]):
                    stream.write(part.tobytes())
            else:
                adapted.seek(tensor.offset)
                for size in _sizes(tensor.nbytes):
                    stream.write(read_exactly(adapted, size, source))
            yield tensor.nbytes


def _sums(name: str, weight: Weight) -> Iterator[NDArray[Any]]:
    dtype = NUMPY_DTYPES[weight.adapted.tensor.dtype]
    for adapted, base, instruct in _chunks(weight):
        with np.errstate(over="ignore"):  # found below
            result = (adapted + (instruct - base)).astype(dtype)
        if not np.isfinite(result).all():
            raise not_finite(f"adapted + (instruct - base) for {name}", f"values that {dtype} can store")
        yield result


def _chunks(weight: Weight) -> Iterator[tuple[NDArray[np.float32], ...]]:
    """The values of a weight in the adapted, base and instruct checkpoint, some at a time."""
    yield from zip(*map(_values, (weight.adapted, weight.base, weight.instruct)), strict=True)


def _values(place: Place) -> Iterator[NDArray[np.float32]]:
    dtype = NUMPY_DTYPES[place.tensor.dtype]
    with open_regular(place.path) as stream:
        stream.seek(place.tensor.offset)
        for count in _sizes(prod(place.tensor.shape)):
            content = read_exactly(stream, count * dtype.itemsize, place.path)
            yield np.frombuffer(content, dtype).astype(np.float32)


def _sizes(total: int) -> Iterator[int]:
    """The sizes of the parts in which `total` values or bytes are read."""
    for first in range(0, total, CHUNK):
        yield min(CHUNK, total - first)


def _square(values: NDArray[np.float32]) -> float:
    wide = values.astype(np.float64)
    return float(wide @ wide)
