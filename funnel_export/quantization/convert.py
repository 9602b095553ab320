"""Writes weights that others quantized in this project's form, one at a time; codes are not rounded again."""

import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funnel_export.bundle.weights import DerivedFile
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.foreign import QUANTIZE, not_taken
from funnel_export.checkpoint.foreign_tensor import ForeignTensor
from funnel_export.checkpoint.foreign_values import Unpacked, check_groups, unpack_foreign
from funnel_export.checkpoint.quantized import CODES, QUANTIZED, SCALES, ZEROS
from funnel_export.checkpoint.safetensors import StoredTensor
from funnel_export.checkpoint.values import NUMPY_DTYPES, not_finite, pack, read_tensor
from funnel_export.errors import FunnelExportWarning
from funnel_export.progress import Progress
from funnel_export.quantization.write import Plan, product_plan, size_of, with_quantized, write_plans
from funnel_export.spec.export import ExportSpec


class Casts:
    """Counts the scales that their cast to another dtype changes."""

    def __init__(self) -> None:
        self.changed = 0
        self.total = 0
        self.largest = 0.0
        """Largest relative change of a scale."""

    def cast(self, name: str, scales: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Scales in another dtype; raises `CheckpointError` if they are too large for it."""
        wide = scales.astype(np.float64)
        with np.errstate(over="ignore"):
            found = scales.astype(dtype)
        if not np.isfinite(found.astype(np.float32)).all():
            raise not_finite(f"scales of {name} in {dtype}", "scales that the export's dtype can hold: --dtype float32")
        errors = np.abs(found.astype(np.float64) - wide)
        self.total += scales.size
        self.changed += int((errors > 0).sum())
        self.largest = max(self.largest, float((errors[errors > 0] / np.abs(wide[errors > 0])).max(initial=0.0)))
        return found

    def warn(self, dtype: str) -> None:
        """Warn if a scale was changed."""
        if self.changed:
            message = (
                f"{self.changed} of {self.total} scales are not exact in {dtype}: they change by up to "
                f"{self.largest:.2g} of their value; --dtype float32 keeps them"
            )
            warnings.warn(message, FunnelExportWarning, stacklevel=2)


def convert_weights(
    source: Checkpoint, parameters: Iterable[str], spec: ExportSpec, folder: Path, progress: Progress
) -> tuple[Checkpoint, DerivedFile]:
    """Write the weights of a checkpoint that others quantized into a folder, with the same codes and zero points.

    Scales are cast to the dtype of the export, with a warning if that changes one.

    Args:
        source: the checkpoint, with a layout.
        parameters: names of the model's parameters.
        spec: what is exported, with the quantization of the checkpoint.
        folder: where to write `quantized.safetensors`.
        progress: called with the share of the weights that are written.

    Returns:
        The checkpoint with the new weights and config, and the record of the file. Its path stays that of the source.

    Raises:
        CheckpointError: if a weight cannot be read, or is not stored as the config says.
        OSError: if the file cannot be written.
    """
    assert spec.quantization is not None
    weights = {name: source.find_weight(name) for name in parameters}
    foreign = {name: each for name, each in weights.items() if isinstance(each, ForeignTensor)}
    _check_tied(source, weights)
    for each in foreign.values():
        check_groups(source.path, each)
    casts = Casts()

    def arrays(plan: Plan) -> dict[str, NDArray[Any]]:
        if plan.name in foreign:
            return _arrays(plan, unpack_foreign(source.path, foreign[plan.name]), casts)
        return {"": read_tensor(source.path, plan.source)}

    plans = list(_plans(source, weights, spec))
    write_plans(folder / QUANTIZED, plans, ((plan, arrays(plan)) for plan in plans), progress)
    casts.warn(spec.dtype)
    return with_quantized(source, plans, spec.quantization, folder, recipe="convert", values={})


def converted_size(source: Checkpoint, parameters: Iterable[str], spec: ExportSpec) -> int:
    """Size in bytes of the tensors that `convert_weights` writes."""
    return size_of(_plans(source, {name: source.find_weight(name) for name in parameters}, spec))


def _check_tied(source: Checkpoint, weights: Collection[str]) -> None:
    """Raise `CheckpointError` if a quantized head would be dropped, since the config ties it to the embedding."""
    head = source.family.head
    stored = _has_head(source) and isinstance(source.find_weight(head), ForeignTensor)
    if stored and source.architecture.tie_word_embeddings and head not in weights:
        raise not_taken(
            f"a quantized {head}, and config.json ties the head to the embedding",
            f'set "tie_word_embeddings": false in config.json; or {QUANTIZE}',
        )


def _has_head(source: Checkpoint) -> bool:
    return not set(source.family.stored_names(source.family.head)).isdisjoint(source.parameters)


def _plans(source: Checkpoint, weights: dict[str, Any], spec: ExportSpec) -> Iterator[Plan]:
    assert spec.quantization is not None
    for name, weight in weights.items():
        if isinstance(weight, StoredTensor):
            yield Plan(name, weight, {"": (weight.dtype, weight.shape)})
            continue
        part = source.family.part_of(name)
        if part is None:
            raise not_taken(f"{spec.quantization.origin} with a quantized {name}, which is not part of the layers")
        yield product_plan(name, weight.codes, weight.shape, part, spec.dtype, spec.quantization)


def _arrays(plan: Plan, found: Unpacked, casts: Casts) -> dict[str, NDArray[Any]]:
    """The tensors of a weight, by what their names add to the weight's.

    Codes without zero points become signed: the middle code is 0. Codes of 4 bits for an odd number of outputs do not
    fill bytes, and are stored in 8 bits.
    """
    dtype, shape = plan.tensors[SCALES]
    arrays = {SCALES: casts.cast(plan.name, found.scales, NUMPY_DTYPES[dtype]).reshape(shape)}
    codes = found.codes
    if ZEROS in plan.tensors:
        zeros = found.zeros.reshape(shape)
        arrays[ZEROS] = pack(zeros) if plan.bits == 4 else zeros
    else:
        codes = (codes - found.zeros[0, 0]).view(np.int8)  # wraps around; all zero points are the same
    arrays[CODES] = pack(codes) if plan.bits == 4 else codes
    return {suffix: np.ascontiguousarray(array) for suffix, array in arrays.items()}
