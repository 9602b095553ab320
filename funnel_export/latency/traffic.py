"""Counting bytes: what a step of generation reads, which limits its speed at small batches."""

from dataclasses import replace

from funnel_export.families.architecture import Architecture
from funnel_export.families.base import Family
from funnel_export.spec.choices import Dtype
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.quantization import Part
from funnel_export.spec.stages import stages_of

ITEMSIZE = {Dtype.FLOAT32: 4, Dtype.FLOAT16: 2, Dtype.BFLOAT16: 2}
"""Bytes of one number."""


def step_bytes(family: Family, architecture: Architecture, spec: ExportSpec, past: int, batch: int = 1) -> float:
    """Bytes that a step reads: the weights of layers, maps and head, and the caches of each row.

    The middle layers run in one of S steps, since rows that are generated together close their windows together; this
    is the average. A layer with a sliding window reads the window's entries where they are gathered first (`reach_of`),
    and its whole cache elsewhere. Quantized weights count with their scales. Gathered embeddings and activations are
    negligible and not counted.

    Args:
        family: the model's family.
        architecture: its sizes.
        spec: dtype and funnel of the export.
        past: tokens of each row before the step.
        batch: number of rows.
    """
    entry = 2 * architecture.num_key_value_heads * architecture.head_dim
    hidden, itemsize = architecture.hidden_size, ITEMSIZE[spec.dtype]
    mlp = 3 * hidden * architecture.intermediate_size
    size: float = architecture.vocab_size * hidden * weight_bytes(spec, Part.HEAD, hidden)
    if spec.funnel is not None:
        size += spec.funnel.map_weights(hidden) * itemsize
    for stage in stages_of(spec.funnel, architecture.num_hidden_layers).values():
        for layer in stage.layers:
            attention = family.layer_cost(architecture, layer).weights - mlp
            window = stage.window(family.layer_facts(architecture, layer).sliding_window)
            reach = stage.reach(window, architecture.max_position_embeddings)
            held = past / stage.stride
            entries = batch * entry * (held if reach is None else min(held, reach))
            weights = attention * weight_bytes(spec, Part.ATTENTION, hidden) + mlp * weight_bytes(
                spec, Part.MLP, hidden
            )
            size += (weights + entries * itemsize) / stage.stride
    return size


def weight_bytes(spec: ExportSpec, part: Part, inputs: int) -> float:
    """Bytes of one weight of a product with so many inputs, with its share of scales and zero points."""
    bits = None if spec.quantization is None else spec.quantization.bits_of(part)
    if spec.quantization is None or bits is None:
        return ITEMSIZE[spec.dtype]
    zero = 0.0 if spec.quantization.symmetric else bits / 8
    return bits / 8 + (ITEMSIZE[spec.dtype] + zero) / (spec.quantization.block_of(inputs) or inputs)


def predicted_step_ratio(
    family: Family, architecture: Architecture, spec: ExportSpec, past: int, batch: int = 1
) -> float:
    """Bytes of a step with a funnel over those of the dense model; see `step_bytes`."""
    dense = step_bytes(family, architecture, replace(spec, funnel=None), past, batch)
    return step_bytes(family, architecture, spec, past, batch) / dense
