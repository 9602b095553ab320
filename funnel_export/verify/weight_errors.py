"""Compares quantized weights with the original ones. Parity cannot: its reference reads the same file."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.foreign_tensor import ForeignTensor
from funnel_export.checkpoint.quantized import QuantizedTensor
from funnel_export.checkpoint.safetensors import StoredTensor
from funnel_export.checkpoint.values import NUMPY_DTYPES, read_values
from funnel_export.errors import CheckpointError
from funnel_export.progress import Progress
from funnel_export.quantization.rounding import round_to_nearest
from funnel_export.spec.quantization import Method
from funnel_export.verify.quantization_report import WeightError

ROWS = 4096
"""Outputs of a weight that are rounded at once."""
LARGEST_FACTOR = 2.2
"""How many times the error of rounding to nearest a weight may have. Methods that lower the error of a model's outputs
raise that of its weights: GPTQ on a real Gemma 3 270M in 4 bits 1.1 to 1.9 times, with 2,048 tokens in blocks of 64 and
with 4,096 in asymmetric ones of 32. For normal values in blocks of 64, scales shifted by one block raise it 2.4 times,
zero points shifted by one 3.6 times."""
RTN_FACTOR = 1.01
"""The same for weights that were rounded to nearest."""


def measure_weights(quantized: Checkpoint, original: Checkpoint, progress: Progress) -> list[WeightError]:
    """The error of every weight of a quantized checkpoint.

    Args:
        quantized: the checkpoint with quantized weights.
        original: the checkpoint that it was made from.
        progress: called with the share of the weights that are compared.

    Raises:
        CheckpointError: if the original one lacks a weight or has it in another shape, or a file cannot be read.
    """
    assert quantized.quantization is not None
    factor = RTN_FACTOR if quantized.quantization.method is Method.RTN else LARGEST_FACTOR
    names, found = quantized.parameters, []
    for index, name in enumerate(names):
        progress("comparing the weights", index / len(names))
        stored, source = quantized.find_weight(name), _original(original, name)
        assert not isinstance(stored, ForeignTensor)  # a bundle has the weights in its own form
        if stored.shape != source.shape:
            raise CheckpointError(
                "a weight has another shape in the unquantized model",
                got=f"{name}: {list(source.shape)} in {original.path}",
                wanted=list(stored.shape),
                hint="name the bundle or checkpoint that was quantized",
            )
        weights, values = read_values(original.path, source), read_values(quantized.path, stored)
        scale = max(_rms(weights), float(np.finfo(np.float32).tiny))
        bits, limit = None, 0.0
        if isinstance(stored, QuantizedTensor):
            bits, limit = stored.bits, factor * _rms_of_rounding(weights, stored) / scale
        found.append(WeightError(name=name, bits=bits, rms_rel=_rms(values - weights) / scale, limit=limit))
    return found


def _original(checkpoint: Checkpoint, name: str) -> StoredTensor:
    """The original of a weight; of a tied head, the embedding."""
    family = checkpoint.family
    tied = checkpoint.architecture.tie_word_embeddings and name == family.head
    return checkpoint.find(family.embedding if tied else name)


def _rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _rms_of_rounding(weights: NDArray[np.float32], form: QuantizedTensor) -> float:
    """The error that rounding to nearest makes in the bits and blocks of a stored weight."""
    return float(np.sqrt(sum(_squares_of_rounding(weights, form)) / weights.size))


def _squares_of_rounding(weights: NDArray[np.float32], form: QuantizedTensor) -> Iterator[float]:
    dtype, block = NUMPY_DTYPES[form.scales.dtype], form.block_size or weights.shape[1]
    for first in range(0, len(weights), ROWS):
        rows = weights[first : first + ROWS]
        rounded = round_to_nearest(rows, form.bits, block, dtype, symmetric=form.zeros is None)
        yield float(np.sum(np.square(rounded.values() - rows, dtype=np.float64)))
