"""Errors at boundaries inside the model: after each layer, after pooling and after recovery."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from funnel_export.bundle.load import Bundle
from funnel_export.bundle.ports import PortKind
from funnel_export.spec.funnel import boundary_names, layer_name
from funnel_export.verify.cases import Case, last_token_names
from funnel_export.verify.metrics import measure
from funnel_export.verify.parity_report import Boundary
from funnel_export.verify.readers import Reader
from funnel_export.verify.reference import REFERENCE_DTYPES, Eager

LONGEST = 512
"""Most positions of the batch whose boundaries are kept: at Gemma2-2B's shapes, 260 MB in float64."""


@dataclass(frozen=True, slots=True)
class Inside:
    """The reference's values at the boundaries of one case, and the error of eager PyTorch in the bundle's dtype."""

    case: Case
    inputs: Mapping[PortKind, NDArray[Any]]
    values: Mapping[str, NDArray[Any]]
    """Reference values by name of the boundary, [positions of all rows, width] in the order of the rows; of rows' last
    positions where a graph has no others."""
    floors: Mapping[str, float]
    """Relative rms error of eager PyTorch in the bundle's dtype, by name of the boundary."""


def choose_case(cases: Sequence[Case]) -> int | None:
    """Index of the longest case of at most `LONGEST` positions, the first if several; None if there is none."""
    fitting = [index for index, case in enumerate(cases) if len(case.lengths) * max(case.lengths) <= LONGEST]
    return max(fitting, key=lambda index: max(cases[index].lengths), default=None)


def look_inside(bundle: Bundle, case: Case, inputs: Mapping[PortKind, NDArray[Any]]) -> Inside:
    """Run eager PyTorch in the reference's dtype and in the bundle's, and keep the values at every boundary."""
    names, dtype = boundary_names(bundle.segments), bundle.spec.dtype
    (reference,) = run_eager(Eager(bundle, REFERENCE_DTYPES[dtype]), [(inputs, names)])
    (eager,) = run_eager(Eager(bundle, getattr(torch, dtype)), [(inputs, names)])
    return compare_eager(case, inputs, reference, eager, names)


def compare_eager(
    case: Case,
    inputs: Mapping[PortKind, NDArray[Any]],
    reference: Mapping[str, NDArray[Any]],
    eager: Mapping[str, NDArray[Any]],
    names: Sequence[str],
) -> Inside:
    """The boundaries of a run in the reference's dtype, and the errors of a run in the bundle's dtype."""
    floors = {name: measure(eager[name], reference[name], logits=False).rms_rel for name in names}
    return Inside(case, inputs, {name: reference[name] for name in names}, floors)


def run_eager(
    model: Eager, runs: Sequence[tuple[Mapping[PortKind, NDArray[Any]], Sequence[str]]]
) -> list[dict[str, NDArray[Any]]]:
    """Run a model on several inputs, each with the names of the boundaries to return, and close it."""
    try:
        return [model.run(tokens, names) for tokens, names in runs]
    finally:
        model.close()


def measure_boundaries(reader: Reader, inside: Inside, bundle: Bundle, factor: float) -> list[Boundary]:
    """The error of a candidate at each boundary; the limit is `factor` times the error of eager PyTorch.

    The reader must be loaded for boundaries. A boundary of the wrong shape has an infinite error.

    Raises:
        KeyError: if the graph lacks a boundary.
    """
    case, got = reader.boundaries(inside.case, inside.inputs)
    least = float(torch.finfo(getattr(torch, bundle.spec.dtype)).eps) / 2  # a floor of zero would refuse every target
    results = []
    for name, expected in inside.values.items():
        floor, real = inside.floors[name], _at_boundary(got[name], name, case, bundle)
        found = math.inf
        if real is not None and real.shape == expected.shape:
            found = measure(real, expected, logits=False).rms_rel
        limit = factor * max(floor, least)
        results.append(Boundary(name=name, case=inside.case.name, rms_rel=found, limit=limit, floor=floor))
    return results


def _at_boundary(value: NDArray[Any], name: str, case: Case, bundle: Bundle) -> NDArray[Any] | None:
    """The values at real tokens or slots, without padding, [positions, width]; None if the shape is wrong."""
    if value.ndim != 3:
        return None
    real = case.real
    if name in last_token_names(bundle.spec, bundle.architecture.num_hidden_layers):
        real = np.ones((len(case.lengths), 1), np.bool_)
    for segment in bundle.segments:
        inner = [segment.pooled_name, *map(layer_name, segment.layers)]
        if segment.pooled and name in inner:
            slots = np.array([segment.length(length) for length in case.lengths])[:, None]
            real = np.arange(value.shape[1])[None] < slots
    return value[real] if value.shape[:2] == real.shape else None
