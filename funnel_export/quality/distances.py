"""How far an adapted and an instruct model are from their base model, by their weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from funnel_export.checkpoint.same_model import Weight
from funnel_export.checkpoint.task_vector import Difference, Squares, measure
from funnel_export.errors import CheckpointError
from funnel_export.progress import Progress
from funnel_export.quality.transplant_report import Distance

LARGEST = 0.7
"""Largest relative distance of a model's matrices from those of the model that it was made from. Two models that were
trained from independent initial values have about the square root of 2."""


@dataclass(frozen=True, slots=True)
class Distances:
    """The distances between three checkpoints."""

    adapted: Distance
    """Distance of the adapted checkpoint from the base model."""
    instruct: Distance
    """Distance of the instruct model from the base model."""
    apart: float
    """Norm of the differences between adapted and instruct matrices, over the norm of the base model's matrices."""


def measure_distances(weights: Mapping[str, Weight], progress: Progress) -> Distances:
    """Read all weights of three checkpoints and measure how much they differ.

    The squares of norm weights can be a thousand times those of all matrices (in Gemma 3 270M), and are alike in
    unrelated models. So matrices and other weights are measured apart.

    Raises:
        CheckpointError: if a weight has values that are infinite or not numbers.
    """
    total = sum(weight.adapted.tensor.nbytes for weight in weights.values())
    done, squares = 0, {}
    for name, weight in weights.items():
        progress("comparing the weights", done / max(total, 1))
        squares[name] = measure(name, weight)
        done += weight.adapted.tensor.nbytes
    matrices = _total(squares[name] for name, weight in weights.items() if len(weight.adapted.tensor.shape) > 1)
    vectors = _total(squares[name] for name, weight in weights.items() if len(weight.adapted.tensor.shape) < 2)
    return Distances(
        adapted=_distance("adapted", squares, matrices, vectors),
        instruct=_distance("instruct", squares, matrices, vectors),
        apart=matrices.relative("apart"),
    )


def check_distances(distances: Distances) -> None:
    """Check that both models were made from the base model, and only one of them by instruction tuning.

    Raises:
        CheckpointError: if the instruct model equals the base model, if one is too far from it, or if the adapted
            checkpoint is nearer to the instruct model.
    """
    if not distances.instruct.changed:
        raise CheckpointError(
            "there is nothing to transplant",
            got="an instruct model with the same weights as the base model",
            wanted="a model that was tuned from the base model",
        )
    for what, distance in (("adapted checkpoint", distances.adapted), ("instruct model", distances.instruct)):
        if distance.matrices > LARGEST:
            raise CheckpointError(
                f"the {what} was not made from the base model",
                got=f"a relative distance of {distance.matrices:.2f} between their matrices",
                wanted=f"at most {LARGEST}; models with independent initial values have about 1.4",
                hint="name the model that it was made from as the base",
            )
    if distances.apart < distances.adapted.matrices:
        raise CheckpointError(
            "the adapted checkpoint is nearer to the instruct model than to the base model",
            got=f"relative distances of {distances.apart:.2g} and {distances.adapted.matrices:.2g}",
            wanted="a checkpoint that was made from the base model, without the instruction tuning",
            hint="exchange --base and --instruct, if each was given in place of the other",
        )


def _total(squares: Iterable[Squares]) -> Squares:
    return sum(squares, Squares())


def _distance(kind: Difference, squares: Mapping[str, Squares], matrices: Squares, vectors: Squares) -> Distance:
    """The distance of a checkpoint from the base model."""
    found = {name: each.relative(kind) for name, each in squares.items()}
    finite = {name: value for name, value in found.items() if 0 < value < inf}
    largest = max(finite, key=finite.__getitem__, default=None)
    of_vectors = vectors.relative(kind)
    return Distance(
        matrices=matrices.relative(kind),
        vectors=of_vectors if of_vectors < inf else None,
        changed=sum(value > 0 for value in found.values()),
        largest=0.0 if largest is None else finite[largest],
        largest_weight=largest,
    )
