"""Writes a checkpoint's weights in fewer bits, one weight at a time: memory depends on the largest weight only."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from funnel_export.bundle.weights import DerivedFile, Recipe
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.quantized import (
    CODES,
    METHOD,
    QUANTIZED,
    ROW_CODES,
    ROW_SCALES,
    SCALES,
    ZEROS,
)
from funnel_export.checkpoint.safetensors import DTYPE_NAMES, StoredTensor, WeightFile
from funnel_export.checkpoint.values import NUMPY_DTYPES, pack, read_exactly, read_tensor
from funnel_export.errors import CheckpointError
from funnel_export.progress import Progress
from funnel_export.quantization.rounding import Rounded, round_to_nearest
from funnel_export.spec.choices import Dtype
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.quantization import Part, Quantization
from funnel_export.system.files import open_regular

CHUNK = 1 << 23
"""Most weights that are rounded at once."""
ALIGNMENT = 64
"""The data begins at a multiple of this, in bytes."""
STEP = "quantizing"
_DTYPES = {dtype: name for name, dtype in DTYPE_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is written of one weight."""

    name: str
    source: StoredTensor
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    """safetensors' dtype and shape of its tensors, by what their names add to the weight's."""
    bits: int | None = None
    """None for a weight that is copied."""
    block_size: int = 0
    by_rows: bool = False


Rows = Iterable[tuple[int, Rounded]]
"""The rounded weights of some outputs at a time, an even number except at the end, each with the index of the first."""


class Solver(Protocol):
    """Chooses the codes of products by what they do to texts."""

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        """What the recipe of the file says of it."""

    def solve(self, plans: Sequence[Plan]) -> Iterator[tuple[Plan, Rows]]:
        """The codes of these products, in an order of its own; the rows of one are taken before the next one.

        Products that it leaves out are rounded to nearest: no text reaches layers that a funnel drops.
        """


def quantize_weights(
    source: Checkpoint,
    parameters: Iterable[str],
    spec: ExportSpec,
    folder: Path,
    progress: Progress,
    solver: Solver | None = None,
) -> tuple[Checkpoint, DerivedFile]:
    """Write the weights of a model that is exported into a folder, quantized as its spec says.

    A tied head becomes a weight of its own, since the product and the gather read different layouts. The new config
    says so, and how the weights are quantized.

    Args:
        source: the checkpoint; its own weights are not quantized.
        parameters: names of the model's parameters.
        spec: what is exported, with a quantization.
        folder: where to write `quantized.safetensors`.
        progress: called with the share of the weights that are written.
        solver: chooses the codes of products; without one, all weights are rounded to nearest.

    Returns:
        The checkpoint with the new weights and config, and the record of the file. Its path stays that of the source.

    Raises:
        SpecError: if the quantization is one of others.
        CheckpointError: if a weight is infinite, not a number, or cannot be read.
        OSError: if the file cannot be written.
    """
    assert spec.quantization is not None
    spec.quantization.check_chosen()
    plans = list(_plans(source, list(parameters), spec, spec.quantization))
    write_plans(folder / QUANTIZED, plans, _all_arrays(source.path, plans, spec, solver), progress)
    untied = {"tie_word_embeddings": False} if source.family.head in {plan.name for plan in plans} else {}
    settings = {} if solver is None else solver.settings
    return with_quantized(source, plans, spec.quantization, folder, recipe="quantize", values=untied, settings=settings)


def with_quantized(
    source: Checkpoint,
    plans: Iterable[Plan],
    quantization: Quantization,
    folder: Path,
    *,
    recipe: str,
    values: Mapping[str, Any],
    settings: Mapping[str, str | int | float | bool] = MappingProxyType({}),
) -> tuple[Checkpoint, DerivedFile]:
    """A checkpoint with the weights that were written into a folder, and with other values in its config.

    Args:
        source: the checkpoint.
        plans: what was written.
        quantization: how the weights are quantized.
        folder: where they were written.
        recipe: what was done with them.
        values: further values of the config.
        settings: further settings of the recipe.
    """
    quantized = sorted(plan.name for plan in plans if plan.bits is not None)
    stored: dict[str, str | int | float | bool] = {
        name: value for name, value in quantization.to_dict().items() if isinstance(value, int | str)
    }
    record = DerivedFile.of(folder / QUANTIZED, Recipe(name=recipe, inputs=quantized, settings=stored | dict(settings)))
    config = _with(source.config, values)
    config["quantization_config"] = {"quant_method": METHOD, **quantization.to_dict()}
    architecture = source.family.read_architecture(config)
    files = (WeightFile.read(folder / QUANTIZED),)
    return replace(source, config=config, architecture=architecture, weights=files, layout=None), record


