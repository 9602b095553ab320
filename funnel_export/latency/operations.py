"""Counting operations: what a funnel would save if time were proportional to them."""

from dataclasses import dataclass, replace

from funnel_export.bundle.load import Bundle
from funnel_export.families.architecture import Architecture
from funnel_export.families.base import Family
from funnel_export.spec.choices import Task
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import FunnelSpec, segments_of

LENGTHS = (128, 512, 2048, 8192)
"""Lengths for which the saving is predicted."""


@dataclass(frozen=True, slots=True)
class Operations:
    """Floating-point operations of one forward pass of one row; a multiply-add counts as two."""

    layers: int
    """Projections of attention and MLP, and the maps of recovery `linear`."""
    attention: int
    """Scores and weighted values of all pairs of positions, masked ones included."""
    head: int
    """Logits or classes. The final norm, pooling and recovery without maps are negligible and not counted."""

    @property
    def total(self) -> int:
        """The sum of all."""
        return self.layers + self.attention + self.head


def count_operations(family: Family, architecture: Architecture, spec: ExportSpec, length: int) -> Operations:
    """Operations for a row of `length` tokens; where tokens are chosen, for its last one, as after a prompt."""
    layers = attention = 0
    trimmed = spec.trimmed_layer(architecture.num_hidden_layers)
    for layer, keys in enumerate(layer_lengths(architecture.num_hidden_layers, spec.funnel, length)):
        cost, queries = family.layer_cost(architecture, layer), 1 if layer == trimmed else keys
        layers += 2 * (cost.keys * keys + (cost.weights - cost.keys) * queries)
        attention += 2 * cost.attention * keys * queries
    maps, mapped = 0, length
    if spec.funnel is not None:
        maps = spec.funnel.map_weights(architecture.hidden_size)
        if trimmed is not None and trimmed < spec.funnel.pool_layer:  # all layers after it are dropped
            mapped = 1
    outputs = {
        Task.FEATURE_EXTRACTION: 0,
        Task.TEXT_GENERATION: architecture.vocab_size,
        Task.TEXT_CLASSIFICATION: architecture.num_labels,
        Task.TOKEN_CLASSIFICATION: architecture.num_labels,
    }[spec.task.single_pass]
    return Operations(
        layers=layers + 2 * maps * mapped,
        attention=attention,
        head=2 * architecture.hidden_size * outputs * (1 if spec.chooses_tokens else length),
    )


def layer_lengths(num_layers: int, funnel: FunnelSpec | None, length: int) -> list[int]:
    """The number of positions that each layer processes, for a row of `length` tokens."""
    lengths = [0] * num_layers  # of dropped layers
    for segment in segments_of(funnel, num_layers):
        for layer in segment.layers:
            lengths[layer] = segment.length(length)
    return lengths


def predicted_ratio(family: Family, architecture: Architecture, spec: ExportSpec, length: int) -> float:
    """Operations of the model with a funnel over those of the dense model, for a row of `length` tokens."""
    dense = count_operations(family, architecture, replace(spec, funnel=None), length).total
    return count_operations(family, architecture, spec, length).total / dense


def predictions(bundle: Bundle) -> list[dict[str, float]]:
    """For each length, the operations of one row in GFLOP, dense and with the bundle's funnel, and their ratio."""
    rows = []
    for length in LENGTHS:
        dense, funnel = (
            count_operations(bundle.family, bundle.architecture, spec, length).total
            for spec in (replace(bundle.spec, funnel=None), bundle.spec)
        )
        row = {"length": length, "dense_gflop": dense / 1e9, "funnel_gflop": funnel / 1e9, "ratio": funnel / dense}
        rows.append(row)
    return rows
