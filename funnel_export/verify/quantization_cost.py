"""What quantized weights cost: the outputs that eager PyTorch computes with them, and with the original weights."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from funnel_export.bundle.load import Bundle
from funnel_export.bundle.ports import PortKind
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.progress import Progress
from funnel_export.spec.choices import Task
from funnel_export.verify.boundaries import run_eager
from funnel_export.verify.metrics import divergences, measure
from funnel_export.verify.quantization_report import OutputCost, QuantizationCost, TextCost
from funnel_export.verify.reference import REFERENCE_DTYPES, Eager
from funnel_export.verify.weight_errors import measure_weights


class Original(NamedTuple):
    """What the weights of a bundle were before they were quantized."""

    name: str
    """As the user named it."""
    checkpoint: Checkpoint
    max_kl: float
    """The largest mean KL divergence that is allowed, in nats."""
    text: TextCost | None = None
    """What is known of documents."""


def measure_cost(
    bundle: Bundle,
    original: Original,
    inputs: Sequence[Mapping[PortKind, NDArray[Any]]],
    outputs: Sequence[NDArray[Any]],
    progress: Progress,
) -> QuantizationCost:
    """Compare a quantized bundle with the original weights.

    Args:
        bundle: the bundle.
        original: what it is compared with.
        inputs: tokens and mask of each case.
        outputs: the reference's outputs for them with the quantized weights, [positions, width].
        progress: called with the name of each step.

    Raises:
        CheckpointError: if the original weights are those of another model, or cannot be read.
    """
    weights = measure_weights(Checkpoint.open(bundle.path), original.checkpoint, progress)
    dtype = REFERENCE_DTYPES[bundle.spec.dtype]
    progress("eager with the original weights")
    rows = run_eager(Eager(bundle, dtype, source=original.checkpoint), [(tokens, ()) for tokens in inputs])
    reference = [row[bundle.output.name] for row in rows]
    return QuantizationCost(
        original=original.name,
        weights=weights,
        outputs=_cost(outputs, reference, logits=bundle.spec.task is not Task.FEATURE_EXTRACTION),
        text=original.text,
        max_kl=original.max_kl,
    )


def _cost(found: Sequence[NDArray[Any]], reference: Sequence[NDArray[Any]], *, logits: bool) -> OutputCost:
    one, other = np.concatenate(list(found)), np.concatenate(list(reference))
    error = measure(one, other, logits=logits)
    kl = float(divergences(one, other).mean()) if logits else None
    return OutputCost(rms_rel=error.rms_rel, kl=kl, largest_kl=error.kl, top1=error.top1)