def quantized_size(source: Checkpoint, parameters: Iterable[str], spec: ExportSpec) -> int:
    """Size in bytes of the tensors that `quantize_weights` writes."""
    assert spec.quantization is not None
    return size_of(_plans(source, list(parameters), spec, spec.quantization))


def size_of(plans: Iterable[Plan]) -> int:
    """Size in bytes of the tensors that are planned."""
    return sum(_size(*each) for plan in plans for each in plan.tensors.values())


def _with(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other values, also in the part that describes the text model."""
    nested = config.get("text_config")
    inner = {"text_config": {**nested, **values}} if isinstance(nested, Mapping) else {}
    return {**config, **inner, **values}


def _plans(source: Checkpoint, parameters: list[str], spec: ExportSpec, quantization: Quantization) -> Iterator[Plan]:
    family = source.family
    tied = spec.task.generates and family.head not in parameters
    kept_head = tied and Part.HEAD in quantization.keep
    for name in parameters:
        tensor, part = source.find(name), family.part_of(name)
        bits = None if part is None else quantization.bits_of(part)
        if part is Part.EMBEDDING and bits is not None and not kept_head:
            rows = {ROW_CODES: ("I8", tensor.shape), ROW_SCALES: (_DTYPES[spec.dtype], (tensor.shape[0], 1))}
            yield Plan(name, tensor, rows, bits, tensor.shape[1], by_rows=True)
        elif part in (None, Part.EMBEDDING) or bits is None:
            yield Plan(name, tensor, {"": (tensor.dtype, tensor.shape)})
        else:
            yield product_plan(name, tensor, tensor.shape, part, spec.dtype, quantization)
        if part is Part.EMBEDDING and tied and not kept_head:
            yield product_plan(family.head, tensor, tensor.shape, Part.HEAD, spec.dtype, quantization)


def product_plan(
    name: str, tensor: StoredTensor, shape: Sequence[int], part: Part, dtype: Dtype, quantization: Quantization
) -> Plan:
    """What is written of a product's weight.

    Args:
        name: name of the weight.
        tensor: where it is stored.
        shape: its [outputs, inputs].
        part: the part that it belongs to.
        dtype: dtype of the scales.
        quantization: how the part is quantized.
    """
    outputs, inputs = shape
    bits = quantization.bits_of(part, outputs)
    block = quantization.block_of(inputs)
    packed = outputs // 2 if bits == 4 else outputs
    blocks = () if block is None else (inputs // block,)
    tensors = {
        CODES: ("I8" if quantization.symmetric and bits == 8 else "U8", (inputs, packed)),
        SCALES: (_DTYPES[dtype], (*blocks, outputs)),
    }
    if not quantization.symmetric:
        tensors[ZEROS] = ("U8", (*blocks, packed))
    return Plan(name, tensor, tensors, bits, block or inputs)


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    return NUMPY_DTYPES[dtype].itemsize * prod(shape)


def write_plans(
    path: Path,
    plans: Sequence[Plan],
    weights: Iterable[tuple[Plan, Mapping[str, NDArray[Any]]]],
    progress: Progress,
) -> None:
    """Write a safetensors file, one weight after the other.

    Wider dtypes come first, so that every tensor is aligned.

    Args:
        path: the new file.
        plans: what it has of each weight.
        weights: the tensors of each weight, by what their names add to the weight's; in any order.
        progress: called with the share of the weights that are written.
    """
    tensors = {f"{plan.name}{suffix}": each for plan in plans for suffix, each in plan.tensors.items()}
    offset, header, offsets = 0, {}, {}
    for name in sorted(tensors, key=lambda name: (-NUMPY_DTYPES[tensors[name][0]].itemsize, name)):
        dtype, shape = tensors[name]
        end = offset + _size(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offsets[name], offset = offset, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    start, total, done = 8 + len(text), sum(prod(plan.source.shape) for plan in plans), 0
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(start + offset)
        for plan, arrays in weights:
            for suffix, array in arrays.items():
                stream.seek(start + offsets[f"{plan.name}{suffix}"])
                stream.write(array.reshape(-1).view(np.uint8).data)
            done += prod(plan.source.shape)
            progress(STEP, done / total)


def _all_arrays(
    folder: Path, plans: list[Plan], spec: ExportSpec, solver: Solver | None
) -> Iterator[tuple[Plan, dict[str, NDArray[Any]]]]:
    """The tensors of all weights, by what their names add to the weight's; those that a solver chooses come last."""
    solved = [] if solver is None else [plan for plan in plans if plan.bits is not None and not plan.by_rows]
    for plan in plans:
        if plan.bits is None:
            yield plan, {"": read_tensor(folder, plan.source)}
        elif plan not in solved:
            yield plan, _filled(plan, _rounded_to_nearest(folder, plan, spec))
    if solver is not None:
        for plan, rows in solver.solve(solved):
            solved.remove(plan)
            yield plan, _filled(plan, rows)
        for plan in solved:
            yield plan, _filled(plan, _rounded_to_nearest(folder, plan, spec))


def _rounded_to_nearest(folder: Path, plan: Plan, spec: ExportSpec) -> Rows:
    assert spec.quantization is not None
    assert plan.bits is not None
    symmetric = spec.quantization.symmetric or plan.by_rows
    for first, weights in read_rows(folder, plan.source, CHUNK):
        with naming(plan.name):
            rounded = round_to_nearest(weights, plan.bits, plan.block_size, scale_dtype(spec), symmetric=symmetric)
        yield first, rounded


def scale_dtype(spec: ExportSpec) -> np.dtype[Any]:
    """The dtype of scales."""
    return NUMPY_DTYPES[_DTYPES[spec.dtype]]


@contextlib.contextmanager
def naming(weight: str) -> Iterator[None]:
    """Add the name of a weight to errors of its values."""
    try:
        yield
    except CheckpointError as err:
        raise CheckpointError(f"a weight cannot be quantized: {err}", got=weight) from err


def _filled(plan: Plan, rows: Rows) -> dict[str, NDArray[Any]]:
    arrays = {suffix: np.empty(shape, NUMPY_DTYPES[dtype]) for suffix, (dtype, shape) in plan.tensors.items()}
    for first, rounded in rows:
        _fill(arrays, first, rounded, plan)
    return arrays


def _fill(arrays: Mapping[str, NDArray[Any]], first: int, rounded: Rounded, plan: Plan) -> None:
    """Put the rounded weights of some outputs, from the first on, where they belong."""
    last = first + len(rounded.codes)
    if plan.by_rows:
        arrays[ROW_CODES][first:last], arrays[ROW_SCALES][first:last] = rounded.codes, rounded.scales
        return
    outputs = slice(first // 2, last // 2) if plan.bits == 4 else slice(first, last)
    shape = (*arrays[SCALES].shape[:-1], -1)
    arrays[SCALES][..., first:last] = rounded.scales.T.reshape(shape)
    for suffix, values in ((CODES, rounded.codes.T), (ZEROS, rounded.zeros.T.reshape(shape))):
        if suffix in arrays:
            arrays[suffix][..., outputs] = pack(values) if plan.bits == 4 else values


def read_rows(folder: Path, tensor: StoredTensor, most: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The rows of a weight, with about `most` values at a time, an even number of rows except at the end.

    Each part comes with the index of its first row.
    """
    dtype, (rows, columns) = NUMPY_DTYPES[tensor.dtype], tensor.shape
    count = max(2, most // columns // 2 * 2)
    with open_regular(folder / tensor.file) as stream:
        stream.seek(tensor.offset)
        for first in range(0, rows, count):
            size = min(count, rows - first)
            content = read_exactly(stream, size * columns * dtype.itemsize, folder / tensor.file)
            yield first, np.frombuffer(content, dtype).reshape(size, columns).astype(np.float32)
